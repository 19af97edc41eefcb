/* tally.h: what the devices of a layer did, summed over all ranks, and the self-checks on it. */
#ifndef MOESIM_TALLY_TALLY_H
#define MOESIM_TALLY_TALLY_H

#include "measure/metrics.h"
#include "model/layer.h"

/* Collective. Completes metrics->layer[layer->index] with counts, matrices, volume, reach and
 * output, and adds the layer's self-checks to the step. y [T,H] is the layer's output. */
void moe_tally_layer(const moe_layer *layer,
                     const moe_context *context,
                     const moe_activations *a,
                     const real *y,
                     moe_step_metrics *metrics);

#endif
