/* migration.c: see migration.h. */
#include "model/migration.h"

#include <string.h>

/* --- fewest moves --- */

void moe_migration_align(const moe_placement *now, int32_t *expert_at) {
    const int32_t each = now->slots_per_device;
    for (int32_t first = 0; first < moe_placement_slots(now); first += each) {
        for (int32_t s = first; s < first + each; s++) {
            for (int32_t from = first; from < first + each && expert_at[s] != now->expert_at[s];
                 from++) {
                if (expert_at[from] == now->expert_at[s] &&
                    expert_at[from] != now->expert_at[from]) {
                    expert_at[from] = expert_at[s];
                    expert_at[s] = now->expert_at[s];
                }
            }
        }
    }
}

/* --- moving --- */

/* The slot that slot `to` gets its new expert from. */
static int32_t source_of(const moe_placement *p, int32_t expert, int32_t to) {
    const int32_t per_node = p->slots_per_device * p->devices_per_node;
    const int32_t here = moe_placement_find(p, expert, to / p->slots_per_device);
    if (here >= 0) {
        return here;
    }
    for (int32_t i = p->first[expert]; i < p->first[expert + 1]; i++) {
        if (p->slot_of[i] / per_node == to / per_node) {
            return p->slot_of[i];
        }
    }
    return p->slot_of[p->first[expert]];
}

static void move_blocks(moe_slot_copies *c, const moe_comm *comm, real *values, int64_t size) {
    if (!values) {
        return;
    }
    moe_slot_copies_run(c, comm, values, size);
    for (int64_t i = 0; i < c->num_received; i++) {
        memcpy(values + c->received[i] * size, c->arrived + i * size,
               (size_t)size * sizeof *values);
    }
}

/* One tensor of all experts, and in training its two moments. Returns the bytes of a block. */
static int64_t move_tensor(moe_slot_copies *c,
                           const moe_comm *comm,
                           real *values,
                           int64_t size,
                           const moe_parameter *p) {
    move_blocks(c, comm, values, size);
    if (p) {
        move_blocks(c, comm, p->m, size);
        move_blocks(c, comm, p->v, size);
    }
    return values ? size * (int64_t)sizeof *values * (p && p->m ? 3 : 1) : 0;
}

/* The tensors of the experts in the order of moe_layer_expert_indices; those of LoRA's frozen base
 * stay, as every rank has it. */
int64_t moe_migration_blocks(moe_slot_copies *c,
                             const moe_comm *comm,
                             const moe_layer *layer,
                             const moe_layer_indices *indices,
                             moe_parameters *all) {
    const moe_ffn *f = &layer->experts;
    const int64_t h = f->hidden, w = f->width, r = f->rank;
    const bool base = r > 0;
    real *const value[MOE_EXPERT_TENSORS] = {base ? NULL : f->w1,
                                             base ? NULL : f->w2,
                                             base ? NULL : f->w3,
                                             f->a1,
                                             f->a2,
                                             f->a3,
                                             f->b1,
                                             f->b2,
                                             f->b3};
    const int64_t size[MOE_EXPERT_TENSORS] = {w * h, h * w, w * h, r * h, r * w,
                                              r * h, w * r, h * r, w * r};
    int index[MOE_EXPERT_TENSORS];
    int64_t bytes = 0;
    memset(index, 0xff, sizeof index); /* -1 */
    if (indices) {
        moe_layer_expert_indices(indices, index);
    }
    for (int i = 0; i < MOE_EXPERT_TENSORS; i++) {
        bytes += move_tensor(c, comm, value[i], size[i], index[i] < 0 ? NULL : &all->p[index[i]]);
    }
    return bytes;
}

moe_migration_figures moe_migration_run(moe_slot_copies *c,
                                        const moe_context *context,
                                        const moe_layer *layer,
                                        moe_placement *p,
                                        const int32_t *expert_at,
                                        const moe_layer_indices *indices,
                                        moe_parameters *all) {
    const int32_t slots = moe_placement_slots(p), each = p->slots_per_device;
    moe_migration_figures f = {0};
    int64_t across = 0;
    moe_slot_copies_begin(c, slots);
    for (int32_t s = 0; s < slots; s++) {
        if (expert_at[s] == p->expert_at[s]) {
            continue;
        }
        const int32_t from = source_of(p, expert_at[s], s);
        moe_slot_copies_add(c, from, s);
        f.moved += from / each != s / each;
        across += from / each / p->devices_per_node != s / each / p->devices_per_node;
    }
    if (c->num == 0) {
        return f;
    }
    moe_slot_copies_end(c, context->comm, context->batch->num_local_devices * each);
    const int64_t bytes = moe_migration_blocks(c, context->comm, layer, indices, all);
    f.bytes = f.moved * bytes;
    f.cross_node_bytes = across * bytes;
    moe_placement_fill(p, expert_at);
    return f;
}
