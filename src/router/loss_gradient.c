/* loss_gradient.c: gradient of the balance losses with respect to the logits. docs/method.md
 * section 2.
 *
 * L = sum_i a_i P_i with counts fixed and P_i = mean_t s'_{i,t}. Hence for one token, with
 * A = sum_j a_j s'_j and s'(z) the derivative of the score function:
 *   scores that sum to 1   dL/dz_i = s_i (a_i - A) / T, divided by the temperature
 *   others                 dL/dz_i = s'(z_i) / S (a_i - A) / T,  S = sum_j s_j
 * and beside it
 *   z-loss                 dL/dz_i = 2 lse softmax_i / (counted tokens of the global batch)
 *   importance             through the weights g: weight_gradient.h; or through the scores without
 *                          noise, as L is
 *   smooth load, Tutel's   smooth_load.h; Shazeer's has a function of its own there */
#include "router/loss_gradient.h"

#include <math.h>

#include "base/scratch.h"
#include "router/noise.h"
#include "router/scores.h"
#include "router/smooth_load.h"
#include "router/weight_gradient.h"
#include "router/weights.h"

/* dz [N] += of sum_i a_i P_i; slope [N] is working memory. */
static void add_balance(const moe_router *r,
                        const double *z,
                        const double *s,
                        const double *a,
                        const moe_loss_coefficients *c,
                        double *slope,
                        double *dz) {
    const moe_score_function *f = moe_score_function_of(r);
    int32_t n = r->num_experts;
    double total = f->sums_to_one ? 1 : moe_scores_sum(s, n);
    double inverse = c->inverse_tokens / moe_router_logit_divisor(r);
    if (total <= 0) {
        return; /* every expert is disabled */
    }
    double mean = moe_scores_dot(a, s, n) / total;
    f->derivative(z, s, slope, n);
    for (int32_t i = 0; i < n; i++) {
        dz[i] += slope[i] / total * (a[i] - mean) * inverse;
    }
}

/* dz [N] += of the z-loss; softmax [N] is working memory. */
static void add_z_loss(const moe_router *r,
                       const double *z,
                       double lse,
                       const moe_loss_coefficients *c,
                       double *softmax,
                       double *dz) {
    if (c->alpha_z == 0 || lse == -INFINITY) {
        return;
    }
    moe_scores_exp(z, lse, softmax, r->num_experts);
    for (int32_t i = 0; i < r->num_experts; i++) {
        dz[i] += c->alpha_z * 2 * lse * softmax[i] * c->inverse_counted;
    }
}

/* One token's experts, and working memory [N] each. */
typedef struct chosen {
    const int32_t *expert;
    int64_t count;
    double *dg, *ds;
    moe_select select;
} chosen;

/* dz [N] += of the importance loss, which looks at the sums of unscaled weights. */
static void add_importance(const moe_router *r,
                           const double *z,
                           const double *s,
                           const moe_loss_coefficients *c,
                           chosen *x,
                           double *dz) {
    const double *w = c->a + r->num_experts;
    double factor = moe_weights_factor(r);
    for (int64_t k = 0; k < x->count; k++) {
        x->dg[k] = factor != 0 ? w[x->expert[k]] * c->inverse_tokens / factor : 0;
    }
    moe_weight_gradient_token(&x->select, r, z, s, &(moe_weighted){x->expert, NULL, x->count},
                              x->dg, x->ds, dz);
}

static bool any(const double *x, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        if (x[i] != 0) {
            return true;
        }
    }
    return false;
}

void moe_loss_gradient(const moe_router *r,
                       const moe_batch *batch,
                       moe_logits logits,
                       const moe_noisy *noisy,
                       const moe_routing *routing,
                       int64_t begin,
                       int64_t end,
                       const moe_loss_coefficients *c,
                       double *dlogits) {
    int32_t n = r->num_experts;
    bool importance = any(c->a + n, n);
    bool load = r->load_form == MOE_LOAD_TUTEL && any(c->a + 2 * n, n);
    bool of_scores = r->importance_of == MOE_IMPORTANCE_SCORES;
    bool has_quiet = noisy && moe_noise_has_quiet(r) && (load || (importance && of_scores));
#pragma omp parallel
    {
        double *z = moe_scratch_take(r->scratch, 6 * (int64_t)n, sizeof *z, "router's gradient");
        double *s = z + n;
        chosen x = {.dg = s + n, .ds = s + 2 * n};
        double *clean = has_quiet ? s + 3 * n : z, *quiet = has_quiet ? s + 4 * n : s;
        double lse;
        moe_select_reserve_for_sum(&x.select, r);
#pragma omp for
        for (int64_t t = begin; t < end; t++) {
            if ((batch->counted && !batch->counted[t]) ||
                moe_scores_read_logits(logits, t, n, z) & MOE_ROW_BAD) {
                continue;
            }
            double *dz = dlogits + t * n;
            x.expert = routing->expert + routing->row_offset[t];
            x.count = routing->row_offset[t + 1] - routing->row_offset[t];
            moe_scores_fill(r, z, s, &lse);
            add_balance(r, z, s, c->a, c, x.ds, dz);
            if (has_quiet) {
                moe_noise_quiet_scores(r, noisy->clean + t * n, z, clean, quiet);
            }
            if (importance && of_scores) {
                add_balance(r, clean, quiet, c->a + n, c, x.ds, dz);
            } else if (importance) {
                add_importance(r, z, s, c, &x, dz);
            }
            if (load && x.count > 0) {
                moe_smooth_load_tutel_gradient(r, z, quiet, c->a + 2 * n, c->inverse_tokens,
                                               x.expert[x.count - 1], x.ds, dz);
            }
            add_z_loss(r, z, lse, c, s, dz);
        }
        moe_select_free(&x.select);
        moe_scratch_give(r->scratch, z);
    }
}
