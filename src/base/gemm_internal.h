/* gemm_internal.h: what gemm.c and the libraries behind it share. */
#ifndef MOESIM_BASE_GEMM_INTERNAL_H
#define MOESIM_BASE_GEMM_INTERNAL_H

#include <limits.h>
#include <stdbool.h>

#include "base/gemm.h"

typedef struct moe_product { /* c [m,n] = op(a) op(b) + beta c, beta 0 or 1, none of m, n, k is 0 */
    bool a_transposed;       /* a is [k,m], else [m,k] */
    bool b_transposed;       /* b is [n,k], else [k,n] */
    int64_t m, n, k;
    const real *a, *b;
    real beta;
    real *c;
} moe_product;

/* What the processor offers, and what kernels are made for. */
enum moe_gemm_vectors { MOE_VECTORS_128, MOE_VECTORS_AVX, MOE_VECTORS_AVX2, MOE_VECTORS_AVX512 };

/* Local. Of this processor. */
enum moe_gemm_vectors moe_gemm_processor(void);

/* gemm_onednn.c: only where MOE_HAVE_ONEDNN is defined, and only for float */
void moe_onednn_multiply(const moe_product *p);
void moe_onednn_describe(moe_gemm_kernels *out);
/* a and b as bf16, in place of p->a and p->b. The function that is `lacking` says why that cannot
 * be called, or returns NULL. */
void moe_onednn_multiply_bf16(const moe_product *p, const uint16_t *a, const uint16_t *b);
const char *moe_onednn_lacking_bf16(void);

/* gemm_blas.c */
void moe_blas_init(void);
void moe_blas_multiply(const moe_product *p);
void moe_blas_describe(moe_gemm_kernels *out);
const char *moe_blas_lacking_bf16(void);

/* gemm_reference.c: sums in double, in the order of k */
void moe_reference_multiply(const moe_product *p);
void moe_reference_describe(moe_gemm_kernels *out);
void moe_reference_multiply_bf16(const moe_product *p, const uint16_t *a, const uint16_t *b);
const char *moe_reference_lacking_bf16(void);

/* Local. The distance from one row of a, of b to the next. */
static inline int64_t moe_product_stride_a(const moe_product *p) {
    return p->a_transposed ? p->m : p->k;
}
static inline int64_t moe_product_stride_b(const moe_product *p) {
    return p->b_transposed ? p->k : p->n;
}

#endif
