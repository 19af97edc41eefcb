/* placement.h: on which device each expert lives. Whoever wants to know asks here; nobody else
 * computes i / (N/D), so that another placement is one more function that fills a moe_placement. A
 * slot is a place for one expert's weights on a device; every device has the same number of slots.
 */
#ifndef MOESIM_PLACEMENT_PLACEMENT_H
#define MOESIM_PLACEMENT_PLACEMENT_H

#include <stdint.h>

typedef struct moe_placement {
    int32_t num_experts, devices;
    int32_t slots_per_device;
    int32_t *device;    /* [N] the device of expert i */
    int32_t *slot;      /* [N] slot of expert i on its device */
    int32_t *expert_at; /* [D * slots_per_device] expert in a slot */
} moe_placement;

/* Local. The placement by blocks: expert i lives on device i / (N/D). Asserts that D divides N. The
 * caller owns *p: moe_placement_free. */
void moe_placement_block(moe_placement *p, int32_t num_experts, int32_t devices);
void moe_placement_free(moe_placement *p);

#endif
