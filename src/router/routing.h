/* routing.h: what the router decided for the tokens of one rank, as a row-offset list (CSR), since
 * tokens may choose different numbers of experts. */
#ifndef MOESIM_ROUTER_ROUTING_H
#define MOESIM_ROUTER_ROUTING_H

#include <stdint.h>

#include "base/alloc.h"
#include "base/block.h"

typedef struct moe_routing {
    int64_t num_tokens;     /* T */
    int64_t num_selections; /* row_offset[T] */
    int64_t *row_offset;    /* [T+1] selections of token t: row_offset[t] .. row_offset[t+1] - 1 */
    int32_t *expert; /* [num_selections] per token in falling order of the unbiased score, then of
                        the index */
    real *weight;    /* [num_selections] combine weight g */
    double *score;   /* [num_selections] unbiased score s: the affinity that dropping goes by */
    int32_t *server; /* [num_selections] after dropping: the expert that serves it, -1 = dropped;
                        NULL: every selection is served */
    int64_t server_capacity;
    int32_t unconverged_device; /* method = sinkhorn: smallest device of this rank whose iteration
                                   did not converge, else -1 */
    moe_block block;            /* the memory of row_offset, expert, weight and score */
} moe_routing;

/* Local. Room for num_tokens tokens of at most k selections each. Sets num_tokens and leaves the
 * contents of the arrays undefined. */
void moe_routing_reserve(moe_routing *r, int64_t num_tokens, int32_t k);

/* Local. For a routing whose row_offset[t+1] holds the number of selections of token t, and whose
 * selections of token t begin at t * stride: turns the numbers into offsets and moves the
 * selections together. */
void moe_routing_close_gaps(moe_routing *r, int32_t stride);

void moe_routing_free(moe_routing *r);

#endif
