/* router_devices.h: methods that look at all tokens of a device before the first one is routed.
 * Layer 2 (decide): pure. Used by the router's own files only. Tokens with NaN or +inf logits are
 * left out. */
#ifndef MOESIM_ROUTER_DEVICES_H
#define MOESIM_ROUTER_DEVICES_H

#include <stdbool.h>
#include <stdint.h>

#include "router/router.h"

/* Local. sinkhorn: factor [N] = log of the experts' factors for tokens [begin, end), the tokens of
 * one device. False: did not converge. */
bool moe_sinkhorn_factors(
    const moe_router *r, moe_logits logits, int64_t begin, int64_t end, double *factor);

/* Local. expert_choice: chosen [end - begin, N] = 1 where an expert took a token of [begin, end),
 * the tokens of one device. Each expert takes its T K / N best (rounded, at least 1) by score,
 * among equals the first token. */
void moe_expert_choice(
    const moe_router *r, moe_logits logits, int64_t begin, int64_t end, uint8_t *chosen);

#endif
