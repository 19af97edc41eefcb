/* gate.h: the logits of a layer's tokens, from the gate or from a recording, for the whole batch of
 * a rank or for one of its devices. */
#ifndef MOESIM_MODEL_GATE_H
#define MOESIM_MODEL_GATE_H

#include "model/layer.h"

/* Local. logits [T,N] = u [T,H] * gate [N,H]^T (docs/method.md section 1.1). No GEMM call crosses a
 * device and each has the same number of rows, so the calls depend on the device's tokens only. */
void moe_gate_logits(const real *gate,
                     const moe_batch *batch,
                     const real *u,
                     int64_t h,
                     int64_t n,
                     real *logits);

/* Local. Computed logits as the router takes them. */
moe_logits moe_gate_computed_logits(const real *logits);

/* Local. The recorded logits of the layer in this step, from local token `first` on. */
moe_logits moe_gate_recorded_logits(const moe_layer *layer,
                                    const moe_context *context,
                                    int64_t first);

/* Local. moe_router_route_recorded of the layer in this step, of a batch that begins with local
 * token `first`, by the layer's router or a copy of it. */
void moe_gate_route_recorded(const moe_layer *layer,
                             const moe_router *router,
                             const moe_context *context,
                             const moe_batch *batch,
                             int64_t first,
                             moe_routing *routing,
                             moe_stats *stats);

#endif
