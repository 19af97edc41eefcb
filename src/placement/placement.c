/* placement.c: the placement by blocks: device d has the experts d*N/D .. (d+1)*N/D - 1. */
#include "placement/placement.h"

#include "base/alloc.h"
#include "base/status.h"

void moe_placement_block(moe_placement *p, int32_t num_experts, int32_t devices) {
    MOE_ASSERT(num_experts > 0 && devices > 0 && num_experts % devices == 0);
    *p = (moe_placement){
        .num_experts = num_experts, .devices = devices, .slots_per_device = num_experts / devices};
    p->device = moe_alloc(num_experts, sizeof *p->device, "placement");
    p->slot = moe_alloc(num_experts, sizeof *p->slot, "placement");
    p->expert_at = moe_alloc(num_experts, sizeof *p->expert_at, "placement");
    for (int32_t i = 0; i < num_experts; i++) {
        p->device[i] = i / p->slots_per_device;
        p->slot[i] = i % p->slots_per_device;
        p->expert_at[i] = i;
    }
}

void moe_placement_free(moe_placement *p) {
    moe_free(p->device);
    moe_free(p->slot);
    moe_free(p->expert_at);
    *p = (moe_placement){0};
}
