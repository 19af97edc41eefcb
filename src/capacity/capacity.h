/* capacity.h: how many token-expert pairs may stay, and which. Layer 2 (decide): pure, no MPI;
 * drop.h puts the ranks together. method.md section 3.
 *
 *   pool     tokens that share budgets: the global batch, one device's tokens (capacity_scope =
 * device), or one sequence (policy = sequence) target   what a budget is of: a device (policy =
 * device) or an expert; every pool has one budget for every target class    the first key of the
 * order in which pairs take their places: exempt pairs (when there are any), then all others, or
 * (first_choices) first choices, second choices, ... key      the second: 64 bits that sort as the
 * value of `drop` falls; equal keys: the earlier token first, then the lower expert id cell class x
 * bin, a bin being a range of keys: counting cells finds the range in which a budget ends, and only
 * its keys need be looked at
 *
 * A pool may span ranks; each holds a part of it, and parts in rank order are in token order. */
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
    uint64_t seed;
} moe_capacity;

/* Local. From a resolved configuration. */
void moe_capacity_init(moe_capacity *c, const moe_config *config);

/* Local. D for policy device, else N. */
int32_t moe_capacity_targets(const moe_capacity *c);

/* Local. Capacity in pairs of one target of a pool with `tokens` tokens and `selections` pairs
 * (tokens x K where all choose K; K-bar = selections/T takes K's place otherwise). n = number of
 * targets; expert_capacity, when given, stands for the formula; never below min_capacity. ceil
 * ceil(factor selections / n), a quotient within 1e-12 of a whole number being that number megatron
 * ceil((selections / n) factor)           in double, in this order deepspeed   ceil((tokens / n)
 * (factor K))           in double, in this order fastmoe     floor(ceil(factor tokens) K / n) tutel
 * K floor(factor ceil(tokens / n)) factor 0 (Tutel): as much as is needed; INT64_MAX. */
int64_t moe_capacity_pairs(const moe_capacity *c, int64_t tokens, int64_t selections);

/* Local. MOE_USER with one sentence when a capacity of 0 pairs would be left even of the largest
 * pool of a batch of `tokens` tokens. The same on every rank. */
int moe_capacity_check(const moe_config *c, int64_t tokens, moe_status *st);

/* Local. exempt [T] = 1 for the tokens of exempt sequences: the floor(share B + 0.5) of all B with
 * the smallest keyed hash of (seed, step, sequence). Returns their number. */
int64_t moe_capacity_exempt(const moe_capacity *c,
                            const moe_batch *b,
                            int64_t step,
                            uint8_t *exempt);

/* A pool's tokens on this rank. */
typedef struct moe_pool {
    int64_t begin, end; /* local token ids */
    int64_t id;         /* global: 0, device or sequence */
    int64_t tokens;     /* of the whole pool */
} moe_pool;

/* Local. The pools of a rank in token order; returns how many. *pools: the caller's, back into
 * b->scratch. The global pool is there even without tokens. */
int64_t moe_capacity_pools(const moe_capacity *c, const moe_batch *b, moe_pool **pools);

/* Local. 64 bits that rise as v falls; NaN comes last. */
uint64_t moe_capacity_key(double v);

/* Local. Target x classes + class of every pair, and its key (NULL where position alone decides).
 * exempt [T] or NULL. classes: moe_shape's. */
void moe_capacity_order(const moe_capacity *c,
                        const moe_routing *r,
                        const moe_placement *p,
                        const uint8_t *exempt,
                        int32_t classes,
                        int32_t *group,
                        uint64_t *key);

/* --- counting and cutting one pool --- */

typedef struct moe_shape {
    int32_t targets, classes, bins;
    int shift;            /* of keys, for bins */
    bool exempt;          /* class 0 has no limit */
    bool has_keys;        /* false: position decides */
    bool by_key;          /* places follow the keys (batch_priority), else the tokens */
    moe_scratch *scratch; /* working memory, or NULL; set by the caller */
} moe_shape;

/* Local. At most about max_words counts for a pool; how many only decides how much work is left
 * after counting. */
moe_shape moe_capacity_shape(const moe_capacity *c, bool exempt, int64_t max_words);
static inline int64_t moe_shape_cells(const moe_shape *s) {
    return (int64_t)s->classes * s->bins;
}
static inline int64_t moe_shape_words(const moe_shape *s) {
    return s->targets * moe_shape_cells(s);
}

/* This rank's pairs of a pool, in order of arrival: token, then choice. */
typedef struct moe_pairs {
    int64_t count;
    const int32_t *group; /* [count] */
    const uint64_t *key;  /* [count] or NULL */
} moe_pairs;

/* Where the budget of a target ends. */
typedef struct moe_cut {
    int64_t cell;   /* earlier cells stay, later ones go; number of cells: nothing goes */
    int64_t room;   /* pairs of `cell` that stay */
    int64_t kept;   /* pairs that stay in all */
    int64_t exempt; /* of these exempt */
} moe_cut;

/* Local. count [moe_shape_words] = pairs in each cell [target][cell]. */
void moe_capacity_count(const moe_shape *s, const moe_pairs *p, int64_t *count);
/* Local. cut [targets] from the counts of all parts together. */
void moe_capacity_cut(const moe_shape *s, const int64_t *total, int64_t capacity, moe_cut *cut);
/* Local. Of how many pairs of a part, with these counts, the keys must be known: those of the cells
 * in which budgets end (by_key: of all that stay). */
int64_t moe_capacity_listed(const moe_shape *s, const moe_cut *cut, const int64_t *count);
/* Local. Their keys, ordered by target, cell, arrival. */
void moe_capacity_list(const moe_shape *s,
                       const moe_cut *cut,
                       const int64_t *count,
                       const moe_pairs *p,
                       uint64_t *keys);

/* The parts of a pool in rank order. */
typedef struct moe_parts {
    int num, self;
    const int64_t *const *count; /* [num] each [moe_shape_words] */
    const uint64_t *const *keys; /* [num] moe_capacity_list of each; unused without keys */
} moe_parts;

/* Local. kept, slot [pairs]: 1 and the place in its target's buffer, or 0 and -1. Places follow the
 * order of the budget for position and batch_priority, else the tokens' order. O(pairs): radix
 * selection on keys, a radix sort for batch_priority. */
void moe_capacity_settle(const moe_shape *s,
                         const moe_parts *parts,
                         const moe_cut *cut,
                         const moe_pairs *p,
                         uint8_t *kept,
                         int32_t *slot);

/* Local. The nth smallest (1 = first) of key [n], and how many are smaller. O(n). */
uint64_t moe_capacity_nth(const uint64_t *key, int64_t n, int64_t nth, int64_t *smaller);

/* --- what dropping does to the rows --- */

/* Local. removed [num_local_devices][D]: tokens that `full` sends to a device and `sent` does not,
 * less those that only `sent` sends there. */
void moe_capacity_removed(const moe_batch *b,
                          const moe_placement *p,
                          const moe_routing *full,
                          const moe_routing *sent,
                          int64_t *removed);

#endif
