/* experts.h: the experts of a rank's devices over the rows that arrived: grouped by expert, forward
 * and backward; and the shared experts, over all tokens. docs/method.md section 5. */
#ifndef MOESIM_EXPERTS_EXPERTS_H
#define MOESIM_EXPERTS_EXPERTS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/alloc.h"
#include "base/block.h"
#include "exchange/exchange.h"
#include "experts/ffn.h"

typedef struct moe_slot_load {
    int64_t rows, slot;
} moe_slot_load;

/* What a rank needs to run its experts. Zeroed before the first step; the memory is used again from
 * step to step. "Grouped" is the order of moe_inbox.slot_pair. */
typedef struct moe_expert_buffers {
    bool bf16;            /* products are computed in bf16; set by the caller before a forward pass,
                             and the same for the backward pass that follows */
    real *out;            /* [num_pairs,H] outputs, grouped; backward overwrites them with the
                             pairs' dx */
    real *results;        /* [num_rows,H] what goes back, at moe_inbox_result: the sum over a row's
                             experts of weight * output (backward: of dx) */
    real *h1, *h3;        /* [num_pairs,F] pre-activations, grouped; kept for backward only */
    real *dg;             /* [num_pairs] gradients of the combine weights, in the inbox's order */
    moe_slot_load *order; /* [num_local * slots] slots, the one with the most rows first */
    moe_block block;      /* memory of the above */
    real *scratch;        /* working memory of every thread */
    int64_t scratch_capacity; /* in numbers */
} moe_expert_buffers;

/* The most rows of one GEMM call. It is a constant, so that the calls that an expert makes depend
 * on its number of rows only. */
enum { MOE_GEMM_ROWS = 1024 };

/* Local. The shared experts: y [rows,H] = FFN_0(x [rows,H]) in calls of MOE_GEMM_ROWS rows, spread
 * over OpenMP threads. h1, h3 [rows,F] keep the pre-activations; NULL when no backward will follow.
 */
void moe_experts_shared_forward(const moe_ffn *f,
                                int64_t rows,
                                const real *x,
                                moe_expert_buffers *b,
                                real *h1,
                                real *h3,
                                real *y);

/* Local. The backward of the above: adds into g in the order of the rows, one call at a time, and
 * writes dx [rows,H]. h1 NULL: the pre-activations are computed again from x. */
void moe_experts_shared_backward(const moe_ffn *f,
                                 const moe_ffn_gradient *g,
                                 int64_t rows,
                                 const real *x,
                                 const real *h1,
                                 const real *h3,
                                 const real *dy,
                                 moe_expert_buffers *b,
                                 real *dx);

/* What the first thread calls between two products, while other vectors travel. Zeroed: nothing. */
typedef struct moe_experts_pause {
    void (*call)(void *self);
    void *self;
} moe_experts_pause;

/* Local. Runs the local experts over a chunk of the inbox, whose vectors have arrived: b->results
 * of its rows. FFN number local device * slots + slot is the expert in that slot. keep: the
 * pre-activations stay for a backward. Chunk 0 comes first. */
void moe_experts_forward(const moe_ffn *f,
                         const moe_inbox *in,
                         int32_t chunk,
                         moe_expert_buffers *b,
                         bool keep,
                         const moe_experts_pause *pause);

/* Local. The same backward, after moe_exchange_dispatch_gradient: adds the experts' gradients into
 * g, or with g->replace sets them, to 0 where an expert has no row; b->dg = <dy, FFN(u)> of the
 * pairs; b->results = dx of the rows, the sum over their experts in ascending order. kept: what
 * forward was told; where it is false, the pre-activations are computed again. An expert's
 * gradients are added up chunk after chunk. */
void moe_experts_backward(const moe_ffn *f,
                          const moe_ffn_gradient *g,
                          const moe_inbox *in,
                          int32_t chunk,
                          moe_expert_buffers *b,
                          bool kept,
                          const moe_experts_pause *pause);
void moe_expert_buffers_free(moe_expert_buffers *b);

#endif
