/* bias.h: balancing without a loss: a bias on the selection scores that follows the load.
 *
 * After a training step the bias of expert i moves by (Wang et al. 2024, arXiv 2408.15664; one of
 * the two forms of router.bias_update)
 *
 *   sign           b_i += gamma sign(mean(c) - c_i)
 *   proportional   b_i += gamma (mean(c) - c_i)
 *
 * where c are the selections of the global batch and gamma is router.bias_update_rate. With
 * router.bias_centered the mean of the changes is taken off. docs/method.md section 2. */
#ifndef MOESIM_BALANCE_BIAS_H
#define MOESIM_BALANCE_BIAS_H

#include <stdint.h>

#include "config/config.h"

/* Local, pure. Moves bias [N] after a step in which the experts were chosen counts [N] times. The
 * sign is decided on integers, so an expert with exactly the mean does not move. */
void moe_bias_update(const moe_router_config *c,
                     int32_t num_experts,
                     const int64_t *counts,
                     double *bias);

#endif
