/* gemm.h: the three matrix products of a layer. This is the only door to the BLAS, which computes
 * each call with one thread: a result depends on the shapes of the call only, never on the thread
 * that calls. All matrices are row-major without gaps. */
#ifndef MOESIM_BASE_GEMM_H
#define MOESIM_BASE_GEMM_H

#include <stdint.h>

#include "base/alloc.h"

/* Local. Tells the BLAS to use one thread per call. */
void moe_gemm_init(void);

/* Local. c [m,n] = a [m,k] * b [n,k]^T   (y = x W^T: forward) */
void moe_gemm_nt(int64_t m, int64_t n, int64_t k, const real *a, const real *b, real *c);
/* Local. c [m,n] += a [m,k] * b [n,k]^T */
void moe_gemm_nt_add(int64_t m, int64_t n, int64_t k, const real *a, const real *b, real *c);
/* Local. c [m,n] = a [m,k] * b [k,n] + beta * c, beta 0 or 1   (dx = dy W: backward) */
void moe_gemm_nn(int64_t m, int64_t n, int64_t k, const real *a, const real *b, real beta, real *c);
/* Local. c [m,n] = a [k,m]^T * b [k,n] + beta * c, beta 0 or 1   (dW = dy^T x: backward) */
void moe_gemm_tn(int64_t m, int64_t n, int64_t k, const real *a, const real *b, real beta, real *c);

#endif
