/* expert.h: the experts of a rank's devices: weights and the grouped FFN. Layer 3 (act). method.md section 5.
 *   swiglu: W2 (silu(W1 u) * W3 u)     silu, gelu, relu: W2 act(W1 u)     identity: u
 * Weights are keyed by expert id, not by rank or slot: an expert is the same wherever it lives. */
#ifndef MOESIM_EXPERT_H
#define MOESIM_EXPERT_H

#include "moesim/config.h"
#include "moesim/exchange.h"
#include "moesim/placement.h"
#include "moesim/tensor.h"
#include <stdint.h>

typedef struct moe_ffn { /* `count` FFNs of equal shape */
    enum moe_expert_type type;
    int64_t count, hidden, width;
    real *w1, *w3; /* [count,F,H]; w3 for swiglu only */
    real *w2;      /* [count,H,F] */
} moe_ffn;

/* What a rank needs to run its experts; reused from step to step. */
typedef struct moe_expert_buffers {
    real *out;      /* [num_pairs, H] outputs grouped by slot */
    real *results;  /* [num_rows, H] what goes back: sum over a row's experts of weight * output */
    real *scratch;  /* per thread */
    int64_t *order; /* slots by falling number of rows */
    int64_t out_room, results_room, scratch_room, order_room;
} moe_expert_buffers;

/* Rows of one GEMM call. A constant, so that the calls an expert makes depend on its number of rows only. */
enum { MOE_GEMM_ROWS = 1024 };

/* Local. Keyed random weights: W1, W3 with variance 1/H, W2 with variance 1/F, for expert ids id[0..count). layer keys them too. */
void moe_ffn_init(moe_ffn *f, enum moe_expert_type type, int64_t count, int64_t hidden, int64_t width, int64_t seed, int32_t layer,
                  const int32_t *id, const uint32_t stream[3]);
void moe_ffn_free(moe_ffn *f);

/* Local. y [rows,H] = FFN_i(x [rows,H]); scratch holds 2 * rows * F. One call of each GEMM: rows <= MOE_GEMM_ROWS is the caller's business.
 */
void moe_ffn_forward(const moe_ffn *f, int64_t i, int64_t rows, const real *x, real *scratch, real *y);

/* Local. y [rows,H] = FFN_0(x) in calls of MOE_GEMM_ROWS rows, OpenMP over the calls (the shared experts). */
void moe_ffn_forward_all(const moe_ffn *f, int64_t rows, const real *x, moe_expert_buffers *b, real *y);

/* Local. Runs the local experts (FFN index = local device * slots + slot) over the inbox: b->results in inbox row order. */
void moe_experts_forward(const moe_ffn *f, const moe_inbox *in, moe_expert_buffers *b);
void moe_expert_buffers_free(moe_expert_buffers *b);

#endif
