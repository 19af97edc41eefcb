/* derive_losses.h: derives the losses of a layer from counts and mean scores. */
#ifndef MOESIM_EXPLAIN_DERIVE_LOSSES_H
#define MOESIM_EXPLAIN_DERIVE_LOSSES_H

#include "balance/scopes.h"
#include "config/config.h"
#include "explain/derivation.h"
#include "measure/metrics.h"

/* What the losses of a layer were made from. */
typedef struct moe_derive_job {
    const moe_comm *comm;
    const moe_config *config;
    const moe_balance *balance;
    const moe_placement *placement;
    const moe_batch *batch;
    const moe_scopes *scopes;
    int32_t layer, micro_batch;
} moe_derive_job;

/* Collective. Adds the losses of the layer in the three scopes, and their values at balance, on
 * rank 0. */
void moe_derive_losses(moe_derivation *d,
                       const moe_derive_job *job,
                       const moe_layer_metrics *metrics);

#endif
