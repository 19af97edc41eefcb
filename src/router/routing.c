/* routing.c: memory of a routing, which grows and is used again from step to step. */
#include "router/routing.h"

#include <string.h>

#include "base/status.h"

void moe_routing_reserve(moe_routing *r, int64_t num_tokens, int32_t k) {
    int64_t selections;
    MOE_ASSERT(num_tokens >= 0 && k >= 0 && !__builtin_mul_overflow(num_tokens, k, &selections));
    moe_block_array table[] = {
        MOE_ARRAY(r->row_offset, num_tokens + 1),
        MOE_ARRAY(r->expert, selections),
        MOE_ARRAY(r->score, selections),
        MOE_ARRAY(r->weight, selections),
    };
    moe_block_reserve(&r->block, table, MOE_ARRAYS(table), "routing");
    r->num_tokens = num_tokens;
}

void moe_routing_close_gaps(moe_routing *r, int32_t stride) {
    int64_t total = 0;
    r->row_offset[0] = 0;
    for (int64_t t = 0; t < r->num_tokens; t++) {
        int64_t count = r->row_offset[t + 1], from = t * stride;
        if (from != total) {
            memmove(r->expert + total, r->expert + from, (size_t)count * sizeof *r->expert);
            memmove(r->weight + total, r->weight + from, (size_t)count * sizeof *r->weight);
            memmove(r->score + total, r->score + from, (size_t)count * sizeof *r->score);
        }
        total += count;
        r->row_offset[t + 1] = total;
    }
    r->num_selections = total;
}

void moe_routing_free(moe_routing *r) {
    moe_block_free(&r->block);
    moe_free(r->server);
    *r = (moe_routing){0};
}
