/* weight_gradient.c: g_k = c s_k (plain) or c s_k / S, S = sum of the chosen s + 1e-20 (normalised); c the scaling factor.
 *
 *   plain        ds_k = c dg_k
 *   normalised   ds_k = c / S (dg_k - sum_j dg_j s_j / S)
 *   softmax      dz_i = s_i ([i chosen] ds_i - sum_k ds_k s_k)     for all i
 *   sigmoid, sqrtsoftplus   dz_k = s'(z_k) ds_k                      for the chosen */
#include "moesim/weight_gradient.h"

#include <math.h>

#include "scores.h"

static bool is_normalized(const moe_router *r) {
    return r->score_func == MOE_SCORE_SOFTMAX_TOPK || (r->norm_topk_prob && (r->top_k > 1 || r->norm_single));
}

/* ds [count] of the chosen; s [N] scores of the token. */
static void score_gradient(const moe_router *r, const double *s, const int32_t *expert, const real *dg, int64_t count, double *ds) {
    bool normalized = is_normalized(r);
    double factor = !normalized || r->scale_normalized ? r->routed_scaling_factor : 1, sum = 1e-20, dot = 0;
    for (int64_t k = 0; k < count; k++) {
        sum += s[expert[k]];
        dot += (double)dg[k] * s[expert[k]];
    }
    for (int64_t k = 0; k < count; k++) {
        ds[k] = normalized ? factor / sum * ((double)dg[k] - dot / sum) : factor * (double)dg[k];
    }
}

static void token_gradient(const moe_router *r, const double *z, const double *s, const int32_t *expert, int64_t count, const double *ds,
                           double *dz) {
    double dot = 0;
    if (!moe_scores_sum_to_one(r)) {
        for (int64_t k = 0; k < count; k++) {
            dz[expert[k]] += moe_score_derivative(r, z[expert[k]], s[expert[k]]) * ds[k];
        }
        return;
    }
    for (int64_t k = 0; k < count; k++) {
        dot += ds[k] * s[expert[k]];
        dz[expert[k]] += s[expert[k]] * ds[k];
    }
    for (int32_t i = 0; i < r->num_experts; i++) {
        dz[i] -= s[i] * dot;
    }
}

void moe_weight_gradient(const moe_router *r, moe_logits logits, const moe_routing *routing, const real *dg, double *dlogits) {
    int32_t n = r->num_experts;
#pragma omp parallel
    {
        double *z = moe_alloc(3 * (int64_t)n, sizeof *z, "router's gradient"), *s = z + n, *ds = s + n, lse;
#pragma omp for schedule(static)
        for (int64_t t = 0; t < routing->num_tokens; t++) {
            int64_t begin = routing->row_offset[t], count = routing->row_offset[t + 1] - begin;
            if (count == 0 || moe_scores_load(logits, t, n, z) & MOE_ROW_BAD) continue;
            moe_router_scores(r, z, s, &lse);
            score_gradient(r, s, routing->expert + begin, dg + begin, count, ds);
            token_gradient(r, z, s, routing->expert + begin, count, ds, dlogits + t * n);
        }
        moe_free(z);
    }
}
