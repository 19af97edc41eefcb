/* exact.h: sums of doubles that do not depend on the order of addition. Layer 0 (base).
 *
 * Idea: a value is rounded once to a multiple of 2^-60 and added as integers; integer addition is
 * associative, so any split over ranks, threads and devices gives the same bits, and
 * MPI_Allreduce(SUM) on the words is exact. value = w[0] + w[1]*2^-30 + w[2]*2^-60,  |what one
 * addition puts into w[1], w[2]| <= 2^30 (words may be negative) Room: 2^32 additions; |sum of the
 * integer parts| < 2^62. Scores in [0,1] need only (w[1], w[2]): see moe_exact_add01. Not for NaN
 * or Inf: the caller checks first (moe_exact_add asserts |v| < 2^52). */
#ifndef MOESIM_BASE_EXACT_H
#define MOESIM_BASE_EXACT_H

#include <stdint.h>

enum { MOE_EXACT_WORDS = 3 };

/* Local. w[0..2] += v. */
void moe_exact_add(int64_t w[MOE_EXACT_WORDS], double v);
/* Local. Correctly rounded value of the three words (whatever carries they hold). */
double moe_exact_value(const int64_t w[MOE_EXACT_WORDS]);
/* Local. For n values in [0,1]: hi[i], lo[i] += v[i] (words 1 and 2). Hot: vectorises. */
void moe_exact_add01(int64_t *hi, int64_t *lo, const double *v, int n);
/* Local. Value of a (hi, lo) pair. */
double moe_exact_value01(int64_t hi, int64_t lo);

#endif
