/* ffn.h: feed-forward networks: their weights, one forward and one backward. docs/method.md section
 * 5.
 *   swiglu              W2 (silu(W1 u) * W3 u)
 *   silu, gelu, relu    W2 act(W1 u)
 *   identity            u
 *   lora                a swiglu whose W1, W2, W3 are frozen and the same for all experts; expert k
 *                       adds low-rank adapters to each of them (MixLoRA, 2404.15159):
 *                       W u + s B_k (A_k u) with A [r, in], B [out, r], s = lora_alpha / r
 * Weights are keyed by the expert's id, not by rank or slot: an expert is the same wherever it
 * lives. */
#ifndef MOESIM_EXPERTS_FFN_H
#define MOESIM_EXPERTS_FFN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/alloc.h"
#include "config/config.h"
#include "experts/activation.h"

/* A type of expert is one row of the table in ffn.c. */
typedef struct moe_ffn_type {
    const char *name; /* the value of model.expert_type */
    int matrices;     /* 0: identity; 2: W1 and W2; 3: W1, W2 and W3 */
    bool adapters;    /* the matrices are frozen, and each expert has adapters to them */
    moe_activation_forward *forward; /* NULL for identity */
    moe_activation_backward *backward;
} moe_ffn_type;

/* Local. The row of a type; asserts that it exists. */
const moe_ffn_type *moe_ffn_type_of(enum moe_expert_type type);

typedef struct moe_ffn { /* `count` FFNs of equal shape */
    enum moe_expert_type type;
    int64_t count, hidden, width;
    int64_t rank;       /* of the adapters; 0 without LoRA */
    real lora_scale;    /* s */
    real *w1, *w3;      /* [count,F,H]; w3 for swiglu and lora only. lora: [1,F,H], frozen */
    real *w2;           /* [count,H,F]. lora: [1,H,F], frozen */
    real *a1, *a3, *a2; /* [count,r,H], [count,r,H], [count,r,F] lora only */
    real *b1, *b3, *b2; /* [count,F,r], [count,F,r], [count,H,r] lora only */
    bool turned;        /* every matrix is stored the other way round, [in,out]: moe_ffn_turn */
    uint16_t *codes;    /* NULL: products in `real`. Else they are computed in bf16 (base/gemm.h),
                           with this scratch of moe_ffn_codes numbers, and everything between them,
                           sums and weights stay `real`. Set in a copy by who calls; not owned */
} moe_ffn;

/* Local. How many codes the products of calls with `rows` rows need. */
int64_t moe_ffn_codes(const moe_ffn *f, int64_t rows);

/* The gradients of a moe_ffn, in the same shapes; NULL where the FFN has no such matrix or it is
 * frozen. Not owned: they stand in the table of parameters. */
typedef struct moe_ffn_gradient {
    real *w1, *w3, *w2;
    real *a1, *a3, *a2, *b1, *b3, *b2;
    bool replace; /* what is there is overwritten; else gradients are added to it */
} moe_ffn_gradient;

/* What an FFN is for: each kind has random numbers of its own. A dense one stands in a layer
 * without experts (model.first_dense_layers). */
enum moe_ffn_kind { MOE_FFN_ROUTED, MOE_FFN_SHARED, MOE_FFN_DENSE };

/* What shapes and keys the weights of `count` FFNs. */
typedef struct moe_ffn_shape {
    enum moe_expert_type type;
    int64_t count, hidden, width, rank;
    double lora_alpha;
    bool zero_b; /* lora: B is 0, as where training starts; else it is random, as after training */
    enum moe_ffn_kind kind;
    int64_t seed;
    int32_t layer;
    const int32_t *id; /* [count] expert ids */
} moe_ffn_shape;

/* Local. Makes keyed random weights, of variance 1/(inputs) for W1, W3, W2, A and B. The caller
 * owns *f: moe_ffn_free. */
void moe_ffn_init(moe_ffn *f, const moe_ffn_shape *shape);
void moe_ffn_free(moe_ffn *f);

/* Local. Stores every matrix as [in,out] from now on, in place: a forward pass then reads them in
 * the order in which the products' kernels want them, which is up to a quarter faster with many
 * rows and more with few (bench/README.md). For weights that stay as they are: nothing else may
 * read or write them afterwards, and there is no backward. Takes room for one matrix per thread
 * meanwhile. */
void moe_ffn_turn(moe_ffn *f);

/* Local. h1, h3 [rows,F] become W1 x and W3 x of FFN i for x [rows,H]. low is scratch of rows *
 * rank numbers (lora). */
void moe_ffn_pre_activations(const moe_ffn *f,
                             int64_t i,
                             int64_t rows,
                             const real *x,
                             real *low,
                             real *h1,
                             real *h3);

/* Local. y [rows,H] = FFN_i(x [rows,H]). h1, h3 [rows,F] receive the pre-activations, h [rows,F]
 * the activation; h may be h1. low is scratch of rows * rank numbers (lora). Calls each GEMM once.
 */
void moe_ffn_forward(const moe_ffn *f,
                     int64_t i,
                     int64_t rows,
                     const real *x,
                     real *low,
                     real *h1,
                     real *h3,
                     real *h,
                     real *y);

/* Local. Block i of g becomes 0. */
void moe_ffn_clear_gradient(const moe_ffn *f, const moe_ffn_gradient *g, int64_t i);

/* Local. For FFNs that are not turned. From dy [rows,H], puts the gradients of FFN i into block i
 * of g, as g->replace says, and writes dx [rows,H], the gradient of x. x, h1, h3 are those of
 * forward; scratch holds rows * (3 F
 * + 2 rank) numbers. dx may be dy's array for identity only. */
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
