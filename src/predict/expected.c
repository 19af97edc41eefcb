/* expected.c: means over choices that are drawn at random. */
#include "predict/expected.h"

#include <math.h>

#include "base/alloc.h"
#include "base/rng.h"
#include "capacity/capacity.h"
#include "predict/internal.h"
#include "router/scores.h"

/* --- experts of a token --- */

enum { SAMPLES = 64, MOST_EXPERTS = 1 << 12, FEW_SEQUENCES = 256, FEW_STEPS = 8 };

/* The share of the second of two scores, of which the larger one is s1. */
static double second_share(const moe_config *c, double z1, double z2) {
    const double z[2] = {z1, z2};
    double s[2];
    moe_score_functions[c->router.score_func].fill(z, 1, s, 2, NULL);
    return s[1] / (s[0] + s[1]);
}

/* GShard's random second choice is kept with probability min(1, 2 g2) (router/select.c). */
static double gshard_choices(const moe_config *c, const real *z, int32_t n) {
    double first = -INFINITY, second = -INFINITY;
    for (int32_t i = 0; i < n; i++) {
        second = z[i] > first ? first : fmax(second, z[i]);
        first = fmax(first, z[i]);
    }
    return n < 2 ? 1 : 1 + fmin(1, 2 * second_share(c, first, second));
}

/* Falling probabilities up to and including the first at which their sum exceeds top_p. Clears z.
 */
static double top_p_choices(const moe_config *c, real *z, int32_t n) {
    double total = 0, sum = 0;
    int32_t count = 0;
    for (int32_t i = 0; i < n; i++) {
        total += z[i] = (real)exp(z[i] / c->router.temperature);
    }
    while (count < c->router.top_k && count < n && sum <= c->router.top_p) {
        int32_t best = 0;
        for (int32_t i = 1; i < n; i++) {
            best = z[i] > z[best] ? i : best;
        }
        sum += z[best] / total;
        z[best] = 0;
        count++;
    }
    return count;
}

/* Whether the number of a token's experts depends on its logits. */
static bool depends_on_logits(const moe_config *c) {
    const bool random_second =
        c->router.method == MOE_METHOD_GSHARD && c->router.second_choice == MOE_SECOND_RANDOM;
    return c->data.source != MOE_SOURCE_ROUTING &&
           (c->router.method == MOE_METHOD_TOP_P || random_second);
}

/* Changes z. */
static double choices_of_token(const moe_config *c, real *z, int32_t n) {
    return c->router.method == MOE_METHOD_TOP_P ? top_p_choices(c, z, n) : gshard_choices(c, z, n);
}

/* The mean over tokens whose logits are normal numbers with the deviation router.gate_scale, which
 * is what untrained gates give. */
static double sampled_choices(const moe_config *c) {
    const int32_t n = c->model.num_experts < MOST_EXPERTS ? c->model.num_experts : MOST_EXPERTS;
    real *z = moe_alloc(n, sizeof *z, "logits of a sample");
    double sum = 0;
    for (int i = 0; i < SAMPLES; i++) {
        moe_rng_normal((moe_rng){(uint64_t)c->run.seed, MOE_RNG_GATE}, UINT64_MAX, (uint64_t)i,
                       c->router.gate_scale, z, n);
        sum += choices_of_token(c, z, n);
    }
    moe_free(z);
    return sum / SAMPLES;
}

double moe_expected_recorded_choices(const moe_config *c,
                                     const void *logits,
                                     bool is_double,
                                     int64_t rows) {
    const int32_t n = c->model.num_experts;
    const int64_t samples = min64(rows, SAMPLES);
    if (!depends_on_logits(c) || rows == 0) {
        return 0;
    }
    real *z = moe_alloc(n, sizeof *z, "logits of a sample");
    double sum = 0;
    for (int64_t i = 0; i < samples; i++) {
        const int64_t first = i * (rows / samples) * n;
        for (int32_t e = 0; e < n; e++) {
            z[e] = (real)(is_double ? ((const double *)logits)[first + e]
                                    : ((const float *)logits)[first + e]);
        }
        sum += choices_of_token(c, z, n);
    }
    moe_free(z);
    return sum / (double)samples;
}

/* Experts that are not dropped in a step (router/noise.c). */
static int32_t experts_left(const moe_config *c) {
    const int32_t n = c->model.num_experts;
    const int32_t dropped = (int32_t)floor(c->router.expert_dropout * n + 0.5);
    return c->run.mode != MOE_MODE_TRAIN || dropped == 0 ? n : n - dropped > 0 ? n - dropped : 1;
}

double moe_expected_choices(const moe_config *c, int64_t device_tokens) {
    const double n = c->model.num_experts, t = (double)device_tokens, k = c->router.top_k;
    if (depends_on_logits(c)) {
        return fmin(sampled_choices(c), experts_left(c));
    }
    if (moe_config_recorded(c) || c->router.method != MOE_METHOD_EXPERT_CHOICE || t == 0) {
        return moe_config_recorded(c) ? k : fmin(k, experts_left(c));
    }
    double each = floor((2 * t * k + n) / (2 * n));
    each = each < 1 ? 1 : each > t ? t : each;
    return each * experts_left(c) / t;
}

/* --- devices of a token --- */

/* Of `targets` equal parts of the experts. */
static double reach(const moe_config *c, double k, double targets) {
    const double n = c->model.num_experts, own = n / targets;
    double missed = 1; /* probability that no expert of a part is chosen */
    if (k != floor(k) || c->router.method == MOE_METHOD_EXPERT_CHOICE) {
        missed = pow(k < n ? 1 - k / n : 0, own);
    } else {
        for (double i = 0; i < k && missed > 0; i++) {
            missed *= n - own - i > 0 ? (n - own - i) / (n - i) : 0;
        }
    }
    const double mean = targets * (1 - missed);
    return c->comm_limit > 0 && mean > c->comm_limit ? c->comm_limit : mean;
}

/* The share of the experts that stand on a token's own device, replicas too. */
static double share_at_home(const moe_config *c) {
    const double n = c->model.num_experts, redundant = c->placement.redundant_experts;
    return fmin(1, (n + (c->compares_placements ? 0 : redundant)) / c->cluster.devices / n);
}

/* A token is served at home where its own device has the expert, and by any other device where it
 * has not. */
double moe_expected_away(const moe_config *c, double k) {
    const double devices = c->cluster.devices, home = share_at_home(c);
    return home < 1 ? fmin(reach(c, k * (1 - home), devices), devices - 1) : 0;
}

double moe_expected_reach(const moe_config *c, double k) {
    const bool replicas = !c->compares_placements && c->placement.redundant_experts > 0;
    return replicas ? 1 - pow(1 - share_at_home(c), k) + moe_expected_away(c, k)
                    : reach(c, k, c->cluster.devices);
}

double moe_expected_nodes(const moe_config *c, double k) {
    return reach(c, k, (double)c->cluster.devices / c->cluster.devices_per_node);
}

/* --- what a capacity keeps --- */

/* E[min(X, most)] / mean for X with Poisson's distribution; a normal one where the mean is large.
 */
static double kept_of_poisson(double mean, double most) {
    const double pi = 3.14159265358979323846;
    if (mean <= 0 || most >= mean + 12 * sqrt(mean) + 12) {
        return 1;
    }
    if (mean > 64) {
        const double deviation = sqrt(mean), z = (most - mean) / deviation;
        const double beyond =
            deviation * exp(-z * z / 2) / sqrt(2 * pi) - (most - mean) * erfc(z / sqrt(2)) / 2;
        return 1 - beyond / mean;
    }
    double probability = exp(-mean), sum = 0, below = 0;
    for (double x = 0; x < most; x++) {
        sum += x * probability;
        below += probability;
        probability *= mean / (x + 1);
    }
    return (sum + most * (1 - below)) / mean;
}

/* Of the selections of a pool of tokens with k experts each. */
static double kept_of_pool(const moe_config *c,
                           const moe_capacity *capacity,
                           int64_t pool,
                           double k) {
    const double targets = moe_capacity_targets(capacity), n = c->model.num_experts;
    const double used = targets == n ? experts_left(c) : targets;
    const double selections = (double)pool * k, mean = selections / used;
    const double most = (double)moe_capacity_pairs(capacity, pool, (int64_t)selections);
    return capacity->overflow == MOE_OVERFLOW_NEXT_CHOICE ? fmin(1, most * targets / selections)
                                                          : kept_of_poisson(mean, most);
}

/* Of the selections of sequences, each of which is a pool of its own. */
static double kept_of_sequences(const moe_config *c,
                                const moe_capacity *capacity,
                                const moe_sequences *sequences,
                                int64_t tokens,
                                double k) {
    double kept = 0;
    if (!sequences->boundary) {
        return kept_of_pool(c, capacity, sequences->length, k);
    }
    for (int64_t q = 0; q < sequences->num; q++) {
        const int64_t length = sequences->boundary[q + 1] - sequences->boundary[q];
        kept += (double)length * kept_of_pool(c, capacity, length, k);
    }
    return kept / (double)tokens;
}

/* The share of the tokens whose sequences are exempt (capacity.c), the largest of some steps: of
 * few sequences a long one counts. */
static double exempt_share(const moe_config *c, const moe_sequences *s, int64_t tokens) {
    const double exact = c->capacity.exempt_sequences;
    const int64_t wanted = (int64_t)floor(exact * (double)s->num + 0.5);
    int64_t most = 0;
    if (s->num > FEW_SEQUENCES) {
        return exact;
    }
    uint64_t *hash = moe_alloc(s->num, sizeof *hash, "exempt sequences");
    for (int64_t step = 0; step < min64(c->run.steps, FEW_STEPS); step++) {
        int64_t exempt = 0;
        for (int64_t q = 0; q < s->num; q++) {
            hash[q] = moe_rng_bits((moe_rng){(uint64_t)c->run.seed, MOE_RNG_EXEMPT}, (uint64_t)step,
                                   (uint64_t)q, 0);
        }
        for (int64_t q = 0; q < s->num; q++) {
            int64_t before = 0;
            for (int64_t other = 0; other < s->num; other++) {
                before += hash[other] < hash[q];
            }
            const int64_t end =
                s->boundary ? s->boundary[q + 1] - s->boundary[q] : tokens - q * s->length;
            exempt += before < wanted ? (s->boundary ? end : min64(s->length, end)) : 0;
        }
        most = max64(most, exempt);
    }
    moe_free(hash);
    return (double)most / (double)tokens;
}

double moe_expected_kept(const moe_config *c,
                         const moe_sequences *sequences,
                         int64_t tokens,
                         double k) {
    moe_capacity capacity;
    moe_capacity_init(&capacity, c);
    if (capacity.policy == MOE_CAPACITY_NONE || tokens == 0) {
        return 1;
    }
    if (capacity.policy == MOE_CAPACITY_SEQUENCE) {
        return kept_of_sequences(c, &capacity, sequences, tokens, k);
    }
    const bool global = capacity.scope != MOE_CAPACITY_PER_DEVICE;
    const double kept =
        kept_of_pool(c, &capacity, global ? tokens : tokens / c->cluster.devices, k);
    const double exempt = capacity.exempt_sequences > 0 ? exempt_share(c, sequences, tokens) : 0;
    return exempt + (1 - exempt) * kept;
}
