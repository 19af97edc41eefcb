/* placement.c: experts in slots, the way back from an expert to its slots, and who serves a token.
 */
#include "placement/placement.h"

#include <string.h>

#include "base/alloc.h"
#include "base/status.h"

/* --- made and freed --- */

void moe_placement_init(moe_placement *p,
                        int32_t num_experts,
                        int32_t devices,
                        int32_t slots_per_device,
                        int32_t devices_per_node) {
    const int32_t slots = devices * slots_per_device;
    MOE_ASSERT(num_experts > 0 && devices > 0 && devices_per_node > 0 && slots >= num_experts);
    *p = (moe_placement){.num_experts = num_experts,
                         .devices = devices,
                         .slots_per_device = slots_per_device,
                         .devices_per_node = devices_per_node,
                         .replicated = slots > num_experts};
    p->device = moe_alloc(num_experts, sizeof *p->device, "placement");
    p->slot = moe_alloc(num_experts, sizeof *p->slot, "placement");
    p->first = moe_alloc(num_experts + 1, sizeof *p->first, "placement");
    p->expert_at = moe_alloc(slots, sizeof *p->expert_at, "placement");
    p->is_copy = moe_alloc(slots, sizeof *p->is_copy, "placement");
    p->slot_of = moe_alloc(slots, sizeof *p->slot_of, "placement");
    int32_t *blocks = moe_alloc(slots, sizeof *blocks, "placement");
    for (int32_t s = 0; s < slots; s++) {
        blocks[s] = s % num_experts;
    }
    moe_placement_fill(p, blocks);
    moe_free(blocks);
}

void moe_placement_block(moe_placement *p, int32_t num_experts, int32_t devices) {
    MOE_ASSERT(devices > 0 && num_experts % devices == 0);
    moe_placement_init(p, num_experts, devices, num_experts / devices, devices);
}

/* A counting sort of the slots by their experts. */
void moe_placement_fill(moe_placement *p, const int32_t *expert_at) {
    const int32_t n = p->num_experts, slots = moe_placement_slots(p);
    memset(p->first, 0, (size_t)(n + 1) * sizeof *p->first);
    for (int32_t s = 0; s < slots; s++) {
        MOE_ASSERT(expert_at[s] >= 0 && expert_at[s] < n);
        p->expert_at[s] = expert_at[s];
        p->first[expert_at[s] + 1]++;
    }
    for (int32_t e = 0; e < n; e++) {
        MOE_ASSERT(p->first[e + 1] > 0);
        p->first[e + 1] += p->first[e];
        p->slot[e] = p->first[e]; /* where the next slot of e goes, for the moment */
    }
    for (int32_t s = 0; s < slots; s++) {
        p->is_copy[s] = p->slot[p->expert_at[s]] > p->first[p->expert_at[s]];
        p->slot_of[p->slot[p->expert_at[s]]++] = s;
    }
    for (int32_t e = 0; e < n; e++) {
        p->device[e] = p->slot_of[p->first[e]] / p->slots_per_device;
        p->slot[e] = p->slot_of[p->first[e]] % p->slots_per_device;
    }
}

void moe_placement_deal_out(moe_placement *p) {
    const int32_t slots = moe_placement_slots(p), each = p->slots_per_device;
    int32_t *expert_at = moe_alloc(slots, sizeof *expert_at, "placement");
    for (int32_t s = 0; s < slots; s++) {
        expert_at[s] = (s % each * p->devices + s / each) % p->num_experts;
    }
    moe_placement_fill(p, expert_at);
    moe_free(expert_at);
}

void moe_placement_free(moe_placement *p) {
    moe_free(p->device);
    moe_free(p->slot);
    moe_free(p->expert_at);
    moe_free(p->first);
    moe_free(p->is_copy);
    moe_free(p->slot_of);
    moe_free(p->until);
    *p = (moe_placement){0};
}

/* --- who serves --- */

int32_t moe_placement_find(const moe_placement *p, int32_t expert, int32_t device) {
    for (int32_t i = p->first[expert]; i < p->first[expert + 1]; i++) {
        if (p->slot_of[i] / p->slots_per_device == device) {
            return p->slot_of[i];
        }
    }
    return -1;
}

/* How near the device of a slot is to a token's: 0 it is the same, 1 of the same node, 2 another.
 */
static int distance(const moe_placement *p, int32_t slot, int32_t home) {
    const int32_t device = slot / p->slots_per_device;
    return device == home ? 0 : device / p->devices_per_node == home / p->devices_per_node ? 1 : 2;
}

/* The device of the first replica whose run does not end before the token. */
static int32_t of_run(const moe_placement *p, int32_t expert, int64_t token, int32_t home) {
    const int64_t *until = p->until + (int64_t)home * moe_placement_slots(p);
    for (int near = 0; near < 3; near++) {
        for (int32_t i = p->first[expert]; i < p->first[expert + 1]; i++) {
            const int32_t slot = p->slot_of[i];
            if (token < until[slot] && distance(p, slot, home) == near) {
                return slot / p->slots_per_device;
            }
        }
    }
    MOE_ASSERT(false);
    return -1;
}

int32_t moe_placement_nearest(const moe_placement *p, int32_t expert, int64_t token, int32_t home) {
    if (p->until) {
        return of_run(p, expert, token, home);
    }
    int32_t count[3] = {0};
    for (int32_t i = p->first[expert]; i < p->first[expert + 1]; i++) {
        count[distance(p, p->slot_of[i], home)]++;
    }
    const int near = count[0] > 0 ? 0 : count[1] > 0 ? 1 : 2;
    int32_t skip = (int32_t)(token % count[near]), i = p->first[expert];
    while (distance(p, p->slot_of[i], home) != near || skip-- > 0) {
        i++;
    }
    return p->slot_of[i] / p->slots_per_device;
}

int32_t moe_placement_wasted(const moe_placement *p) {
    int32_t wasted = 0;
    for (int32_t s = 0; s < moe_placement_slots(p); s++) {
        wasted += moe_placement_slot_on(p, p->expert_at[s], s / p->slots_per_device) != s;
    }
    return wasted;
}
