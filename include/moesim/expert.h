/* expert.h: the experts of a rank's devices: weights and the grouped FFN. Layer 3 (act). method.md section 5.
 *   swiglu: W2 (silu(W1 u) * W3 u)     silu, gelu, relu: W2 act(W1 u)     identity: u
 * Weights are keyed by expert id, not by rank or slot: an expert is the same wherever it lives. */
#ifndef MOESIM_EXPERT_H
#define MOESIM_EXPERT_H

#include "moesim/config.h"
#include "moesim/exchange.h"
#include "moesim/placement.h"
#include "moesim/tensor.h"
#include <stdbool.h>
#include <stdint.h>

typedef struct moe_ffn { /* `count` FFNs of equal shape */
    enum moe_expert_type type;
    int64_t count, hidden, width;
    real *w1, *w3; /* [count,F,H]; w3 for swiglu only */
    real *w2;      /* [count,H,F] */
} moe_ffn;

/* Gradients of a moe_ffn, same shapes; NULL where the FFN has no such matrix. Not owned: they stand in the table of parameters. */
typedef struct moe_ffn_gradient {
    real *w1, *w3, *w2;
} moe_ffn_gradient;

/* What a rank needs to run its experts; reused from step to step. */
typedef struct moe_expert_buffers {
    real *out;      /* [num_pairs, H] outputs grouped by slot; backward overwrites them with the pairs' dx */
    real *results;  /* [num_rows, H] what goes back: sum over a row's experts of weight * output (backward: of dx) */
    real *h1, *h3;  /* [num_pairs, F] pre-activations grouped by slot; kept for backward only */
    real *dg;       /* [num_pairs] gradient of the combine weights, inbox order */
    real *scratch;  /* per thread */
    int64_t *order; /* slots by falling number of rows */
    int64_t out_room, results_room, scratch_room, order_room, h1_room, h3_room, dg_room;
} moe_expert_buffers;

/* Rows of one GEMM call. A constant, so that the calls an expert makes depend on its number of rows only. */
enum { MOE_GEMM_ROWS = 1024 };

/* Local. Keyed random weights: W1, W3 with variance 1/H, W2 with variance 1/F, for expert ids id[0..count). layer keys them too. */
void moe_ffn_init(moe_ffn *f, enum moe_expert_type type, int64_t count, int64_t hidden, int64_t width, int64_t seed, int32_t layer,
                  const int32_t *id, const uint32_t stream[3]);
void moe_ffn_free(moe_ffn *f);

/* Local. y [rows,H] = FFN_i(x [rows,H]). h1, h3 [rows,F] get the pre-activations, h [rows,F] the activation (h may be h1). One call of each GEMM:
 * rows <= MOE_GEMM_ROWS is the caller's business. */
void moe_ffn_forward(const moe_ffn *f, int64_t i, int64_t rows, const real *x, real *h1, real *h3, real *h, real *y);

/* Local. From dy [rows,H]: adds the gradients of FFN i into g (block i), dx [rows,H] = gradient of x. x, h1, h3 are forward's; scratch holds
 * 3 * rows * F. dx may be dy's array only for identity. */
void moe_ffn_backward(const moe_ffn *f, const moe_ffn_gradient *g, int64_t i, int64_t rows, const real *x, const real *h1, const real *h3,
                      const real *dy, real *scratch, real *dx);

/* Local. y [rows,H] = FFN_0(x) in calls of MOE_GEMM_ROWS rows, OpenMP over the calls (the shared experts). h1, h3 [rows,F]: kept pre-activations, or
 * NULL when there will be no backward. */
void moe_ffn_forward_all(const moe_ffn *f, int64_t rows, const real *x, moe_expert_buffers *b, real *h1, real *h3, real *y);
/* Local. Its backward: one thread at a time adds into g, in the order of the rows; dx is written. h1 NULL: computed again from x. */
void moe_ffn_backward_all(const moe_ffn *f, const moe_ffn_gradient *g, int64_t rows, const real *x, const real *h1, const real *h3,
                          const real *dy, moe_expert_buffers *b, real *dx);

/* Local. Runs the local experts (FFN index = local device * slots + slot) over the inbox: b->results in inbox row order. keep: backward will
 * follow, so pre-activations stay. */
void moe_experts_forward(const moe_ffn *f, const moe_inbox *in, moe_expert_buffers *b, bool keep);

/* Local. After moe_exchange_dispatch_gradient: adds the experts' gradients into g, b->dg = <dy, FFN(u)> of every pair, b->results = dx of every row
 * (sum over its experts, ascending). kept: what forward was told; otherwise pre-activations are computed again. */
void moe_experts_backward(const moe_ffn *f, const moe_ffn_gradient *g, const moe_inbox *in, moe_expert_buffers *b, bool kept);
void moe_expert_buffers_free(moe_expert_buffers *b);

#endif
