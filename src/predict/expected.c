/* expected.c: means over choices that are drawn at random. */
#include "predict/expected.h"

#include <math.h>

#include "base/alloc.h"
#include "base/rng.h"
#include "capacity/capacity.h"
#include "router/scores.h"

/* --- experts of a token --- */

enum { SAMPLES = 64, MOST_EXPERTS = 1 << 12 };

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

/* The mean over tokens whose logits are normal numbers with the deviation router.gate_scale, which
 * is what untrained gates give. */
static double sampled_choices(const moe_config *c) {
    const int32_t n = c->model.num_experts < MOST_EXPERTS ? c->model.num_experts : MOST_EXPERTS;
    real *z = moe_alloc(n, sizeof *z, "logits of a sample");
    double sum = 0;
    for (int i = 0; i < SAMPLES; i++) {
        moe_rng_normal((moe_rng){(uint64_t)c->run.seed, MOE_RNG_GATE}, UINT64_MAX, (uint64_t)i,
                       c->router.gate_scale, z, n);
        sum +=
            c->router.method == MOE_METHOD_TOP_P ? top_p_choices(c, z, n) : gshard_choices(c, z, n);
    }
    moe_free(z);
    return sum / SAMPLES;
}

double moe_expected_choices(const moe_config *c, int64_t device_tokens) {
    const double n = c->model.num_experts, t = (double)device_tokens, k = c->router.top_k;
    const bool random_second =
        c->router.method == MOE_METHOD_GSHARD && c->router.second_choice == MOE_SECOND_RANDOM;
    if (c->data.source != MOE_SOURCE_ROUTING &&
        (c->router.method == MOE_METHOD_TOP_P || random_second)) {
        return sampled_choices(c);
    }
    if (moe_config_recorded(c) || c->router.method != MOE_METHOD_EXPERT_CHOICE || t == 0) {
        return k;
    }
    double each = floor((2 * t * k + n) / (2 * n));
    each = each < 1 ? 1 : each > t ? t : each;
    return each * n / t;
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

double moe_expected_reach(const moe_config *c, double k) {
    return reach(c, k, c->cluster.devices);
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

double moe_expected_kept(const moe_config *c, int64_t tokens, double k) {
    moe_capacity capacity;
    moe_capacity_init(&capacity, &c->capacity, c->model.num_experts, c->cluster.devices,
                      c->router.top_k, 0);
    int64_t pool = tokens, length = c->data.sequence_length;
    if (capacity.policy == MOE_CAPACITY_NONE || tokens == 0) {
        return 1;
    }
    if (capacity.policy == MOE_CAPACITY_SEQUENCE) {
        pool = length > 0 && length < tokens ? length : tokens;
    } else if (capacity.scope == MOE_CAPACITY_PER_DEVICE) {
        pool = tokens / c->cluster.devices;
    }
    const double selections = (double)pool * k, mean = selections / moe_capacity_targets(&capacity);
    const double most = (double)moe_capacity_pairs(&capacity, pool, (int64_t)selections);
    double kept = capacity.overflow == MOE_OVERFLOW_NEXT_CHOICE ? fmin(1, most / mean)
                                                                : kept_of_poisson(mean, most);
    return capacity.exempt_sequences + (1 - capacity.exempt_sequences) * kept;
}
