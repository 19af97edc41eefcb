/* placement.h: on which devices each expert lives, and which of its replicas serves a token.
 * Whoever wants to know asks here; nobody else computes i / (N/D), so that another placement is
 * another list of experts in slots. A slot is a place for one expert's weights on a device; every
 * device has the same number of slots, and an expert that stands in several has replicas.
 * docs/placement.md says which algorithms decide it, docs/method.md section 2.6 what it changes.
 *
 * The rule of who serves: a token takes the replica of its own device; if there is none, one of its
 * node; if there is none, any. Among several the token's number decides: token t takes number t mod
 * r of the r replicas, in the order of their slots. On its device an expert is served by the first
 * of its slots: a second one there is wasted.
 *
 * Where a balancer splits every batch, other numbers decide: of the replicas in the order own
 * device, own node, others, and by slot, the first one serves token t whose `until` is beyond t
 * (split.h). */
#ifndef MOESIM_PLACEMENT_PLACEMENT_H
#define MOESIM_PLACEMENT_PLACEMENT_H

#include <stdbool.h>
#include <stdint.h>

typedef struct moe_placement {
    int32_t num_experts, devices;
    int32_t slots_per_device;
    int32_t devices_per_node;
    bool replicated;    /* there are more slots than experts */
    int32_t *device;    /* [N] the device of the first slot of expert i */
    int32_t *slot;      /* [N] that slot on its device */
    int32_t *expert_at; /* [D * slots_per_device] expert in a slot */
    uint8_t *is_copy;   /* [D * slots_per_device] 1: not the first slot of its expert */
    int32_t *first;     /* [N + 1] the slots of expert i are slot_of[first[i]] .. */
    int32_t *slot_of;   /* [D * slots_per_device] slots by expert, then ascending */
    int64_t *until;     /* [D, D * slots_per_device] where batches are split: the first token of a
                           device that a slot does not serve any more; else NULL */
} moe_placement;

/* Local. The placement by blocks: expert i lives on device i / (N/D), and all devices are one node.
 * Asserts that D divides N. The caller owns *p: moe_placement_free. */
void moe_placement_block(moe_placement *p, int32_t num_experts, int32_t devices);

/* Local. Places whose slots are filled by moe_placement_fill later: slots_per_device on each of D
 * devices, in which experts stand in turn (slot p has expert p mod N) until then. Asserts that they
 * have room for all experts. The caller owns *p: moe_placement_free. */
void moe_placement_init(moe_placement *p,
                        int32_t num_experts,
                        int32_t devices,
                        int32_t slots_per_device,
                        int32_t devices_per_node);

/* Local. Puts the experts of expert_at [D * slots_per_device], every one of which is there, into
 * the slots. The arrays of *p stay where they are. */
void moe_placement_fill(moe_placement *p, const int32_t *expert_at);
/* Local. Deals the experts out to the devices in turn: slot j of device d has expert (j D + d) mod
 * N. */
void moe_placement_deal_out(moe_placement *p);
void moe_placement_free(moe_placement *p);

/* Local. The slots of all devices. */
static inline int32_t moe_placement_slots(const moe_placement *p) {
    return p->devices * p->slots_per_device;
}

/* Local. The first slot of an expert on a device; -1 where the device does not have it. */
int32_t moe_placement_find(const moe_placement *p, int32_t expert, int32_t device);

/* Local. The slot, of all devices' slots, that serves an expert's pairs on a device; -1 where the
 * device does not have the expert. */
static inline int32_t moe_placement_slot_on(const moe_placement *p,
                                            int32_t expert,
                                            int32_t device) {
    if (p->replicated) {
        return moe_placement_find(p, expert, device);
    }
    return p->device[expert] == device ? device * p->slots_per_device + p->slot[expert] : -1;
}

/* Local. The device whose replica serves `token` (its number in the batch), which is on device
 * `home`, by the rule above; for an expert with replicas. */
int32_t moe_placement_nearest(const moe_placement *p, int32_t expert, int64_t token, int32_t home);

/* Local. The same for any expert. */
static inline int32_t moe_placement_device(const moe_placement *p,
                                           int32_t expert,
                                           int64_t token,
                                           int32_t home) {
    return p->replicated ? moe_placement_nearest(p, expert, token, home) : p->device[expert];
}

/* Local. Slots that hold an expert which an earlier slot of their device holds already. */
int32_t moe_placement_wasted(const moe_placement *p);

#endif
