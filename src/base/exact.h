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

/* Local. Adds v to w. */
void moe_exact_add(int64_t w[MOE_EXACT_WORDS], double v);
/* Local. The value of the three words, correctly rounded, whatever carries they hold. */
double moe_exact_value(const int64_t w[MOE_EXACT_WORDS]);
/* Local. Adds n values in [0,1] to words 1 and 2 of n sums: hi[i], lo[i] += v[i]. The loop
 * vectorises. */
void moe_exact_add01(int64_t *hi, int64_t *lo, const double *v, int n);
/* Local. One of these additions, as part of another loop. The high word is rounded too, so that the
 * low word may be negative. Adding 3 * 2^51 leaves the rounded number in the low bits, which needs
 * no conversion and vectorises at any width. */
static inline void moe_exact_add01_one(int64_t *hi, int64_t *lo, double v) {
    const double two30 = 0x1p30, magic = 0x1.8p52; /* see exact.c */
    double scaled = v * two30;
    double high = scaled + magic;
    double low = (scaled - (high - magic)) * two30 + magic;
    int64_t high_bits, low_bits, magic_bits;
    memcpy(&high_bits, &high, sizeof high);
    memcpy(&low_bits, &low, sizeof low);
    memcpy(&magic_bits, &magic, sizeof magic);
    *hi += high_bits - magic_bits;
    *lo += low_bits - magic_bits;
}
/* Local. The value of such a pair. */
double moe_exact_value01(int64_t hi, int64_t lo);

#endif
