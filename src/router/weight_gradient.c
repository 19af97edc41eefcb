/* weight_gradient.c: g_k = c s_k (plain) or c s_k / S, S = sum of the chosen s + 1e-20
 * (normalised); c the scaling factor.
 *
 *   plain        ds_k = c dg_k
 *   normalised   ds_k = c / S (dg_k - sum_j dg_j s_j / S)
 *   softmax      dz_i = s_i ([i chosen] ds_i - sum_k ds_k s_k)     for all i
 *   sigmoid, sqrtsoftplus   dz_k = s'(z_k) ds_k                      for the chosen */
#include "router/weight_gradient.h"

#include <math.h>
#include <string.h>

#include "router/scores.h"
#include "router/select.h"

/* The sum that the weights were divided by: of the chosen, and of GShard's second best where chance
 * left it out (g1 = s1 / (s1 + s2) then too). */
static double normalizing_sum(
    const moe_router *r, const double *s, const int32_t *expert, int64_t count, int32_t *left_out) {
    double sum = 1e-20;
    *left_out = -1;
    for (int64_t k = 0; k < count; k++) {
        sum += s[expert[k]];
    }
    if (r->method != MOE_METHOD_GSHARD || r->second_choice != MOE_SECOND_RANDOM || count != 1) {
        return sum;
    }
    for (int32_t i = 0; i < r->num_experts; i++) {
        if (i != expert[0] && s[i] > 0 && (*left_out < 0 || s[i] > s[*left_out])) {
            *left_out = i;
        }
    }
    return *left_out < 0 ? sum : sum + s[*left_out];
}

/* ds [N] += gradient of sum_k dg_k g_k with respect to the scores. */
static void score_gradient(const moe_router *r,
                           const double *s,
                           const int32_t *expert,
                           const double *dg,
                           int64_t count,
                           double *ds) {
    double factor = moe_weights_factor(r), dot = 0;
    int32_t left_out;
    if (!moe_weights_normalized(r)) {
        for (int64_t k = 0; k < count; k++) {
            ds[expert[k]] += factor * dg[k];
        }
        return;
    }
    double sum = normalizing_sum(r, s, expert, count, &left_out);
    for (int64_t k = 0; k < count; k++) {
        dot += dg[k] * s[expert[k]];
    }
    for (int64_t k = 0; k < count; k++) {
        ds[expert[k]] += factor / sum * (dg[k] - dot / sum);
    }
    if (left_out >= 0) {
        ds[left_out] -= factor / sum * dot / sum;
    }
}

/* dz [N] += from ds [N], all of it: sum_i ds_i s_i(z). */
static void logit_gradient(
    const moe_router *r, const double *z, const double *s, const double *ds, double *dz) {
    int32_t n = r->num_experts;
    double dot = moe_scores_sum_to_one(r) ? moe_scores_dot(ds, s, n) : 0,
           divisor = moe_router_logit_divisor(r);
    for (int32_t i = 0; i < n; i++) {
        if (moe_scores_sum_to_one(r)) {
            dz[i] += s[i] * (ds[i] - dot) / divisor;
        } else if (ds[i] != 0) {
            dz[i] += moe_score_derivative(r, z[i], s[i]) * ds[i];
        }
    }
}

void moe_weight_gradient_token(const moe_router *r,
                               const double *z,
                               const double *s,
                               const int32_t *expert,
                               const double *dg,
                               int64_t count,
                               double *ds,
                               double *dz) {
    memset(ds, 0, (size_t)r->num_experts * sizeof *ds);
    score_gradient(r, s, expert, dg, count, ds);
    logit_gradient(r, z, s, ds, dz);
}

void moe_weight_gradient(const moe_router *r,
                         moe_logits logits,
                         const moe_routing *routing,
                         const real *dg,
                         double *dlogits) {
    int32_t n = r->num_experts;
#pragma omp parallel
    {
        double *z = moe_scratch_take(r->scratch, 4 * (int64_t)n, sizeof *z, "router's gradient");
        double *s = z + n;
        double *ds = s + n;
        double *dg_token = ds + n;
        double lse;
#pragma omp for schedule(static)
        for (int64_t t = 0; t < routing->num_tokens; t++) {
            int64_t begin = routing->row_offset[t], count = routing->row_offset[t + 1] - begin;
            if (count == 0 || moe_scores_read_logits(logits, t, n, z) & MOE_ROW_BAD) {
                continue;
            }
            moe_router_scores(r, z, s, &lse);
            for (int64_t k = 0; k < count; k++) {
                dg_token[k] = (double)dg[begin + k];
            }
            moe_weight_gradient_token(r, z, s, routing->expert + begin, dg_token, count, ds,
                                      dlogits + t * n);
        }
        moe_scratch_give(r->scratch, z);
    }
}
