/* drop.h: dropping at a capacity, put together over all ranks. docs/method.md section 3; the rules
 * are those of capacity.h.
 *
 * It stands between router and plan: from the routing it decides who stays (kept, slot), and makes
 * `sent`, the routing that the plan is built from. f, P and all statistics are taken from the
 * routing before. A global budget costs two collectives: the counts of cells (at most 8 bytes a
 * selection), and the keys of the pairs in the cells in which budgets end (8 bytes each). With
 * drop = position it is only the first, and where no pool spans ranks it is none.
 *
 * overflow = next_choice goes in rounds. In a round every dropped pair, in the order of tokens and
 * then of choices, asks for an expert: its token's best by selection score s + b (the lower index
 * among equals) among those that are admitted (in the token's groups, not disabled), that the token
 * does not have or has not just asked for, and that had room when the round began. Each target
 * takes as many as it has room for, in that order. A round costs one collective, and there is
 * another as long as somebody asks. Every refusal means that a target is full, hence it ends. */
#ifndef MOESIM_CAPACITY_DROP_H
#define MOESIM_CAPACITY_DROP_H

#include "capacity/capacity.h"
#include "router/router.h"
#include "router/routing.h"
#include "world/comm.h"

typedef struct moe_drop {
    bool on;            /* false: there is no capacity, and nothing else is set */
    int64_t capacity;   /* pairs per target, of the largest pool; with factor 0 the largest count of
                           the global pool, else INT64_MAX */
    int64_t *selection; /* [sent.num_selections] index in the full routing */
    int32_t *slot;      /* [num_selections] of the full routing: place in the buffer of the target;
                           -1 = dropped */
    int32_t *server;  /* [num_selections] the expert that serves it: its own, or next_choice's; -1 =
                         dropped */
    uint8_t *kept;    /* [num_selections] 1 = some expert serves this selection */
    moe_block block;  /* the memory of these four */
    moe_routing sent; /* the routing without the dropped pairs */
    bool moves;       /* pairs may be served by another expert than their own */
    bool reweighted;  /* sent's weights are those of the served set, not the routing's */
    int64_t exempt_overflow; /* pairs of exempt sequences beyond a budget: this rank's share, so
                                that sums over ranks are global */
    int64_t padding_rows;    /* rows that fill buffers up to the capacity: a share likewise */
    int64_t collectives, collective_bytes; /* of the last call; bytes that this rank gave */
} moe_drop;

/* What the decision is made from. */
typedef struct moe_drop_job {
    const moe_comm *comm;
    const moe_capacity *capacity;
    const moe_batch *batch;
    const moe_placement *placement;
    const moe_router *router;
    moe_logits logits; /* used by next_choice only */
    const moe_routing *routing;
    int64_t step; /* keys the exempt sequences */
} moe_drop_job;

/* Collective where a pool spans ranks. The same decision on any number of ranks. *d is zeroed
 * before the first call; its memory is used again. */
void moe_drop_decide(moe_drop *d, const moe_drop_job *job);
void moe_drop_free(moe_drop *d);

#endif
