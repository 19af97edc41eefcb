/* split.h: one batch is split among the replicas of its experts where a balancer says how much each
 * of them serves (lplb, llep, moonep).
 *
 * served [slots] are quotas, rounded to whole tokens. They go first to the tokens of the replica's
 * own device, then to those of its node, then to all others, each time in the order of tokens: the
 * rule of serve.h. So the tokens of one device that chose one expert are cut into runs, one for
 * each replica, in the order own device, own node, others, and by slot. The numbers of tokens where
 * the runs end are all that another rank has to know to tell who serves a token. */
#ifndef MOESIM_PLACEMENT_SPLIT_H
#define MOESIM_PLACEMENT_SPLIT_H

#include <stdint.h>

#include "placement/placement.h"

/* Local. Makes room in *p for the runs of a batch, and forgets those of the last one: a token then
 * goes to the first replica in that order. */
void moe_split_init(moe_placement *p);
void moe_split_forget(moe_placement *p);

/* Local. share [D,slots]: how many of the tokens of each device choose the expert of a slot and are
 * served by it. count [D,N] are the choices, and served [slots], which is rounded, sums to those of
 * each expert. Replicas beside another one of their expert serve nothing: the first slot does. */
void moe_split_share(const moe_placement *p,
                     const int64_t *count,
                     const double *served,
                     int64_t *share);

/* One device's tokens on their way through the runs. */
typedef struct moe_split_walk {
    int32_t *place; /* [N] where in the order of the expert's replicas its run is */
    int64_t *left;  /* [N] tokens that the run has left */
} moe_split_walk;

/* Local. The runs of `device` in p->until, from its row of share [slots]: begins the walk; goes on
 * with each choice in the order of tokens; and ends, when what is left of every expert's runs is
 * the last one. */
void moe_split_begin(moe_placement *p,
                     int32_t device,
                     const int64_t *share,
                     const moe_split_walk *w);
void moe_split_choice(moe_placement *p,
                      int32_t device,
                      const int64_t *share,
                      const moe_split_walk *w,
                      int32_t expert,
                      int64_t token);
void moe_split_end(moe_placement *p, int32_t device, const moe_split_walk *w);

#endif
