/* router_keyed.h: choices that look at no score but at a key: (seed, step, layer, token). Layer 2
 * (decide): pure. Used by the router's own files. */
#ifndef MOESIM_ROUTER_KEYED_H
#define MOESIM_ROUTER_KEYED_H

#include <stdbool.h>
#include <stdint.h>

#include "router/router.h"

/* Local. Whether a method chooses without looking at scores: hash, random, round_robin. */
static inline bool moe_method_is_keyed(enum moe_router_method method) {
    return method == MOE_METHOD_HASH || method == MOE_METHOD_RANDOM ||
           method == MOE_METHOD_ROUND_ROBIN;
}

/* Local. Up to top_k distinct experts of a token among those whose logit is not -inf; enabled [N]
 * is working memory. Returns how many. */
int32_t moe_keyed_choice(const moe_router *r,
                         int64_t token,
                         const double *z,
                         int may_be_disabled,
                         int32_t *enabled,
                         int32_t *expert);

/* Local. Step and layer in one number: the key of what is drawn anew in every step. */
uint64_t moe_router_step_key(const moe_router *r);

/* Local. Uniform in [0,1) for the second choice of a token. */
double moe_keyed_second(const moe_router *r, int64_t token);

#endif
