/* noisy.c: jitter of the gate's input, learned noise, and the smooth load.
 *
 * The load's gradient, with x_i = (z_i - H_m) / sigma_i, m the expert that holds kth_i, q_i = w_i
 * phi(x_i) / sigma_i: dz_i += q_i     dz_m -= q_i     dsigma_i -= q_i x_i and as every dz is
 * carried to sigma by n (H = z + n sigma), the q_i that reached z_i without it is taken off again:
 *   spread_i = -q_i (x_i + n_i) = -q_i (H_i - H_m) / sigma_i */
#include "router/noise.h"

#include <math.h>

#include "base/rng.h"
#include "base/scratch.h"
#include "router/keyed.h"
#include "router/scores.h"

/* --- jitter --- */

void moe_jitter(const moe_router *r, const moe_batch *batch, int64_t h, const real *in, real *out) {
    moe_rng rng = {r->seed, MOE_RNG_JITTER};
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < batch->num_tokens; t++) {
        uint64_t token = (uint64_t)(batch->first_token + t);
        for (int64_t i = 0; i < h; i++) {
            double factor =
                1 + r->jitter *
                        (2 * moe_rng_uniform(rng, moe_router_step_key(r), token, (uint32_t)i) - 1);
            out[t * h + i] = (real)(factor * (double)in[t * h + i]);
        }
    }
}

/* --- learned noise --- */

static double softplus(double v) {
    return fmax(v, 0) + log1p(exp(-fabs(v)));
}

static double sigmoid(double v) {
    return 1 / (1 + exp(-v));
}

/* n [N] of a token. */
static void draw(const moe_router *r, int64_t token, real *n) {
    moe_rng_normal((moe_rng){r->seed, MOE_RNG_NOISE}, moe_router_step_key(r), (uint64_t)token, 1, n,
                   r->num_experts);
}

void moe_noise_add(const moe_router *r, const moe_batch *batch, const real *v, real *logits) {
    int32_t n = r->num_experts;
#pragma omp parallel
    {
        real *normal = moe_scratch_take(r->scratch, n, sizeof *normal, "noise on the logits");
#pragma omp for schedule(static)
        for (int64_t t = 0; t < batch->num_tokens; t++) {
            draw(r, batch->first_token + t, normal);
            for (int64_t i = t * n; i < (t + 1) * n; i++) {
                logits[i] +=
                    (real)((double)normal[i - t * n] * (softplus((double)v[i]) + r->noise));
            }
        }
        moe_scratch_give(r->scratch, normal);
    }
}

void moe_noise_gradient(const moe_router *r,
                        const moe_batch *batch,
                        const real *v,
                        const double *dz,
                        const double *spread,
                        real *dv) {
    int32_t n = r->num_experts;
#pragma omp parallel
    {
        real *normal = moe_scratch_take(r->scratch, n, sizeof *normal, "noise on the logits");
#pragma omp for schedule(static)
        for (int64_t t = 0; t < batch->num_tokens; t++) {
            draw(r, batch->first_token + t, normal);
            for (int64_t i = t * n; i < (t + 1) * n; i++) {
                double dsigma = dz[i] * (double)normal[i - t * n] + (spread ? spread[i] : 0);
                dv[i] = (real)(sigmoid((double)v[i]) * dsigma);
            }
        }
        moe_scratch_give(r->scratch, normal);
    }
}

/* --- smooth load --- */

/* A token's thresholds: the expert that holds kth_i, for the chosen (the best of the others, -1 =
 * none) and for the others (the last choice). */
typedef struct thresholds {
    int32_t of_chosen, of_others;
} thresholds;

static bool is_chosen(const int32_t *expert, int32_t count, int32_t i) {
    for (int32_t k = 0; k < count; k++) {
        if (expert[k] == i) {
            return true;
        }
    }
    return false;
}

static thresholds thresholds_of(const double *H, int32_t n, const int32_t *expert, int32_t count) {
    thresholds m = {-1, expert[count - 1]};
    for (int32_t i = 0; i < n; i++) {
        if (H[i] > (m.of_chosen < 0 ? -INFINITY : H[m.of_chosen]) && !is_chosen(expert, count, i)) {
            m.of_chosen = i;
        }
    }
    return m;
}

static double sigma_of(const moe_router *r, int64_t at) {
    return moe_noise_is_learned(r) ? softplus((double)r->noisy->v[at]) + r->noise : r->noise;
}

void moe_noisy_load(const moe_router *r,
                    int64_t t,
                    const double *H,
                    const int32_t *expert,
                    int32_t count,
                    double *load) {
    int32_t n = r->num_experts;
    thresholds m = {-1, -1};
    if (count > 0) {
        m = thresholds_of(H, n, expert, count);
    }
    for (int32_t i = 0; i < n; i++) {
        bool chosen = is_chosen(expert, count, i);
        int32_t kth = chosen ? m.of_chosen : m.of_others;
        load[i] = chosen;
        if (!r->noisy || kth < 0 || H[i] == -INFINITY) {
            continue;
        }
        double x = ((double)r->noisy->clean[t * n + i] - H[kth]) / sigma_of(r, t * n + i);
        load[i] = 0.5 * erfc(-x * M_SQRT1_2);
    }
}

static void add_load_gradient(const moe_router *r,
                              int64_t t,
                              const double *H,
                              const int32_t *expert,
                              int32_t count,
                              const double *w,
                              double inverse_tokens,
                              double *dz,
                              double *spread) {
    int32_t n = r->num_experts;
    thresholds m = thresholds_of(H, n, expert, count);
    for (int32_t i = 0; i < n; i++) {
        int32_t kth = is_chosen(expert, count, i) ? m.of_chosen : m.of_others;
        if (kth < 0 || H[i] == -INFINITY) {
            continue;
        }
        double sigma = sigma_of(r, t * n + i),
               x = ((double)r->noisy->clean[t * n + i] - H[kth]) / sigma;
        double q = w[i] * inverse_tokens * exp(-0.5 * x * x) * 0.3989422804014327 / sigma;
        dz[i] += q;
        dz[kth] -= q;
        if (spread) {
            spread[i] -= q * (H[i] - H[kth]) / sigma;
        }
    }
}

void moe_noisy_load_gradient(const moe_router *r,
                             const moe_batch *batch,
                             moe_logits noisy,
                             const moe_routing *routing,
                             int64_t begin,
                             int64_t end,
                             const double *w,
                             double inverse_tokens,
                             double *dz,
                             double *spread) {
    int32_t n = r->num_experts;
    if (!r->noisy) {
        return;
    }
#pragma omp parallel
    {
        double *H = moe_scratch_take(r->scratch, n, sizeof *H, "router's gradient");
#pragma omp for schedule(static)
        for (int64_t t = begin; t < end; t++) {
            int64_t first = routing->row_offset[t];
            int32_t count = (int32_t)(routing->row_offset[t + 1] - first);
            if (count == 0 || (batch->counted && !batch->counted[t]) ||
                moe_scores_read_logits(noisy, t, n, H) & MOE_ROW_BAD) {
                continue;
            }
            add_load_gradient(r, t, H, routing->expert + first, count, w, inverse_tokens,
                              dz + t * n, spread ? spread + t * n : NULL);
        }
        moe_scratch_give(r->scratch, H);
    }
}
