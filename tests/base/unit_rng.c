/* unit_rng.c: Philox's published answers, the distributions, and that a number depends on nothing
 * but its key. */
#include <string.h>

#include "base/rng.h"
#include "check.h"

enum { COUNT = 1 << 18 };
static real values[COUNT];

/* Random123's kat_vectors for philox4x32-10, reached through the layout of counter and key that
 * rng.c documents. */
static void test_known_answers(void) {
    static const struct {
        uint32_t counter[4], key[2], answer[2];
    } vectors[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb}},
    };
    for (int i = 0; i < 3; i++) {
        const uint32_t *x = vectors[i].counter, *key = vectors[i].key;
        moe_rng r = {.seed = (uint64_t)key[1] << 32 | key[0], .stream = x[3] & 0xffff};
        uint64_t a = (uint64_t)(x[3] >> 16 & 0xff) << 32 | x[0],
                 b = (uint64_t)(x[3] >> 24) << 32 | x[1];
        CHECK_MSG(moe_rng_bits(r, a, b, x[2]) ==
                      ((uint64_t)vectors[i].answer[1] << 32 | vectors[i].answer[0]),
                  "vector %d", i);
    }
}

static int compare(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Every argument matters, in its low and high bits: no two of these keys have the same number. */
static void test_distinct(void) {
    uint64_t seen[6 * 44 + 1];
    int n = 0;
    for (int bit = 0; bit < 44; bit++) {
        uint64_t one = (uint64_t)1 << bit;
        seen[n++] = moe_rng_bits((moe_rng){5 ^ one << 20, MOE_RNG_TEST}, 3, 4, 0);
        seen[n++] = moe_rng_bits((moe_rng){5, MOE_RNG_TEST}, 3 ^ one, 4, 0);
        seen[n++] = moe_rng_bits((moe_rng){5, MOE_RNG_TEST}, 3, 4 ^ one, 0);
        if (bit < 32) {
            seen[n++] = moe_rng_bits((moe_rng){5, MOE_RNG_TEST}, 3, 4, (uint32_t)one);
        }
        if (bit < 16) {
            seen[n++] = moe_rng_bits((moe_rng){5, MOE_RNG_TEST ^ (uint32_t)one}, 3, 4, 0);
        }
    }
    seen[n++] = moe_rng_bits((moe_rng){5, MOE_RNG_TEST}, 3, 4, 0);
    qsort(seen, (size_t)n, sizeof *seen, compare);
    for (int i = 1; i < n; i++) {
        CHECK(seen[i] != seen[i - 1]);
    }
}

static void test_uniform(void) {
    enum { BINS = 64 };
    moe_rng r = {.seed = 1, .stream = MOE_RNG_TEST};
    int bin[BINS] = {0};
    double sum = 0;
    double chi2 = 0;
    double lag = 0;
    double last = 0.5;
    for (uint64_t i = 0; i < COUNT; i++) {
        double u = moe_rng_uniform(r, i / 512, i % 512, 7);
        CHECK(u >= 0 && u < 1);
        bin[(int)(u * BINS)]++;
        sum += u;
        lag += (u - 0.5) * (last - 0.5);
        last = u;
    }
    for (int i = 0; i < BINS; i++) {
        chi2 += pow(bin[i] - COUNT / BINS, 2) / (COUNT / BINS);
    }
    CHECK_MSG(fabs(sum / COUNT - 0.5) < 5 * sqrt(1. / 12 / COUNT), "mean %g", sum / COUNT);
    CHECK_MSG(fabs(lag / COUNT) < 5. / 12 / sqrt(COUNT), "neighbours' covariance %g", lag / COUNT);
    CHECK_MSG(chi2 > 20 && chi2 < 130, "chi2 of 63 degrees of freedom %g", chi2);
}

/* Share of values below each limit against the normal distribution. */
static void check_distribution(double scale) {
    for (double limit = -3.5; limit <= 3.5; limit += 0.25) {
        int below = 0;
        for (int i = 0; i < COUNT; i++) {
            below += (double)values[i] < limit * scale;
        }
        double p = 0.5 * erfc(-limit / sqrt(2)), sigma = sqrt(p * (1 - p) / COUNT);
        CHECK_MSG(fabs((double)below / COUNT - p) < 5 * sigma, "below %g: %g, expected %g", limit,
                  (double)below / COUNT, p);
    }
}

static void test_normal_moments(void) {
    static const double scales[] = {1, 0.02};
    for (int s = 0; s < 2; s++) {
        double moment[5] = {0}, cross = 0;
        moe_rng_normal((moe_rng){.seed = 2, .stream = MOE_RNG_TEST}, 9, (uint64_t)s, scales[s],
                       values, COUNT);
        for (int i = 0; i < COUNT; i++) {
            double z = (double)values[i] / scales[s];
            for (int m = 1; m < 5; m++) {
                moment[m] += pow(z, m) / COUNT;
            }
            cross += z * (double)values[i ^ 1] / scales[s] / COUNT;
        }
        CHECK_MSG(fabs(moment[1]) < 5 / sqrt(COUNT), "mean %g", moment[1]);
        CHECK_MSG(fabs(moment[2] - 1) < 5 * sqrt(2. / COUNT), "variance %g", moment[2]);
        CHECK_MSG(fabs(moment[3]) < 5 * sqrt(15. / COUNT), "third moment %g", moment[3]);
        CHECK_MSG(fabs(moment[4] - 3) < 5 * sqrt(96. / COUNT), "fourth moment %g", moment[4]);
        CHECK_MSG(fabs(cross) < 10 / sqrt(COUNT), "covariance inside pairs %g", cross);
        check_distribution(scales[s]);
    }
}

/* Elements 4c and 4c+1 are made of the two words that moe_rng_bits shows: compare with the C
 * library's functions. */
static void test_normal_formula(void) {
    moe_rng r = {.seed = 3, .stream = MOE_RNG_TEST};
    const double tolerance = sizeof(real) == 8 ? 1e-14 : 1e-6;
    moe_rng_normal(r, 1, 2, 1, values, 4096);
    for (uint32_t c = 0; c < 1024; c++) {
        uint64_t bits = moe_rng_bits(r, 1, 2, c);
        double radius = sqrt(-2 * log(((double)(uint32_t)bits + 0.5) * 0x1p-32)),
               angle = 2 * acos(-1) * ((double)(bits >> 32) * 0x1p-32);
        CHECK_MSG(fabs((double)values[4 * c] - radius * cos(angle)) <= tolerance * radius,
                  "block %u", c);
        CHECK_MSG(fabs((double)values[4 * c + 1] - radius * sin(angle)) <= tolerance * radius,
                  "block %u", c);
    }
}

/* A shorter vector is the front of a longer one; a vector does not depend on what was drawn before;
 * scale is a factor. */
static void test_normal_independence(void) {
    moe_rng r = {.seed = 4, .stream = MOE_RNG_TEST};
    real front[200], again[200];
    moe_rng_normal(r, 5, 6, 1, values, 1000);
    for (int64_t n = 0; n <= 200; n++) {
        front[n < 200 ? n : 0] = -77;
        moe_rng_normal(r, 5, 6, 1, front, n);
        CHECK_MSG(memcmp(front, values, (size_t)n * sizeof *front) == 0, "n = %lld", (long long)n);
        CHECK_MSG(n == 200 || n == 0 || (double)front[n] == -77, "n = %lld: written behind the end",
                  (long long)n);
    }
    moe_rng_normal(r, 5, 7, 1, again, 200);
    CHECK(memcmp(front, again, sizeof front) != 0);
    moe_rng_normal(r, 5, 6, 4, again, 200);
    for (int i = 0; i < 200; i++) {
        CHECK_EQ((double)again[i], 4 * (double)front[i]);
    }
}

/* The bits themselves: the same from any compiler, precision of build aside, and at any vector
 * width. */
static void test_normal_bits(void) {
    uint64_t hash = 0xcbf29ce484222325u;
    moe_rng_normal((moe_rng){.seed = 42, .stream = MOE_RNG_TEST}, 1, 1, 1, values, 100003);
    for (int i = 0; i < 100003; i++) {
        float rounded = (float)values[i];
        uint32_t bits;
        memcpy(&bits, &rounded, sizeof bits);
        hash = (hash ^ bits) * 0x100000001b3u;
    }
    CHECK_MSG(hash == 0xc27e18596734f4u, "hash 0x%llx", (unsigned long long)hash);
}

int main(void) {
    RUN(test_known_answers);
    RUN(test_distinct);
    RUN(test_uniform);
    RUN(test_normal_moments);
    RUN(test_normal_formula);
    RUN(test_normal_independence);
    RUN(test_normal_bits);
    return check_verdict();
}
