/* gemm.c: which library computes a matrix product. */
#include "base/gemm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bf16.h"
#include "base/gemm_internal.h"

/* --- the libraries --- */

typedef struct implementation {
    const char *name;                       /* the value of run.gemm */
    void (*multiply)(const moe_product *p); /* NULL: this build does not have it */
    void (*describe)(moe_gemm_kernels *out);
    void (*multiply_bf16)(const moe_product *p, const uint16_t *a, const uint16_t *b);
    const char *(*lacking_bf16)(void); /* why there is no multiply_bf16, or NULL */
    const char *missing;               /* why this build does not have it */
} implementation;

#if defined(MOE_REAL_DOUBLE)
#define ONEDNN NULL, NULL, NULL, NULL, "oneDNN has no products in double precision"
#elif defined(MOE_HAVE_ONEDNN)
#define ONEDNN                                                                                   \
    moe_onednn_multiply, moe_onednn_describe, moe_onednn_multiply_bf16, moe_onednn_lacking_bf16, \
        NULL
#else
#define ONEDNN NULL, NULL, NULL, NULL, "this build does not have oneDNN (libdnnl-dev was not there)"
#endif

static const implementation implementations[] = {
    [MOE_GEMM_AUTO] = {.name = "auto"},
    [MOE_GEMM_ONEDNN] = {"onednn", ONEDNN},
    [MOE_GEMM_BLAS] = {"blas", moe_blas_multiply, moe_blas_describe, NULL, moe_blas_lacking_bf16,
                       NULL},
    [MOE_GEMM_REFERENCE] = {"reference", moe_reference_multiply, moe_reference_describe,
                            moe_reference_multiply_bf16, moe_reference_lacking_bf16, NULL},
};
enum { NUM_LIBRARIES = sizeof implementations / sizeof implementations[0] };

/* Of products that are worth oneDNN's call, and of the others. */
static const implementation *large = &implementations[MOE_GEMM_BLAS],
                            *small = &implementations[MOE_GEMM_BLAS];
/* Of products in bf16. */
static const implementation *narrow = &implementations[MOE_GEMM_BLAS];

/* oneDNN is faster from about 2^19 multiplications on; of dW = dy^T x only when there are enough
 * rows to add up. bench/README.md has the measurement. */
static bool is_large(const moe_product *p) {
    enum { LEAST_ROWS = 64 };
    double size = (double)p->m * (double)p->n * (double)p->k;
    return size >= 524288 && (!p->a_transposed || p->k >= LEAST_ROWS);
}

/* --- choosing --- */

static enum moe_gemm_library from_environment(enum moe_gemm_library library) {
    const char *name = getenv("MOESIM_GEMM");
    for (int i = 0; library == MOE_GEMM_AUTO && name && i < NUM_LIBRARIES; i++) {
        if (implementations[i].multiply && !strcmp(name, implementations[i].name)) {
            return (enum moe_gemm_library)i;
        }
    }
    return library;
}

/* Where the kernels of the BLAS are slow, oneDNN computes small products too. */
static void choose_by_shape(void) {
    moe_gemm_kernels blas;
    moe_blas_describe(&blas);
    const implementation *onednn = &implementations[MOE_GEMM_ONEDNN];
    small = &implementations[MOE_GEMM_BLAS];
    large = onednn->multiply ? onednn : small;
    narrow = onednn;
    if (blas.slow) {
        small = large;
    }
}

int moe_gemm_choose(enum moe_gemm_library library, moe_status *st) {
    moe_blas_init();
    library = from_environment(library);
    if (library == MOE_GEMM_AUTO) {
        choose_by_shape();
        return MOE_OK;
    }
    const implementation *chosen = &implementations[library];
    if (!chosen->multiply) {
        return moe_fail(st, MOE_USER, "run.gemm = %s: %s; allowed are auto, blas and reference",
                        chosen->name, chosen->missing);
    }
    large = small = narrow = chosen;
    return MOE_OK;
}

int moe_gemm_require_bf16(moe_status *st) {
    const char *why = narrow->missing ? narrow->missing : narrow->lacking_bf16();
    if (why) {
        return moe_fail(st, MOE_USER,
                        "model.compute = bf16: %s; run.gemm = reference computes it slowly, "
                        "compute = fp32 without rounding",
                        why);
    }
    return MOE_OK;
}

void moe_gemm_init(void) {
    moe_status st = {0};
    MOE_ASSERT(moe_gemm_choose(MOE_GEMM_AUTO, &st) == MOE_OK);
}

int moe_gemm_kernels_of(moe_gemm_kernels out[2]) {
    large->describe(&out[0]);
    if (small == large) {
        return 1;
    }
    small->describe(&out[1]);
    return 2;
}

/* --- the processor --- */

enum moe_gemm_vectors moe_gemm_processor(void) {
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        return MOE_VECTORS_AVX512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return MOE_VECTORS_AVX2;
    }
    if (__builtin_cpu_supports("avx")) {
        return MOE_VECTORS_AVX;
    }
#endif
    return MOE_VECTORS_128;
}

const char *moe_gemm_core_type(void) {
#ifdef __x86_64__
    if (moe_gemm_processor() == MOE_VECTORS_AVX512 && __builtin_cpu_supports("avx512bf16")) {
        return "Cooperlake";
    }
#endif
    static const char *const names[] = {[MOE_VECTORS_128] = "Prescott",
                                        [MOE_VECTORS_AVX] = "Sandybridge",
                                        [MOE_VECTORS_AVX2] = "Haswell",
                                        [MOE_VECTORS_AVX512] = "SkylakeX"};
    return names[moe_gemm_processor()];
}

/* --- the products --- */

static void multiply(const moe_product *p) {
    (is_large(p) ? large : small)->multiply(p);
}

static void clear(real *c, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        c[i] = 0;
    }
}

/* Nothing to add up: c = beta c. */
static void multiply_or_clear(const moe_product *p) {
    if (p->m == 0 || p->n == 0) {
        return;
    }
    if (p->k > 0) {
        multiply(p);
    } else if (p->beta == 0) {
        clear(p->c, p->m * p->n);
    }
}

void moe_gemm_nt(int64_t m, int64_t n, int64_t k, const real *a, const real *b, real *c) {
    multiply_or_clear(&(moe_product){false, true, m, n, k, a, b, 0, c});
}

void moe_gemm_nt_add(int64_t m, int64_t n, int64_t k, const real *a, const real *b, real *c) {
    multiply_or_clear(&(moe_product){false, true, m, n, k, a, b, 1, c});
}

void moe_gemm_nn(int64_t m,
                 int64_t n,
                 int64_t k,
                 const real *a,
                 const real *b,
                 real beta,
                 real *c) {
    multiply_or_clear(&(moe_product){false, false, m, n, k, a, b, beta, c});
}

void moe_gemm_tn(int64_t m,
                 int64_t n,
                 int64_t k,
                 const real *a,
                 const real *b,
                 real beta,
                 real *c) {
    multiply_or_clear(&(moe_product){true, false, m, n, k, a, b, beta, c});
}

void moe_gemm_bf16(enum moe_gemm_form form,
                   int64_t m,
                   int64_t n,
                   int64_t k,
                   const real *a,
                   const real *b,
                   real beta,
                   real *c,
                   uint16_t *codes) {
    const moe_product p = {form == MOE_GEMM_TN, form == MOE_GEMM_NT, m, n, k, a, b, beta, c};
    if (m == 0 || n == 0 || k == 0) {
        multiply_or_clear(&p);
        return;
    }
    moe_bf16_encode(a, m * k, codes);
    moe_bf16_encode(b, n * k, codes + m * k);
    narrow->multiply_bf16(&p, codes, codes + m * k);
}

/* --- how fast bf16 is --- */

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* In turns, and the shortest of each counts: what else the machine does falls out. */
double moe_gemm_bf16_speed(void) {
    enum { M = 128, N = 256, K = 256, ROUNDS = 8 };
    double whole = INFINITY, rounded = INFINITY;
    real *a = moe_alloc_zero(M * K + N * K + M * N, sizeof *a, "products to be timed");
    uint16_t *codes = moe_alloc(M * K + N * K, sizeof *codes, "products to be timed");
    real *b = a + M * K, *c = b + N * K;
    for (int i = 0; i < ROUNDS; i++) {
        const double begin = cpu_seconds();
        moe_gemm_nt(M, N, K, a, b, c);
        const double middle = cpu_seconds();
        moe_gemm_bf16(MOE_GEMM_NT, M, N, K, a, b, 0, c, codes);
        whole = fmin(whole, middle - begin);
        rounded = fmin(rounded, cpu_seconds() - middle);
    }
    moe_free(codes);
    moe_free(a);
    return whole / rounded;
}
