/* router_gradient.c: gradient of the balance losses with respect to the logits. method.md
 * section 2.
 *
 * L = sum_i a_i P_i with counts fixed, P_i = mean_t s'_{i,t}, hence for one token, with A = sum_j
 * a_j s'_j: softmax               dL/dz_i = s_i (a_i - A) / T, and / temperature sigmoid,
 * sqrtsoftplus dL/dz_i = s'(z_i)/S (a_i - A) / T,  S = sum_j s_j, s'(z) the derivative of the score
 * function z-loss                dL/dz_i = 2 lse softmax_i / (counted tokens of the global batch)
 *   importance            through the weights g: weight_gradient.c
 *   smooth load, Tutel's  q_i = w_i phi(x_i) / noise, x_i = (s_i - z_k) / noise, k the last choice:
 * through s_i, and dL/dz_k -= sum_i q_i */
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/scratch.h"
#include "router/router.h"
#include "router/scores.h"
#include "router/select.h"

/* Derivative of the score function at z where its value is s: sigmoid' = s (1 - s); sqrt(softplus)'
 * = sigmoid(z) / (2 s). */
double moe_score_derivative(const moe_router *r, double z, double s) {
    if (r->score_func == MOE_SCORE_SIGMOID) {
        return s * (1 - s);
    }
    return s > 0 ? 1 / (1 + exp(-z)) / (2 * s) : 0;
}

static void add_balance(const moe_router *r,
                        const double *z,
                        const double *s,
                        const double *a,
                        double inverse_tokens,
                        double *dz) {
    int32_t n = r->num_experts;
    bool normalised = moe_scores_sum_to_one(r);
    double total = normalised ? 1 : moe_scores_sum(s, n),
           slope = inverse_tokens / moe_router_logit_divisor(r);
    if (total <= 0) {
        return; /* every expert disabled */
    }
    double mean = moe_scores_dot(a, s, n) / total;
    for (int32_t i = 0; i < n; i++) {
        dz[i] += (normalised ? s[i] : moe_score_derivative(r, z[i], s[i]) / total) * (a[i] - mean) *
                 slope;
    }
}

/* scratch [N] */
static void add_z_loss(const moe_router *r,
                       const double *z,
                       double lse,
                       double inverse_counted,
                       double *scratch,
                       double *dz) {
    if (r->alpha_z == 0 || lse == -INFINITY) {
        return;
    }
    moe_scores_exp(z, lse, scratch, r->num_experts);
    for (int32_t i = 0; i < r->num_experts; i++) {
        dz[i] += r->alpha_z * 2 * lse * scratch[i] * inverse_counted;
    }
}

/* One token's experts, and working memory [N] each. */
typedef struct chosen {
    const int32_t *expert;
    int64_t count;
    double *dg, *ds;
} chosen;

/* w [N]: the importance loss by the sums of unscaled weights. */
static void add_importance(const moe_router *r,
                           const double *z,
                           const double *s,
                           const double *w,
                           double inverse_tokens,
                           const chosen *c,
                           double *dz) {
    double factor = moe_weights_factor(r);
    for (int64_t k = 0; k < c->count; k++) {
        c->dg[k] = factor != 0 ? w[c->expert[k]] * inverse_tokens / factor : 0;
    }
    moe_weight_gradient_token(r, z, s, c->expert, c->dg, c->count, c->ds, dz);
}

/* w [N]: the load loss by the smooth loads. Needs scores that sum to 1. */
static void add_load(const moe_router *r,
                     const double *z,
                     const double *s,
                     const double *w,
                     double inverse_tokens,
                     const chosen *c,
                     double *dz) {
    double sum = 0, dot = 0;
    if (c->count == 0) {
        return;
    }
    int32_t last = c->expert[c->count - 1];
    for (int32_t i = 0; i < r->num_experts; i++) {
        double x = (s[i] - z[last]) / r->noise;
        c->ds[i] = w[i] * exp(-0.5 * x * x) * 0.3989422804014327 / r->noise * inverse_tokens;
        sum += c->ds[i];
        dot += c->ds[i] * s[i];
    }
    for (int32_t i = 0; i < r->num_experts; i++) {
        dz[i] += s[i] * (c->ds[i] - dot) / moe_router_logit_divisor(r);
    }
    dz[last] -= sum;
}

static bool any(const double *x, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        if (x[i] != 0) {
            return true;
        }
    }
    return false;
}

void moe_router_loss_gradient(const moe_router *r,
                              const moe_batch *batch,
                              moe_logits logits,
                              const moe_routing *routing,
                              int64_t begin,
                              int64_t end,
                              const double *a,
                              double inverse_tokens,
                              double inverse_counted,
                              double *dlogits) {
    int32_t n = r->num_experts;
    bool importance = any(a + n, n), load = r->load_form == MOE_LOAD_TUTEL && any(a + 2 * n, n);
#pragma omp parallel
    {
        double *z = moe_scratch_take(r->scratch, 4 * (int64_t)n, sizeof *z, "router's gradient");
        double *s = z + n;
        double *dg = s + n;
        double *ds = dg + n;
        double lse;
#pragma omp for
        for (int64_t t = begin; t < end; t++) {
            if ((batch->counted && !batch->counted[t]) ||
                moe_scores_read_logits(logits, t, n, z) & MOE_ROW_BAD) {
                continue;
            }
            double *dz = dlogits + t * n;
            chosen c = {routing->expert + routing->row_offset[t],
                        routing->row_offset[t + 1] - routing->row_offset[t], dg, ds};
            moe_router_scores(r, z, s, &lse);
            add_balance(r, z, s, a, inverse_tokens, dz);
            if (importance) {
                add_importance(r, z, s, a + n, inverse_tokens, &c, dz);
            }
            if (load) {
                add_load(r, z, s, a + 2 * n, inverse_tokens, &c, dz);
            }
            add_z_loss(r, z, lse, inverse_counted, s, dz);
        }
        moe_scratch_give(r->scratch, z);
    }
}
