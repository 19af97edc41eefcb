/* methods.h: the ways to choose a token's experts, one row of a table each. Everything that tells
 * one method from another is a column, and nobody in this folder asks which method it is. */
#ifndef MOESIM_ROUTER_METHODS_H
#define MOESIM_ROUTER_METHODS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "router/devices.h"
#include "router/settings.h"
#include "router/tournament.h"

/* Working memory of a choice; it lives for many tokens, one for each thread. */
typedef struct moe_chooser {
    moe_tournament tournament;
    int32_t *enabled;     /* [N] the experts that a choice by key may fall on */
    const moe_draw *draw; /* seed, step and layer, which choices by chance are keyed by */
    int64_t token;        /* so are they by the token's global id, or by its byte (by_byte) */
    const double *factor; /* [N] what the token's device adds to its logits, or NULL */
} moe_chooser;

/* Chooses for one token with logits z [N] and scores s [N]: expert [moe_method_most] in the order
 * in which they were chosen; returns how many. may_be_disabled = 0 promises that no z is -inf. */
typedef int32_t moe_choose(moe_chooser *w,
                           const moe_router *r,
                           const double *z,
                           const double *s,
                           int may_be_disabled,
                           int32_t *expert);

enum moe_method_needs {
    MOE_NEEDS_KEYS,   /* nothing but keys: scores only make the weights */
    MOE_NEEDS_SCORES, /* the scores of the token */
    MOE_NEEDS_DEVICE  /* the logits of all tokens of the device, before the first token is routed */
};

typedef struct moe_method {
    const char *name; /* as the configuration writes it */
    const char *rule; /* in words, for the reader of --explain */
    moe_choose *choose;
    enum moe_method_needs needs;
    bool chooses_best; /* the top_k experts with the best selection scores, neither more nor less,
                          whatever chance or other tokens say */
    bool any_number;   /* a token may have up to all N experts; else top_k at most */
    bool fewer;        /* by its scores a token may take fewer than top_k, but at least one */
    bool by_byte;      /* the key is the token's byte where there is a text, else its id */
    bool has_second;   /* obeys router.second_choice */
    moe_device_factors *factors; /* MOE_NEEDS_DEVICE: what is added to the logits, or NULL */
    moe_device_takes *takes;     /* MOE_NEEDS_DEVICE: the choice of all tokens at once, or NULL */
} moe_method;

enum { MOE_NUM_METHODS = MOE_METHOD_EXPERT_CHOICE + 1 };
extern const moe_method moe_methods[MOE_NUM_METHODS]; /* by moe_router_method */

/* Local. The row of a router's method. */
static inline const moe_method *moe_method_of(const moe_router *r) {
    MOE_ASSERT((unsigned)r->method < MOE_NUM_METHODS);
    return &moe_methods[r->method];
}

/* Local. The most experts that one token may have. */
static inline int32_t moe_method_most(const moe_router *r) {
    return moe_method_of(r)->any_number ? r->num_experts : r->top_k;
}

/* Local. Whether chance may leave out a token's second expert after its weight was counted in the
 * sum that weights are divided by (GShard, arXiv 2006.16668, Algorithm 1). */
static inline bool moe_method_may_leave_out(const moe_router *r) {
    return moe_method_of(r)->has_second && r->second_choice == MOE_SECOND_RANDOM;
}

/* Local. Fills in the selection scores of a token and admits its groups. */
void moe_method_rank(moe_chooser *w,
                     const moe_router *r,
                     const double *z,
                     const double *s,
                     int may_be_disabled);

#endif
