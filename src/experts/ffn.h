/* ffn.h: feed-forward networks: weights, one forward, one backward. Layer 3 (act). method.md
 * section 5. swiglu: W2 (silu(W1 u) * W3 u)     silu, gelu, relu: W2 act(W1 u)     identity: u lora
 * (MixLoRA, 2404.15159): a swiglu whose base W1, W2, W3 are frozen and the same for all experts;
 * expert k adds low-rank adapters to each: W u + s B_k (A_k u), A [r, in], B [out, r], s =
 * lora_alpha / r Weights are keyed by expert id, not by rank or slot: an expert is the same
 * wherever it lives. */
#ifndef MOESIM_EXPERTS_FFN_H
#define MOESIM_EXPERTS_FFN_H

#include <stdint.h>

#include "base/alloc.h"
#include "config/config.h"

typedef struct moe_ffn { /* `count` FFNs of equal shape */
    enum moe_expert_type type;
    int64_t count, hidden, width;
    int64_t rank;       /* of the adapters; 0 without LoRA */
    real lora_scale;    /* s */
    real *w1, *w3;      /* [count,F,H]; w3 for swiglu and lora only. lora: [1,F,H], frozen */
    real *w2;           /* [count,H,F]. lora: [1,H,F], frozen */
    real *a1, *a3, *a2; /* [count,r,H], [count,r,H], [count,r,F] lora only */
    real *b1, *b3, *b2; /* [count,F,r], [count,F,r], [count,H,r] lora only */
} moe_ffn;

/* Gradients of a moe_ffn, same shapes; NULL where the FFN has no such matrix or it is frozen. Not
 * owned: they stand in the table of parameters. */
typedef struct moe_ffn_gradient {
    real *w1, *w3, *w2;
    real *a1, *a3, *a2, *b1, *b3, *b2;
} moe_ffn_gradient;

/* What keys and shapes the weights of `count` FFNs. */
typedef struct moe_ffn_shape {
    enum moe_expert_type type;
    int64_t count, hidden, width, rank;
    double lora_alpha;
    bool zero_b; /* lora: B = 0, as training starts; else keyed random, as after training */
    bool shared; /* a shared expert: keyed apart from the routed ones */
    int64_t seed;
    int32_t layer;
    const int32_t *id; /* [count] expert ids */
} moe_ffn_shape;

/* Local. Keyed random weights: variance 1/(inputs) for W1, W3, W2 and A. Free with moe_ffn_free. */
void moe_ffn_init(moe_ffn *f, const moe_ffn_shape *shape);
void moe_ffn_free(moe_ffn *f);

/* Local. W1 x and W3 x of FFN i: h1, h3 [rows,F]. low: rows * rank of scratch (lora). */
void moe_ffn_pre_activations(
    const moe_ffn *f, int64_t i, int64_t rows, const real *x, real *low, real *h1, real *h3);

/* Local. y [rows,H] = FFN_i(x [rows,H]). h1, h3 [rows,F] get the pre-activations, h [rows,F] the
 * activation (h may be h1); low: rows * rank of scratch (lora). One call of each GEMM. */
void moe_ffn_forward(const moe_ffn *f,
                     int64_t i,
                     int64_t rows,
                     const real *x,
                     real *low,
                     real *h1,
                     real *h3,
                     real *h,
                     real *y);

/* Local. From dy [rows,H]: adds the gradients of FFN i into g (block i), dx [rows,H] = gradient of
 * x. x, h1, h3 are forward's; scratch holds rows * (3 F + 2 rank). dx may be dy's array only for
 * identity. */
void moe_ffn_backward(const moe_ffn *f,
                      const moe_ffn_gradient *g,
                      int64_t i,
                      int64_t rows,
                      const real *x,
                      const real *h1,
                      const real *h3,
                      const real *dy,
                      real *scratch,
                      real *dx);

#endif
