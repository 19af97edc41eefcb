/* sums.c: sums of products in double, eight at a time, and of vectors. */
#include "base/sums.h"

#include "base/vector.h"

enum { LANES = 8 };

MOE_CLONES double moe_sum_of_products(const real *x, const real *y, int64_t n) {
    double lane[LANES] = {0}, sum = 0;
    int64_t whole = n - n % LANES;
    for (int64_t i = 0; i < whole; i += LANES) {
        for (int k = 0; k < LANES; k++) {
            lane[k] += (double)x[i + k] * (double)y[i + k];
        }
    }
    for (int k = 0; k < LANES; k++) {
        sum += lane[k];
    }
    for (int64_t i = whole; i < n; i++) {
        sum += (double)x[i] * (double)y[i];
    }
    return sum;
}

/* An addition to a lane waits for the one before it; those of several sums do not wait for each
 * other. */
MOE_CLONES void moe_sums_of_squares(const real *const x[MOE_SUMS],
                                    int64_t n,
                                    double sum[MOE_SUMS]) {
    double lane[MOE_SUMS][LANES] = {{0}};
    const real *const a = x[0], *const b = x[1], *const c = x[2], *const d = x[3];
    const int64_t whole = n - n % LANES;
    for (int64_t i = 0; i < whole; i += LANES) {
        for (int k = 0; k < LANES; k++) {
            lane[0][k] += (double)a[i + k] * (double)a[i + k];
            lane[1][k] += (double)b[i + k] * (double)b[i + k];
            lane[2][k] += (double)c[i + k] * (double)c[i + k];
            lane[3][k] += (double)d[i + k] * (double)d[i + k];
        }
    }
    for (int j = 0; j < MOE_SUMS; j++) {
        sum[j] = 0;
        for (int k = 0; k < LANES; k++) {
            sum[j] += lane[j][k];
        }
        for (int64_t i = whole; i < n; i++) {
            sum[j] += (double)x[j][i] * (double)x[j][i];
        }
    }
}

double moe_sum_of_squares(const real *x, int64_t n) {
    return moe_sum_of_products(x, x, n);
}

MOE_CLONES void moe_sum_of_vectors(const real *x, const real *y, int64_t n, real *sum) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        sum[i] = x[i] + y[i];
    }
}
