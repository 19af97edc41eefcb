/* routing.c: memory of a routing; it grows and is used again from step to step. */
#include "router/routing.h"

#include "base/status.h"

void moe_routing_reserve(moe_routing *r, int64_t num_tokens, int32_t k) {
    int64_t selections;
    MOE_ASSERT(num_tokens >= 0 && k >= 0 && !__builtin_mul_overflow(num_tokens, k, &selections));
    moe_reserve(&r->row_offset, &r->token_capacity, num_tokens + 1, sizeof *r->row_offset,
                "routing");
    if (selections > r->selection_capacity) {
        int64_t capacity = r->selection_capacity;
        moe_reserve(&r->expert, &capacity, selections, sizeof *r->expert, "routing");
        capacity = r->selection_capacity;
        moe_reserve(&r->score, &capacity, selections, sizeof *r->score, "routing");
        moe_reserve(&r->weight, &r->selection_capacity, selections, sizeof *r->weight, "routing");
    }
    r->num_tokens = num_tokens;
}

void moe_routing_free(moe_routing *r) {
    moe_free(r->row_offset);
    moe_free(r->expert);
    moe_free(r->weight);
    moe_free(r->score);
    moe_free(r->server);
    *r = (moe_routing){0};
}
