/* derive.h: derives the figures of a step's final tables from what they are made of.
 *
 * The values are put together in plain double from counts, mean scores and matrices, and not by the
 * code that reported them. A figure that does not agree with the reported one is a bug. */
#ifndef MOESIM_EXPLAIN_DERIVE_H
#define MOESIM_EXPLAIN_DERIVE_H

#include "config/config.h"
#include "explain/derivation.h"
#include "measure/metrics.h"

/* Local, rank 0. Adds what the metrics of a step are enough for: losses over the layers, devices
 * per token, volume, balance. The losses of the layers come from moe_derive_losses. */
void moe_derive_step(moe_derivation *d, const moe_config *c, const moe_step_metrics *m);

#endif
