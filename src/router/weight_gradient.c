/* weight_gradient.c: with c the scaling factor and S the sum that normalised weights are divided by
 * (weights.h):
 *   plain        g_k = c s_k        ds_k = c dg_k
 *   normalised   g_k = c s_k / S    ds_k = c / S (dg_k - sum_j dg_j s_j / S)
 * A pair that another expert e serves (overflow = next_choice without renormalize) has s_e in its
 * numerator, and S is still of those that were chosen. And from the scores to the logits by the
 * derivative of the score function: scores that sum to 1   dz_i = s_i (ds_i - sum_j ds_j s_j) /
 * temperature    for all i others                 dz_k = s'(z_k) ds_k for the chosen */
#include "router/weight_gradient.h"

#include <math.h>
#include <string.h>

#include "router/methods.h"
#include "router/scores.h"
#include "router/weights.h"

/* ds [N] += gradient of sum_k dg_k g_k with respect to the scores. */
static void score_gradient(moe_select *select,
                           const moe_router *r,
                           const double *z,
                           const double *s,
                           const moe_weighted *w,
                           const double *dg,
                           double *ds) {
    double factor = moe_weights_factor(r), dot = 0;
    int32_t left_out;
    if (!moe_weights_normalized(r)) {
        for (int64_t k = 0; k < w->count; k++) {
            if (moe_weighted_expert(w, k) >= 0) {
                ds[moe_weighted_expert(w, k)] += factor * dg[k];
            }
        }
        return;
    }
    double sum =
        moe_weights_divisor(r, moe_select_sum(select, r, z, s, w->expert, w->count, &left_out));
    for (int64_t k = 0; k < w->count; k++) {
        const int32_t server = moe_weighted_expert(w, k);
        dot += server >= 0 ? dg[k] * s[server] : 0;
    }
    for (int64_t k = 0; k < w->count; k++) {
        const int32_t server = moe_weighted_expert(w, k);
        if (server == w->expert[k]) {
            ds[server] += factor / sum * (dg[k] - dot / sum);
            continue;
        }
        ds[w->expert[k]] -= factor / sum * dot / sum;
        if (server >= 0) {
            ds[server] += factor / sum * dg[k];
        }
    }
    if (left_out >= 0) {
        ds[left_out] -= factor / sum * dot / sum;
    }
}

/* dz [N] += sum_i ds_i ds_i/dz of all experts. */
static void logit_gradient(const moe_router *r,
                           const double *z,
                           const double *s,
                           const double *ds,
                           double *dz) {
    const moe_score_function *f = moe_score_function_of(r);
    int32_t n = r->num_experts;
    if (f->sums_to_one) {
        double dot = moe_scores_dot(ds, s, n), divisor = moe_router_logit_divisor(r);
        for (int32_t i = 0; i < n; i++) {
            dz[i] += s[i] * (ds[i] - dot) / divisor;
        }
        return;
    }
    for (int32_t i = 0; i < n; i++) {
        if (ds[i] != 0) {
            double slope;
            f->derivative(z + i, s + i, &slope, 1);
            dz[i] += slope * ds[i];
        }
    }
}

void moe_weight_gradient_token(moe_select *w,
                               const moe_router *r,
                               const double *z,
                               const double *s,
                               const moe_weighted *weighted,
                               const double *dg,
                               double *ds,
                               double *dz) {
    memset(ds, 0, (size_t)r->num_experts * sizeof *ds);
    score_gradient(w, r, z, s, weighted, dg, ds);
    logit_gradient(r, z, s, ds, dz);
}

void moe_weight_gradient(const moe_router *r,
                         moe_logits logits,
                         const moe_routing *routing,
                         const int32_t *server,
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
        moe_select select;
        moe_select_reserve_for_sum(&select, r);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < routing->num_tokens; t++) {
            int64_t begin = routing->row_offset[t], count = routing->row_offset[t + 1] - begin;
            if (count == 0 || moe_scores_read_logits(logits, t, n, z) & MOE_ROW_BAD) {
                continue;
            }
            moe_scores_fill(r, z, s, &lse);
            for (int64_t k = 0; k < count; k++) {
                dg_token[k] = (double)dg[begin + k];
            }
            const moe_weighted weighted = {routing->expert + begin, server ? server + begin : NULL,
                                           count};
            moe_weight_gradient_token(&select, r, z, s, &weighted, dg_token, ds, dlogits + t * n);
        }
        moe_select_free(&select);
        moe_scratch_give(r->scratch, z);
    }
}
