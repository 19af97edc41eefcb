/* unit_noise.c: jitter, noise of learned scale, and the smooth load: against their definitions, by
 * statistics, and as functions of keys alone.
 *
 * ctest: f64 */
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/exact.h"
#include "check.h"
#include "random_router.h"
#include "router/noise.h"
#include "router/router.h"
#include "router/scores.h"
#include "router/select.h"
#include "router/smooth_load.h"

enum { N = 12, H = 40, TOKENS = 500, K = 3 };

static moe_router router(void) {
    return (moe_router){.num_experts = N,
                        .top_k = K,
                        .num_groups = 1,
                        .topk_group = 1,
                        .jitter = 0.1,
                        .noise_form = MOE_NOISE_SOFTPLUS,
                        .noise = 0.01,
                        .load_form = MOE_LOAD_SHAZEER,
                        .routed_scaling_factor = 1,
                        .comm_count_local = true};
}

static const moe_draw trained = {.seed = 5, .training = true};

static real *ones(int64_t n) {
    real *x = moe_alloc(n, sizeof *x, "test");
    for (int64_t i = 0; i < n; i++) {
        x[i] = 1;
    }
    return x;
}

static double mean_of(const real *x, int64_t n, double around, int power) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += pow((double)x[i] - around, power) / (double)n;
    }
    return sum;
}

static int64_t equal(const real *a, const real *b, int64_t n) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) {
        count += a[i] == b[i];
    }
    return count;
}

/* Uniform within 1 - eps .. 1 + eps; the third of four ranks draws what one rank draws for these
 * tokens; another step, layer: other factors. */
static void test_jitter(void) {
    moe_router r = router();
    moe_batch whole = {0}, part = {0};
    moe_batch_layout(&whole, TOKENS, 0, 4, 0, 1);
    moe_batch_layout(&part, TOKENS, 0, 4, 2, 4);
    real *a = ones(TOKENS * H);
    real *b = ones(part.num_tokens * H);
    real *c = ones(TOKENS * H);
    moe_noise_jitter(&r, &trained, &whole, H, a, a);
    moe_noise_jitter(&r, &trained, &part, H, b, b);
    CHECK(equal(a + part.first_token * H, b, part.num_tokens * H) == part.num_tokens * H);
    CHECK_NEAR(mean_of(a, TOKENS * H, 0, 1), 1, 2e-3);
    CHECK_NEAR(mean_of(a, TOKENS * H, 1, 2), 0.1 * 0.1 / 3, 3e-2);
    for (int64_t i = 0; i < TOKENS * H; i++) {
        CHECK(a[i] >= (real)0.9 && a[i] <= (real)1.1);
    }
    for (int other = 0; other < 3; other++) {
        moe_draw q = trained;
        q.step = other == 0;
        q.layer = other == 1;
        q.seed += other == 2;
        real *one = ones(TOKENS * H);
        moe_noise_jitter(&r, &q, &whole, H, one, c);
        CHECK(equal(a, c, TOKENS * H) < TOKENS);
        moe_free(one);
    }
    CHECK(equal(a, a + H, H) < H / 2); /* tokens differ */
    moe_draw off = trained;
    off.training = false;
    CHECK(moe_noise_jitters(&r, &trained) && !moe_noise_jitters(&r, &off));
    moe_free(a);
    moe_free(b);
    moe_free(c);
    moe_batch_free(&whole);
    moe_batch_free(&part);
}

/* (H - z) / (softplus(v) + floor) is standard normal; v = 0 is ln 2, as W_noise = 0 begins. */
static void test_learned_noise(void) {
    moe_router r = router();
    moe_batch whole = {0}, part = {0};
    moe_batch_layout(&whole, TOKENS, 0, 4, 0, 1);
    moe_batch_layout(&part, TOKENS, 0, 4, 1, 4);
    int64_t count = (int64_t)TOKENS * N;
    real *v = moe_alloc(count, sizeof *v, "test"), *z = moe_alloc_zero(count, sizeof *z, "test");
    for (int64_t i = 0; i < count; i++) {
        v[i] = (real)(i % 3 == 0 ? 0 : 4 * random_unit(8, 1, (uint64_t)i) - 2);
    }
    moe_noise_add_learned(&r, &trained, &whole, v, z);
    real *own = moe_alloc_zero(part.num_tokens * N, sizeof *own, "test");
    moe_noise_add_learned(&r, &trained, &part, v + part.first_token * N, own);
    CHECK(equal(z + part.first_token * N, own, part.num_tokens * N) == part.num_tokens * N);
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < count; i++) {
        double sigma = (i % 3 == 0 ? log(2) : log(1 + exp((double)v[i]))) + 0.01,
               n = (double)z[i] / sigma;
        sum += n / (double)count;
        squares += n * n / (double)count;
    }
    CHECK_MSG(fabs(sum) < 4 / sqrt((double)count), "mean %g", sum);
    CHECK_MSG(fabs(squares - 1) < 6 / sqrt((double)count), "variance %g", squares);
    moe_free(v);
    moe_free(z);
    moe_free(own);
    moe_batch_free(&whole);
    moe_batch_free(&part);
}

/* The K-th largest of H without H_i. */
static double kth_excluding(const double *h, int32_t n, int32_t k, int32_t excluded) {
    double largest = -INFINITY;
    bool used[N] = {false};
    used[excluded] = true;
    for (int32_t j = 0; j < k; j++) {
        int32_t best = -1;
        for (int32_t i = 0; i < n; i++) {
            if (!used[i] && (best < 0 || h[i] > h[best])) {
                best = i;
            }
        }
        if (best < 0) {
            return -INFINITY;
        }
        used[best] = true;
        largest = h[best];
    }
    return largest;
}

/* Eq. 8: the probability that expert i is among the K largest when its own noise is drawn anew;
 * here also by drawing it. */
static void test_load(void) {
    moe_router r = router();
    real clean[N], v[N];
    moe_noisy noisy = {clean, v};
    for (uint64_t seed = 0; seed < 60; seed++) {
        double h[N], s[N], load[N], weight[N], lse;
        int32_t expert[N];
        r.noise_form = seed % 2 ? MOE_NOISE_SOFTPLUS : MOE_NOISE_GAUSSIAN;
        r.noise = seed % 2 ? 0.05 : 0.7;
        r.top_k = seed % 7 == 0 ? N : K;
        for (int32_t i = 0; i < N; i++) {
            clean[i] = (real)(3 * random_unit(seed, 1, (uint64_t)i));
            v[i] = (real)(2 * random_unit(seed, 2, (uint64_t)i) - 1);
            h[i] = (double)clean[i] + random_unit(seed, 3, (uint64_t)i) - 0.5;
            if (seed % 5 == 0 && i % 4 == 0) {
                h[i] = -INFINITY;
            }
        }
        moe_scores_fill(&r, h, s, &lse);
        int32_t count = moe_select_token(&r, &(moe_draw){0}, 0, h, s, expert, weight);
        moe_smooth_load_token(&r, &noisy, 0, h, expert, count, load);
        for (int32_t i = 0; i < N; i++) {
            double sigma = seed % 2 ? log(1 + exp((double)v[i])) + 0.05 : 0.7,
                   kth = kth_excluding(h, N, r.top_k, i);
            double wanted =
                h[i] == -INFINITY ? 0 : 0.5 * (1 + erf(((double)clean[i] - kth) / sigma / sqrt(2)));
            CHECK_MSG(fabs(load[i] - wanted) < 1e-14, "seed %d, expert %d: %.17g, %.17g", (int)seed,
                      i, load[i], wanted);
            if (seed > 3 || h[i] == -INFINITY || kth == -INFINITY) {
                continue;
            }
            real drawn[4000];
            int hits = 0;
            moe_rng_normal((moe_rng){seed, MOE_RNG_TEST}, 7, (uint64_t)i, sigma, drawn, 4000);
            for (int j = 0; j < 4000; j++) {
                hits += (double)clean[i] + (double)drawn[j] > kth;
            }
            CHECK_MSG(fabs(hits / 4000.0 - load[i]) < 0.04,
                      "seed %d, expert %d: %g of the draws, %g", (int)seed, i, hits / 4000.0,
                      load[i]);
        }
        /* outside training it is who was chosen */
        moe_smooth_load_token(&r, NULL, 0, h, expert, count, load);
        double total = 0;
        for (int32_t k = 0; k < count; k++) {
            CHECK_EQ(load[expert[k]], 1);
        }
        for (int32_t i = 0; i < N; i++) {
            total += load[i];
        }
        CHECK_EQ(total, count);
    }
}

/* Tutel: importance and load are of the softmax without noise, and the threshold is the noisy logit
 * of the last choice (tutel/impls/losses.py, load_importance_loss). */
static void test_quiet(void) {
    enum { T = 5 };
    moe_router r = router();
    moe_batch batch;
    moe_placement placement;
    moe_routing routing = {0};
    moe_stats stats = {0};
    real clean[T * N];
    double noisy[T * N], importance[N] = {0}, load[N] = {0};
    int64_t bad;
    r.noise_form = MOE_NOISE_GAUSSIAN;
    r.noise = 0.7;
    r.top_k = K;
    r.load_form = MOE_LOAD_TUTEL;
    r.importance_of = MOE_IMPORTANCE_SCORES;
    for (int32_t i = 0; i < T * N; i++) {
        clean[i] = (real)(3 * random_unit(9, 1, (uint64_t)i));
        noisy[i] =
            i % 11 == 3 ? -INFINITY : (double)clean[i] + 2 * random_unit(9, 2, (uint64_t)i) - 1;
    }
    moe_batch_layout(&batch, T, 0, 1, 0, 1);
    moe_placement_block(&placement, N, 1);
    moe_stats_reserve(&stats, N, 1, batch.num_segments);
    moe_router_route(&r, &(moe_draw){.training = true}, &batch, &placement,
                     (moe_logits){.f64 = noisy}, &(moe_noisy){clean, NULL}, &routing, &stats, &bad);
    for (int32_t t = 0; t < T; t++) {
        double sum = 0;
        double last = noisy[t * N + routing.expert[routing.row_offset[t + 1] - 1]];
        for (int32_t i = t * N; i < (t + 1) * N; i++) {
            sum += noisy[i] == -INFINITY ? 0 : exp((double)clean[i]);
        }
        for (int32_t i = 0; i < N; i++) {
            bool off = noisy[t * N + i] == -INFINITY;
            double s = off ? 0 : exp((double)clean[t * N + i]) / sum;
            importance[i] += s;
            load[i] += 0.5 * (1 + erf((s - last) / r.noise / sqrt(2)));
        }
    }
    int64_t *cell = moe_stats_cell(&stats, 0);
    for (int32_t i = 0; i < N; i++) {
        double summed = moe_exact_value01(moe_stats_weight_hi(&stats, cell)[i],
                                          moe_stats_weight_lo(&stats, cell)[i]);
        CHECK_MSG(fabs(summed - importance[i]) < 1e-14, "expert %d: importance %.17g, not %.17g", i,
                  summed, importance[i]);
        summed = moe_exact_value01(moe_stats_load_hi(&stats, cell)[i],
                                   moe_stats_load_lo(&stats, cell)[i]);
        CHECK_MSG(fabs(summed - load[i]) < 1e-14, "expert %d: load %.17g, not %.17g", i, summed,
                  load[i]);
    }
    moe_routing_free(&routing);
    moe_stats_free(&stats);
    moe_placement_free(&placement);
    moe_batch_free(&batch);
}

int main(void) {
    RUN(test_jitter);
    RUN(test_learned_noise);
    RUN(test_load);
    RUN(test_quiet);
    return check_verdict();
}
