/* gemm.h: the matrix products of a layer. This is the only door to the libraries that compute them:
 * oneDNN, a BLAS, or plain loops (the table in gemm.c). Each product is computed by one thread, and
 * which library computes it is a function of its shape: a result depends on the shape and the
 * numbers only, never on the thread that asks. All matrices are row-major without gaps. */
#ifndef MOESIM_BASE_GEMM_H
#define MOESIM_BASE_GEMM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/alloc.h"
#include "base/status.h"

/* The values of run.gemm. */
enum moe_gemm_library {
    MOE_GEMM_AUTO, /* oneDNN for the shapes that it is faster at, the BLAS for the others */
    MOE_GEMM_ONEDNN,
    MOE_GEMM_BLAS,
    MOE_GEMM_REFERENCE
};

/* Local. Chooses who computes all later products, and tells the BLAS to use one thread. Refuses a
 * library that this build does not have, with MOE_USER. For MOE_GEMM_AUTO the environment variable
 * MOESIM_GEMM may name another value that this build has: so the tests run with each library. */
int moe_gemm_choose(enum moe_gemm_library library, moe_status *st);

/* Local. The same with MOE_GEMM_AUTO, for programs without a configuration. */
void moe_gemm_init(void);

/* Local. Whether moe_gemm_bf16 can be called since moe_gemm_choose: MOE_USER with the reason where
 * it cannot, because the library, this build or this processor has no such products. */
int moe_gemm_require_bf16(moe_status *st);

/* Local. How many times as fast as in fp32 a product of the size of an expert's is in bf16,
 * measured on this core in some milliseconds of its CPU time. Needs moe_gemm_require_bf16. */
double moe_gemm_bf16_speed(void);

typedef struct moe_gemm_kernels { /* a library that computes products */
    char library[32];             /* "oneDNN", "OpenBLAS", "CBLAS", "plain loops" */
    char version[32];             /* "" when unknown */
    char kernels[32];             /* the instruction set or core that they are made for; "" when
                                     unknown */
    bool slow;                    /* they use less than the processor offers */
} moe_gemm_kernels;

/* Local. The libraries that compute products since moe_gemm_choose, the one for large products
 * first. Returns how many, 1 or 2. */
int moe_gemm_kernels_of(moe_gemm_kernels out[2]);
/* Local. The value of OPENBLAS_CORETYPE that this processor would be served best with. */
const char *moe_gemm_core_type(void);

/* Local. c [m,n] = a [m,k] * b [n,k]^T   (y = x W^T: forward) */
void moe_gemm_nt(int64_t m, int64_t n, int64_t k, const real *a, const real *b, real *c);
/* Local. c [m,n] += a [m,k] * b [n,k]^T */
void moe_gemm_nt_add(int64_t m, int64_t n, int64_t k, const real *a, const real *b, real *c);
/* Local. c [m,n] = a [m,k] * b [k,n] + beta * c, beta 0 or 1   (dx = dy W: backward) */
void moe_gemm_nn(int64_t m, int64_t n, int64_t k, const real *a, const real *b, real beta, real *c);
/* Local. c [m,n] = a [k,m]^T * b [k,n] + beta * c, beta 0 or 1   (dW = dy^T x: backward) */
void moe_gemm_tn(int64_t m, int64_t n, int64_t k, const real *a, const real *b, real beta, real *c);

enum moe_gemm_form { MOE_GEMM_NT, MOE_GEMM_NN, MOE_GEMM_TN }; /* as the functions above */

/* Local. The same three with the elements of a and b rounded to bf16 first (to nearest, ties to
 * even); products are added up in fp32, and c is not rounded to bf16. beta is 0 or 1. codes:
 * scratch of m k + n k numbers. */
void moe_gemm_bf16(enum moe_gemm_form form,
                   int64_t m,
                   int64_t n,
                   int64_t k,
                   const real *a,
                   const real *b,
                   real beta,
                   real *c,
                   uint16_t *codes);

#endif
