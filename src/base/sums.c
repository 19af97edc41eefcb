/* sums.c: sums of products in double, eight at a time. */
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

double moe_sum_of_squares(const real *x, int64_t n) {
    return moe_sum_of_products(x, x, n);
}
