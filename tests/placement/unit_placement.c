/* unit_placement.c: the placement by blocks, and memory of routing and statistics that is used
 * again. */
#include <stdint.h>

#include "check.h"
#include "placement/placement.h"
#include "router/routing.h"
#include "router/stats.h"

static void test_block(int32_t num_experts, int32_t devices) {
    moe_placement p;
    moe_placement_block(&p, num_experts, devices);
    CHECK(p.num_experts == num_experts && p.devices == devices &&
          p.slots_per_device * devices == num_experts);
    for (int32_t i = 0; i < num_experts; i++) {
        CHECK_MSG(p.device[i] == i / (num_experts / devices), "expert %d of %d on %d devices", i,
                  num_experts, devices);
        CHECK(p.slot[i] >= 0 && p.slot[i] < p.slots_per_device);
        CHECK_EQ(p.expert_at[p.device[i] * p.slots_per_device + p.slot[i]], i);
    }
    moe_placement_free(&p);
    CHECK(p.device == NULL && p.num_experts == 0);
}

static void test_routing(void) {
    moe_routing r = {0};
    moe_routing_reserve(&r, 10, 3);
    const char *before = r.block.memory;
    CHECK_EQ(r.num_tokens, 10);
    r.row_offset[10] = 30;
    r.expert[29] = 5;
    r.weight[29] = 1;
    moe_routing_reserve(&r, 4, 2);
    CHECK(r.num_tokens == 4 && r.block.memory == before);
    moe_routing_reserve(&r, 0, 0);
    CHECK_EQ(r.num_tokens, 0);
    moe_routing_reserve(&r, 100, 8);
    r.expert[799] = 1;
    r.weight[799] = 1;
    r.row_offset[100] = 800;
    CHECK(r.block.memory != before);
    moe_routing_free(&r);
    CHECK_EQ(moe_alloc_live_bytes(), 0);
}

static void test_stats(void) {
    moe_stats s = {0};
    moe_stats_reserve(&s, 5, 3, 4);
    CHECK(s.words == MOE_STAT_HEAD + MOE_STAT_PER_EXPERT * 5 + 3 && s.num_cells == 4);
    for (int64_t i = 0; i < 4 * s.words; i++) {
        CHECK_EQ(s.cell[i], 0);
    }
    int64_t *cell = moe_stats_cell(&s, 1), *other = moe_stats_cell(&s, 2);
    CHECK(moe_stats_counts(&s, cell) + 5 == moe_stats_device_tokens(&s, cell) &&
          moe_stats_device_tokens(&s, cell) + 3 == moe_stats_score_hi(&s, cell));
    CHECK(moe_stats_score_hi(&s, cell) + 5 == moe_stats_score_lo(&s, cell) &&
          moe_stats_load_lo(&s, cell) + 5 == other);
    for (int64_t w = 0; w < s.words; w++) {
        cell[w] = w;
        other[w] = 100 * w;
    }
    moe_stats_add(&s, cell, other);
    for (int64_t w = 0; w < s.words; w++) {
        CHECK(cell[w] == 101 * w && other[w] == 100 * w);
    }
    moe_stats_reserve(&s, 5, 3, 2);
    for (int64_t i = 0; i < 2 * s.words; i++) {
        CHECK_EQ(s.cell[i], 0);
    }
    moe_stats_free(&s);
    CHECK_EQ(moe_alloc_live_bytes(), 0);
}

static void test_tensor(void) {
    int64_t peak = moe_alloc_peak_bytes(), capacity = 0;
    char *a = moe_alloc(1000000, 1, "test"), *b = moe_alloc_zero(1000, 8, "test");
    double *grown = NULL;
    CHECK(((uintptr_t)a & 63) == 0 && ((uintptr_t)b & 63) == 0);
    for (int i = 0; i < 8000; i++) {
        CHECK_EQ(b[i], 0);
    }
    CHECK(moe_alloc_live_bytes() == 1008000 && moe_alloc_peak_bytes() >= 1008000 &&
          moe_alloc_peak_bytes() >= peak);
    moe_free(a);
    CHECK(moe_alloc_live_bytes() == 8000 && moe_alloc_peak_bytes() >= 1008000);
    moe_free(b);
    CHECK(moe_alloc(0, 8, "test") == NULL);
    moe_free(NULL);
    moe_reserve(&grown, &capacity, 100, sizeof *grown, "test");
    CHECK(capacity == 100 && grown);
    moe_reserve(&grown, &capacity, 101, sizeof *grown, "test");
    CHECK_EQ(capacity, 125);
    moe_reserve(&grown, &capacity, 50, sizeof *grown, "test");
    CHECK(capacity == 125 && moe_alloc_live_bytes() == 1000);
    moe_free(grown);
    CHECK_EQ(moe_alloc_live_bytes(), 0);
}

int main(void) {
    static const int32_t cases[][2] = {{1, 1},    {8, 1},  {8, 8}, {160, 8},
                                       {256, 64}, {60, 4}, {6, 3}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        RUN(test_block, cases[i][0], cases[i][1]);
    }
    RUN(test_routing);
    RUN(test_stats);
    RUN(test_tensor);
    return check_verdict();
}
