/* unit_sums.c: sums of products against a plain loop in long double, for every number of elements
 * around the eight partial sums.
 *
 * ctest: f64 */
#include <string.h>

#include "base/rng.h"
#include "base/sums.h"
#include "check.h"

enum { MOST = 70 };

int main(void) {
    real x[MOST], y[MOST];
    moe_rng_normal((moe_rng){5, MOE_RNG_TEST}, 0, 0, 1, x, MOST);
    moe_rng_normal((moe_rng){5, MOE_RNG_TEST}, 1, 0, 1, y, MOST);
    for (int64_t n = 0; n <= MOST; n++) {
        long double products = 0, squares = 0, sizes = 0;
        for (int64_t i = 0; i < n; i++) {
            products += (long double)x[i] * y[i];
            squares += (long double)x[i] * x[i];
            sizes += fabsl((long double)x[i] * y[i]);
        }
        CHECK_NEAR(moe_sum_of_products(x, y, n), (double)products, 1e-15 * (double)sizes);
        CHECK_NEAR(moe_sum_of_squares(x, n), (double)squares, 1e-15 * (double)squares);
    }
    for (int64_t n = 0; n <= MOST - MOE_SUMS; n++) { /* the same bits, several at once */
        double sum[MOE_SUMS];
        moe_sums_of_squares((const real *const[MOE_SUMS]){x, x + 1, y + 2, y + 4}, n, sum);
        CHECK(sum[0] == moe_sum_of_squares(x, n) && sum[1] == moe_sum_of_squares(x + 1, n));
        CHECK(sum[2] == moe_sum_of_squares(y + 2, n) && sum[3] == moe_sum_of_squares(y + 4, n));
    }
    for (int64_t n = 0; n <= MOST; n++) {
        real sum[MOST + 1] = {0}, again[MOST];
        sum[n] = 7;
        memcpy(again, x, sizeof again);
        moe_sum_of_vectors(x, y, n, sum);
        moe_sum_of_vectors(again, y, n, again); /* in place */
        for (int64_t i = 0; i < n; i++) {
            CHECK(sum[i] == x[i] + y[i] && again[i] == sum[i]);
        }
        CHECK(sum[n] == 7 && (n == MOST || again[n] == x[n]));
    }
    x[3] = (real)INFINITY;
    CHECK(!isfinite(moe_sum_of_squares(x, MOST)));
    return check_verdict();
}
