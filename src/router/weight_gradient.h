/* weight_gradient.h: from the gradient of the combine weights back to the logits. The selection is
 * fixed; g is differentiated through its scores, its normalisation and its scaling. docs/method.md
 * sections 1.6 and 5. */
#ifndef MOESIM_ROUTER_WEIGHT_GRADIENT_H
#define MOESIM_ROUTER_WEIGHT_GRADIENT_H

#include "data/batch.h"
#include "router/routing.h"
#include "router/settings.h"

/* Local. dlogits [T,N] (double) += d/dz of sum_k dg_k g_k(z), dg [num_selections] in the order of
 * the routing. OpenMP over tokens. */
void moe_weight_gradient(const moe_router *r,
                         moe_logits logits,
                         const moe_routing *routing,
                         const real *dg,
                         double *dlogits);

/* Local. The same for one token with scores s [N] and `count` experts: dz [N] +=; ds [N] is working
 * memory. */
void moe_weight_gradient_token(const moe_router *r,
                               const double *z,
                               const double *s,
                               const int32_t *expert,
                               const double *dg,
                               int64_t count,
                               double *ds,
                               double *dz);

#endif
