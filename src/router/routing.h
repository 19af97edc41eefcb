/* routing.h: what the router decided, for the tokens of one rank. Layer 2 (decide): pure data.
 * A row-offset list (CSR), because tokens may choose different numbers of experts. */
#ifndef MOESIM_ROUTER_ROUTING_H
#define MOESIM_ROUTER_ROUTING_H

#include <stdint.h>

#include "base/alloc.h"

typedef struct moe_routing {
    int64_t num_tokens;     /* T */
    int64_t num_selections; /* row_offset[T] */
    int64_t *row_offset;    /* [T+1] */
    int32_t *expert; /* [num_selections] per token in falling order of the unbiased score, then
                        index */
    real *weight;    /* [num_selections] combine weight g */
    double *score;   /* [num_selections] unbiased score s: the affinity that dropping goes by */
    int32_t *server; /* [num_selections] after dropping: the expert that serves it, -1 = dropped;
                        NULL: every selection is served */
    int64_t server_capacity;
    int32_t unconverged_device; /* method = sinkhorn: smallest device of this rank whose iteration
                                   did not converge, else -1 */
    int64_t token_capacity, selection_capacity; /* of the arrays */
} moe_routing;

/* Local. Room for num_tokens tokens of at most k selections; sets num_tokens, leaves the contents
 * undefined. */
void moe_routing_reserve(moe_routing *r, int64_t num_tokens, int32_t k);
void moe_routing_free(moe_routing *r);

#endif
