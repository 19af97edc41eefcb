/* sums.h: sums of products in double, and of vectors. The numbers of a product go to eight partial
 * sums in turn, so that they can be added in vector lanes; the order is fixed, so that any
 * processor gives the same bits. */
#ifndef MOESIM_BASE_SUMS_H
#define MOESIM_BASE_SUMS_H

#include <stdint.h>

#include "base/alloc.h"

/* Local. The sum of x[i]^2 over n numbers. */
double moe_sum_of_squares(const real *x, int64_t n);

enum { MOE_SUMS = 4 };
/* Local. The same for so many vectors at once, which takes less time: sum[j] is that of x[j]. */
void moe_sums_of_squares(const real *const x[MOE_SUMS], int64_t n, double sum[MOE_SUMS]);

/* Local. The sum of x[i] y[i] over n numbers. */
double moe_sum_of_products(const real *x, const real *y, int64_t n);

/* Local. sum [n] = x + y, element by element; sum may be x or y. */
void moe_sum_of_vectors(const real *x, const real *y, int64_t n, real *sum);

#endif
