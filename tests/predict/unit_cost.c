/* unit_cost.c: ctest: f64
 * The formulas of one phase against figures worked out by hand, and what holds whatever the
 * figures: more never takes less, and the units of time and bytes do not matter. */
#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "check.h"
#include "exchange/row_format.h"
#include "predict/cost.h"

static const moe_cluster plain = {.devices = 32,
                                  .devices_per_node = 8,
                                  .intra_rate = 100e9,
                                  .inter_rate = 50e9,
                                  .intra_latency = 1e-6,
                                  .inter_latency = 3e-6,
                                  .exchange_seconds = 10e-6,
                                  .flop_rate = 1e12,
                                  .half_rows = 100,
                                  .memory_rate = 1e12,
                                  .launch_seconds = 1e-3};

/* The table of docs/method.md section 8: hidden 7168, K 8. */
static void test_row_bytes(void) {
    static const int64_t bytes[][2] = {{7392, 14336}, {7408, 14336}, {7472, 14384}, {7488, 14368}};
    for (int protocol = 0; protocol < 4; protocol++) {
        CHECK_EQ(moe_row_format_wire_bytes((enum moe_row_protocol)protocol, MOE_PAYLOAD_FP8, 7168,
                                           8, false),
                 bytes[protocol][0]);
        CHECK_EQ(moe_row_format_wire_bytes((enum moe_row_protocol)protocol, MOE_PAYLOAD_BF16, 7168,
                                           8, true),
                 bytes[protocol][1]);
    }
    CHECK_EQ(moe_row_format_wire_bytes(MOE_ROW_BARE, MOE_PAYLOAD_FP32, 100, 8, false),
             100 * (int64_t)sizeof(real));
    CHECK_EQ(moe_row_format_wire_bytes(MOE_ROW_BARE, MOE_PAYLOAD_FP8, 129, 8, false), 129 + 8);
}

static void test_by_hand(void) {
    const moe_cost_traffic t = {100, 200, 400, 300};
    /* 3 doublings inside a node; across 4 nodes once and 2 doublings */
    CHECK_NEAR(moe_cost_latency(&plain), 3e-6 + 9e-6, 1e-12);
    /* inside: 200 rows of 1 MB at 100 GB/s; across: 400 at 50 */
    CHECK_NEAR(moe_cost_exchange(&plain, &t, 1e6, 1), 22e-6 + 8e-3, 1e-12);
    CHECK_NEAR(moe_cost_exchange(&plain, &t, 1e6, 3), 66e-6 + 8e-3, 1e-12);
    CHECK_NEAR(moe_cost_allreduce(&plain, 1e6), 10e-6 + 24e-6 + 2 * 31.0 / 32 * 1e6 / 50e9, 1e-12);
    CHECK(moe_cost_allreduce(&plain, 0) == 0);
    /* as many rows as half_rows run at half the rate */
    CHECK_NEAR(moe_cost_product(&plain, 100, 1e6, 1), 2 * (2 * 1e6 * 100 / 1e12), 1e-12);
    /* few rows wait for the weights: 2 * 1e6 * 101 / 1e12 < 1e6 * 1000 / 1e12 */
    CHECK_NEAR(moe_cost_product(&plain, 1, 1e6, 1000), 1e-3, 1e-12);
    CHECK(moe_cost_product(&plain, 0, 1e6, 1) == 0);
    const moe_cost_expert e = {10, 4, 3, 1, 2};
    CHECK_NEAR(moe_cost_expert_pass(&e, 5, 7), 5 * 10 * 3 + 7 * (10 * 5 + 4 * 4 * 2 + 4), 1e-12);
    CHECK_NEAR(moe_cost_experts(&plain, 2e-3, 0), cbrt(9) * 1e-3, 1e-12);
}

/* One device has nobody to wait for. */
static void test_alone(void) {
    moe_cluster k = plain;
    const moe_cost_traffic none = {0};
    k.devices = 1;
    CHECK(moe_cost_exchange(&k, &none, 1e6, 1) == 0 && moe_cost_allreduce(&k, 1e6) == 0);
    CHECK(moe_cost_latency(&k) == 0);
    k.devices = 4; /* part of one node */
    CHECK_NEAR(moe_cost_latency(&k), 2e-6, 1e-12);
}

static double draw(int seed, int i) {
    return exp(10 * moe_rng_uniform((moe_rng){(uint64_t)seed, MOE_RNG_TEST}, (uint64_t)i, 0, 0) -
               5);
}

static moe_cluster random_cluster(int seed) {
    return (moe_cluster){.devices = 1 + (int32_t)draw(seed, 0),
                         .devices_per_node = 1 + (int32_t)draw(seed, 1),
                         .intra_rate = draw(seed, 2),
                         .inter_rate = draw(seed, 3),
                         .intra_latency = draw(seed, 4),
                         .inter_latency = draw(seed, 5),
                         .exchange_seconds = draw(seed, 6),
                         .flop_rate = draw(seed, 7),
                         .half_rows = draw(seed, 8),
                         .memory_rate = draw(seed, 9),
                         .launch_seconds = draw(seed, 10)};
}

/* All times of a cluster: an exchange, an allreduce, a product, the experts. x has 8 numbers. */
static void all_times(const moe_cluster *k, const double x[8], double bytes, double t[4]) {
    const moe_cost_traffic rows = {x[0], x[1], x[2], x[3]};
    t[0] = moe_cost_exchange(k, &rows, bytes * x[4], 2);
    t[1] = moe_cost_allreduce(k, bytes * x[5]);
    t[2] = moe_cost_product(k, x[6], x[7], bytes);
    t[3] = moe_cost_experts(k, t[2], bytes * x[5]);
}

static void test_properties(void) {
    for (int seed = 0; seed < 300; seed++) {
        const moe_cluster k = random_cluster(seed);
        moe_cluster units = k;
        double x[8], t[4], other[4];
        for (int i = 0; i < 8; i++) {
            x[i] = draw(seed, 20 + i);
        }
        all_times(&k, x, 1, t);
        for (int i = 0; i < 8; i++) { /* more of anything is never faster */
            const double was = x[i];
            x[i] *= 1.7;
            all_times(&k, x, 1, other);
            x[i] = was;
            for (int j = 0; j < 4; j++) {
                CHECK_MSG(other[j] >= t[j], "seed %d: time %d with more of %d", seed, j, i);
            }
        }
        units.intra_rate *= 1024; /* bytes in other units */
        units.inter_rate *= 1024;
        units.memory_rate *= 1024;
        all_times(&units, x, 1024, other);
        for (int j = 0; j < 4; j++) {
            CHECK_NEAR(other[j], t[j], 1e-12);
        }
        units = k; /* milliseconds for seconds */
        units.intra_rate /= 1000;
        units.inter_rate /= 1000;
        units.memory_rate /= 1000;
        units.flop_rate /= 1000;
        units.intra_latency *= 1000;
        units.inter_latency *= 1000;
        units.exchange_seconds *= 1000;
        units.launch_seconds *= 1000;
        all_times(&units, x, 1, other);
        for (int j = 0; j < 4; j++) {
            CHECK_NEAR(other[j], 1000 * t[j], 1e-12);
        }
    }
}

int main(void) {
    RUN(test_row_bytes, );
    RUN(test_by_hand, );
    RUN(test_alone, );
    RUN(test_properties, );
    return check_verdict();
}
