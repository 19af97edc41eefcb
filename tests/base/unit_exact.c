/* unit_exact.c: sums of doubles that do not depend on their order, against 128-bit integers. */
#include "base/exact.h"
#include "base/rng.h"
#include "check.h"

enum { COUNT = 4096 };
static const moe_rng rng = {.seed = 11, .stream = MOE_RNG_TEST};

/* v rounded to a multiple of 2^-60, by another way: v 2^60 is split by ldexp and rounded by
 * nearbyint. */
static __int128 reference(double v) {
    double whole = trunc(v), rest = ldexp(v - whole, 60);
    return (__int128)whole * ((__int128)1 << 60) + (__int128)nearbyint(rest);
}

/* A value whose size is anything from 2^-80 to 2^40, of either sign. */
static double any_value(int i) {
    double u = moe_rng_uniform(rng, 1, (uint64_t)i, 0) - 0.5;
    return ldexp(u, (int)(moe_rng_bits(rng, 1, (uint64_t)i, 1) % 120) - 79);
}

static void test_order(void) {
    int64_t forward[3] = {0};
    int64_t backward[3] = {0};
    int64_t split[4][3] = {{0}};
    __int128 sum = 0;
    for (int i = 0; i < COUNT; i++) {
        moe_exact_add(forward, any_value(i));
        moe_exact_add(backward, any_value(COUNT - 1 - i));
        moe_exact_add(split[i % 4], any_value(i));
        sum += reference(any_value(i));
    }
    for (int w = 0; w < 3; w++) {
        CHECK_EQ(forward[w], backward[w]);
        CHECK_EQ(forward[w], split[0][w] + split[1][w] + split[2][w] + split[3][w]);
    }
    CHECK_EQ(moe_exact_value(forward), (double)sum * 0x1p-60);
}

static void test_single_values(void) {
    static const double exact[] = {
        0,       1,         -1,       0.5,    -0.75,           0x1p-60,     -0x1p-60,
        1e9 / 8, 1.0 / 3.0, -1e-10,   0x1p51, 0x1.8p-30,       1 - 0x1p-53, 0x1.fffffffffffffp51,
        123.456, 0x1p-30,   -0x1p-31, 0x1p30, 0x1p-7 + 0x1p-59};
    for (size_t i = 0; i < sizeof exact / sizeof *exact; i++) {
        int64_t w[3] = {0};
        moe_exact_add(w, exact[i]);
        double rounded = (double)reference(exact[i]) * 0x1p-60;
        CHECK_MSG(moe_exact_value(w) == rounded, "%a gives %a", exact[i], moe_exact_value(w));
        CHECK_MSG(fabs(rounded - exact[i]) <= 0x1p-61, "%a", exact[i]);
        moe_exact_add(w, -exact[i]);
        CHECK_MSG(w[0] == 0 && w[1] == 0 && w[2] == 0, "%a and its negative leave something",
                  exact[i]);
    }
    for (int i = 0; i < COUNT; i++) {
        int64_t w[3] = {0};
        moe_exact_add(w, any_value(i));
        CHECK_MSG(moe_exact_value(w) == (double)reference(any_value(i)) * 0x1p-60, "%a",
                  any_value(i));
        CHECK(llabs(w[1]) <= 1 << 30 && llabs(w[2]) <= 1 << 30);
    }
}

/* Ties go to the even multiple of 2^-60; the value of the words is rounded once. */
static void test_rounding(void) {
    const struct {
        double v;
        int64_t units;
    } ties[] = {{0x1p-61, 0}, {0x3p-61, 2}, {0x5p-61, 2}, {-0x3p-61, -2}, {0x1.8p-61, 1}};
    for (size_t i = 0; i < sizeof ties / sizeof *ties; i++) {
        int64_t w[3] = {0};
        int64_t hi = 0;
        int64_t lo = 0;
        moe_exact_add(w, ties[i].v);
        CHECK_MSG(w[2] == ties[i].units, "%a", ties[i].v);
        if (ties[i].v < 0) {
            continue;
        }
        moe_exact_add01(&hi, &lo, &ties[i].v, 1);
        CHECK_MSG(hi == 0 && lo == ties[i].units, "%a", ties[i].v);
    }
    /* 2^53 + 1 + 2^-60, where the next double is 2^53 + 2 */
    const int64_t just_above_half[3] = {(int64_t)1 << 53, (int64_t)1 << 30, 1};
    const int64_t half[3] = {(int64_t)1 << 53, (int64_t)1 << 30, 0};
    const int64_t carries[3] = {-3, (int64_t)1 << 61, -((int64_t)1 << 60)};
    CHECK_EQ(moe_exact_value(just_above_half), 0x1p53 + 2);
    CHECK_EQ(moe_exact_value(half), 0x1p53);
    CHECK_EQ(moe_exact_value(carries), 0x1p31 - 4);
}

static void test_add01(void) {
    double v[COUNT];
    int64_t hi[COUNT] = {0}, lo[COUNT] = {0};
    for (int i = 0; i < COUNT; i++) {
        v[i] = i == 0 ? 0 : i == 1 ? 1 : ldexp(moe_rng_uniform(rng, 2, (uint64_t)i, 0), -(i % 70));
    }
    /* lengths 1 .. 37 reach every tail of a vector loop */
    for (int begin = 0, n = 1; begin < COUNT; begin += n, n = n % 37 + 1) {
        moe_exact_add01(hi + begin, lo + begin, v + begin, n < COUNT - begin ? n : COUNT - begin);
    }
    int64_t words[3] = {0};
    int64_t hi_sum = 0;
    int64_t lo_sum = 0;
    for (int i = 0; i < COUNT; i++) {
        int64_t w[3] = {0};
        moe_exact_add(w, v[i]);
        moe_exact_add(words, v[i]);
        hi_sum += hi[i];
        lo_sum += lo[i];
        CHECK_MSG(moe_exact_value01(hi[i], lo[i]) == moe_exact_value(w), "%a gives %a", v[i],
                  moe_exact_value01(hi[i], lo[i]));
    }
    CHECK(moe_exact_value01(hi_sum, lo_sum) == moe_exact_value(words));
}

/* --- numbers of any size --- */

/* Sums whose digits are known: each is (odd 2^k) with the rounded value by hand. */
static void test_wide_by_hand(void) {
    const struct {
        double v[3];
        double f;
        int exponent;
    } rows[] = {
        {{0, 0, 0}, 0, 0},
        {{1, 0, 0}, 0.5, 1},
        {{0x1p-1074, 0, 0}, 0.5, -1073},
        {{0x1p-1074, 0x1p-1074, 0x1p-1074}, 0.75, -1072},
        {{0x1.fffffffffffffp1023, 0x1.fffffffffffffp1023, 0}, 0x1.fffffffffffffp-1, 1025},
        {{1, 0x1p-53, 0}, 0.5, 1},                          /* a tie goes to the even one */
        {{1, 0x1p-53, 0x1p-1074}, 0x1.0000000000001p-1, 1}, /* the least more decides it */
        {{0x1.0000000000001p0, 0x1p-53, 0}, 0x1.0000000000002p-1, 1},
        {{0x1.fffffffffffffp0, 0x1p-53, 0}, 0.5, 2},
        {{0x1p1000, 0x1p-1000, 1}, 0.5, 1001},
        {{0x1.8p40, 0x1.8p-20, 0}, 0.75, 41},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        int64_t w[MOE_EXACT_WIDE_WORDS] = {0};
        int exponent;
        for (int k = 0; k < 3; k++) {
            moe_exact_wide_add(w, rows[i].v[k]);
        }
        const double f = moe_exact_wide_value(w, &exponent);
        CHECK_MSG(f == rows[i].f && exponent == rows[i].exponent, "row %d: %a 2^%d", (int)i, f,
                  exponent);
    }
}

/* Of numbers that fit an integer of 128 bits, in any order and split; and the largest doubles many
 * times. */
static void test_wide_sums(void) {
    int64_t forward[MOE_EXACT_WIDE_WORDS] = {0}, split[3][MOE_EXACT_WIDE_WORDS] = {{0}};
    __int128 sum = 0;
    int exponent, other;
    for (int i = 0; i < COUNT; i++) {
        const double v = fabs(ldexp(nearbyint(ldexp(any_value(i), 60)), -60));
        moe_exact_wide_add(forward, v);
        moe_exact_wide_add(split[i % 3], v);
        sum += reference(v);
    }
    const double f = moe_exact_wide_value(forward, &exponent);
    CHECK(ldexp(f, exponent) == (double)sum * 0x1p-60);
    for (int k = 0; k < MOE_EXACT_WIDE_WORDS; k++) {
        CHECK_EQ(forward[k], split[0][k] + split[1][k] + split[2][k]);
    }
    int64_t large[MOE_EXACT_WIDE_WORDS] = {0};
    for (int i = 0; i < 3 << 10; i++) {
        moe_exact_wide_add(large, 0x1.fffffffffffffp1023);
    }
    /* 3 2^10 (2 - 2^-52) 2^1023 = (3/4 - 3 2^-55) 2^1036 */
    CHECK(moe_exact_wide_value(large, &other) == 0.75 - 0x1p-53);
    CHECK_EQ(other, 1036);
}

/* 1/K added many times comes to the count: what a mean of scores is made of. */
static void test_many(void) {
    int64_t hi = 0, lo = 0;
    const double third = 1.0 / 3.0;
    for (int i = 0; i < 300000; i++) {
        moe_exact_add01(&hi, &lo, &third, 1);
    }
    CHECK_NEAR(moe_exact_value01(hi, lo), 100000, 1e-15);
}

int main(void) {
    RUN(test_order);
    RUN(test_single_values);
    RUN(test_rounding);
    RUN(test_add01);
    RUN(test_many);
    RUN(test_wide_by_hand);
    RUN(test_wide_sums);
    return check_verdict();
}
