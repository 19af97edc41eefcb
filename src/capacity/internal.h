/* drop_parts.h: what drop.c and drop_next.c share: a decision in the making, and pools that span
 * ranks. Layer 3 (act). */
#ifndef MOESIM_CAPACITY_INTERNAL_H
#define MOESIM_CAPACITY_INTERNAL_H

#include "capacity/drop.h"

typedef struct moe_dropping {
    const moe_drop_job *job;
    moe_drop *drop;
    moe_scratch *scratch; /* the batch's */
    int64_t num_pools;
    moe_pool *pool; /* [num_pools] */
    int32_t targets;
    int num_shared; /* of this rank's pools, those that span ranks */
    int64_t shared_id[2];
    double *score; /* [num_selections] of the experts that serve; the routing's to begin with */
    int64_t *room; /* [num_pools][targets] pairs that still fit, of the whole pool; next_choice only
                    */
    int64_t *filled; /* [num_pools][targets] pairs in the buffer, of the whole pool; next_choice
                        only */
} moe_dropping;

/* Vectors of the pools that span ranks, from all ranks: a rank has at most two such pools, its
 * first and its last. */
typedef struct moe_shared {
    int64_t words;  /* of a vector */
    int64_t *first; /* [ranks + 1] index of a rank's first vector */
    int64_t *id;    /* [vectors] pool */
    int64_t *value; /* [vectors][words] */
    moe_scratch *scratch;
} moe_shared;

/* Collective. vector [num_pools] of this rank: those of shared pools are given to all (others are
 * not looked at). */
moe_shared moe_drop_share(moe_dropping *w, int64_t words, const int64_t *const *vector);
void moe_drop_shared_free(moe_shared *s);
/* Local. The vectors of a pool in rank order, at most one a rank, into part [ranks]; *self = which
 * is this rank's. 0: the pool is not shared. */
int moe_drop_parts(
    const moe_dropping *w, const moe_shared *s, int64_t id, const int64_t **part, int *self);

/* Collective. Gives dropped pairs to their tokens' next choices, as drop.h says. Updates kept,
 * slot, server. */
void moe_drop_next_choice(moe_dropping *w);

#endif
