/* internal.h: what drop.c, next_choice.c and shared.c share: a decision in the making, and pools
 * that span ranks. */
#ifndef MOESIM_CAPACITY_INTERNAL_H
#define MOESIM_CAPACITY_INTERNAL_H

#include "capacity/cut.h"
#include "capacity/drop.h"

typedef struct moe_dropping {
    const moe_drop_job *job;
    moe_drop *drop;
    moe_scratch *scratch; /* the batch's */
    int64_t num_pools;
    moe_pool *pool; /* [num_pools] */
    int32_t targets;
    int num_shared;       /* how many of this rank's pools span ranks, */
    int64_t shared_id[2]; /* and which */
    double *score; /* [num_selections] of the experts that serve; at first those of the routing */
    /* with overflow = next_choice, else NULL: of the whole pool */
    double *weight;  /* [num_selections] of the experts that serve a pair of another */
    int64_t *room;   /* [num_pools][targets] pairs that still fit */
    int64_t *filled; /* [num_pools][targets] pairs in the buffer */
} moe_dropping;

/* Vectors of the pools that span ranks, from all ranks. A rank has at most two such pools: its
 * first and its last. */
typedef struct moe_shared {
    int64_t words;  /* of a vector */
    int64_t *first; /* [ranks + 1] index of a rank's first vector */
    int64_t *id;    /* [vectors] pool */
    int64_t *value; /* [vectors][words] */
    moe_scratch *scratch;
} moe_shared;

/* --- shared.c --- */

/* Local. id = the pools of rank q of which other ranks hold tokens too; returns how many. */
int moe_shared_pools(const moe_drop_job *job, int q, int64_t id[2]);

/* Collective. vector [num_pools]: this rank's vectors of `words` words. Those of shared pools are
 * given to all; others are not looked at. Free with moe_shared_free. */
moe_shared moe_shared_gather(moe_dropping *w, int64_t words, const int64_t *const *vector);
void moe_shared_free(moe_shared *s);

/* Local. part [ranks] = the vectors of pool `id` in rank order, at most one a rank; *self = which
 * of them is this rank's. Returns how many; 0 = the pool is not shared. */
int moe_shared_parts(const moe_dropping *w,
                     const moe_shared *s,
                     int64_t id,
                     const int64_t **part,
                     int *self);

/* --- next_choice.c --- */

/* Collective. Gives dropped pairs to their tokens' next choices, as drop.h says. Updates kept,
 * slot, server and score. */
void moe_next_choice_give(moe_dropping *w);

#endif
