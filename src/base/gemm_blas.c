/* gemm_blas.c: the matrix product by CBLAS. */
#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/gemm_internal.h"

#ifdef MOE_REAL_DOUBLE
#define GEMM cblas_dgemm
#else
#define GEMM cblas_sgemm
#endif

/* Only OpenBLAS has these functions. Another BLAS is expected to be serial, or to be told by its
 * own environment. */
extern void openblas_set_num_threads(int) __attribute__((weak));
extern char *openblas_get_config(void) __attribute__((weak));
extern char *openblas_get_corename(void) __attribute__((weak));

void moe_blas_init(void) {
    if (openblas_set_num_threads) {
        openblas_set_num_threads(1);
    }
}

static int narrow(int64_t n) {
    MOE_ASSERT(n >= 0 && n <= INT_MAX);
    return (int)n;
}

void moe_blas_multiply(const moe_product *p) {
    GEMM(CblasRowMajor, p->a_transposed ? CblasTrans : CblasNoTrans,
         p->b_transposed ? CblasTrans : CblasNoTrans, narrow(p->m), narrow(p->n), narrow(p->k), 1,
         p->a, narrow(moe_product_stride_a(p)), p->b, narrow(moe_product_stride_b(p)), p->beta,
         p->c, narrow(p->n));
}

/* OpenBLAS's names of cores, and what their kernels use. A name that is not here is one that
 * nothing is known of. */
static const struct {
    const char *name;
    enum moe_gemm_vectors vectors;
} cores[] = {
    {"Katmai", MOE_VECTORS_128},        {"Coppermine", MOE_VECTORS_128},
    {"Northwood", MOE_VECTORS_128},     {"Prescott", MOE_VECTORS_128},
    {"Banias", MOE_VECTORS_128},        {"Atom", MOE_VECTORS_128},
    {"Core2", MOE_VECTORS_128},         {"Penryn", MOE_VECTORS_128},
    {"Dunnington", MOE_VECTORS_128},    {"Nehalem", MOE_VECTORS_128},
    {"Athlon", MOE_VECTORS_128},        {"Opteron", MOE_VECTORS_128},
    {"Opteron_SSE3", MOE_VECTORS_128},  {"Barcelona", MOE_VECTORS_128},
    {"Nano", MOE_VECTORS_128},          {"Bobcat", MOE_VECTORS_128},
    {"Sandybridge", MOE_VECTORS_AVX},   {"Bulldozer", MOE_VECTORS_AVX},
    {"Piledriver", MOE_VECTORS_AVX},    {"Steamroller", MOE_VECTORS_AVX},
    {"Excavator", MOE_VECTORS_AVX2},    {"Haswell", MOE_VECTORS_AVX2},
    {"Zen", MOE_VECTORS_AVX2},          {"SkylakeX", MOE_VECTORS_AVX512},
    {"Cooperlake", MOE_VECTORS_AVX512}, {"SapphireRapids", MOE_VECTORS_AVX512},
};

static bool are_slow(const char *core) {
    for (size_t i = 0; i < sizeof cores / sizeof cores[0]; i++) {
        if (!strcasecmp(cores[i].name, core)) {
            return cores[i].vectors < moe_gemm_processor();
        }
    }
    return false;
}

/* openblas_get_config says "OpenBLAS 0.3.21 DYNAMIC_ARCH ...". */
void moe_blas_describe(moe_gemm_kernels *out) {
    *out = (moe_gemm_kernels){.library = "CBLAS"};
    if (openblas_get_config) {
        snprintf(out->library, sizeof out->library, "OpenBLAS");
        if (sscanf(openblas_get_config(), "OpenBLAS %31s", out->version) != 1) {
            out->version[0] = 0;
        }
    }
    if (openblas_get_corename) {
        snprintf(out->kernels, sizeof out->kernels, "%s", openblas_get_corename());
        out->slow = are_slow(out->kernels);
    }
}

const char *moe_blas_lacking_bf16(void) {
    return "a BLAS has no products in bf16";
}
