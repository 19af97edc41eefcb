/* exact.c: sums of doubles as integers.
 *
 * Every step before the last rounding is exact: scaling by powers of two, and subtracting the
 * integer part. So neither fused multiply-add nor the vector width can change a bit. Rounding goes
 * to the nearest multiple of 2^-60, and ties to the even one. */
#include "base/exact.h"

#include <math.h>
#include <string.h>

#include "base/status.h"
#include "base/vector.h"

/* Sign and magnitude: the three words of |v| are taken off one after the other, then added or
 * subtracted. */
void moe_exact_add(int64_t w[MOE_EXACT_WORDS], double v) {
    double magnitude = fabs(v);
    MOE_ASSERT(magnitude < 0x1p52);
    int64_t whole = (int64_t)magnitude;
    double scaled = (magnitude - (double)whole) * MOE_EXACT_TWO30;
    int64_t high = (int64_t)scaled;
    double low = (scaled - (double)high) * MOE_EXACT_TWO30 + MOE_EXACT_MAGIC;
    int64_t sign = v < 0 ? -1 : 1;
    w[0] += sign * whole;
    w[1] += sign * high;
    w[2] += sign * (moe_exact_bits(low) - moe_exact_bits(MOE_EXACT_MAGIC));
}

double moe_exact_value(const int64_t w[MOE_EXACT_WORDS]) {
    __int128 sum = (__int128)w[0] * ((int64_t)1 << 60) + (__int128)w[1] * ((int64_t)1 << 30) + w[2];
    return (double)sum * 0x1p-60;
}

MOE_CLONES void moe_exact_add01(int64_t *restrict hi,
                                int64_t *restrict lo,
                                const double *restrict v,
                                int n) {
    for (int i = 0; i < n; i++) {
        moe_exact_add01_one(hi + i, lo + i, v[i]);
    }
}

/* Sums below 8 fit 64 bits, which every processor converts by itself. Both ways round once. */
double moe_exact_value01(int64_t hi, int64_t lo) {
    int64_t sum;
    if (!__builtin_mul_overflow(hi, (int64_t)1 << 30, &sum) &&
        !__builtin_add_overflow(sum, lo, &sum)) {
        return (double)sum * 0x1p-60;
    }
    return (double)((__int128)hi * ((int64_t)1 << 30) + lo) * 0x1p-60;
}

/* --- numbers of any size --- */

enum { DIGIT = 32, LEAST = -1074 };

/* v = m 2^(LEAST + at) with an integer m of 53 bits, which reaches into three digits at most. */
void moe_exact_wide_add(int64_t w[MOE_EXACT_WIDE_WORDS], double v) {
    const uint64_t bits = (uint64_t)moe_exact_bits(v), field = bits >> 52;
    MOE_ASSERT(field < 2047);
    const uint64_t m = (bits & (((uint64_t)1 << 52) - 1)) | (field > 0 ? (uint64_t)1 << 52 : 0);
    const int at = field > 0 ? (int)field - 1 : 0;
    unsigned __int128 shifted = (unsigned __int128)m << at % DIGIT;
    for (int64_t *digit = w + at / DIGIT; shifted > 0; digit++, shifted >>= DIGIT) {
        *digit += (int64_t)(shifted & UINT32_MAX);
    }
}

/* The digits after carrying stand from the third place on, so that each has two below it. */
double moe_exact_wide_value(const int64_t w[MOE_EXACT_WIDE_WORDS], int *exponent) {
    enum { BELOW = 2 };
    uint64_t digit[BELOW + MOE_EXACT_WIDE_WORDS + 1] = {0};
    uint64_t carry = 0;
    int top = BELOW;
    for (int i = 0; i <= MOE_EXACT_WIDE_WORDS; i++) {
        carry += i < MOE_EXACT_WIDE_WORDS ? (uint64_t)w[i] : 0;
        digit[BELOW + i] = carry & UINT32_MAX;
        carry >>= DIGIT;
        top = digit[BELOW + i] ? BELOW + i : top;
    }
    unsigned __int128 leading = digit[top];
    leading = leading << 2 * DIGIT | digit[top - 1] << DIGIT | digit[top - 2];
    int shift = 0;
    uint64_t lost = 0; /* what stands behind 64 bits only says that there is something */
    for (int i = 0; i < top - 2; i++) {
        lost |= digit[i];
    }
    for (; leading >> 64; shift++, leading >>= 1) {
        lost |= (uint64_t)leading & 1;
    }
    const double f = frexp((double)((uint64_t)leading | (lost != 0)), exponent);
    *exponent += f > 0 ? LEAST + DIGIT * (top - BELOW - 2) + shift : 0;
    return f;
}
