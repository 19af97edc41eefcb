/* serving.h: balancers that decide in every batch (placement.policy = lplb, llep, moonep). Once the
 * router has chosen, the choices are counted over all ranks; rank 0 asks the balancer; and every
 * rank knows who serves whom (placement/split.h). llep and moonep also copy experts to other
 * devices for the batch: their weights travel by MPI before the tokens do, and in training the
 * gradients of the copies travel home after backward. What is decided depends on the counts only,
 * so it is the same on any number of ranks. docs/placement.md. */
#ifndef MOESIM_MODEL_SERVING_H
#define MOESIM_MODEL_SERVING_H

#include "measure/metrics.h"
#include "model/layer.h"
#include "model/slot_copies.h"
#include "placement/balancer.h"
#include "placement/split.h"

typedef struct moe_serving {
    const moe_balancer *balancer;
    bool plans;         /* it copies experts for the batch */
    int64_t *count;     /* [D,N] choices of each expert by the tokens of each device */
    int64_t *share;     /* [D,slots] those that each slot serves */
    double *load;       /* [N] */
    double *served;     /* [slots] */
    int32_t *expert_at; /* [slots] */
    moe_split_walk walk;
    moe_balancer_answer answer; /* on rank 0 */
    moe_slot_copies copies;
} moe_serving;

/* Local. What the configuration asks for; NULL where nothing is decided in a batch. Where experts
 * are copied, the placements begin with every expert at home. The caller owns it:
 * moe_serving_free. */
moe_serving *moe_serving_make(const moe_context *context);
void moe_serving_free(moe_serving *s);

/* Local. The problem of a placement's balancer under `load` [N]. */
moe_balancer_problem moe_serving_problem(const moe_config *c,
                                         const moe_placement *p,
                                         const double *load);

/* Local. Before the router of a layer chooses: forgets who served whom in the last batch. */
void moe_serving_begin(const moe_context *context, const moe_layer *layer);

/* Collective. After the router of a layer has chosen: decides, fetches what is to be copied, and
 * counts the choices by device in `stats` again. Does nothing where nothing is decided in a batch.
 */
void moe_serving_decide(const moe_context *context,
                        const moe_layer *layer,
                        const moe_routing *routing,
                        moe_stats *stats,
                        moe_fetch_metrics *metrics);

/* Collective. After the backward pass of a layer: adds the gradients of the copies to those of the
 * experts at home, in the order of slots, clears them, and leaves every expert at home alone. Does
 * nothing where nothing was copied. */
void moe_serving_return(const moe_context *context,
                        const moe_layer *layer,
                        const moe_layer_indices *indices,
                        moe_parameters *all,
                        moe_fetch_metrics *metrics);

/* Local. Leaves every expert of all layers at home alone, where experts are copied. */
void moe_serving_reset(const moe_context *context);

#endif
