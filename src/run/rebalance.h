/* rebalance.h: placements by load in a run. A policy of placement.policy that needs loads decides
 * before the first step, by the load of that step's tokens, which a forward pass of their own
 * finds; and with placement.rebalance_every again after every so many steps, by the load of the
 * last placement.window steps. Rank 0 decides; experts and optimiser state move by MPI.
 * docs/placement.md. */
#ifndef MOESIM_RUN_REBALANCE_H
#define MOESIM_RUN_REBALANCE_H

#include "model/stack.h"
#include "placement/balancer.h"
#include "train/checkpoint_blob.h"
#include "train/train.h"

typedef struct moe_rebalance {
    const moe_balancer *balancer; /* NULL: the placement does not follow the load */
    moe_stack *stack;             /* not owned, as is training, which is NULL in a forward run */
    moe_training *training;
    int32_t layers, experts, slots;
    int64_t every;  /* steps; 0: only before the first one */
    int64_t window; /* steps whose loads are kept, one a row; 0: one row sums all since the last
                       decision */
    double *load;   /* [max(window, 1)][layers][N]; step s is in row s mod window */
    double *pairs;  /* [layers][N][N] of this rank's tokens in the last step of the window, or
                       after moe_rebalance_gather of all tokens on rank 0 and 0 on the others;
                       NULL where the balancer does not ask for them */

    /* What a checkpoint carries, together with load and, where a decision is due, pairs. */
    int32_t *expert_at;          /* [layers][slots] */
    moe_rebalance_metrics total; /* of the run so far */

    moe_rebalance_metrics last;  /* of the last decision */
    moe_rebalance_detail detail; /* of it; loads on rank 0 only */
} moe_rebalance;

/* Local. training is NULL in a forward run. The caller owns *r: moe_rebalance_free. */
void moe_rebalance_init(moe_rebalance *r, moe_stack *stack, moe_training *training);
void moe_rebalance_free(moe_rebalance *r);

/* Local. Counts which experts a layer's tokens chose together, where the balancer asks for it and
 * `step` is the last one before a decision. */
void moe_rebalance_see(moe_rebalance *r, int64_t step, int32_t layer, const moe_routing *routing);

/* Local. Takes the loads of a step from its metrics. */
void moe_rebalance_take(moe_rebalance *r, int64_t step, const moe_step_metrics *metrics);

/* Local. Whether a placement is decided before this step. */
bool moe_rebalance_due(const moe_rebalance *r, int64_t step);

/* Collective. Decides by the last `steps` steps' load, and moves what has to move. */
void moe_rebalance_now(moe_rebalance *r, int64_t steps);

/* Collective. To be called before a checkpoint is written after `step` steps: where a decision is
 * due, rank 0 then has the pairs of all tokens. */
void moe_rebalance_gather(moe_rebalance *r, int64_t step);

enum { MOE_REBALANCE_BLOBS = 4 };
/* Local. What a checkpoint after `step` steps carries; none (0) where nothing depends on the load.
 * Returns how many blobs there are; the first is r->expert_at. */
int moe_rebalance_blobs(moe_rebalance *r, int64_t step, moe_blob blob[MOE_REBALANCE_BLOBS]);

/* Local. Refuses (MOE_USER) loads and figures from a checkpoint that no run can have counted. */
int moe_rebalance_check(const moe_rebalance *r, const char *path, moe_status *st);

/* Local. Puts r->expert_at, which came from a checkpoint, into the placements, before the experts
 * are read. */
int moe_rebalance_restore(moe_rebalance *r, const char *path, moe_status *st);

#endif
