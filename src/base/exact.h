/* exact.h: sums of doubles that do not depend on the order of addition.
 *
 * A value is rounded once to a multiple of 2^-60 and added as integers. Addition of integers is
 * associative, so that any split over ranks, threads and devices gives the same bits, and
 * MPI_Allreduce(SUM) on the words is exact:
 *
 *     value = w[0] + w[1] * 2^-30 + w[2] * 2^-60
 *
 * One addition puts at most 2^30 in size into w[1] and w[2]; words may be negative. There is room
 * for 2^32 additions, and for integer parts whose sum stays below 2^62. Values in [0,1] need w[1]
 * and w[2] only (moe_exact_add01). NaN and Inf are the caller's to find first: moe_exact_add
 * asserts that |v| < 2^52. */
#ifndef MOESIM_BASE_EXACT_H
#define MOESIM_BASE_EXACT_H

#include <stdint.h>
#include <string.h>

enum { MOE_EXACT_WORDS = 3 };

static const double MOE_EXACT_TWO30 = 0x1p30;
/* x + this has the integer nearest to x in its low bits, for |x| < 2^51. */
static const double MOE_EXACT_MAGIC = 0x1.8p52;

/* Local. The bits of a double. */
static inline int64_t moe_exact_bits(double x) {
    int64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* Local. Adds v to w. */
void moe_exact_add(int64_t w[MOE_EXACT_WORDS], double v);
/* Local. The value of the three words, correctly rounded, whatever carries they hold. */
double moe_exact_value(const int64_t w[MOE_EXACT_WORDS]);
/* Local. Adds n values in [0,1] to words 1 and 2 of n sums: hi[i], lo[i] += v[i]. The loop
 * vectorises. */
void moe_exact_add01(int64_t *hi, int64_t *lo, const double *v, int n);
/* Local. One of these additions, as part of another loop. The high word is rounded too, so that the
 * low word may be negative. Two additions of MOE_EXACT_MAGIC need no conversion and vectorise at
 * any width. */
static inline void moe_exact_add01_one(int64_t *hi, int64_t *lo, double v) {
    double scaled = v * MOE_EXACT_TWO30;
    double high = scaled + MOE_EXACT_MAGIC;
    double low = (scaled - (high - MOE_EXACT_MAGIC)) * MOE_EXACT_TWO30 + MOE_EXACT_MAGIC;
    *hi += moe_exact_bits(high) - moe_exact_bits(MOE_EXACT_MAGIC);
    *lo += moe_exact_bits(low) - moe_exact_bits(MOE_EXACT_MAGIC);
}
/* Local. The value of such a pair. */
double moe_exact_value01(int64_t hi, int64_t lo);

/* --- numbers of any size --- */

/* Sums of doubles from 0 on, whatever their sizes, without any rounding: digit i counts
 * 2^(32 i - 1074), of which 2^-1074 is the smallest double. There is room for 2^31 additions, and
 * words of several sums may be added. */
enum { MOE_EXACT_WIDE_WORDS = 66 };

/* Local. Adds v >= 0, which is finite, to the words. */
void moe_exact_wide_add(int64_t w[MOE_EXACT_WIDE_WORDS], double v);
/* Local. The sum is f 2^exponent with the returned f in [1/2, 1), rounded once; or 0. */
double moe_exact_wide_value(const int64_t w[MOE_EXACT_WIDE_WORDS], int *exponent);

#endif
