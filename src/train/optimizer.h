/* optimizer.h: SGD and AdamW over the table of parameters. Layer 3 (act). Loshchilov and Hutter
 * 2019 (decoupled weight decay), PyTorch's order of operations. */
#ifndef MOESIM_TRAIN_OPTIMIZER_H
#define MOESIM_TRAIN_OPTIMIZER_H

#include "config/config.h"
#include "model/parameters.h"

/* Local, pure. Learning rate of step t (0-based): linear warm-up over warmup_steps to
 * learning_rate, then constant or cosine to 0 at `steps`. */
double moe_optimizer_learning_rate(const moe_config *c, int64_t step);
/* Local. Allocates the state that the optimiser needs. */
void moe_optimizer_init(moe_parameters *all, const moe_config *c);
/* Local. One update with learning rate lr; gradients are multiplied by clip_norm / norm first when
 * clip_norm > 0 and norm > clip_norm. step counts from 0 (AdamW's bias correction uses step + 1).
 */
void moe_optimizer_step(
    moe_parameters *all, const moe_config *c, int64_t step, double lr, double gradient_norm);

#endif
