/* devices.h: what some methods compute from the logits of all tokens of a device before the first
 * of them is routed. Tokens with NaN or +inf logits are left out, and so is padding that is
 * dropped. */
#ifndef MOESIM_ROUTER_DEVICES_H
#define MOESIM_ROUTER_DEVICES_H

#include <stdbool.h>
#include <stdint.h>

#include "data/batch.h"
#include "router/settings.h"

/* Local. factor [N] = what is added to the logits of tokens [begin, end), the tokens of one device.
 * routed: moe_batch_routed. Returns whether the computation converged. */
typedef bool moe_device_factors(const moe_router *r,
                                moe_logits logits,
                                const uint8_t *routed,
                                int64_t begin,
                                int64_t end,
                                double *factor);

/* Local. chosen [end - begin, N] = 1 where an expert takes a token of [begin, end), the tokens of
 * one device. */
typedef void moe_device_takes(const moe_router *r,
                              moe_logits logits,
                              const uint8_t *routed,
                              int64_t begin,
                              int64_t end,
                              uint8_t *chosen);

/* Local. How many of the tokens [begin, end) are routed. */
static inline int64_t moe_device_routed(const uint8_t *routed, int64_t begin, int64_t end) {
    int64_t count = end - begin;
    for (int64_t t = begin; t < end && routed; t++) {
        count -= !routed[t];
    }
    return count;
}

/* sinkhorn.c: the logarithms of factors that balance the experts. */
moe_device_factors moe_sinkhorn_factors;

/* expert_choice.c: each expert takes its T K / N best tokens of the T routed ones (rounded, at
 * least 1) by score; among equals the first. */
moe_device_takes moe_expert_choice_takes;

#endif
