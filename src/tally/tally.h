/* tally.h: what the devices of a layer did, summed over all ranks, and the self-checks on it. */
#ifndef MOESIM_TALLY_TALLY_H
#define MOESIM_TALLY_TALLY_H

#include "measure/metrics.h"
#include "model/layer.h"
#include "model/stack.h"

/* Collective. Right after the layer's forward pass: completes metrics->layer[layer->index] with the
 * balance losses, counts, matrices, volume, reach and output, and adds the layer's self-checks to
 * the step. y [T,H] is the layer's output. */
void moe_tally_layer(const moe_layer *layer,
                     const moe_context *context,
                     moe_activations *a,
                     const real *y,
                     moe_step_metrics *metrics);

/* Collective. The same for layer l of a stack, right after its forward pass, with a span in the
 * timeline: a hook for moe_observer.after_layer, which ignores self and never fails. */
int moe_tally_after_layer(void *self,
                          const moe_stack *s,
                          int32_t l,
                          moe_step_metrics *metrics,
                          moe_status *st);

#endif
