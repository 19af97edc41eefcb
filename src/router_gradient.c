/* router_gradient.c: gradient of the balance losses with respect to the logits. method.md section 2.
 *
 * L = sum_i a_i P_i with counts fixed, P_i = mean_t s'_{i,t}, hence for one token, with A = sum_j a_j s'_j:
 *   softmax               dL/dz_i = s_i (a_i - A) / T
 *   sigmoid, sqrtsoftplus dL/dz_i = s'(z_i)/S (a_i - A) / T,  S = sum_j s_j, s'(z) the derivative of the score function
 *   z-loss                dL/dz_i = 2 lse softmax_i / T */
#include <math.h>

#include "moesim/router.h"
#include "moesim/tensor.h"
#include "scores.h"

/* Derivative of the score function at z where its value is s: sigmoid' = s (1 - s); sqrt(softplus)' = sigmoid(z) / (2 s). */
double moe_score_derivative(const moe_router *r, double z, double s) {
    if (r->score_func == MOE_SCORE_SIGMOID) return s * (1 - s);
    return s > 0 ? 1 / (1 + exp(-z)) / (2 * s) : 0;
}

static void add_balance(const moe_router *r, const double *z, const double *s, const double *a, double inverse_tokens, double *dz) {
    int32_t n = r->num_experts;
    bool normalised = moe_scores_sum_to_one(r);
    double total = normalised ? 1 : moe_scores_sum(s, n);
    if (total <= 0) return; /* every expert disabled */
    double mean = moe_scores_dot(a, s, n) / total;
    for (int32_t i = 0; i < n; i++)
        dz[i] += (normalised ? s[i] : moe_score_derivative(r, z[i], s[i]) / total) * (a[i] - mean) * inverse_tokens;
}

/* scratch [N] */
static void add_z_loss(const moe_router *r, const double *z, double lse, double inverse_tokens, double *scratch, double *dz) {
    if (r->alpha_z == 0 || lse == -INFINITY) return;
    moe_scores_exp(z, lse, scratch, r->num_experts);
    for (int32_t i = 0; i < r->num_experts; i++)
        dz[i] += r->alpha_z * 2 * lse * scratch[i] * inverse_tokens;
}

void moe_router_dlogits(const moe_router *r, const moe_batch *batch, moe_logits logits, int64_t begin, int64_t end, const double *a,
                        double inverse_tokens, double *dlogits) {
    int32_t n = r->num_experts;
#pragma omp parallel
    {
        double *z = moe_alloc(2 * (int64_t)n, sizeof *z, "router's gradient"), *s = z + n, lse;
#pragma omp for
        for (int64_t t = begin; t < end; t++) {
            if ((batch->counted && !batch->counted[t]) || moe_scores_load(logits, t, n, z) & MOE_ROW_BAD) continue;
            moe_router_scores(r, z, s, &lse);
            add_balance(r, z, s, a, inverse_tokens, dlogits + t * n);
            add_z_loss(r, z, lse, inverse_tokens, s, dlogits + t * n);
        }
        moe_free(z);
    }
}
