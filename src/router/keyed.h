/* keyed.h: choices that look at no score but at a key: for comparison with routers that learn, and
 * for expert dropout. A key is made of the draw (seed, step, layer) and the token. */
#ifndef MOESIM_ROUTER_KEYED_H
#define MOESIM_ROUTER_KEYED_H

#include <stdint.h>

#include "base/rng.h"
#include "router/settings.h"

/* Local. place [k] = k distinct numbers of 0 .. n-1. Every set of k is as likely as any other. a
 * and b are keys beside the rng's seed and purpose. */
void moe_keyed_subset(moe_rng rng, uint64_t a, uint64_t b, int32_t n, int32_t k, int32_t *place);

/* Local. place [k] = k distinct numbers of 0 .. n-1 for one token.
 *   random       drawn anew in every step
 *   hash         a function of the token (its byte in text, else its id) and of the layer alone
 *                (Roller et al. 2021, arXiv 2106.04426)
 *   round_robin  the numbers in turn: token t begins at t K */
typedef void moe_keyed_places(const moe_router *r,
                              const moe_draw *d,
                              int64_t token,
                              int32_t n,
                              int32_t k,
                              int32_t *place);
moe_keyed_places moe_keyed_random, moe_keyed_hash, moe_keyed_round_robin;

/* Local. Uniform in [0,1), for the second choice of a token. */
double moe_keyed_second(const moe_draw *d, int64_t token);

#endif
