/* expert.h: the experts of a rank's devices over the rows that arrived: grouped forward and
 * backward. Layer 3 (act). method.md section 5. */
#ifndef MOESIM_EXPERTS_EXPERTS_H
#define MOESIM_EXPERTS_EXPERTS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/alloc.h"
#include "config/config.h"
#include "exchange/exchange.h"
#include "experts/ffn.h"
#include "placement/placement.h"

/* What a rank needs to run its experts; reused from step to step. */
typedef struct moe_expert_buffers {
    real *out; /* [num_pairs, H] outputs grouped by slot; backward overwrites them with the pairs'
                  dx */
    real *results;  /* [num_rows, H] what goes back: sum over a row's experts of weight * output
                       (backward: of dx) */
    real *h1, *h3;  /* [num_pairs, F] pre-activations grouped by slot; kept for backward only */
    real *dg;       /* [num_pairs] gradient of the combine weights, inbox order */
    real *scratch;  /* per thread */
    int64_t *order; /* slots by falling number of rows */
    int64_t out_room, results_room, scratch_room, order_room, h1_room, h3_room, dg_room;
} moe_expert_buffers;

/* Rows of one GEMM call. A constant, so that the calls an expert makes depend on its number of rows
 * only. */
enum { MOE_GEMM_ROWS = 1024 };

/* Local. y [rows,H] = FFN_0(x) in calls of MOE_GEMM_ROWS rows, OpenMP over the calls (the shared
 * experts). h1, h3 [rows,F]: kept pre-activations, or NULL when there will be no backward. */
void moe_ffn_forward_all(const moe_ffn *f,
                         int64_t rows,
                         const real *x,
                         moe_expert_buffers *b,
                         real *h1,
                         real *h3,
                         real *y);
/* Local. Its backward: one thread at a time adds into g, in the order of the rows; dx is written.
 * h1 NULL: computed again from x. */
void moe_ffn_backward_all(const moe_ffn *f,
                          const moe_ffn_gradient *g,
                          int64_t rows,
                          const real *x,
                          const real *h1,
                          const real *h3,
                          const real *dy,
                          moe_expert_buffers *b,
                          real *dx);

/* Local. Runs the local experts (FFN index = local device * slots + slot) over the inbox:
 * b->results in inbox row order. keep: backward will follow, so pre-activations stay. */
void moe_experts_forward(const moe_ffn *f, const moe_inbox *in, moe_expert_buffers *b, bool keep);

/* Local. After moe_exchange_dispatch_gradient: adds the experts' gradients into g, b->dg = <dy,
 * FFN(u)> of every pair, b->results = dx of every row (sum over its experts, ascending). kept: what
 * forward was told; otherwise pre-activations are computed again. */
void moe_experts_backward(const moe_ffn *f,
                          const moe_ffn_gradient *g,
                          const moe_inbox *in,
                          moe_expert_buffers *b,
                          bool kept);
void moe_expert_buffers_free(moe_expert_buffers *b);

#endif
