/* scores.h: score functions of one token, inside the router. Layer 2 (decide): pure. Used by the
 * router's own files, the tally and the task's cross-entropy. */
#ifndef MOESIM_ROUTER_SCORES_H
#define MOESIM_ROUTER_SCORES_H

#include <stdbool.h>
#include <stdint.h>

#include "router/router.h"

/* What the logits of a token hold besides ordinary numbers. */
enum {
    MOE_ROW_DISABLED = 1 /* a -inf: that expert is disabled */,
    MOE_ROW_BAD = 2 /* NaN or +inf */
};

/* Local. z [n] = logits of local token t as double; returns MOE_ROW_ flags. */
int moe_scores_read_logits(moe_logits logits, int64_t t, int32_t n, double *z);

/* Local. log sum_i exp(z_i), or -inf when all are -inf. */
double moe_scores_lse(const double *z, int32_t n);

/* Local. Sum of x [n] in 8 fixed lanes and a fixed tree: the same bits at any vector width. */
double moe_scores_sum(const double *x, int32_t n);

/* Local. sum_i a_i b_i in the same order. */
double moe_scores_dot(const double *a, const double *b, int32_t n);

/* Local. y [n] = exp(x [n] - shift), at most 1 ulp off: exp(0) = 1 and exp(-inf) = 0 exactly,
 * overflow to inf, gradual underflow. y is not x. */
void moe_scores_exp(const double *x, double shift, double *y, int32_t n);

/* Local. -sum_i p_i log p_i of the normalised scores p [n]; p = 0 adds nothing. */
double moe_scores_entropy(const double *p, int32_t n);

/* Local. The same for s = softmax(z) [n], with one logarithm: sum_i s_i (m - z_i) - log s_m, m the
 * largest logit (which must not be -inf). */
double moe_scores_softmax_entropy(const double *z, const double *s, int32_t n);

/* Local. Whether s sums to 1 over the experts by its definition (both softmaxes). */
static inline bool moe_scores_sum_to_one(const moe_router *r) {
    return r->score_func == MOE_SCORE_SOFTMAX || r->score_func == MOE_SCORE_SOFTMAX_TOPK;
}

/* Local. dz [N] += d/dz of sum_k dg_k g_k(z) of one token with scores s [N] and `count` experts; ds
 * [N] is working memory (weight_gradient.c). */
void moe_weight_gradient_token(const moe_router *r,
                               const double *z,
                               const double *s,
                               const int32_t *expert,
                               const double *dg,
                               int64_t count,
                               double *ds,
                               double *dz);

/* Local. Derivative of the sigmoid and sqrtsoftplus scores at z, where the value is s
 * (router_gradient.c). */
double moe_score_derivative(const moe_router *r, double z, double s);

#endif
