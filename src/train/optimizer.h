/* optimizer.h: SGD and AdamW over the table of parameters.
 *
 *   sgd     g' = g + wd p ;  p -= lr g'
 *   adamw   p *= 1 - lr wd ;  m += (1 - b1)(g - m) ;  v = b2 v + (1 - b2) g^2
 *           p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps),   t counted from 1
 *
 * AdamW: Loshchilov and Hutter 2019 (arXiv 1711.05101, decoupled weight decay). The order of
 * operations is that of PyTorch's single-tensor code. */
#ifndef MOESIM_TRAIN_OPTIMIZER_H
#define MOESIM_TRAIN_OPTIMIZER_H

#include "config/config.h"
#include "model/parameters.h"

/* Local, pure. The learning rate of a step, which counts from 0: it rises linearly over
 * train.warmup_steps to train.learning_rate, then stays or falls as a cosine to 0 at run.steps. */
double moe_optimizer_learning_rate(const moe_config *c, int64_t step);

/* Local. Allocates the state that the optimizer of train.optimizer needs, in the table. */
void moe_optimizer_init(moe_parameters *all, const moe_config *c);

/* Local. One update with learning rate lr. When train.clip_norm > 0 and the norm of the gradient is
 * larger, all gradients are first multiplied by clip_norm / gradient_norm. `step` counts from 0. */
void moe_optimizer_step(moe_parameters *all,
                        const moe_config *c,
                        int64_t step,
                        double lr,
                        double gradient_norm);

#endif
