/* flash.h: causal softmax attention of each head, in tiles (Dao et al. 2022, arXiv 2205.14135).
 *
 *     S_ij = scale <q_i, k_j>,  j <= i in the same sequence
 *     P = softmax of each row of S,   o_i = sum_j P_ij v_j,   lse_i = log sum_j exp S_ij
 *
 * and backward, with D_i = <do_i, o_i>,
 *
 *     dv_j = sum_i P_ij do_i,   dS_ij = P_ij (<do_i, v_j> - D_i),
 *     dq_i = scale sum_j dS_ij k_j,   dk_j = scale sum_i dS_ij q_i.
 *
 * Of S and P only one tile is there at a time: the softmax goes over the tiles of a row with a
 * running maximum, and backward makes P again from S and lse. Tiles are counted from the beginning
 * of the sequence and each one is computed by one thread, so that the bits depend on the sequence
 * alone. Sums of P are in double, the products are GEMMs. */
#ifndef MOESIM_ATTENTION_FLASH_H
#define MOESIM_ATTENTION_FLASH_H

#include <stdint.h>

#include "base/alloc.h"
#include "data/batch.h"

enum { MOE_FLASH_TILE = 128 }; /* queries, and keys, of a tile */

/* The heads of this rank's tokens T. With fewer key heads than heads, neighbouring heads share one.
 */
typedef struct moe_flash {
    int64_t heads, kv_heads, key, value; /* kv_heads divides heads */
    double scale;
    const real *q; /* [heads, T, key] */
    const real *k; /* [kv_heads, T, key] */
    const real *v; /* [kv_heads, T, value] */
    real *o;       /* [T, heads * value] */
    real *lse;     /* [heads, T] */
} moe_flash;

/* Local. Fills o and lse. Every segment of the batch is a whole sequence. OpenMP over tiles. */
void moe_flash_forward(const moe_flash *f, const moe_batch *b);

/* Local. dq, dk, dv [as q, k, v] from d_o [heads, T, value] and what forward left in o and lse.
 * OpenMP over sequences and key heads. */
void moe_flash_backward(const moe_flash *f,
                        const moe_batch *b,
                        const real *d_o,
                        real *dq,
                        real *dk,
                        real *dv);

#endif
