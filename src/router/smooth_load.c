/* smooth_load.c: both forms of the smooth load and their gradients.
 *
 * Shazeer's, with x_i = (z_i - H_m) / sigma_i, m the expert that holds kth_i, and
 * q_i = w_i phi(x_i) / sigma_i:
 *   dz_i += q_i        dz_m -= q_i        dsigma_i -= q_i x_i
 * Every dz is carried to sigma by n (H = z + n sigma), so the q_i that reached z_i without it is
 * taken off again:
 *   spread_i = -q_i (x_i + n_i) = -q_i (H_i - H_m) / sigma_i
 *
 * Tutel's, with x_i = (s_i - z_m) / sigma, m the last choice: q_i goes through s_i to the logits,
 * and dz_m -= sum_i q_i. */
#include "router/smooth_load.h"

#include <math.h>

#include "router/noise.h"
#include "router/scores.h"

/* phi(x), the density of the standard normal distribution, is exp(-x x / 2) times this. */
static const double inverse_sqrt_2pi = 0.3989422804014327;

/* --- Shazeer's --- */

/* The experts that hold kth_i: for the chosen that is the best of the others (-1 = there is none),
 * for the others it is the last choice. */
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

static double sigma_at(const moe_router *r, const moe_noisy *noisy, int64_t at) {
    return moe_noise_sigma(r, noisy->v ? (double)noisy->v[at] : 0);
}

void moe_smooth_load_token(const moe_router *r,
                           const moe_noisy *noisy,
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
        if (!noisy || kth < 0 || H[i] == -INFINITY) {
            continue;
        }
        double x = ((double)noisy->clean[t * n + i] - H[kth]) / sigma_at(r, noisy, t * n + i);
        load[i] = 0.5 * erfc(-x * M_SQRT1_2);
    }
}

/* One token: dz [N] and spread [N] or NULL. */
static void add_token_gradient(const moe_router *r,
                               const moe_noisy *noisy,
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
        double sigma = sigma_at(r, noisy, t * n + i);
        double x = ((double)noisy->clean[t * n + i] - H[kth]) / sigma;
        double q = w[i] * inverse_tokens * exp(-0.5 * x * x) * inverse_sqrt_2pi / sigma;
        dz[i] += q;
        dz[kth] -= q;
        if (spread) {
            spread[i] -= q * (H[i] - H[kth]) / sigma;
        }
    }
}

void moe_smooth_load_gradient(const moe_router *r,
                              const moe_noisy *noisy,
                              const moe_batch *batch,
                              moe_logits logits,
                              const moe_routing *routing,
                              int64_t begin,
                              int64_t end,
                              const double *w,
                              double inverse_tokens,
                              double *dz,
                              double *spread) {
    int32_t n = r->num_experts;
    if (!noisy) {
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
                moe_scores_read_logits(logits, t, n, H) & MOE_ROW_BAD) {
                continue;
            }
            add_token_gradient(r, noisy, t, H, routing->expert + first, count, w, inverse_tokens,
                               dz + t * n, spread ? spread + t * n : NULL);
        }
        moe_scratch_give(r->scratch, H);
    }
}

/* --- Tutel's --- */

void moe_smooth_load_tutel(const moe_router *r,
                           const double *z,
                           const double *s,
                           int32_t last_choice,
                           double *load) {
    for (int32_t i = 0; i < r->num_experts; i++) {
        load[i] = 0.5 * erfc((z[last_choice] - s[i]) / r->noise * M_SQRT1_2);
    }
}

void moe_smooth_load_tutel_gradient(const moe_router *r,
                                    const double *z,
                                    const double *s,
                                    const double *w,
                                    double inverse_tokens,
                                    int32_t last_choice,
                                    double *ds,
                                    double *dz) {
    double sum = 0, dot = 0;
    for (int32_t i = 0; i < r->num_experts; i++) {
        double x = (s[i] - z[last_choice]) / r->noise;
        ds[i] = w[i] * exp(-0.5 * x * x) * inverse_sqrt_2pi / r->noise * inverse_tokens;
        sum += ds[i];
        dot += ds[i] * s[i];
    }
    for (int32_t i = 0; i < r->num_experts; i++) {
        dz[i] += s[i] * (ds[i] - dot) / moe_router_logit_divisor(r);
    }
    dz[last_choice] -= sum;
}
