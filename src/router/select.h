/* select.h: choosing the experts of one token, with working memory that lives for many tokens.
 * Layer 2 (decide): pure. Used by select.c and router.c (and the bench); everybody else calls
 * moe_router_select. */
#ifndef MOESIM_ROUTER_SELECT_H
#define MOESIM_ROUTER_SELECT_H

#include <stdint.h>

#include "router/router.h"

/* The selection scores of a token stand in blocks of 8: each group starts a new block, the rest of
 * its last block is -inf. With block maxima beside them, taking the largest of the kept groups
 * looks at (number of kept blocks) + 8 numbers. */
typedef struct moe_select {
    int32_t groups, group_size, group_blocks; /* without a group limit: one group of N */
    double *score; /* [groups * group_blocks * 8] s + b, -inf where disabled, taken, or padding */
    double *block_max; /* [groups * group_blocks] of score */
    double *kept_max;  /* [groups * group_blocks] block_max of the kept groups, groups ascending */
    int32_t *kept_block; /* the same, block ids */
    double *group_score; /* [groups] */
    int32_t *block_base; /* [groups * group_blocks] first expert of a block */
    int32_t *kept;       /* [num_kept] ids of kept groups, ascending */
    int32_t num_kept;
    double *s;            /* [top_k] unbiased scores of the chosen */
    int32_t *expert;      /* [top_k] before ordering */
    double *order_s;      /* [top_k] */
    int32_t *enabled;     /* [N] for keyed choices */
    int64_t token;        /* set by the caller: what keyed choices are keyed by */
    const double *factor; /* set by the caller: sinkhorn, [N] what to add to the logits; else NULL
                           */
    void *memory;
    moe_scratch *scratch; /* the router's: where memory comes from */
} moe_select;

/* Local. Working memory for router r; one per thread. Free with moe_select_free. */
void moe_select_reserve(moe_select *w, const moe_router *r);
void moe_select_free(moe_select *w);

/* Local. moe_router_select with working memory. weight may be NULL (only who is chosen).
 * may_be_disabled = 0 promises that no z is -inf. */
int32_t moe_select_experts(moe_select *w,
                           const moe_router *r,
                           const double *z,
                           const double *s,
                           int may_be_disabled,
                           int32_t *expert,
                           double *weight);

/* Local. The same for a token whose experts are known: those with chosen [N] = 1 (expert_choice).
 * expert and weight have room for N. */
int32_t moe_select_given(moe_select *w,
                         const moe_router *r,
                         const double *s,
                         const uint8_t *chosen,
                         int32_t *expert,
                         double *weight);

/* Local. Why: selection [N] = what the experts of one token are ranked by (-inf = disabled); with a
 * group limit, of_group [groups] = the groups' scores and admitted [groups] = 1 where the token may
 * go. factor [N] as in moe_select, or NULL. */
void moe_select_reasons(const moe_router *r,
                        const double *z,
                        const double *s,
                        const double *factor,
                        double *selection,
                        double *of_group,
                        double *admitted);

/* Local. Whether the weights of the chosen are divided by their sum. */
static inline bool moe_weights_normalized(const moe_router *r) {
    return r->score_func == MOE_SCORE_SOFTMAX_TOPK ||
           (r->norm_topk_prob && (r->top_k > 1 || r->norm_single));
}

/* Local. What they are then multiplied by; a temperature on the probabilities stays where nothing
 * is normalised. */
static inline double moe_weights_factor(const moe_router *r) {
    bool normalized = moe_weights_normalized(r);
    double factor = !normalized || r->scale_normalized ? r->routed_scaling_factor : 1.0;
    return normalized ? factor : factor / moe_router_probability_divisor(r);
}

/* Local. weight [count] = g of a token whose experts have the unbiased scores s [count]
 * (method.md 1.6). */
void moe_select_weights(const moe_router *r, const double *s, int32_t count, double *weight);

#endif
