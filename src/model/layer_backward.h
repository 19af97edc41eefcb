/* backward.h: one MoE layer, backward: the plan walked the other way. Layer 5 (simulate). method.md
 * section 5.
 *
 *   dy [T,H] -> (dispatch of dy, one row per row of the forward dispatch) -> experts backward: dW,
 * dg, dx of every pair -> combine of dx, return of dg
 *   -> weights: dg -> dlogits (+ the balance losses' dlogits) -> gate: dWg, du -> shared experts ->
 * rmsnorm -> dx [T,H] Expert gradients stay on their device. Gradients of replicated parameters go
 * into the partial of the device that made them. */
#ifndef MOESIM_MODEL_LAYER_BACKWARD_H
#define MOESIM_MODEL_LAYER_BACKWARD_H

#include "model/layer.h"
#include "model/parameters.h"

/* Where a layer's parameters stand in the table; -1 = the layer has none. */
typedef struct moe_layer_slots {
    int gate, gate_noise, norm, w1, w2, w3, shared_w1, shared_w2, shared_w3;
    int a1, a2, a3, b1, b2, b3; /* adapters; then w1, w2, w3 are frozen and not in the table */
} moe_layer_slots;

typedef struct moe_backward { /* working memory of backward, shared by all layers */
    double *dlogits;          /* [T,N] of the last layer that went through */
    real *dz;                 /* [T,N] the same, rounded */
    double *spread;       /* [T,N] what of the losses reaches the scale of the noise (noise.h) */
    real *dv;             /* [T,N] gradient of gate_x W_noise */
    real *gate_dx;        /* [T,H] gradient of what the gate reads, with jitter */
    real *dg;             /* [num_selections] */
    real *pairs;          /* [plan pairs] */
    real *du, *shared_dx; /* [T,H] */
    int64_t spread_room, dv_room, gate_room;
    int64_t dlogits_room, dz_room, dg_room, pairs_room, du_room, shared_room;
} moe_backward;

/* Local. Adds the layer's parameters to the table as "layer<i>.gate", ".norm", ".experts.w1" ...,
 * ".shared.w1" ... */
moe_layer_slots moe_layer_register(const moe_layer *layer,
                                   const moe_context *context,
                                   moe_parameters *all);

/* Collective. From dy [T,H] = d total / d y: adds the gradients of the layer's parameters, writes
 * dx [T,H] = d total / d x through the layer (without the residual), where total includes sum alpha
 * L of this layer. dx may be dy's array. */
void moe_layer_backward(const moe_layer *layer,
                        const moe_layer_slots *slots,
                        const moe_context *context,
                        moe_activations *a,
                        moe_parameters *all,
                        const real *dy,
                        moe_backward *b,
                        real *dx,
                        moe_layer_metrics *metrics);

/* Local. The routing whose weights were made from the scores, and whose order dg has: the one
 * before dropping, where a dropped pair has dg = 0 but its score is still in the others'
 * normalisation; or the one that is sent, where weights were made for those that are left. */
const moe_routing *moe_weights_routing(const moe_activations *a);

void moe_backward_free(moe_backward *b);

#endif
