/* unit_payload.c: the conversions against tables and naive double arithmetic: all 256 codes of
 * e4m3, all 2^16 of bf16, rounding to the nearest of the table and to the even code in between, for
 * all bf16 inputs and many random ones; the scales; the ends of the range; groups of any length.
 *
 * ctest: f64 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "check.h"
#include "exchange/payload.h"

static const moe_payload_format bf16 = {.type = MOE_PAYLOAD_BF16};
static const moe_payload_format fp8 = {MOE_PAYLOAD_FP8, MOE_FP8_SCALE_FP32};
static const moe_payload_format ue8m0 = {MOE_PAYLOAD_FP8, MOE_FP8_SCALE_UE8M0};

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static uint64_t draw(uint64_t a, uint64_t b) {
    return moe_rng_bits((moe_rng){7, MOE_RNG_TEST}, a, b, 0);
}

/* --- naive formats --- */

/* The value of a code of e4m3, by the definition of the format; NaN for S.1111.111. */
static double e4m3_value(int code) {
    int exponent = code >> 3 & 15, mantissa = code & 7;
    double size = exponent ? ldexp(1 + mantissa / 8.0, exponent - 7) : ldexp(mantissa / 8.0, -6);
    if ((code & 0x7f) == 0x7f) {
        return NAN;
    }
    return code & 0x80 ? -size : size;
}

/* The code nearest to x, by looking at all of them; of two equally near ones the even code. */
static int e4m3_nearest(double x) {
    int best = 0;
    double least = HUGE_VAL;
    for (int code = 0; code < 0x7f; code++) {
        double distance = fabs(fabs(x) - e4m3_value(code));
        if (distance < least || (distance == least && code % 2 == 0)) {
            least = distance;
            best = code;
        }
    }
    return best | (signbit(x) ? 0x80 : 0);
}

/* x rounded to 8 bits of mantissa, to even, by scaling: rint rounds to nearest even. */
static double bf16_nearest(double x) {
    int exponent;
    if (x == 0 || !isfinite(x)) {
        return x;
    }
    frexp(x, &exponent);
    int unit = exponent - 8 > -133 ? exponent - 8 : -133; /* subnormals are multiples of 2^-133 */
    double rounded = ldexp(rint(ldexp(x, -unit)), unit);
    return fabs(rounded) > 0x1.fep127 ? copysign(HUGE_VAL, x) : rounded;
}

/* --- decoding: every code --- */

static void test_decode_fp8(void) {
    int wrong = 0;
    for (int code = 0; code < 256; code++) {
        unsigned char row[5] = {(unsigned char)code};
        float one = 1;
        real x;
        memcpy(row + 1, &one, sizeof one);
        moe_payload_decode(fp8, row, 1, &x);
        double expected = e4m3_value(code);
        wrong += isnan(expected) ? !isnan((double)x)
                                 : (double)x != expected || signbit((double)x) != signbit(expected);
        row[1] = 127 + 3;
        moe_payload_decode(ue8m0, row, 1, &x);
        wrong += isnan(expected) ? !isnan((double)x) : (double)x != 8 * expected;
    }
    CHECK_EQ(wrong, 0);
}

static void test_bf16(void) {
    int wrong = 0;
    for (uint32_t code = 0; code < 65536; code++) {
        uint16_t half = (uint16_t)code, back;
        real x;
        moe_payload_decode(bf16, &half, 1, &x);
        double value = (double)float_of(code << 16);
        wrong += isnan(value) ? !isnan((double)x) : (double)x != value;
        moe_payload_encode(bf16, &x, 1, &back);
        wrong += isnan(value) ? (back & 0x7fff) <= 0x7f80 : back != half;
    }
    CHECK_EQ(wrong, 0);
}

/* --- encoding: nearest, ties to even --- */

static void check_bf16_of(float value, int *wrong) {
    real x = value, y;
    uint16_t code;
    moe_payload_encode(bf16, &x, 1, &code);
    moe_payload_decode(bf16, &code, 1, &y);
    double expected = bf16_nearest((double)value);
    *wrong += isnan(expected) ? !isnan((double)y) : (double)y != expected;
}

/* Every code, the points half-way to the next one, and their neighbours; and random floats. */
static void test_bf16_rounds(void) {
    int wrong = 0;
    for (uint32_t code = 0; code < 65536; code++) {
        static const uint32_t low[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
        for (size_t i = 0; i < sizeof low / sizeof low[0]; i++) {
            check_bf16_of(float_of(code << 16 | low[i]), &wrong);
        }
    }
    for (uint64_t i = 0; i < 200000; i++) {
        check_bf16_of(float_of((uint32_t)draw(1, i)), &wrong);
    }
    CHECK_EQ(wrong, 0);
}

/* A group whose largest number is 448 has the scale 1: codes are those of the numbers. */
static void check_fp8_of(const float *value, int count, int *wrong) {
    real x[MOE_FP8_GROUP];
    unsigned char row[MOE_FP8_GROUP + 4];
    x[0] = 448;
    for (int i = 0; i < count; i++) {
        x[i + 1] = value[i];
    }
    moe_payload_encode(fp8, x, count + 1, row);
    for (int i = 0; i < count; i++) {
        *wrong += row[i + 1] != e4m3_nearest((double)value[i]);
    }
}

static void test_fp8_rounds(void) {
    int wrong = 0;
    float value[127];
    int n = 0;
    for (uint32_t code = 0; code < 65536; code++) { /* all bf16 numbers of at most 448 */
        float x = float_of(code << 16);
        if (fabsf(x) <= 448) {
            value[n++] = x;
        }
        if (n == 127) {
            check_fp8_of(value, n, &wrong);
            n = 0;
        }
    }
    check_fp8_of(value, n, &wrong);
    for (uint64_t g = 0; g < 500; g++) { /* random ones of all exponents from 2^-13 to 2^8 */
        for (uint64_t i = 0; i < 127; i++) {
            uint64_t bits = draw(2 + g, i);
            float mantissa = 1 + (float)(bits >> 40) * 0x1p-24f;
            value[i] = ldexpf(bits & 1 ? mantissa : -mantissa, (int)(bits >> 8 & 31) % 22 - 13);
            value[i] = fabsf(value[i]) > 448 ? 448 : value[i];
        }
        check_fp8_of(value, 127, &wrong);
    }
    CHECK_EQ(wrong, 0);
}

/* --- the scale --- */

static void check_group(moe_payload_format f, const real *x, int n, int *wrong) {
    unsigned char row[MOE_FP8_GROUP + 4];
    float most = 1e-4f, scale, factor;
    for (int i = 0; i < n; i++) {
        most = fmaxf(most, fabsf((float)x[i]));
    }
    scale = most / 448;
    factor = 448 / most;
    moe_payload_encode(f, x, n, row);
    if (f.scale == MOE_FP8_SCALE_UE8M0) {
        scale = (float)exp2(ceil(log2((double)scale)));
        factor = 1 / scale;
        *wrong += row[n] != 127 + (int)ceil(log2((double)(most / 448)));
    } else {
        float sent;
        memcpy(&sent, row + n, sizeof sent);
        *wrong += sent != scale;
    }
    real y[MOE_FP8_GROUP];
    moe_payload_decode(f, row, n, y);
    for (int i = 0; i < n; i++) {
        int code = e4m3_nearest(fmin(fmax((double)((float)x[i] * factor), -448), 448));
        *wrong += row[i] != code || (double)y[i] != (double)((float)e4m3_value(code) * scale);
    }
}

static void test_scales(void) {
    int wrong = 0;
    for (uint64_t g = 0; g < 600; g++) {
        real x[MOE_FP8_GROUP];
        int n = 1 + (int)(draw(9000 + g, 999) % MOE_FP8_GROUP);
        double unit = ldexp(1, (int)(draw(9000 + g, 998) % 61) - 40);
        for (int i = 0; i < n; i++) {
            x[i] = (real)(unit * ((double)(draw(9000 + g, (uint64_t)i) >> 11) * 0x1p-52 - 1));
        }
        check_group(fp8, x, n, &wrong);
        check_group(ue8m0, x, n, &wrong);
    }
    for (int e = -20; e < 100; e++) { /* a power of two for a scale, and its neighbours */
        float most = ldexpf(448, e);
        real around[3] = {(real)nextafterf(most, 0), (real)most, (real)nextafterf(most, INFINITY)};
        for (int i = 0; i < 3; i++) {
            check_group(fp8, around + i, 1, &wrong);
            check_group(ue8m0, around + i, 1, &wrong);
        }
    }
    real zeros[3] = {0, 0, (real)-0.0};
    check_group(fp8, zeros, 3, &wrong);
    check_group(ue8m0, zeros, 3, &wrong);
    CHECK_EQ(wrong, 0);
}

/* A vector is cut into groups of 128; the last one is shorter, and has a scale of its own. */
static void test_groups(void) {
    for (int n = 1; n <= 300; n += 13) {
        real x[300], y[300], alone[MOE_FP8_GROUP];
        unsigned char row[300 + 12], one[MOE_FP8_GROUP + 4];
        int groups = (n + 127) / 128, wrong = 0;
        CHECK_EQ(moe_payload_bytes(fp8, n), n + 4 * groups);
        CHECK_EQ(moe_payload_bytes(ue8m0, n), n + groups);
        CHECK_EQ(moe_payload_bytes(bf16, n), 2 * n);
        for (int i = 0; i < n; i++) {
            x[i] = (real)((double)(draw(77, (uint64_t)i) >> 12) * 0x1p-50 * (1 + i / 128));
        }
        moe_payload_encode(fp8, x, n, row);
        moe_payload_decode(fp8, row, n, y);
        for (int g = 0; g < groups; g++) {
            int size = n - 128 * g < 128 ? n - 128 * g : 128;
            moe_payload_encode(fp8, x + 128 * g, size, one);
            moe_payload_decode(fp8, one, size, alone);
            wrong += memcmp(alone, y + 128 * g, (size_t)size * sizeof *alone) != 0;
        }
        CHECK_EQ(wrong, 0);
    }
}

/* What is not finite stays visible: it must not turn into a number on the way. */
static void test_not_finite(void) {
    const real bad[] = {NAN, HUGE_VAL, -HUGE_VAL};
    const moe_payload_format formats[] = {fp8, ue8m0, bf16};
    for (int b = 0; b < 3; b++) {
        for (int f = 0; f < 3; f++) {
            real x[3] = {1, bad[b], 2}, y[3];
            unsigned char row[16];
            moe_payload_encode(formats[f], x, 3, row);
            moe_payload_decode(formats[f], row, 3, y);
            CHECK(!isfinite((double)y[1]));
        }
    }
}

int main(void) {
    RUN(test_decode_fp8);
    RUN(test_bf16);
    RUN(test_bf16_rounds);
    RUN(test_fp8_rounds);
    RUN(test_scales);
    RUN(test_groups);
    RUN(test_not_finite);
    return check_verdict();
}
