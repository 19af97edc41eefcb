/* weight_gradient.h: from the gradient of the combine weights back to the logits. Layer 2 (decide):
 * pure. method.md sections 1.6 and 5. */
#ifndef MOESIM_ROUTER_WEIGHT_GRADIENT_H
#define MOESIM_ROUTER_WEIGHT_GRADIENT_H

#include "router/router.h"

/* Local. dlogits [T,N] (double) += d/dz of sum_k dg_k g_k(z), dg [num_selections] in the order of
 * the routing. The selection is fixed, g is differentiated through its scores, its normalisation
 * and its scaling. OpenMP over tokens. */
void moe_weight_gradient(const moe_router *r,
                         moe_logits logits,
                         const moe_routing *routing,
                         const real *dg,
                         double *dlogits);

#endif
