/* loss_gradient.h: gradient of the balance losses with respect to the logits, with all counts
 * fixed. docs/method.md section 2. */
#ifndef MOESIM_ROUTER_LOSS_GRADIENT_H
#define MOESIM_ROUTER_LOSS_GRADIENT_H

#include <stdint.h>

#include "data/batch.h"
#include "router/routing.h"
#include "router/settings.h"
#include "router/smooth_load.h"

/* What the losses of one scope multiply a token's quantities by. */
typedef struct moe_loss_coefficients {
    const double *a;        /* [3N] of P_i, of the weights of expert i, and of its smooth load
                               (moe_balance_coefficients); the alphas are in it */
    double inverse_tokens;  /* 1 / (counted tokens of the scope x number of scopes): of all of a */
    double alpha_z;         /* of the z-loss, which is a mean over the tokens of the global batch */
    double inverse_counted; /* 1 / (counted tokens of the global batch): of the z-loss */
} moe_loss_coefficients;

/* Local. dlogits [T,N] (double) += d(sum of balance losses + z-loss)/dz for tokens [begin,end),
 * which belong to one scope. noisy: the logits before noise, or NULL outside training. Padding and
 * bad tokens are skipped. OpenMP over tokens. */
void moe_loss_gradient(const moe_router *r,
                       const moe_batch *batch,
                       moe_logits logits,
                       const moe_noisy *noisy,
                       const moe_routing *routing,
                       int64_t begin,
                       int64_t end,
                       const moe_loss_coefficients *c,
                       double *dlogits);

#endif
