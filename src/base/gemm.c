/* gemm.c: the matrix products by CBLAS. */
#include "base/gemm.h"

#include <cblas.h>
#include <limits.h>

#include "base/status.h"

#ifdef MOE_REAL_DOUBLE
#define GEMM cblas_dgemm
#else
#define GEMM cblas_sgemm
#endif

/* Only OpenBLAS has this function. Another BLAS is expected to be serial, or to be told by its own
 * environment. */
extern void openblas_set_num_threads(int) __attribute__((weak));

void moe_gemm_init(void) {
    if (openblas_set_num_threads) {
        openblas_set_num_threads(1);
    }
}

static int narrow(int64_t n) {
    MOE_ASSERT(n >= 0 && n <= INT_MAX);
    return (int)n;
}

static void clear(real *c, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        c[i] = 0;
    }
}

void moe_gemm_nt(int64_t m, int64_t n, int64_t k, const real *a, const real *b, real *c) {
    if (m == 0 || n == 0) {
        return;
    }
    GEMM(CblasRowMajor, CblasNoTrans, CblasTrans, narrow(m), narrow(n), narrow(k), 1, a, narrow(k),
         b, narrow(k), 0, c, narrow(n));
}

void moe_gemm_nt_add(int64_t m, int64_t n, int64_t k, const real *a, const real *b, real *c) {
    if (m == 0 || n == 0) {
        return;
    }
    GEMM(CblasRowMajor, CblasNoTrans, CblasTrans, narrow(m), narrow(n), narrow(k), 1, a, narrow(k),
         b, narrow(k), 1, c, narrow(n));
}

void moe_gemm_nn(
    int64_t m, int64_t n, int64_t k, const real *a, const real *b, real beta, real *c) {
    if (m == 0 || n == 0) {
        return;
    }
    GEMM(CblasRowMajor, CblasNoTrans, CblasNoTrans, narrow(m), narrow(n), narrow(k), 1, a,
         narrow(k), b, narrow(n), beta, c, narrow(n));
}

void moe_gemm_tn(
    int64_t m, int64_t n, int64_t k, const real *a, const real *b, real beta, real *c) {
    if (m == 0 || n == 0) {
        return;
    }
    if (k == 0) {
        if (beta == 0) {
            clear(c, m * n);
        }
        return;
    }
    GEMM(CblasRowMajor, CblasTrans, CblasNoTrans, narrow(m), narrow(n), narrow(k), 1, a, narrow(m),
         b, narrow(n), beta, c, narrow(n));
}
