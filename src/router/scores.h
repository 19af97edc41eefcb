/* scores.h: from the logits of one token to its scores, s = score_func(z), and the vector functions
 * that this takes. docs/method.md section 1.2.
 *
 * Scores and sums are double in every build. Sums run in 8 fixed lanes and a fixed tree, so that
 * results are the same bits at any vector width. */
#ifndef MOESIM_ROUTER_SCORES_H
#define MOESIM_ROUTER_SCORES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "data/batch.h"
#include "router/settings.h"

/* --- the table of score functions --- */

typedef struct moe_score_function {
    const char *name;    /* as the configuration writes it */
    const char *formula; /* in words, for the reader of --explain */
    /* s [n] = scores of the logits z [n]; a temperature divides the logits first, where the scores
     * sum to 1. *lse = log sum_i exp(z_i) without temperature, unless lse is NULL. */
    void (*fill)(const double *z, double divisor, double *s, int32_t n, double *lse);
    /* d [n] = ds_i / dz_i with the sum over the experts held fixed, so that
     *   ds_i / dz_j = d_i [i = j]              where every score stands for itself
     *   ds_i / dz_j = d_i [i = j] - s_i d_j    where the scores sum to 1
     * both divided by the temperature. It works for any n, so for one expert as well. */
    void (*derivative)(const double *z, const double *s, double *d, int32_t n);
    double bound;     /* no score is larger */
    bool sums_to_one; /* over the experts, by definition; others are normalised for P and losses */
    bool over_chosen; /* the weights are those of the same function over the chosen experts alone,
                         that is, always divided by their sum */
} moe_score_function;

enum { MOE_NUM_SCORE_FUNCTIONS = MOE_SCORE_SOFTMAX_TOPK + 1 };
extern const moe_score_function moe_score_functions[MOE_NUM_SCORE_FUNCTIONS]; /* by moe_score_func
                                                                               */

/* Local. The row of a router's score function. */
static inline const moe_score_function *moe_score_function_of(const moe_router *r) {
    MOE_ASSERT((unsigned)r->score_func < MOE_NUM_SCORE_FUNCTIONS);
    return &moe_score_functions[r->score_func];
}

/* Local. s [N] = scores of one token with logits z [N]; *lse as above. A token whose experts are
 * all disabled has scores 0 and lse = -inf. */
void moe_scores_fill(const moe_router *r, const double *z, double *s, double *lse);

typedef struct moe_softmax_sums {
    double most; /* the largest logit m; -inf: all experts are disabled */
    double sum;  /* sum_i exp(z_i - m); lse = m + log(sum), and the largest score is 1 / sum */
} moe_softmax_sums;

/* Local. What moe_scores_fill does for a softmax without temperature, and what it found. most: the
 * largest of z. */
moe_softmax_sums moe_scores_softmax(const double *z, double most, double *s, int32_t n);

/* Local. normalized [N] = s / sum(s), or s itself where it sums to 1: what P and the losses are
 * made of. May be in place. */
void moe_scores_normalize(const moe_router *r, const double *s, double *normalized);

/* --- logits --- */

/* What the logits of a token hold besides ordinary numbers. */
enum {
    MOE_ROW_DISABLED = 1, /* a -inf: that expert is disabled */
    MOE_ROW_BAD = 2       /* NaN or +inf */
};

/* Local. z [n] = logits of local token t as double; returns MOE_ROW_ flags. */
int moe_scores_read_logits(moe_logits logits, int64_t t, int32_t n, double *z);

/* Local. The largest of these logits, which are not MOE_ROW_BAD; -inf: all are disabled. */
double moe_scores_largest_logit(moe_logits logits, int64_t t, int32_t n);

/* Local. Begins to load the logits [n] of local token t into the cache. */
void moe_scores_prefetch_logits(moe_logits logits, int64_t t, int32_t n);

/* Local. log sum_i exp(z_i), or -inf when all are -inf. */
double moe_scores_lse(const double *z, int32_t n);

/* --- vector functions --- */

/* Local. sum_i x_i, and sum_i a_i b_i. */
double moe_scores_sum(const double *x, int32_t n);
double moe_scores_dot(const double *a, const double *b, int32_t n);

/* Local. y [n] = exp(x [n] - shift), at most 1 ulp off: exp(0) = 1 and exp(-inf) = 0 exactly,
 * overflow to inf, gradual underflow. y is not x. */
void moe_scores_exp(const double *x, double shift, double *y, int32_t n);

/* Local. -sum_i p_i log p_i of the normalised scores p [n]; p = 0 adds nothing. */
double moe_scores_entropy(const double *p, int32_t n);

/* Local. The same for s = softmax(z) [n], with one logarithm: sum_i s_i (m - z_i) - log s_m, m the
 * largest logit, which must not be -inf. sums is what moe_scores_softmax returned. In the same pass
 * the scores are added to the sums hi, lo [n] (moe_exact_add01). */
double moe_scores_softmax_entropy(const double *z,
                                  const double *s,
                                  int32_t n,
                                  moe_softmax_sums sums,
                                  int64_t *hi,
                                  int64_t *lo);

#endif
