/* unit_gemm.c: every library that this build has computes the products as plain loops do, and the
 * same bits whatever thread asks and however the matrices are aligned; products in bf16 are those
 * of the rounded numbers; what it does not have is refused.
 *
 * ctest: f64 */
#include <omp.h>

#include "base/gemm.h"
#include "base/rng.h"
#include "check.h"

enum { MOST = 200, LARGEST = MOST * MOST, OFFSETS = 16, CASES = 120 };

static real a[LARGEST + OFFSETS], b[LARGEST + OFFSETS], c[LARGEST + OFFSETS];
static real a2[LARGEST + OFFSETS], b2[LARGEST + OFFSETS], c2[LARGEST + OFFSETS];

enum product { NT, NT_ADD, NN, NN_ADD, TN, TN_ADD, NUM_PRODUCTS };

typedef struct shape {
    enum product product;
    int64_t m, n, k;
} shape;

static int64_t draw(uint64_t which, int64_t below) {
    real x;
    moe_rng_normal((moe_rng){7, MOE_RNG_EXPERT_W1}, which, 0, 1e6, &x, 1);
    return (int64_t)fabs((double)x) % below;
}

/* Sizes up to MOST, of every kind of product; now and then none of one dimension. */
static shape shape_of(int i) {
    uint64_t key = 100 + 4 * (uint64_t)i;
    int64_t most = i % 3 == 0 ? 12 : MOST;
    shape s = {(enum product)(i % NUM_PRODUCTS), 1 + draw(key, most), 1 + draw(key + 1, most),
               1 + draw(key + 2, most)};
    if (i % 40 == 39) {
        s.k = 0;
    }
    return s;
}

static void multiply(shape s, const real *x, const real *y, real *out) {
    switch (s.product) {
    case NT:
        moe_gemm_nt(s.m, s.n, s.k, x, y, out);
        break;
    case NT_ADD:
        moe_gemm_nt_add(s.m, s.n, s.k, x, y, out);
        break;
    case NN:
    case NN_ADD:
        moe_gemm_nn(s.m, s.n, s.k, x, y, s.product == NN_ADD, out);
        break;
    default:
        moe_gemm_tn(s.m, s.n, s.k, x, y, s.product == TN_ADD, out);
    }
}

static void choose(enum moe_gemm_library library) {
    moe_status st = {0};
    CHECK_MSG(moe_gemm_choose(library, &st) == MOE_OK, "%s", st.message);
}

static void fill(int i) {
    moe_rng_normal((moe_rng){1, MOE_RNG_EXPERT_W1}, (uint64_t)i, 0, 1, a, LARGEST);
    moe_rng_normal((moe_rng){2, MOE_RNG_EXPERT_W1}, (uint64_t)i, 0, 1, b, LARGEST);
    moe_rng_normal((moe_rng){3, MOE_RNG_EXPERT_W1}, (uint64_t)i, 0, 1, c, LARGEST);
}

static void test_values(enum moe_gemm_library library) {
    const double epsilon = sizeof(real) == 4 ? 1.2e-7 : 2.3e-16;
    for (int i = 0; i < CASES; i++) {
        const shape s = shape_of(i);
        fill(i);
        memcpy(c2, c, sizeof c);
        choose(MOE_GEMM_REFERENCE);
        multiply(s, a, b, c2);
        choose(library);
        multiply(s, a, b, c);
        double worst = 0;
        for (int64_t j = 0; j < s.m * s.n; j++) {
            worst = fmax(worst, fabs((double)c[j] - (double)c2[j]));
        }
        CHECK_MSG(worst <= epsilon * (10 + 4 * (double)s.k), "%lld x %lld x %lld: %g",
                  (long long)s.m, (long long)s.n, (long long)s.k, worst);
        CHECK_MSG(memcmp(c + s.m * s.n, c2 + s.m * s.n, OFFSETS * sizeof *c) == 0,
                  "wrote behind the matrix");
    }
}

/* c2 from copies that begin elsewhere in a cache line: alone, or by the second of two threads. */
static void multiply_copy(shape s, int offset, bool by_thread) {
    memcpy(a2 + offset, a, LARGEST * sizeof *a);
    memcpy(b2 + OFFSETS - 1 - offset, b, LARGEST * sizeof *b);
    if (!by_thread) {
        multiply(s, a2 + offset, b2 + OFFSETS - 1 - offset, c2 + offset);
        return;
    }
#pragma omp parallel num_threads(2)
    if (omp_get_thread_num() == omp_get_num_threads() - 1) {
        multiply(s, a2 + offset, b2 + OFFSETS - 1 - offset, c2 + offset);
    }
}

static void test_bits(enum moe_gemm_library library) {
    choose(library);
    for (int i = 0; i < CASES; i++) {
        const shape s = shape_of(i);
        const int offset = i % OFFSETS;
        fill(i);
        memcpy(c2 + offset, c, LARGEST * sizeof *c);
        omp_set_num_threads(1);
        multiply(s, a, b, c);
        omp_set_num_threads(2 + i % 2);
        multiply_copy(s, offset, i / 2 % 2 == 0);
        CHECK_EQ(omp_get_max_threads(), 2 + i % 2);
        CHECK_MSG(memcmp(c, c2 + offset, (size_t)(s.m * s.n) * sizeof *c) == 0,
                  "case %d, %lld x %lld x %lld", i, (long long)s.m, (long long)s.n, (long long)s.k);
    }
}

/* --- products in bf16 --- */

static uint16_t codes[2 * LARGEST];

/* To 8 bits of mantissa by scaling: rint rounds to nearest, ties to even. */
static double nearest_bf16(double x) {
    int exponent;
    frexp(x, &exponent);
    return ldexp(rint(ldexp(x, 8 - exponent)), exponent - 8);
}

static void multiply_bf16(shape s, const real *x, const real *y, real *out) {
    static const enum moe_gemm_form form[] = {
        [NT] = MOE_GEMM_NT,     [NT_ADD] = MOE_GEMM_NT, [NN] = MOE_GEMM_NN,
        [NN_ADD] = MOE_GEMM_NN, [TN] = MOE_GEMM_TN,     [TN_ADD] = MOE_GEMM_TN};
    bool adds = s.product == NT_ADD || s.product == NN_ADD || s.product == TN_ADD;
    moe_gemm_bf16(form[s.product], s.m, s.n, s.k, x, y, adds, out, codes);
}

/* The element (i, j) from the definition, and in *size the sum of the sizes of its terms. */
static double element_bf16(shape s, int64_t i, int64_t j, double *size) {
    bool tn = s.product == TN || s.product == TN_ADD, nt = s.product == NT || s.product == NT_ADD;
    bool adds = s.product == NT_ADD || s.product == NN_ADD || s.product == TN_ADD;
    double sum = adds ? (double)c2[i * s.n + j] : 0;
    *size = fabs(sum);
    for (int64_t l = 0; l < s.k; l++) {
        double term = nearest_bf16((float)(tn ? a[l * s.m + i] : a[i * s.k + l])) *
                      nearest_bf16((float)(nt ? b[j * s.k + l] : b[l * s.n + j]));
        sum += term;
        *size += fabs(term);
    }
    return sum;
}

/* Sums are made in fp32: k roundings of a sum whose terms have the size `size`. */
static void test_bf16(enum moe_gemm_library library) {
    choose(library);
    for (int i = 0; i < CASES; i += 3) {
        const shape s = shape_of(i + i % 4);
        fill(i);
        memcpy(c2, c, sizeof c);
        multiply_bf16(s, a, b, c);
        double worst = 0;
        for (int64_t j = 0; j < s.m * s.n; j += 1 + j % 7) {
            double size, wanted = element_bf16(s, j / s.n, j % s.n, &size);
            worst = fmax(worst, fabs((double)c[j] - wanted) / (1e-30 + size));
        }
        CHECK_MSG(worst <= 6e-8 * (2 + (double)s.k), "%lld x %lld x %lld: %g", (long long)s.m,
                  (long long)s.n, (long long)s.k, worst);
        CHECK_MSG(memcmp(c + s.m * s.n, c2 + s.m * s.n, OFFSETS * sizeof *c) == 0,
                  "wrote behind the matrix");
    }
}

static void test_bf16_bits(enum moe_gemm_library library) {
    choose(library);
    for (int i = 0; i < CASES; i += 2) {
        const shape s = shape_of(i);
        const int offset = i % OFFSETS;
        fill(i);
        memcpy(c2 + offset, c, LARGEST * sizeof *c);
        memcpy(a2 + offset, a, LARGEST * sizeof *a);
        omp_set_num_threads(1);
        multiply_bf16(s, a, b, c);
#pragma omp parallel num_threads(2)
        if (omp_get_thread_num() == omp_get_num_threads() - 1) {
            multiply_bf16(s, a2 + offset, b, c2 + offset);
        }
        CHECK_MSG(memcmp(c, c2 + offset, (size_t)(s.m * s.n) * sizeof *c) == 0,
                  "case %d, %lld x %lld x %lld", i, (long long)s.m, (long long)s.n, (long long)s.k);
    }
}

/* A library either has them, or says why not. */
static void test_bf16_required(enum moe_gemm_library library) {
    moe_status st = {0};
    choose(library);
    if (moe_gemm_require_bf16(&st) == MOE_OK) {
        RUN(test_bf16, library);
        RUN(test_bf16_bits, library);
        CHECK(moe_gemm_bf16_speed() > 0);
        return;
    }
    CHECK(library != MOE_GEMM_REFERENCE);
    CHECK_EQ(st.code, MOE_USER);
    CHECK_MSG(strstr(st.message, "model.compute = bf16: ") == st.message, "%s", st.message);
}

static void test_kernels(enum moe_gemm_library library) {
    moe_gemm_kernels k[2];
    choose(library);
    int count = moe_gemm_kernels_of(k);
    CHECK(count == 1 || (count == 2 && library == MOE_GEMM_AUTO));
    for (int i = 0; i < count; i++) {
        CHECK(k[i].library[0] != 0);
    }
}

static void test_missing(void) {
    moe_status st = {0};
    CHECK_EQ(moe_gemm_choose(MOE_GEMM_ONEDNN, &st), MOE_USER);
    CHECK_MSG(strstr(st.message, "run.gemm = onednn: ") == st.message, "%s", st.message);
}

/* MOESIM_GEMM speaks where the configuration does not, and only of what there is. */
static void test_environment(bool has_onednn) {
    moe_gemm_kernels k[2];
    setenv("MOESIM_GEMM", "reference", 1);
    choose(MOE_GEMM_AUTO);
    CHECK(moe_gemm_kernels_of(k) == 1 && !strcmp(k[0].library, "plain loops"));
    choose(MOE_GEMM_BLAS);
    CHECK(moe_gemm_kernels_of(k) == 1 && strcmp(k[0].library, "plain loops") != 0);
    setenv("MOESIM_GEMM", "onednn", 1);
    choose(MOE_GEMM_AUTO);
    CHECK(moe_gemm_kernels_of(k) == 1 && !strcmp(k[0].library, "oneDNN") == has_onednn);
    unsetenv("MOESIM_GEMM");
}

int main(void) {
    unsetenv("MOESIM_GEMM");
    moe_status st = {0};
    bool has_onednn = moe_gemm_choose(MOE_GEMM_ONEDNN, &st) == MOE_OK;
    for (int library = MOE_GEMM_AUTO; library <= MOE_GEMM_REFERENCE; library++) {
        if (library != MOE_GEMM_ONEDNN || has_onednn) {
            RUN(test_values, (enum moe_gemm_library)library);
            RUN(test_bits, (enum moe_gemm_library)library);
            RUN(test_kernels, (enum moe_gemm_library)library);
            RUN(test_bf16_required, (enum moe_gemm_library)library);
        }
    }
    RUN(test_environment, has_onednn);
    if (!has_onednn) {
        RUN(test_missing);
    }
    CHECK(sizeof(real) == sizeof(float) || !has_onednn);
    return check_verdict();
}
