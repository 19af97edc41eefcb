/* unit_router.c: the router against the oracle over keyed random cases, and its corner cases one by
 * one. */
#include <omp.h>
#include <string.h>

#include "base/alloc.h"
#include "base/exact.h"
#include "check.h"
#include "random_router.h"
#include "reference.h"
#include "router/group_theorem.h"
#include "router/groups.h"
#include "router/scores.h"
#include "router/select.h"

enum { SEEDS = 4000 };

/* --- exp --- */

static void test_exp(void) {
    double special[] = {0,      -0.0, -INFINITY,        INFINITY, 710,   -746,
                        -1e-17, NAN,  709.782712893384, -708.3,   -745.1};
    double y[61], x[61], worst = 0;
    moe_scores_exp(special, 0, y, 11);
    CHECK(y[0] == 1 && y[1] == 1 && y[2] == 0 && y[3] == INFINITY && y[4] == INFINITY &&
          y[5] == 0 && y[6] == 1 && isnan(y[7]));
    CHECK_NEAR(y[8], exp(709.782712893384), 1e-15);
    CHECK_NEAR(y[9], exp(-708.3), 1e-15);
    CHECK_EQ(y[10], 0x1p-1074);
    for (uint64_t j = 0; j < 2000; j++) {
        for (uint64_t i = 0; i < 61; i++) {
            x[i] = (random_unit(j, 2, i) - 0.5) * (j % 3 == 0 ? 1400 : j % 3 == 1 ? 60 : 2);
        }
        moe_scores_exp(x, 0, y, 61);
        for (uint64_t i = 0; i < 61; i++) {
            long double exact =
                expl((long double)((random_unit(j, 2, i) - 0.5) * (j % 3 == 0   ? 1400
                                                                   : j % 3 == 1 ? 60
                                                                                : 2)));
            worst = fmax(worst, (double)(fabsl(y[i] - exact) / exact));
        }
    }
    CHECK_MSG(worst <= 0x1p-52, "relative error %g", worst);
}

static void test_saturation(void) {
    moe_router r = {.num_experts = 9, .score_func = MOE_SCORE_SIGMOID};
    double z[9] = {0, 80, -80, 36, 37, 38, -709, -800, -INFINITY}, s[9], lse;
    moe_scores_fill(&r, z, s, &lse);
    for (int i = 0; i < 9; i++) {
        CHECK_NEAR(s[i], 1 / (1 + exp(-z[i])), 4e-16);
    }
    CHECK(s[0] == 0.5 && s[1] == 1 && s[5] == 1 && s[3] < 1 && s[7] == 0 && s[8] == 0 && lse == 80);
    r.score_func = MOE_SCORE_SOFTMAX;
    for (int i = 0; i < 9; i++) {
        z[i] = -INFINITY;
    }
    moe_scores_fill(&r, z, s, &lse);
    CHECK(lse == -INFINITY && s[0] == 0 && s[8] == 0);
}

/* --- one token --- */

static void check_token(uint64_t seed, const moe_router *r, const double *z) {
    int32_t n = r->num_experts, expert[16 * 16], wanted[16 * 16];
    double *s = malloc(2 * (size_t)n * sizeof *s);
    double *ref = s + n;
    double weight[16 * 16];
    double ref_weight[16 * 16];
    double lse;
    double ref_lse;
    double worst = 0;
    moe_scores_fill(r, z, s, &lse);
    ref_scores(r, z, ref, &ref_lse);
    for (int32_t i = 0; i < n; i++) {
        worst = fmax(worst, fabs(s[i] - ref[i]) / fmax(ref[i], 1e-300));
    }
    CHECK_MSG(worst < 1e-14, "seed %llu: score off by %g", (unsigned long long)seed, worst);
    CHECK_MSG(lse == ref_lse || fabs(lse - ref_lse) <= 1e-14 * fmax(1, fabs(ref_lse)),
              "seed %llu: lse %g, %g", (unsigned long long)seed, lse, ref_lse);
    int32_t count = moe_select_token(r, &(moe_draw){0}, 0, z, s, expert, weight),
            ref_count_ = ref_select(r, z, s, wanted, ref_weight);
    bool same = count == ref_count_ && memcmp(expert, wanted, (size_t)count * sizeof *expert) == 0;
    CHECK_MSG(same, "seed %llu: another selection (%d of %d, rule %d, scores %d)",
              (unsigned long long)seed, count, ref_count_, (int)r->group_limit, (int)r->score_func);
    for (int32_t k = 0; same && k < count; k++) {
        CHECK_MSG(fabs(weight[k] - ref_weight[k]) <= 1e-14 * fabs(ref_weight[k]),
                  "seed %llu: weight", (unsigned long long)seed);
    }
    if (same) {
        CHECK(moe_groups_distinct(r, expert, count) == ref_distinct_groups(r, expert, count));
    }
    free(s);
}

static void test_random_tokens(void) {
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        random_router c = random_router_make(seed, 3);
        double *z = random_router_wide(&c);
        for (int64_t t = 0; t < c.num_tokens; t++) {
            check_token(seed, &c.router, z + t * c.router.num_experts);
        }
        free(z);
        random_router_free(&c);
    }
}

/* --- known answers --- */

static void expect(const moe_router *r,
                   const double *z,
                   int32_t count,
                   const int32_t *wanted,
                   const char *what) {
    double s[64], weight[64], lse;
    int32_t expert[64];
    moe_scores_fill(r, z, s, &lse);
    int32_t got = moe_select_token(r, &(moe_draw){0}, 0, z, s, expert, weight);
    CHECK_MSG(got == count && memcmp(expert, wanted, (size_t)count * sizeof *wanted) == 0,
              "%s: %d experts, first %d", what, got, got ? expert[0] : -1);
}

static void test_ties(void) {
    moe_router r = {.num_experts = 16,
                    .top_k = 4,
                    .num_groups = 4,
                    .topk_group = 2,
                    .group_limit = MOE_GROUP_MAX,
                    .routed_scaling_factor = 1};
    double z[16] = {0};
    expect(&r, z, 4, (int32_t[]){0, 1, 2, 3}, "all equal");
    z[13] = z[6] = z[14] = 1;
    expect(&r, z, 4, (int32_t[]){6, 13, 14, 4}, "groups 1 and 3, then the lowest index of both");
    r.group_limit = MOE_GROUP_QUOTA;
    expect(&r, z, 4, (int32_t[]){6, 13, 14, 4}, "two of each kept group");
    r.group_limit = MOE_GROUP_TOP2_SUM;
    expect(&r, z, 4, (int32_t[]){6, 13, 14, 4}, "top2_sum");
}

/* With sigmoid scores and a negative bias every selection score is below 0: masks of 0 would let
 * masked experts win. */
static void test_negative_bias(void) {
    double bias[8] = {-3, -3, -3, -3, -2, -2, -2, -2}, z[8] = {5, 4, 3, 2, 1, 0, -1, -2};
    moe_router r = {.num_experts = 8,
                    .top_k = 2,
                    .num_groups = 2,
                    .topk_group = 1,
                    .group_limit = MOE_GROUP_TOP2_SUM,
                    .score_func = MOE_SCORE_SIGMOID,
                    .bias = bias,
                    .routed_scaling_factor = 1};
    expect(&r, z, 2, (int32_t[]){4, 5}, "negative bias");
    r.bias = NULL;
    expect(&r, z, 2, (int32_t[]){0, 1}, "no bias");
}

static void test_disabled(void) {
    moe_router r = {.num_experts = 8,
                    .top_k = 4,
                    .num_groups = 4,
                    .topk_group = 2,
                    .group_limit = MOE_GROUP_NONE,
                    .routed_scaling_factor = 1};
    double z[8] = {-INFINITY, -800, -INFINITY, 1, -INFINITY, -INFINITY, -INFINITY, -INFINITY};
    expect(&r, z, 2, (int32_t[]){3, 1},
           "a score that underflows to 0 is still available, -inf is not");
    r.group_limit = MOE_GROUP_MAX;
    expect(&r, z, 2, (int32_t[]){3, 1}, "groups 0 and 1");
    r.topk_group = 1;
    expect(&r, z, 1, (int32_t[]){3}, "group 1 has one expert left");
    z[3] = z[1] = -INFINITY;
    expect(&r, z, 0, (int32_t[]){-1}, "nobody is left");
}

static void test_groups_of_one(void) {
    moe_router r = {.num_experts = 4,
                    .top_k = 2,
                    .num_groups = 4,
                    .topk_group = 3,
                    .group_limit = MOE_GROUP_TOP2_SUM,
                    .score_func = MOE_SCORE_SIGMOID,
                    .routed_scaling_factor = 1};
    expect(&r, (double[]){1, 3, 2, 4}, 2, (int32_t[]){3, 1}, "groups of one expert");
}

/* max, top2_sum and topk_sum disagree here: group 0 has the best expert, group 1 the best pair,
 * group 2 the best three. */
static void test_rules_differ(void) {
    double z[12] = {9, -9, -9, -9, 2.0, 2.0, -9, -9, 1.5, 1.5, 1.5, -9};
    moe_router r = {.num_experts = 12,
                    .top_k = 3,
                    .num_groups = 3,
                    .topk_group = 1,
                    .score_func = MOE_SCORE_SIGMOID,
                    .routed_scaling_factor = 1};
    r.group_limit = MOE_GROUP_MAX;
    expect(&r, z, 3, (int32_t[]){0, 1, 2}, "max");
    r.group_limit = MOE_GROUP_TOP2_SUM;
    expect(&r, z, 3, (int32_t[]){4, 5, 6}, "top2_sum");
    r.group_limit = MOE_GROUP_TOPK_SUM;
    expect(&r, z, 3, (int32_t[]){8, 9, 10}, "topk_sum");
}

static double first_weight(moe_router r) {
    double z[4] = {2, 1, 0, -1}, s[4], weight[4], lse;
    int32_t expert[4];
    moe_scores_fill(&r, z, s, &lse);
    moe_select_token(&r, &(moe_draw){0}, 0, z, s, expert, weight);
    return weight[0];
}

static void test_weights(void) {
    moe_router r = {.num_experts = 4,
                    .top_k = 2,
                    .num_groups = 1,
                    .topk_group = 1,
                    .score_func = MOE_SCORE_SIGMOID,
                    .routed_scaling_factor = 2.5};
    double s = 1 / (1 + exp(-2.0)), s2 = 1 / (1 + exp(-1.0));
    CHECK_NEAR(first_weight(r), 2.5 * s, 1e-15);
    r.norm_topk_prob = true;
    CHECK_NEAR(first_weight(r), s / (s + s2), 1e-15); /* DeepSeek-V2's code: normalises or scales */
    r.scale_normalized = true;
    CHECK_NEAR(first_weight(r), 2.5 * s / (s + s2), 1e-15);
    r.top_k = 1;
    CHECK_NEAR(first_weight(r), 2.5 * s, 1e-15); /* DeepSeek's code does not normalise a single
                                                    expert */
    r.norm_single = true;
    CHECK_NEAR(first_weight(r), 2.5, 1e-15);
    r = (moe_router){.num_experts = 4,
                     .top_k = 2,
                     .num_groups = 1,
                     .topk_group = 1,
                     .score_func = MOE_SCORE_SOFTMAX_TOPK,
                     .scale_normalized = true,
                     .routed_scaling_factor = 1};
    CHECK_NEAR(first_weight(r), exp(2) / (exp(2) + exp(1)), 1e-15);
}

/* --- all tokens of a rank --- */

static void check_cells(const random_router *c,
                        const moe_batch *batch,
                        const moe_placement *p,
                        const double *z,
                        const moe_stats *stats,
                        uint64_t seed) {
    int32_t n = c->router.num_experts;
    int32_t *scope = malloc((size_t)c->num_tokens * sizeof *scope);
    int32_t *home = malloc((size_t)c->num_tokens * sizeof *home);
    for (int32_t i = 0; i < batch->num_segments; i++) {
        for (int64_t t = batch->segment[i].begin; t < batch->segment[i].end; t++) {
            scope[t] = i;
            home[t] = batch->segment[i].device;
        }
    }
    ref_batch ref = {.router = &c->router,
                     .devices = p->devices,
                     .device = p->device,
                     .num_tokens = c->num_tokens,
                     .z = z,
                     .home = home,
                     .scope = scope,
                     .num_scopes = (int32_t)batch->num_segments,
                     .counted = batch->counted};
    ref_counts *counts = ref_count(&ref);
    for (int32_t i = 0; i < batch->num_segments; i++) {
        int64_t *cell = moe_stats_cell(stats, i);
        bool same = cell[MOE_STAT_TOKENS] == counts[i].tokens &&
                    memcmp(moe_stats_counts(stats, cell), counts[i].expert,
                           (size_t)n * sizeof(int64_t)) == 0 &&
                    memcmp(moe_stats_device_tokens(stats, cell), counts[i].device,
                           (size_t)p->devices * sizeof(int64_t)) == 0;
        CHECK_MSG(same, "seed %llu: counts of segment %d", (unsigned long long)seed, i);
    }
    ref_counts_free(counts, (int32_t)batch->num_segments);
    free(scope);
    free(home);
}

static void check_routing(const random_router *c,
                          const double *z,
                          const moe_routing *routing,
                          uint64_t seed) {
    int32_t n = c->router.num_experts, expert[256];
    double *s = malloc((size_t)n * sizeof *s), weight[256], lse;
    bool same = routing->row_offset[0] == 0 &&
                routing->num_selections == routing->row_offset[c->num_tokens];
    for (int64_t t = 0; t < c->num_tokens && same; t++) {
        ref_scores(&c->router, z + t * n, s, &lse);
        int32_t count = ref_select(&c->router, z + t * n, s, expert, weight);
        same = routing->row_offset[t + 1] - routing->row_offset[t] == count;
        for (int32_t k = 0; k < count && same; k++) {
            same = routing->expert[routing->row_offset[t] + k] == expert[k] &&
                   fabs((double)routing->weight[routing->row_offset[t] + k] - weight[k]) <=
                       1e-6 * fabs(weight[k]) + 1e-37; /* floats below are subnormal */
        }
    }
    CHECK_MSG(same, "seed %llu: routing", (unsigned long long)seed);
    free(s);
}

static void route(const random_router *c,
                  const moe_batch *b,
                  const moe_placement *p,
                  moe_logits logits,
                  int threads,
                  moe_routing *routing,
                  moe_stats *stats) {
    int64_t bad;
    omp_set_num_threads(threads);
    moe_stats_reserve(stats, c->router.num_experts, p->devices, b->num_segments);
    moe_router_route(&c->router, &(moe_draw){0}, b, p, logits, NULL, routing, stats, &bad);
    CHECK_EQ(bad, -1);
}

static bool same_results(const moe_routing *a,
                         const moe_routing *b,
                         const moe_stats *x,
                         const moe_stats *y) {
    size_t selections = (size_t)a->num_selections;
    return a->num_selections == b->num_selections &&
           memcmp(a->expert, b->expert, selections * sizeof *a->expert) == 0 &&
           memcmp(a->weight, b->weight, selections * sizeof *a->weight) == 0 &&
           memcmp(a->row_offset, b->row_offset, (size_t)(a->num_tokens + 1) * sizeof(int64_t)) ==
               0 &&
           memcmp(x->cell, y->cell, (size_t)(x->words * x->num_cells) * sizeof(int64_t)) == 0;
}

/* The oracle's choice and counts; the same bits from float and double logits, with 1 and 3 threads.
 */
static void test_route(uint64_t seed) {
    random_router c = random_router_make(seed, random_int(seed, 40, 1, 300));
    int32_t n = c.router.num_experts;
    double *z = random_router_wide(&c);
    moe_batch batch = {0};
    moe_placement p = {0};
    moe_routing first = {0}, second = {0};
    moe_stats x = {0}, y = {0};
    moe_batch_layout(&batch, c.num_tokens, random_int(seed, 41, 1, 200), c.devices, 0, 1);
    moe_placement_block(&p, n, c.devices);
    if (seed % 3 == 0) {
        batch.counted = moe_alloc_zero(c.num_tokens, 1, "test");
        for (int64_t t = 0; t < c.num_tokens; t++) {
            batch.counted[t] = random_unit(seed, 42, (uint64_t)t) < 0.7;
        }
    }
    route(&c, &batch, &p, (moe_logits){.f32 = c.z}, 1, &first, &x);
    route(&c, &batch, &p, (moe_logits){.f64 = z}, 3, &second, &y);
    CHECK_MSG(same_results(&first, &second, &x, &y),
              "seed %llu: threads or width of logits change the result", (unsigned long long)seed);
    check_routing(&c, z, &first, seed);
    check_cells(&c, &batch, &p, z, &x, seed);
    moe_routing_free(&first);
    moe_routing_free(&second);
    moe_stats_free(&x);
    moe_stats_free(&y);
    moe_free(batch.counted);
    moe_batch_free(&batch);
    moe_placement_free(&p);
    free(z);
    random_router_free(&c);
}

/* --- recorded routing, bad tokens, theorem --- */

static void test_recorded(void) {
    moe_router r = {
        .num_experts = 4, .top_k = 3, .num_groups = 2, .topk_group = 2, .comm_count_local = false};
    int32_t idx[] = {3, 0, -1, -1, -1, -1, 1, 2, 0}, wanted[] = {0, 3, 2, 0, 1};
    double scores[] = {0.5, 0.1, 0.1, 0.3, 0.25, 0.25, 0.25, 0.25, 0.3, 0.2, 0.5, 0};
    real weights[] = {3, 5, 0, 0, 0, 0, 2, 9, 4};
    moe_batch b = {0};
    moe_placement p = {0};
    moe_routing out = {0};
    moe_stats s = {0};
    moe_batch_layout(&b, 3, 3, 2, 0, 1); /* tokens 0, 1 on device 0; 2 on device 1 */
    moe_placement_block(&p, 4, 2);
    for (int with_scores = 0; with_scores < 2; with_scores++) {
        moe_stats_reserve(&s, 4, 2, b.num_segments);
        moe_router_route_recorded(&r, &b, &p, idx, 3, weights, with_scores ? scores : NULL, &out,
                                  &s);
        CHECK(out.num_selections == 5 && out.row_offset[1] == 2 && out.row_offset[2] == 2 &&
              memcmp(out.expert, wanted, sizeof wanted) == 0);
        CHECK(out.weight[0] == 5 && out.weight[1] == 3 && out.weight[2] == 9 &&
              out.weight[3] == 4 && out.weight[4] == 2);
        int64_t *first = moe_stats_cell(&s, 0), *second = moe_stats_cell(&s, 1);
        CHECK(first[MOE_STAT_TOKENS] == 2 && second[MOE_STAT_TOKENS] == 1 &&
              moe_stats_counts(&s, second)[1] == 1);
        CHECK(moe_stats_device_tokens(&s, first)[0] == 0 &&
              moe_stats_device_tokens(&s, first)[1] == 1 &&
              moe_stats_device_tokens(&s, second)[0] == 1);
        double p0 =
            moe_exact_value01(moe_stats_score_hi(&s, first)[0], moe_stats_score_lo(&s, first)[0]);
        CHECK(p0 == (with_scores ? 0.75 : 0));
    }
    moe_router_route_recorded(&r, &b, &p, idx, 3, NULL, NULL, &out,
                              (moe_stats_reserve(&s, 4, 2, b.num_segments), &s));
    CHECK(out.expert[0] == 0 && out.weight[0] == (real)0.5 && out.expert[2] == 0 &&
          out.weight[2] == (real)(1.0 / 3));
    moe_routing_free(&out);
    moe_stats_free(&s);
    moe_batch_free(&b);
    moe_placement_free(&p);
}

static void test_bad_tokens(void) {
    moe_router r = {.num_experts = 4,
                    .top_k = 2,
                    .num_groups = 2,
                    .topk_group = 1,
                    .group_limit = MOE_GROUP_MAX,
                    .routed_scaling_factor = 1};
    double z[] = {1, 2, 3,     4,     1,     NAN,   2,     3, INFINITY, 1,
                  2, 3, -1e30, -1e30, -1e30, -1e30, -1e30, 4, 3,        -INFINITY};
    int64_t bad, offset[] = {0, 2, 2, 2, 2, 4};
    moe_batch b = {0};
    moe_placement p = {0};
    moe_routing out = {0};
    moe_stats s = {0};
    moe_batch_layout(&b, 5, 0, 1, 0, 1);
    moe_placement_block(&p, 4, 1);
    moe_stats_reserve(&s, 4, 1, b.num_segments);
    moe_router_route(&r, &(moe_draw){0}, &b, &p, (moe_logits){.f64 = z}, NULL, &out, &s, &bad);
    CHECK(bad == 1 && memcmp(out.row_offset, offset, sizeof offset) == 0 &&
          s.cell[MOE_STAT_TOKENS] == 2 && out.expert[2] == 1);
    moe_routing_free(&out);
    moe_stats_free(&s);
    moe_batch_free(&b);
    moe_placement_free(&p);
}

static int falling(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* Tokens whose scores are all numbers and whose K + 1 best differ from each other: by sorting all
 * scores. */
static int64_t count_eligible(const random_router *c) {
    const moe_router *r = &c->router;
    const int32_t n = r->num_experts, best = r->top_k < n ? r->top_k + 1 : n;
    int64_t found = 0;
    double *z = malloc(2 * (size_t)n * sizeof *z), *score = z + n;
    for (int64_t t = 0; t < c->num_tokens && r->topk_group * (n / r->num_groups) >= r->top_k; t++) {
        bool clear = true;
        for (int32_t i = 0; i < n; i++) {
            z[i] = (double)c->z[t * n + i];
            clear = clear && isfinite(z[i]);
        }
        if (!clear) {
            continue;
        }
        moe_scores_fill(r, z, score, NULL);
        for (int32_t i = 0; i < n; i++) {
            score[i] += r->bias ? r->bias[i] : 0;
        }
        qsort(score, (size_t)n, sizeof *score, falling);
        for (int32_t i = 1; i < best; i++) {
            clear = clear && score[i] < score[i - 1];
        }
        found += clear;
    }
    free(z);
    return found;
}

static void test_theorem(void) {
    int64_t seen = 0;
    for (uint64_t seed = 0; seed < 300; seed++) {
        random_router c = random_router_make(seed, 50);
        int64_t eligible, violations, bad;
        moe_batch b = {0};
        moe_placement p = {0};
        moe_routing out = {0};
        moe_stats s = {0};
        c.router.group_limit = MOE_GROUP_MAX;
        moe_batch_layout(&b, c.num_tokens, 0, 1, 0, 1);
        moe_placement_block(&p, c.router.num_experts, 1);
        moe_stats_reserve(&s, c.router.num_experts, 1, b.num_segments);
        moe_router_route(&c.router, &(moe_draw){0}, &b, &p, (moe_logits){.f32 = c.z}, NULL, &out,
                         &s, &bad);
        moe_group_theorem_check(&c.router, (moe_logits){.f32 = c.z}, &out, NULL, 1, &eligible,
                                &violations);
        CHECK_MSG(violations == 0 && eligible >= 0, "seed %llu: %lld", (unsigned long long)seed,
                  (long long)violations);
        const int64_t by_sorting = count_eligible(&c);
        CHECK_EQ(eligible, by_sorting);
        seen += eligible;
        if (eligible > 0 && c.router.num_groups > 1 && c.router.top_k > 1) { /* it can fail: all
                                                                                experts of a token
                                                                                in one group, or in
                                                                                two */
            int32_t size = c.router.num_experts / c.router.num_groups,
                    spread = c.router.topk_group > 1;
            for (int64_t t = 0; t < c.num_tokens; t++) {
                for (int64_t k = out.row_offset[t]; k < out.row_offset[t + 1]; k++) {
                    out.expert[k] = spread ? 0 : (int32_t)(k % 2) * size;
                }
            }
            moe_group_theorem_check(&c.router, (moe_logits){.f32 = c.z}, &out, NULL, 1, &eligible,
                                    &violations);
            CHECK_EQ(eligible, by_sorting); /* whatever was chosen */
            CHECK_MSG(violations > 0 || spread, "seed %llu: the check cannot fail",
                      (unsigned long long)seed);
        }
        moe_routing_free(&out);
        moe_stats_free(&s);
        moe_batch_free(&b);
        moe_placement_free(&p);
        random_router_free(&c);
    }
    CHECK_MSG(seen > 1000, "%lld tokens eligible", (long long)seen);
}

int main(void) {
    RUN(test_exp);
    RUN(test_saturation);
    RUN(test_random_tokens);
    RUN(test_ties);
    RUN(test_negative_bias);
    RUN(test_disabled);
    RUN(test_groups_of_one);
    RUN(test_rules_differ);
    RUN(test_weights);
    for (uint64_t seed = 0; seed < 300; seed++) {
        RUN(test_route, seed);
    }
    RUN(test_recorded);
    RUN(test_bad_tokens);
    RUN(test_theorem);
    return check_verdict();
}
