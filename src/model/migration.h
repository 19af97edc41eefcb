/* migration.h: experts move to other slots: their weights, and in training the state of the
 * optimiser, really travel by MPI. */
#ifndef MOESIM_MODEL_MIGRATION_H
#define MOESIM_MODEL_MIGRATION_H

#include "model/layer.h"
#include "model/slot_copies.h"

typedef struct moe_migration_figures {
    int64_t moved;                   /* slots that got another expert from another device */
    int64_t bytes, cross_node_bytes; /* payload between devices, and of that between nodes */
} moe_migration_figures;

/* Local. Rearranges the new experts of every device, expert_at [slots], so that those that the
 * device has already stay in their slots: nothing moves within a device. */
void moe_migration_align(const moe_placement *now, int32_t *expert_at);

/* Collective. Fills the slots of one layer anew: every slot whose expert changes gets it from the
 * first slot of the same node that had it, else from the first of all. expert_at [slots] is aligned
 * and the same on all ranks. indices, all: of training, or NULL. c is working memory. */
moe_migration_figures moe_migration_run(moe_slot_copies *c,
                                        const moe_context *context,
                                        const moe_layer *layer,
                                        moe_placement *placement,
                                        const int32_t *expert_at,
                                        const moe_layer_indices *indices,
                                        moe_parameters *all);

/* Collective. Runs the copies for each tensor of the layer's experts, and for its two moments where
 * `all` and indices are those of training (else NULL). Returns the bytes of one expert. */
int64_t moe_migration_blocks(moe_slot_copies *c,
                             const moe_comm *comm,
                             const moe_layer *layer,
                             const moe_layer_indices *indices,
                             moe_parameters *all);

#endif
