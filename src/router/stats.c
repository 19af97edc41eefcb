/* stats.c: memory of cells, and their sum. */
#include "router/stats.h"

#include <string.h>

#include "base/alloc.h"
#include "base/status.h"

void moe_stats_reserve_slots(moe_stats *s,
                             int32_t num_experts,
                             int32_t devices,
                             int32_t slots,
                             int64_t num_cells) {
    int64_t words = MOE_STAT_HEAD + MOE_STAT_PER_EXPERT * (int64_t)num_experts + devices + slots,
            total;
    MOE_ASSERT(num_experts > 0 && devices > 0 && num_cells >= 0 &&
               !__builtin_mul_overflow(words, num_cells, &total));
    if (s->borrowed) {
        *s = (moe_stats){0};
    }
    moe_reserve(&s->cell, &s->capacity, total, sizeof *s->cell, "statistics");
    s->num_experts = num_experts;
    s->devices = devices;
    s->slots = slots;
    s->words = words;
    s->num_cells = num_cells;
    if (total > 0) {
        memset(s->cell, 0, (size_t)total * sizeof *s->cell);
    }
}

void moe_stats_reserve(moe_stats *s, int32_t num_experts, int32_t devices, int64_t num_cells) {
    moe_stats_reserve_slots(s, num_experts, devices, 0, num_cells);
}

void moe_stats_borrow(moe_stats *s, const moe_stats *owner) {
    moe_stats_free(s);
    *s = *owner;
    s->borrowed = true;
}

void moe_stats_free(moe_stats *s) {
    if (!s->borrowed) {
        moe_free(s->cell);
    }
    *s = (moe_stats){0};
}

void moe_stats_add(const moe_stats *s, int64_t *to, const int64_t *from) {
    for (int64_t w = 0; w < s->words; w++) {
        to[w] += from[w];
    }
}
