/* attention.h: one layer of causal self-attention, multi-head or multi-head latent, forward and
 * backward, with x [T,H] in and y [T,H] out, without the residual.
 *
 *     u = RMSNorm(x)                                        (model.norm)
 *     mha   q = W_Q u,  k = W_K u,  v = W_V u;  rotary on the last d_R numbers of each q and k
 *     mla   c_KV = RMSNorm(W_DKV u),  k_C = W_UK c_KV,  v = W_UV c_KV,  k_R = rotary(W_KR u)
 *           q = W_Q u,  or with q_lora_rank  q = W_UQ RMSNorm(W_DQ u);  rotary on its last d_R
 *           k of a head = (its k_C, k_R), and k_R is the same for all heads
 *     o = causal attention with scale (width of a key)^(-1/2)          (flash.h)
 *     y = W_O o
 *
 * Multi-head latent attention: DeepSeek-V2, arXiv 2405.04434, section 2.1. A sequence lies whole on
 * one device, and nothing here speaks to another rank: attention is data parallel. */
#ifndef MOESIM_ATTENTION_ATTENTION_H
#define MOESIM_ATTENTION_ATTENTION_H

#include "attention/rotary.h"
#include "attention/shape.h"
#include "base/block.h"
#include "data/batch.h"

/* The parameters of one layer, the same on every rank. */
typedef struct moe_attention_weights {
    real *w[MOE_ATTENTION_TENSORS]; /* NULL where the layer has no such tensor; owned */
} moe_attention_weights;

/* What a forward pass of one layer leaves behind for backward. */
typedef struct moe_attention_activations {
    moe_block block;
    real *u;             /* [T,H]; NULL without norm */
    double *inverse_rms; /* [T] of the norm in front */
    real *q_down, *q_in; /* [T,r_q] W_DQ u before and after its norm */
    double *q_rms;       /* [T] */
    real *kv_down, *c;   /* [T,r] W_DKV u and c_KV */
    double *kv_rms;      /* [T] */
    real *q, *k, *v;     /* [heads,T,key], [kv_heads,T,key], [kv_heads,T,value]; q and k rotated */
    real *o;             /* [T, heads * value] */
    real *lse;           /* [heads,T] */
} moe_attention_activations;

/* Working memory that the layers share. Where it says gradient, it is there in backward only. */
typedef struct moe_attention_work {
    moe_rotary rotary;
    moe_block block, backward_block;
    real *flat_q, *flat_k, *flat_v; /* [T, ...] queries, keys, values by token; their gradients */
    real *key_rope;                 /* [T,d_R] the shared part of the keys; its gradient */
    real *flat_o, *d_o;             /* gradient of o, by token and by head */
    real *dq, *dk, *dv;             /* gradients by head */
    real *dc, *dq_in;               /* gradients of c and q_in */
    real *du;                       /* [T,H] */
} moe_attention_work;

/* --- attention.c --- */

/* Local. Keyed random parameters of layer `index`: matrices normal with variance 1 / columns, norm
 * weights 1. Owner: the caller, moe_attention_free. */
void moe_attention_init(moe_attention_weights *a,
                        const moe_attention_shape *s,
                        int64_t seed,
                        int32_t index);
void moe_attention_free(moe_attention_weights *a);

void moe_attention_activations_free(moe_attention_activations *p);

/* Local. Sequences have at most `longest` tokens. */
void moe_attention_work_init(moe_attention_work *w, const moe_attention_shape *s, int64_t longest);
void moe_attention_work_free(moe_attention_work *w);

/* Local. From x [T,H] to p->o, and y [T,H] = W_O o unless y is NULL. Every segment of the batch is
 * a whole sequence. x stays as it is until backward. */
void moe_attention_forward(const moe_attention_shape *s,
                           const moe_attention_weights *a,
                           const moe_batch *b,
                           const real *x,
                           moe_attention_activations *p,
                           moe_attention_work *w,
                           real *y);

/* --- backward.c --- */

/* Local. From dy [T,H] and what forward left in p: adds the gradient of each parameter of local
 * device j to partial[tensor] + j * its size, and adds d / d x to dx [T,H], which may be dy. */
void moe_attention_backward(const moe_attention_shape *s,
                            const moe_attention_weights *a,
                            const moe_batch *b,
                            const real *x,
                            const moe_attention_activations *p,
                            moe_attention_work *w,
                            const real *dy,
                            real *const partial[MOE_ATTENTION_TENSORS],
                            real *dx);

#endif
