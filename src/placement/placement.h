/* placement.h: where an expert lives. Layer 2 (decide): pure.
 * Nobody else computes i / (N/D). A slot is a place for one expert's weights on one device; every
 * device has the same number of slots. */
#ifndef MOESIM_PLACEMENT_PLACEMENT_H
#define MOESIM_PLACEMENT_PLACEMENT_H

#include <stdint.h>

typedef struct moe_placement {
    int32_t num_experts, devices;
    int32_t slots_per_device;
    int32_t *device;    /* [N] device of expert i */
    int32_t *slot;      /* [N] slot of expert i on its device */
    int32_t *expert_at; /* [D * slots_per_device] expert in a slot */
} moe_placement;

/* Local. Contiguous blocks of N/D experts: expert i on device i / (N/D). Asserts that D divides N.
 * Owner: the caller, moe_placement_free. */
void moe_placement_block(moe_placement *p, int32_t num_experts, int32_t devices);
void moe_placement_free(moe_placement *p);

#endif
