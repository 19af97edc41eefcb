/* unit_bias.c: the balancing bias against its definition, and what must stay exactly as it was. */
#include <math.h>

#include "balance/bias.h"
#include "base/rng.h"
#include "check.h"

enum { MOST = 64 };

/* An expert with exactly the mean must keep its bias. Summing c_i / N in floating point gives
 * 7.9999999999999991 for these six loads, whose mean is 8. */
static void test_exact_mean(void) {
    static const int64_t counts[6] = {8, 11, 5, 8, 7, 9};
    double bias[6] = {0.5, 0, 0, -0.25, 0, 0};
    moe_router_config c = {.bias_update = MOE_BIAS_SIGN, .bias_update_rate = 0.01};
    moe_bias_update(&c, 6, counts, bias);
    CHECK_EQ(bias[0], 0.5);
    CHECK_EQ(bias[1], -0.01);
    CHECK_EQ(bias[2], 0.01);
    CHECK_EQ(bias[3], -0.25);
    CHECK_EQ(bias[4], 0.01);
    CHECK_EQ(bias[5], -0.01);
}

/* Even loads move nothing, in either form, however the mean rounds. */
static void test_even(void) {
    for (int32_t n = 1; n <= MOST; n++) {
        int64_t counts[MOST];
        double bias[MOST] = {0};
        for (int32_t e = 0; e < n; e++) {
            counts[e] = 1000003;
        }
        for (int form = 0; form < 4; form++) {
            moe_router_config c = {.bias_update = form % 2 ? MOE_BIAS_SIGN : MOE_BIAS_PROPORTIONAL,
                                   .bias_update_rate = 0.1,
                                   .bias_centered = form / 2};
            moe_bias_update(&c, n, counts, bias);
        }
        for (int32_t e = 0; e < n; e++) {
            CHECK_EQ(bias[e], 0);
        }
    }
}

/* Against the definition, in the form that a reader would write. */
static void test_definition(uint64_t seed) {
    int32_t n = 2 + (int32_t)(moe_rng_bits((moe_rng){seed, MOE_RNG_TEST}, 0, 0, 0) % (MOST - 1));
    int64_t counts[MOST], sum = 0;
    double bias[MOST] = {0}, expected[MOST] = {0}, mean_change = 0;
    moe_router_config c = {.bias_update = seed % 2 ? MOE_BIAS_SIGN : MOE_BIAS_PROPORTIONAL,
                           .bias_update_rate = 0.125,
                           .bias_centered = seed % 4 > 1};
    for (int32_t e = 0; e < n; e++) {
        counts[e] = (int64_t)(moe_rng_bits((moe_rng){seed, MOE_RNG_TEST}, 1, (uint64_t)e, 0) % 100);
        sum += counts[e];
    }
    for (int32_t e = 0; e < n; e++) {
        long double gap = (long double)sum / n - (long double)counts[e];
        expected[e] = 0.125 * (seed % 2 ? (double)((gap > 0) - (gap < 0)) : (double)gap);
        mean_change += expected[e] / n;
    }
    moe_bias_update(&c, n, counts, bias);
    for (int32_t e = 0; e < n; e++) {
        double wanted = expected[e] - (c.bias_centered ? mean_change : 0);
        CHECK_MSG(fabs(bias[e] - wanted) <= 1e-12 * (1 + fabs(wanted)),
                  "seed %llu: expert %d moves by %g, not %g", (unsigned long long)seed, e, bias[e],
                  wanted);
    }
}

int main(void) {
    RUN(test_exact_mean);
    RUN(test_even);
    for (uint64_t seed = 0; seed < 200; seed++) {
        RUN(test_definition, seed);
    }
    return check_verdict();
}
