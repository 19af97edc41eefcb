/* replicas.c: see replicas.h. */
#include "model/replicas.h"

#include <string.h>

#include "base/vector.h"

void moe_replicas_plan(moe_replicas *r, const moe_context *context, const moe_layer *layer) {
    const moe_placement *p = layer->placement;
    const int32_t per_rank = context->batch->num_local_devices * p->slots_per_device;
    const int32_t most = moe_placement_slots(p) - p->num_experts;
    moe_slot_copies_begin(&r->gather, most);
    moe_slot_copies_begin(&r->spread, most);
    for (int32_t e = 0; e < p->num_experts; e++) {
        const int32_t first = p->slot_of[p->first[e]];
        for (int32_t i = p->first[e] + 1; i < p->first[e + 1]; i++) {
            moe_slot_copies_add(&r->gather, p->slot_of[i], first);
            moe_slot_copies_add(&r->spread, first, p->slot_of[i]);
        }
    }
    moe_slot_copies_end(&r->gather, context->comm, per_rank);
    moe_slot_copies_end(&r->spread, context->comm, per_rank);
}

MOE_CLONES static void add_to(real *restrict to, const real *restrict from, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        to[i] += from[i];
    }
}

static void sum_parameter(moe_replicas *r, const moe_comm *comm, const moe_parameter *p) {
    moe_slot_copies_run(&r->gather, comm, p->gradient, p->size);
    for (int64_t i = 0; i < r->gather.num_received; i++) {
        add_to(p->gradient + r->gather.received[i] * p->size, r->gather.arrived + i * p->size,
               p->size);
    }
    moe_slot_copies_run(&r->spread, comm, p->gradient, p->size);
    for (int64_t i = 0; i < r->spread.num_received; i++) {
        memcpy(p->gradient + r->spread.received[i] * p->size, r->spread.arrived + i * p->size,
               (size_t)p->size * sizeof *p->gradient);
    }
}

void moe_replicas_sum(moe_replicas *r,
                      const moe_context *context,
                      const moe_layer *layer,
                      const moe_layer_indices *indices,
                      moe_parameters *all,
                      int64_t *bytes) {
    int index[MOE_EXPERT_TENSORS], travels = 0;
    if (!layer->placement->replicated || r->gather.num == 0) {
        return;
    }
    for (int32_t i = 0; i < r->gather.num; i++) {
        travels += r->gather.list[i].from / layer->placement->slots_per_device !=
                   r->gather.list[i].to / layer->placement->slots_per_device;
    }
    moe_layer_expert_indices(indices, index);
    for (int i = 0; i < MOE_EXPERT_TENSORS; i++) {
        if (index[i] >= 0) {
            sum_parameter(r, context->comm, &all->p[index[i]]);
            *bytes += 2 * (int64_t)travels * all->p[index[i]].size * (int64_t)sizeof(real);
        }
    }
}

void moe_replicas_free(moe_replicas *r) {
    moe_slot_copies_free(&r->gather);
    moe_slot_copies_free(&r->spread);
}
