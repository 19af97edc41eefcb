/* rng.c: Philox4x32-10 (Salmon et al. 2011, library Random123), keyed by purpose and ids:
 *
 *     key      the seed (64 bits)
 *     counter  the 32 low bits of a; the 32 low bits of b; c; and in one word the stream (16 bits),
 *              bits 32 .. 39 of a and bits 32 .. 39 of b
 *
 * This is one to one for a, b < 2^40, so that no two numbers share a block. Bits 40 and above of a
 * and b, times odd constants, are added to the key. Block c of moe_rng_normal has the elements 4c
 * .. 4c+3; a stream is used for numbers or for vectors, never for both.
 *
 * Normal numbers come from Box and Muller's method with one 32-bit word for the radius and one for
 * the angle; the largest is 6.7. Logarithm, sine and cosine are written out in plain operations on
 * doubles, which the compiler runs in vector lanes and which, unlike the C library's, give the same
 * bits on every processor. */
#include "base/rng.h"

#include <Random123/philox.h>
#include <math.h>
#include <string.h>

#include "base/status.h"

/* Pairs (radius, angle) at a time; a block has two of them. */
enum { LANES = 32, BLOCKS = LANES / 2 };

static philox4x32_key_t moe_rng_key(moe_rng r, uint64_t a, uint64_t b) {
    uint64_t key = r.seed + (a >> 40) * 0x9e3779b97f4a7c15u + (b >> 40) * 0xc2b2ae3d27d4eb4fu;
    return (philox4x32_key_t){{(uint32_t)key, (uint32_t)(key >> 32)}};
}

static philox4x32_ctr_t moe_rng_counter(moe_rng r, uint64_t a, uint64_t b, uint32_t c) {
    uint32_t high = r.stream | (uint32_t)(a >> 32 & 0xff) << 16 | (uint32_t)(b >> 32 & 0xff) << 24;
    return (philox4x32_ctr_t){{(uint32_t)a, (uint32_t)b, c, high}};
}

uint64_t moe_rng_bits(moe_rng r, uint64_t a, uint64_t b, uint32_t c) {
    MOE_ASSERT(r.stream < 1u << 16);
    philox4x32_ctr_t x = philox4x32(moe_rng_counter(r, a, b, c), moe_rng_key(r, a, b));
    return (uint64_t)x.v[1] << 32 | x.v[0];
}

double moe_rng_uniform(moe_rng r, uint64_t a, uint64_t b, uint32_t c) {
    return (double)(moe_rng_bits(r, a, b, c) >> 11) * 0x1p-53;
}

static inline double moe_rng_f64(uint64_t bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint64_t moe_rng_u64(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* Makes a double of an integer below 2^52 by putting bits together. */
static inline double moe_rng_double(uint64_t integer) {
    return moe_rng_f64(integer | 0x4330000000000000u) - 0x1p52;
}

/* sqrt(-2 log u), u = (word + 1/2) / 2^32. u = 2^(k-64) m with m in [sqrt(1/2), sqrt(2)); log m = 2
 * atanh((m-1)/(m+1)). */
static inline double moe_rng_radius(uint64_t word) {
    uint64_t bits = moe_rng_u64((moe_rng_double(word) + 0.5) * 0x1p-32);
    uint64_t k = (bits - 0x3fe6a09e667f3bcdu + ((uint64_t)64 << 52)) >> 52;
    double m = moe_rng_f64(bits - ((k - 64) << 52));
    double s = (m - 1) / (m + 1), z = s * s;
    double p = 1. / 21;
    p = p * z + 1. / 19;
    p = p * z + 1. / 17;
    p = p * z + 1. / 15;
    p = p * z + 1. / 13;
    p = p * z + 1. / 11;
    p = p * z + 1. / 9;
    p = p * z + 1. / 7;
    p = p * z + 1. / 5;
    p = p * z + 1. / 3;
    p = p * z + 1;
    double log_u = (moe_rng_double(k) - 64) * 0x1.62e42fefa39efp-1 + 2 * s * p;
    return sqrt(-2 * log_u);
}

/* The Taylor series on [-pi/4, pi/4] are good to the last bits. */
static inline double moe_rng_sin(double x) {
    double z = x * x, p = 1. / 355687428096000;
    p = p * z - 1. / 1307674368000;
    p = p * z + 1. / 6227020800;
    p = p * z - 1. / 39916800;
    p = p * z + 1. / 362880;
    p = p * z - 1. / 5040;
    p = p * z + 1. / 120;
    p = p * z - 1. / 6;
    return x + x * z * p;
}

static inline double moe_rng_cos(double x) {
    double z = x * x, p = 1. / 20922789888000;
    p = p * z - 1. / 87178291200;
    p = p * z + 1. / 479001600;
    p = p * z - 1. / 3628800;
    p = p * z + 1. / 40320;
    p = p * z - 1. / 720;
    p = p * z + 1. / 24;
    p = p * z - 0.5;
    return 1 + z * p;
}

/* BLOCKS blocks from `counter` on, as philox4x32 makes them one by one: ten rounds of two products.
 * Block i has the words radius[i], angle[i], radius[BLOCKS + i], angle[BLOCKS + i]. */
static inline __attribute__((always_inline)) void moe_rng_blocks_lanes(philox4x32_ctr_t counter,
                                                                       philox4x32_key_t key,
                                                                       uint32_t radius[LANES],
                                                                       uint32_t angle[LANES]) {
    for (uint32_t i = 0; i < BLOCKS; i++) {
        radius[i] = counter.v[0];
        angle[i] = counter.v[1];
        radius[BLOCKS + i] = counter.v[2] + i;
        angle[BLOCKS + i] = counter.v[3];
    }
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < BLOCKS; i++) {
            const uint64_t p = (uint64_t)PHILOX_M4x32_0 * radius[i];
            const uint64_t q = (uint64_t)PHILOX_M4x32_1 * radius[BLOCKS + i];
            radius[i] = (uint32_t)(q >> 32) ^ angle[i] ^ key.v[0];
            angle[i] = (uint32_t)q;
            radius[BLOCKS + i] = (uint32_t)(p >> 32) ^ angle[BLOCKS + i] ^ key.v[1];
            angle[BLOCKS + i] = (uint32_t)p;
        }
        key.v[0] += PHILOX_W32_0;
        key.v[1] += PHILOX_W32_1;
    }
}

/* The 2 LANES numbers of BLOCKS blocks: for each pair of a block radius * (cos, sin)(2 pi angle /
 * 2^32). The nearest quarter turn is taken off; it then swaps and negates. */
static inline __attribute__((always_inline)) void moe_rng_normal_lanes(philox4x32_ctr_t counter,
                                                                       philox4x32_key_t key,
                                                                       double scale,
                                                                       double *restrict out) {
    uint32_t radius[LANES], angle[LANES];
    double first[LANES], second[LANES];
    moe_rng_blocks_lanes(counter, key, radius, angle);
    for (int i = 0; i < LANES; i++) {
        double r = scale * moe_rng_radius(radius[i]);
        uint64_t turned = (uint64_t)angle[i] + (1u << 29);
        double x = (moe_rng_double(turned & 0x3fffffff) - 0x1p29) * (0x1.921fb54442d18p0 * 0x1p-30);
        uint64_t quarter = turned >> 30 & 3, odd = 0 - (quarter & 1);
        uint64_t s = moe_rng_u64(r * moe_rng_sin(x)), c = moe_rng_u64(r * moe_rng_cos(x));
        uint64_t cos_sign = ((quarter + 1) >> 1 & 1) << 63, sin_sign = (quarter >> 1) << 63;
        first[i] = moe_rng_f64(((c & ~odd) | (s & odd)) ^ cos_sign);
        second[i] = moe_rng_f64(((s & ~odd) | (c & odd)) ^ sin_sign);
    }
    for (int i = 0; i < BLOCKS; i++) {
        out[4 * i] = first[i];
        out[4 * i + 1] = second[i];
        out[4 * i + 2] = first[BLOCKS + i];
        out[4 * i + 3] = second[BLOCKS + i];
    }
}

static void moe_rng_normal_plain(philox4x32_ctr_t counter,
                                 philox4x32_key_t key,
                                 double scale,
                                 double *out) {
    moe_rng_normal_lanes(counter, key, scale, out);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void moe_rng_normal_avx2(philox4x32_ctr_t counter,
                                                                philox4x32_key_t key,
                                                                double scale,
                                                                double *out) {
    moe_rng_normal_lanes(counter, key, scale, out);
}

__attribute__((target("avx512f,avx512dq,avx512vl"))) static void moe_rng_normal_avx512(
    philox4x32_ctr_t counter,
    philox4x32_key_t key,
    double scale,
    double *out) {
    moe_rng_normal_lanes(counter, key, scale, out);
}
#endif

/* These are the same operations, hence the same bits, in wider lanes where the processor has them.
 */
static void moe_rng_normal_blocks(philox4x32_ctr_t counter,
                                  philox4x32_key_t key,
                                  double scale,
                                  double *out) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        moe_rng_normal_avx512(counter, key, scale, out);
        return;
    }
    if (__builtin_cpu_supports("avx2")) {
        moe_rng_normal_avx2(counter, key, scale, out);
        return;
    }
#endif
    moe_rng_normal_plain(counter, key, scale, out);
}

void moe_rng_normal(moe_rng r, uint64_t a, uint64_t b, double scale, real *out, int64_t n) {
    MOE_ASSERT(r.stream < 1u << 16 && n <= (int64_t)4 << 32);
    philox4x32_key_t key = moe_rng_key(r, a, b);
    double normal[2 * LANES];
    for (int64_t begin = 0; begin < n; begin += 2 * LANES) {
        int count = n - begin < 2 * LANES ? (int)(n - begin) : 2 * LANES;
        moe_rng_normal_blocks(moe_rng_counter(r, a, b, (uint32_t)(begin / 4)), key, scale, normal);
        for (int i = 0; i < count; i++) {
            out[begin + i] = (real)normal[i];
        }
    }
}
