/* payload.c: conversions in loops without branches, which the compiler turns into vector code. Each
 * goes through a group of 128 numbers at a time, which stays in the first cache. */
#include "exchange/payload.h"

#include <math.h>
#include <string.h>

#include "base/bf16.h"
#include "base/status.h"
#include "base/vector.h"

MOE_PART uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

MOE_PART float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static int64_t num_groups(int64_t n) {
    return (n + MOE_FP8_GROUP - 1) / MOE_FP8_GROUP;
}

static int64_t size_of_group(int64_t n, int64_t group) {
    int64_t left = n - group * MOE_FP8_GROUP;
    return left < MOE_FP8_GROUP ? left : MOE_FP8_GROUP;
}

/* --- fp32 --- */

static int64_t whole_bytes(moe_payload_format f, int64_t n) {
    (void)f;
    return n * (int64_t)sizeof(real);
}

static void whole_encode(moe_payload_format f, const real *x, int64_t n, unsigned char *row) {
    memcpy(row, x, (size_t)whole_bytes(f, n));
}

static void whole_decode(moe_payload_format f, const unsigned char *row, int64_t n, real *x) {
    memcpy(x, row, (size_t)whole_bytes(f, n));
}

/* --- bf16 --- */

static int64_t bf16_bytes(moe_payload_format f, int64_t n) {
    (void)f;
    return n * 2;
}

static bool is_even(const unsigned char *row) {
    return (uintptr_t)row % sizeof(uint16_t) == 0;
}

static void bf16_encode(moe_payload_format f, const real *x, int64_t n, unsigned char *row) {
    uint16_t code[MOE_FP8_GROUP];
    (void)f;
    if (is_even(row)) {
        moe_bf16_encode(x, n, (uint16_t *)(void *)row);
        return;
    }
    for (int64_t g = 0; g < num_groups(n); g++) {
        int size = (int)size_of_group(n, g);
        moe_bf16_encode(x + g * MOE_FP8_GROUP, size, code);
        memcpy(row + g * 2 * MOE_FP8_GROUP, code, (size_t)size * sizeof *code);
    }
}

static void bf16_decode(moe_payload_format f, const unsigned char *row, int64_t n, real *x) {
    uint16_t code[MOE_FP8_GROUP];
    (void)f;
    if (is_even(row)) {
        moe_bf16_decode((const uint16_t *)(const void *)row, n, x);
        return;
    }
    for (int64_t g = 0; g < num_groups(n); g++) {
        int size = (int)size_of_group(n, g);
        memcpy(code, row + g * 2 * MOE_FP8_GROUP, (size_t)size * sizeof *code);
        moe_bf16_decode(code, size, x + g * MOE_FP8_GROUP);
    }
}

/* --- fp8 e4m3: sign, 4 bits of exponent (bias 7), 3 of mantissa; no Inf, NaN = S.1111.111 --- */

MOE_PART int64_t scale_bytes(moe_payload_format f) {
    return f.scale == MOE_FP8_SCALE_UE8M0 ? 1 : (int64_t)sizeof(float);
}

static int64_t fp8_bytes(moe_payload_format f, int64_t n) {
    return n + num_groups(n) * scale_bytes(f);
}

/* The largest |x| of a group, at least 1e-4, as the bits of a float: sizes are ordered as their
 * bits, and so a NaN does not get lost among them. */
MOE_PART uint32_t largest(const real *x, int n) {
    uint32_t most = bits_of(1e-4f);
    for (int i = 0; i < n; i++) {
        uint32_t bits = bits_of((float)x[i]) & 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return most;
}

/* |x * factor| <= 448. A float 2^(e + 20) has 2^(e - 3) as its last place, which is the step of the
 * codes of numbers with exponent e >= -6, and below 2^-6 that of all: the sum with it rounds to
 * nearest even, and its last bits count the steps. To them come 8 for each exponent above -6, and a
 * carry goes into the exponent by itself. Of all that the lowest 8 bits are the code, so that what
 * stands above them need not be taken away; and 8 * 121 is, by an even number of steps that the
 * float has in its last bits from the start. The codes become bytes in a loop of their own:
 * otherwise the compiler narrows every term by itself. */
MOE_PART void fp8_codes(const real *restrict x, int n, float factor, unsigned char *restrict code) {
    const uint32_t least = 121u << 23, raised = (20u << 23) + (256u - 8u * 121u % 256u);
    uint32_t word[MOE_FP8_GROUP];
    for (int i = 0; i < n; i++) {
        uint32_t bits = bits_of((float)x[i] * factor), exponent = bits & 0x7f800000u;
        exponent = exponent > least ? exponent : least;
        uint32_t steps = bits_of(float_of(bits & 0x7fffffffu) + float_of(exponent + raised));
        word[i] = (steps + (exponent >> 20)) | (bits >> 24 & 0x80u);
    }
    for (int i = 0; i < n; i++) {
        code[i] = (unsigned char)word[i];
    }
}

/* A group with NaN or Inf: every NaN and Inf, and 0 for the others, which the scale makes NaN. */
static void fp8_codes_of_nan(const real *x, int n, unsigned char *code) {
    for (int i = 0; i < n; i++) {
        uint32_t bits = bits_of((float)x[i] * 0.0f);
        code[i] = (unsigned char)((isfinite((float)x[i]) ? 0u : 0x7fu) | (bits >> 31 << 7));
    }
}

MOE_PART void fp8_values(const unsigned char *restrict code, int n, float scale, real *restrict x) {
    uint32_t word[MOE_FP8_GROUP]; /* widened first: all that follows is of the width of floats */
    for (int i = 0; i < n; i++) {
        word[i] = code[i];
    }
    for (int i = 0; i < n; i++) {
        uint32_t size = word[i] & 0x7fu;
        float normal = float_of((size << 20) + (120u << 23));
        float small = float_of((size << 20) + (121u << 23)) - 0x1p-6f;
        uint32_t value = bits_of(size < 8 ? small : normal);
        value = size == 0x7fu ? 0x7fc00000u : value;
        x[i] = (real)(float_of(value | (word[i] & 0x80u) << 24) * scale);
    }
}

/* The exponent of the least power of two that is no less than most / 448, biased as in a float: 448
 * is 1.75 * 2^8. 255 for Inf and NaN. */
MOE_PART unsigned char exponent_up(float most) {
    const uint32_t bits = bits_of(most), beyond = 0x7fffffu - 0x600000u;
    return (unsigned char)(bits >= 0x7f800000u ? 255u : ((bits + beyond) >> 23) - 8u);
}

/* Writes the scale of a group whose largest size is `most`, and returns what its numbers are
 * multiplied by: 0 where the largest is Inf or NaN, whose scale makes NaN of everything. */
MOE_PART float write_scale(moe_payload_format f, float most, unsigned char *to) {
    if (f.scale == MOE_FP8_SCALE_UE8M0) {
        unsigned char exponent = exponent_up(most);
        *to = exponent;
        return exponent == 255 ? 0 : float_of((254u - exponent) << 23);
    }
    const float scale = most / 448.0f;
    memcpy(to, &scale, sizeof scale);
    return isfinite(most) ? 448.0f / most : 0;
}

MOE_PART float read_scale(moe_payload_format f, const unsigned char *from) {
    float scale;
    if (f.scale == MOE_FP8_SCALE_UE8M0) {
        return float_of((uint32_t)*from << 23);
    }
    memcpy(&scale, from, sizeof scale);
    return scale;
}

/* Groups first .. end - 1, which are AT_A_TIME at most and `size` numbers long: the sizes of one
 * need not wait for the division of another. to_scale: of group 0. */
enum { AT_A_TIME = 8 };
MOE_PART void fp8_encode_groups(moe_payload_format f,
                                const real *x,
                                int64_t first,
                                int64_t end,
                                int size,
                                unsigned char *row,
                                unsigned char *to_scale) {
    float factor[AT_A_TIME];
    for (int64_t g = first; g < end; g++) {
        factor[g - first] = float_of(largest(x + g * MOE_FP8_GROUP, size));
    }
    for (int64_t g = first; g < end; g++) {
        factor[g - first] = write_scale(f, factor[g - first], to_scale + g * scale_bytes(f));
    }
    for (int64_t g = first; g < end; g++) {
        const real *group = x + g * MOE_FP8_GROUP;
        unsigned char *code = row + g * MOE_FP8_GROUP;
        if (factor[g - first] > 0) {
            fp8_codes(group, size, factor[g - first], code);
        } else {
            fp8_codes_of_nan(group, size, code);
        }
    }
}

/* Whole groups have a length that the compiler knows. */
MOE_CLONES static void fp8_encode(moe_payload_format f,
                                  const real *x,
                                  int64_t n,
                                  unsigned char *row) {
    const int64_t whole = n / MOE_FP8_GROUP;
    for (int64_t first = 0; first < whole; first += AT_A_TIME) {
        const int64_t end = first + AT_A_TIME < whole ? first + AT_A_TIME : whole;
        fp8_encode_groups(f, x, first, end, MOE_FP8_GROUP, row, row + n);
    }
    if (n % MOE_FP8_GROUP != 0) {
        fp8_encode_groups(f, x, whole, whole + 1, (int)(n % MOE_FP8_GROUP), row, row + n);
    }
}

MOE_CLONES static void fp8_decode(moe_payload_format f,
                                  const unsigned char *row,
                                  int64_t n,
                                  real *x) {
    const unsigned char *scale = row + n;
    const int64_t whole = n / MOE_FP8_GROUP;
    for (int64_t g = 0; g < whole; g++) {
        fp8_values(row + g * MOE_FP8_GROUP, MOE_FP8_GROUP,
                   read_scale(f, scale + g * scale_bytes(f)), x + g * MOE_FP8_GROUP);
    }
    if (n % MOE_FP8_GROUP != 0) {
        fp8_values(row + whole * MOE_FP8_GROUP, (int)(n % MOE_FP8_GROUP),
                   read_scale(f, scale + whole * scale_bytes(f)), x + whole * MOE_FP8_GROUP);
    }
}

/* --- the table --- */

static const struct {
    int64_t (*bytes)(moe_payload_format f, int64_t n);
    void (*encode)(moe_payload_format f, const real *x, int64_t n, unsigned char *row);
    void (*decode)(moe_payload_format f, const unsigned char *row, int64_t n, real *x);
} formats[] = {
    [MOE_PAYLOAD_FP32] = {whole_bytes, whole_encode, whole_decode},
    [MOE_PAYLOAD_BF16] = {bf16_bytes, bf16_encode, bf16_decode},
    [MOE_PAYLOAD_FP8] = {fp8_bytes, fp8_encode, fp8_decode},
};

int64_t moe_payload_bytes(moe_payload_format f, int64_t n) {
    return formats[f.type].bytes(f, n);
}

void moe_payload_encode(moe_payload_format f, const real *x, int64_t n, void *row) {
    formats[f.type].encode(f, x, n, row);
}

void moe_payload_decode(moe_payload_format f, const void *row, int64_t n, real *x) {
    formats[f.type].decode(f, row, n, x);
}

/* Rows of bf16 have nothing between them: where they are short, several are converted as one. */
static int64_t rows_at_a_time(moe_payload_format f, int64_t n) {
    enum { NUMBERS = 4096 };
    return f.type == MOE_PAYLOAD_BF16 && n > 0 && n < NUMBERS ? NUMBERS / n : 1;
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

void moe_payload_encode_all(moe_payload_format f,
                            const real *x,
                            int64_t count,
                            int64_t n,
                            char *rows) {
    const int64_t bytes = moe_payload_bytes(f, n), step = rows_at_a_time(f, n);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += step) {
        moe_payload_encode(f, x + i * n, least(step, count - i) * n, rows + i * bytes);
    }
}

void moe_payload_decode_all(moe_payload_format f,
                            const char *rows,
                            int64_t count,
                            int64_t n,
                            real *x) {
    const int64_t bytes = moe_payload_bytes(f, n), step = rows_at_a_time(f, n);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += step) {
        moe_payload_decode(f, rows + i * bytes, least(step, count - i) * n, x + i * n);
    }
}
