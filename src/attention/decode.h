/* decode.h: attention of one new token of every sequence to all that the cache has of it.
 *
 * With mla no key and no value is made. A product with k_C = W_UK c is a product with c, and the
 * weighted sum of the values v = W_UV c is W_UV times that of the c (DeepSeek-V2, arXiv 2405.04434,
 * section 2.1.2: W_UK can be absorbed into W_Q, and W_UV into W_O):
 *
 *     q~ = W_UK^T q_C                          [r] of each head
 *     S_j = scale (<q~, c_j> + <q_R, k_R_j>)
 *     o = W_UV sum_j P_j c_j,   P = softmax of S
 *
 * so that all heads read the same narrow rows of the cache. With mha the keys and values are there.
 * Every number is computed from its own token alone, and each sum has one order: the bits depend
 * neither on the other sequences, nor on ranks, nor on threads. */
#ifndef MOESIM_ATTENTION_DECODE_H
#define MOESIM_ATTENTION_DECODE_H

#include "attention/cache.h"

typedef struct moe_attention_decode_work { /* shared by the layers */
    moe_block block;
    real *u;             /* [sequences,H] */
    real *q_down, *q_in; /* [sequences,r_q] */
    real *q;             /* [sequences, heads * key] rotated */
    real *absorbed;      /* [sequences, heads, r + d_R] what is multiplied with rows of the cache */
    real *kv_down;       /* [sequences,r] */
    real *score;         /* [sequences, heads, places] */
    real *mean;          /* [sequences, heads, r] weighted sum of c */
    real *o;             /* [sequences, heads * value] */
} moe_attention_decode_work;

void moe_attention_decode_work_free(moe_attention_decode_work *w);

/* Local. x [sequences,H] are the new tokens' vectors, y [sequences,H] becomes W_O o, and the
 * tokens' rows of layer l go to the cache at `place`, which stays as it is: the caller counts on
 * after the last layer. rotary has the places of the cache. OpenMP. */
void moe_attention_decode(const moe_attention_shape *s,
                          const moe_attention_weights *a,
                          const moe_rotary *rotary,
                          moe_attention_cache *cache,
                          int32_t l,
                          const real *x,
                          moe_attention_decode_work *w,
                          real *y);

#endif
