/* unit_imbalance.c: the metrics of balance against a naive computation from each metric's textbook
 * definition, and against values known by hand. */
#include <string.h>

#include "check.h"
#include "measure/imbalance.h"

/* Gini by its definition: mean absolute difference of all pairs / (2 mean). */
static double naive_gini(const int64_t *x, int n, double mean) {
    double sum = 0;
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < n; j++) {
            sum += fabs((double)x[i] - (double)x[j]);
        }
    }
    return sum / n / n / (2 * mean);
}

/* The smallest value v such that interpolation between ranks puts q (n - 1) entries below it; ranks
 * by counting, without a sort. */
static double naive_rank(const int64_t *x, int n, int rank) {
    for (int i = 0; i < n; i++) {
        int below = 0, same = 0;
        for (int j = 0; j < n; j++) {
            below += x[j] < x[i];
            same += x[j] == x[i];
        }
        if (rank >= below && rank < below + same) {
            return (double)x[i];
        }
    }
    return NAN;
}

static double naive_percentile(const int64_t *x, int n, double q) {
    double place = q * (n - 1);
    double low = naive_rank(x, n, (int)floor(place));
    double high = naive_rank(x, n, (int)ceil(place));
    return low * (1 - (place - floor(place))) + high * (place - floor(place));
}

static void check_random(uint64_t seed, int n) {
    int64_t x[200];
    double sum = 0;
    double squares = 0;
    double largest = 0;
    double entropy = 0;
    int idle = 0;
    for (int i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        x[i] = (seed >> 60) < 4 ? 0 : (int64_t)(seed >> 50);
        sum += (double)x[i];
        squares += (double)x[i] * (double)x[i];
        largest = fmax(largest, (double)x[i]);
        idle += x[i] == 0;
    }
    if (sum == 0) {
        return;
    }
    for (int i = 0; i < n; i++) {
        if (x[i]) {
            entropy += (double)x[i] / sum * log(sum / (double)x[i]);
        }
    }
    double mean = sum / n;
    moe_imbalance m = moe_imbalance_of(x, n);
    CHECK_NEAR(m.max_over_mean, largest * n / sum, 1e-14);
    CHECK(fabs(m.maxvio - (largest * n / sum - 1)) < 1e-13);
    CHECK_NEAR(m.balancedness, sum / n / largest, 1e-14);
    CHECK(fabs(m.cv - sqrt(fmax(squares / n - mean * mean, 0)) / mean) < 1e-7);
    CHECK(fabs(m.gini - naive_gini(x, n, mean)) < 1e-12);
    CHECK(fabs(m.entropy - entropy) < 1e-12);
    CHECK(m.idle == idle);
    CHECK_NEAR(moe_imbalance_max_over_mean(x, n), m.max_over_mean, 1e-14);
    CHECK(fabs(m.p50 - naive_percentile(x, n, 0.50)) < 1e-9 * (1 + m.p50));
    CHECK(fabs(m.p90 - naive_percentile(x, n, 0.90)) < 1e-9 * (1 + m.p90));
    CHECK(fabs(m.p99 - naive_percentile(x, n, 0.99)) < 1e-9 * (1 + m.p99));
}

static void check_known(void) {
    const int64_t even[4] = {5, 5, 5, 5};
    const int64_t one[4] = {0, 8, 0, 0};
    const int64_t ramp[5] = {4, 2, 5, 1, 3};
    const int64_t zero[3] = {0, 0, 0};
    const int64_t single[1] = {7};
    moe_imbalance m = moe_imbalance_of(even, 4);
    CHECK(m.max_over_mean == 1 && m.maxvio == 0 && m.balancedness == 1 && m.cv == 0 &&
          m.gini == 0 && m.idle == 0);
    CHECK_NEAR(m.entropy, log(4), 1e-15);
    m = moe_imbalance_of(one, 4);
    CHECK(m.max_over_mean == 4 && m.maxvio == 3 && m.balancedness == 0.25 && m.idle == 3 &&
          m.entropy == 0);
    CHECK_NEAR(m.gini, 0.75, 1e-15);
    CHECK_NEAR(m.cv, sqrt(3), 1e-15);
    m = moe_imbalance_of(ramp, 5);
    CHECK_EQ(m.p50, 3);
    CHECK_NEAR(m.p90, 4.6, 1e-15);
    CHECK_NEAR(m.p99, 4.96, 1e-15);
    CHECK_NEAR(m.gini, 4.0 / 15, 1e-15);
    CHECK_NEAR(m.cv, sqrt(2) / 3, 1e-15);
    CHECK(ramp[0] == 4 && ramp[4] == 3);
    m = moe_imbalance_of(zero, 3);
    CHECK(m.max_over_mean == 1 && m.maxvio == 0 && m.balancedness == 1 && m.cv == 0 &&
          m.gini == 0 && m.entropy == 0 && m.idle == 3 && m.p99 == 0);
    m = moe_imbalance_of(single, 1);
    CHECK(m.max_over_mean == 1 && m.gini == 0 && m.p50 == 7 && m.p99 == 7 && m.entropy == 0);
    int rows = 0;
    for (const moe_imbalance_formula *f = moe_imbalance_formulas; f->name; f++) {
        rows += f->formula != NULL && strlen(f->formula) > 0;
    }
    CHECK(rows >= 8);
    CHECK(moe_imbalance_max_over_mean(zero, 3) == 1);
    moe_imbalance sum = {.idle = 1};
    m = moe_imbalance_of(one, 4);
    moe_imbalance_add(&sum, &m, 0.5);
    CHECK(sum.max_over_mean == 2 && sum.balancedness == 0.125 && sum.idle == 2.5 && sum.p50 == 0);
}

/* Counts every set of k of n experts. */
static double enumerated_reach(int n, int groups, int k, int limit) {
    double sum = 0, sets = 0;
    for (unsigned set = 0; set < 1u << n; set++) {
        if (__builtin_popcount(set) != k) {
            continue;
        }
        int reach = 0;
        for (int g = 0; g < groups; g++) {
            reach += (set >> (g * (n / groups)) & ((1u << (n / groups)) - 1)) != 0;
        }
        sum += reach < limit ? reach : limit;
        sets++;
    }
    return sum / sets;
}

static void check_reach(void) {
    CHECK(fabs(moe_imbalance_expected_reach(160, 8, 6, 8) - 4.458600) < 5e-7);
    CHECK(fabs(moe_imbalance_expected_reach(160, 8, 6, 3) - 2.995002) < 5e-7);
    for (int groups = 1; groups <= 12; groups++) {
        for (int k = 1; k <= 12 && 12 % groups == 0; k++) {
            for (int limit = 1; limit <= groups; limit++) {
                CHECK_NEAR(moe_imbalance_expected_reach(12, groups, k, limit),
                           enumerated_reach(12, groups, k, limit), 1e-13);
            }
        }
    }
    CHECK_NEAR(moe_imbalance_expected_reach(4096, 4096, 64, 4096), 64, 1e-13);
}

int main(void) {
    RUN(check_known);
    for (uint64_t seed = 1; seed <= 300; seed++) {
        RUN(check_random, seed, 1 + (int)(seed * 7919 % 200));
    }
    RUN(check_reach);
    return check_verdict();
}
