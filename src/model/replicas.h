/* replicas.h: the gradients of an expert that lives in several slots. Each replica has the gradient
 * of the tokens that it served. The first slot of the expert adds those of the others to its own,
 * in ascending order of slots, and gives them the sum: all replicas then take the same step, and
 * stay equal bit for bit. */
#ifndef MOESIM_MODEL_REPLICAS_H
#define MOESIM_MODEL_REPLICAS_H

#include "model/layer.h"
#include "model/parameters.h"
#include "model/slot_copies.h"

typedef struct moe_replicas {       /* of one layer */
    moe_slot_copies gather, spread; /* to the first slot of an expert, and back */
} moe_replicas;

/* Local. Finds the copies of the layer's placement: once, and again after it has changed. */
void moe_replicas_plan(moe_replicas *r, const moe_context *context, const moe_layer *layer);

/* Collective. Sums the gradients of the layer's experts over their replicas. Adds to *bytes the
 * payload that goes from a device to another one. */
void moe_replicas_sum(moe_replicas *r,
                      const moe_context *context,
                      const moe_layer *layer,
                      const moe_layer_indices *indices,
                      moe_parameters *all,
                      int64_t *bytes);
void moe_replicas_free(moe_replicas *r);

#endif
