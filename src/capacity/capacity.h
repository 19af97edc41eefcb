/* capacity.h: the rules: how many token-expert pairs may stay, who shares that budget, and in which
 * order pairs take their places. cut.h cuts one pool by them, drop.h puts the ranks together.
 * docs/method.md section 3.
 *
 *   pair    a selection of the routing: a token and one of its experts
 *   pool    tokens that share budgets: the global batch, one device's tokens (capacity_scope =
 *           device), or one sequence (policy = sequence). A pool may span ranks; each holds a part
 *           of it, and parts in rank order are in token order.
 *   target  what a budget is of: a device (policy = device) or an expert. Every pool has one budget
 *           for every target.
 *   class   the first key of the order in which pairs take their places: exempt pairs, where there
 *           are any, then all others, or (first_choices) first choices, second choices, and so on
 *   key     the second: 64 bits that rise as the value that `drop` names falls. Among equal keys
 *           the earlier token comes first, then the lower expert id. */
#ifndef MOESIM_CAPACITY_CAPACITY_H
#define MOESIM_CAPACITY_CAPACITY_H

#include <stdbool.h>
#include <stdint.h>

#include "config/config.h"
#include "data/batch.h"
#include "placement/placement.h"
#include "router/routing.h"

typedef struct moe_capacity {
    enum moe_capacity_policy policy;
    enum moe_capacity_scope scope;
    enum moe_drop_order drop;
    enum moe_overflow overflow;
    enum moe_rounding rounding;
    double factor, exempt_sequences;
    int32_t expert_capacity, min_capacity; /* expert_capacity 0: from factor */
    bool first_choices, renormalize, pad;
    int32_t num_experts, devices, top_k;
    int32_t most_choices; /* of one token: top_k, or N where experts choose tokens */
    uint64_t seed;
} moe_capacity;

/* Local. From a resolved configuration. */
void moe_capacity_init(moe_capacity *c, const moe_config *config);

/* --- the tables of variants --- */

/* Capacity in pairs of one target, from a capacity factor: tokens and selections (pairs) of the
 * pool, n targets. */
typedef struct moe_rounding_row {
    const char *name; /* as the configuration writes it */
    double (*pairs)(const moe_capacity *c, double tokens, double selections, double n);
} moe_rounding_row;

/* What a pair is kept for: the larger the value, the sooner. */
typedef struct moe_drop_order_row {
    const char *name; /* as the configuration writes it */
    /* of pair i of a token whose first pair is `first`; NULL: position alone decides */
    double (*value)(const moe_capacity *c, const moe_routing *r, int64_t i, int64_t first);
    bool fills_by_key; /* places in the buffer follow the keys, else the order of the tokens */
} moe_drop_order_row;

enum {
    MOE_NUM_ROUNDINGS = MOE_ROUNDING_TUTEL + 1,
    MOE_NUM_DROP_ORDERS = MOE_DROP_BATCH_PRIORITY + 1
};
extern const moe_rounding_row moe_roundings[MOE_NUM_ROUNDINGS];       /* by moe_rounding */
extern const moe_drop_order_row moe_drop_orders[MOE_NUM_DROP_ORDERS]; /* by moe_drop_order */

/* --- how many --- */

/* Local. Number of targets: D for policy = device, else N. */
int32_t moe_capacity_targets(const moe_capacity *c);

/* Local. Capacity in pairs of one target of a pool with `tokens` tokens and `selections` pairs.
 * That is tokens x K where all tokens choose K experts; elsewhere K-bar = selections/T takes K's
 * place. expert_capacity, where given, stands for the formula, and the result is never below
 * min_capacity. With n targets (capacity.rounding):
 *
 *   ceil       ceil(factor selections / n); what is within 1e-12 of a whole number is that number
 *   megatron   ceil((selections / n) factor), in double, in this order
 *   deepspeed  ceil((tokens / n) (factor K)), in double, in this order
 *   fastmoe    floor(ceil(factor tokens) K / n)
 *   tutel      K floor(factor ceil(tokens / n)); factor 0 is as much as is needed: INT64_MAX */
int64_t moe_capacity_pairs(const moe_capacity *c, int64_t tokens, int64_t selections);

/* Local. MOE_USER with one sentence when the factor is below 1 and even the largest pool of a batch
 * of `tokens` routed tokens, whose longest sequence has `sequence` tokens, would be left with a
 * capacity of 0 pairs. The same on every rank. */
int moe_capacity_check(const moe_config *c, int64_t tokens, int64_t sequence, moe_status *st);

/* --- who shares, and in which order --- */

/* Local. exempt [T] = 1 for the tokens of exempt sequences: the floor(share B + 0.5) of all B
 * sequences that hold a routed token, with the smallest keyed hash of (seed, step, sequence).
 * Returns their number. */
int64_t moe_capacity_exempt(const moe_capacity *c,
                            const moe_batch *b,
                            int64_t step,
                            uint8_t *exempt);

/* A pool's tokens on this rank. */
typedef struct moe_pool {
    int64_t begin, end; /* local token ids */
    int64_t id;         /* global: 0, device or sequence */
    int64_t tokens;     /* routed ones of the whole pool */
} moe_pool;

/* Local. The pools of a rank in token order; returns how many. *pools is the caller's, to be given
 * back into b->scratch. The global pool is there even without tokens. */
int64_t moe_capacity_pools(const moe_capacity *c, const moe_batch *b, moe_pool **pools);

/* Local. group [pairs] = target x classes + class of every pair, and key [pairs] its key (key is
 * NULL where position alone decides). exempt [T] or NULL. classes: of the moe_shape (cut.h). */
void moe_capacity_order(const moe_capacity *c,
                        const moe_batch *b,
                        const moe_routing *r,
                        const moe_placement *p,
                        const uint8_t *exempt,
                        int32_t classes,
                        int32_t *group,
                        uint64_t *key);

/* --- what dropping does to the rows --- */

/* Local. Adds to removed [D] the tokens of local device j that the routing `full` sends to each
 * device and `sent` does not, less those that only `sent` sends there. */
void moe_capacity_removed(const moe_batch *b,
                          const moe_placement *p,
                          const moe_routing *full,
                          const moe_routing *sent,
                          int32_t j,
                          int64_t *removed);

#endif
