/* weights.h: the combine weights g of a token's experts, made from their unbiased scores.
 * docs/method.md section 1.6.
 *
 *   plain        g_k = c s_k
 *   normalised   g_k = c s_k / S,  S = sum of the chosen s
 *
 * c is routed_scaling_factor. With scale_normalized = no, weights are normalised OR scaled, as
 * DeepSeek-V2's own code does it; norm_single = no leaves the weight of a single expert as it is.
 * Scores that are a softmax over the chosen (softmax_topk) are always normalised. */
#ifndef MOESIM_ROUTER_WEIGHTS_H
#define MOESIM_ROUTER_WEIGHTS_H

#include <stdbool.h>
#include <stdint.h>

#include "router/settings.h"

/* Local. Whether the weights of the chosen are divided by their sum. */
bool moe_weights_normalized(const moe_router *r);

/* Local. What they are then multiplied by: c, divided by a temperature on the probabilities, which
 * has an effect only where nothing is normalised. */
double moe_weights_factor(const moe_router *r);

/* Local. weight [count] = g of a token whose experts have the unbiased scores s [count], in double,
 * before rounding to the working precision. */
void moe_weights_fill(const moe_router *r, const double *s, int32_t count, double *weight);

/* Local. What the scores are divided by when those of the chosen add up to `sum`: the one function
 * of forward and backward. */
double moe_weights_divisor(const moe_router *r, double sum);

#endif
