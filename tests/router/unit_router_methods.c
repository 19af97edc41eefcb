/* unit_router_methods.c: methods other than plain top-k, noise and expert dropout: what each
 * promises, that nothing depends on ranks, and the gradient of the weights where a method changes
 * them. */
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "check.h"
#include "random_router.h"
#include "reference.h"
#include "router/methods.h"
#include "router/noise.h"
#include "router/scores.h"
#include "router/select.h"
#include "router/weight_gradient.h"
#include "router/weights.h"

enum { N = 16, K = 3, DEVICES = 4, TOKENS = 203 };

static moe_router plain(enum moe_router_method method) {
    return (moe_router){.num_experts = N,
                        .top_k = method == MOE_METHOD_SWITCH   ? 1
                                 : method == MOE_METHOD_GSHARD ? 2
                                                               : K,
                        .num_groups = 1,
                        .topk_group = 1,
                        .method = method,
                        .devices = DEVICES,
                        .top_p = 0.6,
                        .temperature = 1,
                        .sinkhorn_tolerance = 1e-4,
                        .sinkhorn_iterations = 10000,
                        .routed_scaling_factor = 1,
                        .scale_normalized = true,
                        .norm_single = true,
                        .comm_count_local = true};
}

static const moe_draw fifth = {.seed = 7, .step = 5, .layer = 2};

typedef struct routed {
    moe_batch batch;
    moe_placement placement;
    moe_routing routing;
    moe_stats stats;
    int64_t bad;
} routed;

/* The tokens of one rank of `ranks`. */
static routed route_drawn(const moe_router *r,
                          const moe_draw *d,
                          const float *z,
                          int rank,
                          int ranks) {
    routed x = {0};
    moe_batch_layout(&x.batch, TOKENS, 40, DEVICES, rank, ranks);
    moe_placement_block(&x.placement, N, DEVICES);
    moe_stats_reserve(&x.stats, N, DEVICES, x.batch.num_segments);
    moe_router_route(r, d, &x.batch, &x.placement, (moe_logits){.f32 = z + x.batch.first_token * N},
                     NULL, &x.routing, &x.stats, &x.bad);
    return x;
}

static routed route(const moe_router *r, const float *z, int rank, int ranks) {
    return route_drawn(r, &fifth, z, rank, ranks);
}

static void routed_free(routed *x) {
    moe_batch_free(&x->batch);
    moe_placement_free(&x->placement);
    moe_routing_free(&x->routing);
    moe_stats_free(&x->stats);
}

static float *logits(uint64_t seed, int kind) {
    float *z = malloc(sizeof(float) * TOKENS * N);
    for (uint64_t j = 0; j < TOKENS * N; j++) {
        z[j] = random_logit(seed, kind, j / N, j % N);
    }
    return z;
}

static void count_experts(const moe_routing *r, int64_t counts[N]) {
    memset(counts, 0, N * sizeof *counts);
    for (int64_t i = 0; i < r->num_selections; i++) {
        counts[r->expert[i]]++;
    }
}

/* --- the same on any number of ranks; distinct experts in order; nobody disabled --- */

static void check_token(const moe_router *r, const moe_routing *x, int64_t t, const float *z) {
    int64_t begin = x->row_offset[t], end = x->row_offset[t + 1];
    CHECK(end - begin <= moe_method_most(r));
    for (int64_t i = begin; i < end; i++) {
        CHECK(z[x->expert[i]] != -INFINITY);
        for (int64_t j = begin; j < i; j++) {
            CHECK(x->expert[i] != x->expert[j]);
        }
        if (i > begin) {
            CHECK(x->score[i] < x->score[i - 1] ||
                  (x->score[i] == x->score[i - 1] && x->expert[i] > x->expert[i - 1]));
        }
    }
}

static void test_ranks(enum moe_router_method method, int kind) {
    moe_router r = plain(method);
    r.second_choice = (enum moe_second_choice)(kind % 3);
    float *z = logits(11, kind);
    routed whole = route(&r, z, 0, 1);
    for (int64_t t = 0; t < TOKENS; t++) {
        check_token(&r, &whole.routing, t, z + t * N);
    }
    for (int rank = 0; rank < DEVICES; rank++) {
        routed part = route(&r, z, rank, DEVICES);
        int64_t first = part.batch.first_token, at = whole.routing.row_offset[first];
        for (int64_t t = 0; t <= part.batch.num_tokens; t++) {
            CHECK_EQ(whole.routing.row_offset[first + t] - at, part.routing.row_offset[t]);
        }
        CHECK(memcmp(whole.routing.expert + at, part.routing.expert,
                     (size_t)part.routing.num_selections * sizeof(int32_t)) == 0);
        CHECK(memcmp(whole.routing.weight + at, part.routing.weight,
                     (size_t)part.routing.num_selections * sizeof(real)) == 0);
        routed_free(&part);
    }
    routed_free(&whole);
    free(z);
}

/* --- what each promises --- */

static void test_round_robin(void) {
    for (int32_t k = 1; k <= N; k++) { /* whatever the stride */
        moe_router r = plain(MOE_METHOD_ROUND_ROBIN);
        r.top_k = k;
        float *z = logits(3, 0);
        routed x = route(&r, z, 0, 1);
        int64_t counts[N];
        int64_t low = INT64_MAX;
        int64_t high = 0;
        int64_t device[DEVICES] = {0};
        count_experts(&x.routing, counts);
        for (int i = 0; i < N; i++) {
            low = counts[i] < low ? counts[i] : low;
            high = counts[i] > high ? counts[i] : high;
            device[i / (N / DEVICES)] += counts[i];
        }
        CHECK_MSG(high - low <= 1, "K %d: %lld to %lld", k, (long long)low, (long long)high);
        for (int d = 1; d < DEVICES; d++) {
            CHECK_MSG(llabs(device[d] - device[0]) <= 1, "K %d, device %d", k, d);
        }
        routed_free(&x);
        free(z);
    }
}

static void test_expert_choice(void) {
    moe_router r = plain(MOE_METHOD_EXPERT_CHOICE);
    float *z = logits(4, 1); /* many ties */
    routed x = route(&r, z, 0, 1);
    for (int d = 0; d < DEVICES; d++) {
        int64_t counts[N] = {0};
        int64_t begin = x.batch.device_offset[d];
        int64_t end = x.batch.device_offset[d + 1];
        int64_t wanted = (int64_t)floor((double)(end - begin) * K / N + 0.5);
        for (int64_t i = x.routing.row_offset[begin]; i < x.routing.row_offset[end]; i++) {
            counts[x.routing.expert[i]]++;
        }
        for (int i = 0; i < N; i++) {
            CHECK_MSG(counts[i] == wanted, "device %d, expert %d: %lld tokens", d, i,
                      (long long)counts[i]);
        }
    }
    routed_free(&x);
    free(z);
}

/* The balanced matrix has equal row and column sums: the factors make every expert's expected share
 * 1/N. */
static void test_sinkhorn(void) {
    moe_router r = plain(MOE_METHOD_SINKHORN), top = plain(MOE_METHOD_TOPK);
    float *z = logits(5, 0);
    for (int i = 0; i < TOKENS * N; i++) {
        z[i] += (float)(i % N) * 0.3F; /* a popular end */
    }
    routed x = route(&r, z, 0, 1), y = route(&top, z, 0, 1);
    int64_t balanced[N], greedy[N];
    CHECK_EQ(x.routing.unconverged_device, -1);
    count_experts(&x.routing, balanced);
    count_experts(&y.routing, greedy);
    CHECK(balanced[0] > greedy[0] && balanced[N - 1] < greedy[N - 1]);
    routed_free(&x);
    r.sinkhorn_iterations = 1;
    r.sinkhorn_tolerance = 1e-12;
    x = route(&r, z, 0, 1);
    CHECK_EQ(x.routing.unconverged_device, 0);
    routed_free(&x);
    moe_draw validation = fifth;
    validation.evaluating = true; /* plain top-k outside training */
    x = route_drawn(&r, &validation, z, 0, 1);
    CHECK(memcmp(x.routing.expert, y.routing.expert, sizeof(int32_t) * TOKENS * K) == 0);
    routed_free(&x);
    routed_free(&y);
    free(z);
}

/* As many as it takes for the sum to exceed p, and not one more. */
static void test_top_p(enum moe_temperature_on on, double temperature) {
    moe_router r = plain(MOE_METHOD_TOP_P);
    r.top_k = N;
    r.temperature = temperature;
    r.temperature_on = on;
    float *z = logits(6, 0);
    routed x = route(&r, z, 0, 1);
    double divisor = on == MOE_TEMPERATURE_PROBABILITIES ? temperature : 1;
    for (int64_t t = 0; t < TOKENS; t++) {
        double sum = 0, last = 0;
        for (int64_t i = x.routing.row_offset[t]; i < x.routing.row_offset[t + 1]; i++) {
            last = x.routing.score[i] / divisor;
            sum += last;
            CHECK_NEAR((double)x.routing.weight[i], last, 1e-6);
        }
        CHECK((sum > r.top_p || x.routing.row_offset[t + 1] - x.routing.row_offset[t] == N) &&
              sum - last <= r.top_p);
    }
    routed_free(&x);
    free(z);
}

/* hash: the layer and the token alone; random: anew in every step. */
static void test_keys(void) {
    float *z = logits(8, 0);
    for (int i = 0; i < 2; i++) {
        moe_router r = plain(i ? MOE_METHOD_RANDOM : MOE_METHOD_HASH);
        moe_draw d = fifth;
        routed a = route_drawn(&r, &d, z, 0, 1);
        d.step++;
        routed b = route_drawn(&r, &d, z, 0, 1);
        d.layer++;
        routed c = route_drawn(&r, &d, z, 0, 1);
        CHECK((memcmp(a.routing.expert, b.routing.expert, sizeof(int32_t) * TOKENS * K) != 0) ==
              (i == 1));
        CHECK(memcmp(b.routing.expert, c.routing.expert, sizeof(int32_t) * TOKENS * K) != 0);
        routed_free(&a);
        routed_free(&b);
        routed_free(&c);
    }
    free(z);
}

/* The second is left out about as often as 1 - 2 g2 says; what is left keeps the weight it had. */
static void test_second_choice(void) {
    moe_router r = plain(MOE_METHOD_GSHARD), best = plain(MOE_METHOD_TOPK);
    r.second_choice = MOE_SECOND_RANDOM;
    r.norm_topk_prob = best.norm_topk_prob = true;
    best.top_k = 2;
    float *z = logits(9, 0);
    routed x = route(&r, z, 0, 1), y = route(&best, z, 0, 1);
    double expected = 0, variance = 0;
    for (int64_t t = 0; t < TOKENS; t++) {
        double p = 2 * (double)y.routing.weight[2 * t + 1];
        expected += 1 + p;
        variance += p * (1 - p);
        CHECK_EQ(x.routing.expert[x.routing.row_offset[t]], y.routing.expert[2 * t]);
        CHECK_EQ(x.routing.weight[x.routing.row_offset[t]], y.routing.weight[2 * t]);
    }
    CHECK_MSG(fabs((double)x.routing.num_selections - expected) <= 5 * sqrt(variance),
              "%lld selections, %g expected", (long long)x.routing.num_selections, expected);
    routed_free(&x);
    routed_free(&y);
    free(z);
}

/* --- noise and expert dropout --- */

static void test_perturb(void) {
    enum { DROPPED = 4 };
    moe_router r = plain(MOE_METHOD_TOPK);
    moe_batch whole = {0}, part = {0};
    real *a = calloc(TOKENS * N, sizeof *a), *b = calloc(TOKENS * N, sizeof *b);
    double sum = 0;
    double squares = 0;
    double count = 0;
    int dropped = 0;
    r.noise = 0.5;
    r.expert_dropout = (double)DROPPED / N;
    moe_batch_layout(&whole, TOKENS, 0, DEVICES, 0, 1);
    moe_batch_layout(&part, TOKENS, 0, DEVICES, 2, DEVICES);
    moe_draw d = fifth;
    moe_noise_perturb(&r, &d, &whole, a);
    CHECK(memcmp(a, b, sizeof *a * TOKENS * N) == 0); /* not in training: nothing */
    d.training = true;
    moe_noise_perturb(&r, &d, &whole, a);
    moe_noise_perturb(&r, &d, &part, b);
    CHECK(memcmp(a + part.first_token * N, b, sizeof *a * (size_t)part.num_tokens * N) == 0);
    for (int i = 0; i < N; i++) {
        dropped += a[i] == -(real)INFINITY;
    }
    CHECK_EQ(dropped, DROPPED);
    for (int i = 0; i < TOKENS * N; i++) {
        CHECK((a[i] == -(real)INFINITY) == (a[i % N] == -(real)INFINITY));
        if (a[i] == -(real)INFINITY) {
            continue;
        }
        sum += (double)a[i];
        squares += (double)a[i] * (double)a[i];
        count++;
    }
    CHECK(fabs(sum / count) < 5 * 0.5 / sqrt(count) && fabs(sqrt(squares / count) - 0.5) < 0.03);
    moe_batch_free(&whole);
    moe_batch_free(&part);
    free(a);
    free(b);
}

/* --- the gradient of the weights --- */

/* sum_k dg_k g_k of one token, the choice fixed by its key. */
static double weighted(const moe_router *r, const moe_draw *d, const double *z, const real *dg) {
    double s[N], weight[N], sum = 0;
    int32_t expert[N];
    moe_scores_fill(r, z, s, NULL);
    int32_t count = moe_select_token(r, d, 0, z, s, expert, weight);
    for (int32_t k = 0; k < count; k++) {
        sum += (double)dg[k] * weight[k];
    }
    return sum;
}

static void test_weight_gradient(moe_router r, const moe_draw *d, const char *what) {
    double z[N], s[N], weight[N], dz[N] = {0};
    real dg[N];
    int32_t expert[N];
    int64_t offset[2] = {0, 0};
    for (uint64_t i = 0; i < N; i++) {
        z[i] = random_logit(21, 0, 3, i);
        dg[i] = (real)(random_unit(22, 0, i) - 0.5);
    }
    moe_scores_fill(&r, z, s, NULL);
    offset[1] = moe_select_token(&r, d, 0, z, s, expert, weight);
    moe_routing one = {
        .num_tokens = 1, .num_selections = offset[1], .row_offset = offset, .expert = expert};
    moe_weight_gradient(&r, (moe_logits){.f64 = z}, &one, NULL, dg, dz);
    for (int i = 0; i < N; i++) {
        double kept = z[i], up, down;
        z[i] = kept + 1e-5;
        up = weighted(&r, d, z, dg);
        z[i] = kept - 1e-5;
        down = weighted(&r, d, z, dg);
        z[i] = kept;
        CHECK_MSG(fabs((up - down) / 2e-5 - dz[i]) < 1e-8,
                  "%s, expert %d: difference %.10g, gradient %.10g", what, i, (up - down) / 2e-5,
                  dz[i]);
    }
}

static void test_weight_gradients(void) {
    moe_router r = plain(MOE_METHOD_TOP_P);
    r.temperature = 0.7;
    r.top_k = N;
    test_weight_gradient(r, &fifth, "top_p, temperature on logits");
    r.temperature_on = MOE_TEMPERATURE_PROBABILITIES;
    test_weight_gradient(r, &fifth, "top_p, temperature on probabilities");
    r = plain(MOE_METHOD_GSHARD);
    r.norm_topk_prob = true;
    r.second_choice = MOE_SECOND_RANDOM;
    moe_draw d = fifth;
    for (d.seed = 0; d.seed < 6; d.seed++) { /* with and without the second */
        test_weight_gradient(r, &d, "gshard, random second choice");
    }
    test_weight_gradient(plain(MOE_METHOD_HASH), &fifth, "hash");
}

/* softmax_topk: weights are the same function of the chosen logits however small the share of the
 * chosen is, and so is their gradient: dg_0/dz_0 = g_0 g_1. */
static void test_small_share(void) {
    const double z[4] = {0, -41, -40, -1};
    const real dg[2] = {1, 0};
    moe_router r = {.num_experts = 4,
                    .top_k = 2,
                    .num_groups = 1,
                    .topk_group = 1,
                    .score_func = MOE_SCORE_SOFTMAX_TOPK,
                    .scale_normalized = true,
                    .routed_scaling_factor = 1};
    double s[4], weight[2], dz[4] = {0}, chosen[2];
    int32_t expert[2] = {2, 1};
    int64_t offset[2] = {0, 2};
    moe_routing one = {
        .num_tokens = 1, .num_selections = 2, .row_offset = offset, .expert = expert};
    moe_scores_fill(&r, z, s, NULL);
    chosen[0] = s[2];
    chosen[1] = s[1];
    moe_weights_fill(&r, chosen, 2, weight);
    moe_weight_gradient(&r, (moe_logits){.f64 = z}, &one, NULL, dg, dz);
    const double g = 1 / (1 + exp(-1.0)), slope = g * (1 - g);
    CHECK_MSG(fabs(weight[0] - g) < 1e-14, "weight %.17g, not %.17g", weight[0], g);
    CHECK_MSG(fabs(dz[2] - slope) < 1e-14 && fabs(dz[1] + slope) < 1e-14,
              "gradient %.17g and %.17g, not %.17g", dz[2], dz[1], slope);
    CHECK(fabs(dz[0]) < 1e-14 && fabs(dz[3]) < 1e-14);
}

int main(void) {
    for (int method = 0; method < MOE_NUM_METHODS; method++) {
        for (int kind = 0; kind < 6; kind++) {
            RUN(test_ranks, (enum moe_router_method)method, kind);
        }
    }
    RUN(test_round_robin);
    RUN(test_expert_choice);
    RUN(test_sinkhorn);
    RUN(test_top_p, MOE_TEMPERATURE_LOGITS, 1);
    RUN(test_top_p, MOE_TEMPERATURE_LOGITS, 0.5);
    RUN(test_top_p, MOE_TEMPERATURE_PROBABILITIES, 0.5);
    RUN(test_keys);
    RUN(test_second_choice);
    RUN(test_perturb);
    RUN(test_weight_gradients);
    RUN(test_small_share);
    return check_verdict();
}
