/* placement_file.c: placement.file, where the experts of every layer live. */
#include <string.h>

#include "base/alloc.h"
#include "base/status.h"
#include "data/input.h"

static int refuse(const moe_config *c, moe_status *st, const char *what) {
    return moe_fail(st, MOE_USER, "placement.file: '%.200s' %s", c->placement.file, what);
}

/* Whether the file has the shape [layers,slots] or [slots]. */
static int check_shape(const moe_config *c, const moe_npy_header *h, moe_status *st) {
    const int64_t slots = (int64_t)moe_config_slots_per_device(c) * c->cluster.devices;
    char why[256];
    if (moe_dtype_is_float(h->dtype)) {
        return refuse(c, st, "holds no integers, and the expert in each slot is expected");
    }
    const bool one = h->num_dims == 1 && h->shape[0] == slots;
    const bool each =
        h->num_dims == 2 && h->shape[0] == moe_config_moe_layers(c) && h->shape[1] == slots;
    if (one || each) {
        return MOE_OK;
    }
    snprintf(why, sizeof why,
             "has %lld slots in %lld layers, and %lld (model.num_experts = %d and "
             "placement.redundant_experts = %d) in %d are expected",
             (long long)(h->num_dims > 0 ? h->shape[h->num_dims - 1] : 1),
             (long long)(h->num_dims > 1 ? h->count / h->shape[h->num_dims - 1] : 1),
             (long long)slots, c->model.num_experts, c->placement.redundant_experts,
             moe_config_moe_layers(c));
    return refuse(c, st, why);
}

/* One layer: every id is that of an expert, and every expert is somewhere. */
static int check_layer(const moe_config *c,
                       int32_t layer,
                       const int32_t *expert_at,
                       moe_status *st) {
    const int32_t n = c->model.num_experts;
    const int32_t slots = moe_config_slots_per_device(c) * c->cluster.devices;
    char why[160];
    uint8_t *seen = moe_alloc_zero(n, 1, "placement");
    for (int32_t s = 0; s < slots && st->code == MOE_OK; s++) {
        if (expert_at[s] < 0 || expert_at[s] >= n) {
            snprintf(why, sizeof why,
                     "names expert %d in slot %d of layer %d, and there are 0 to %d", expert_at[s],
                     s, layer, n - 1);
            refuse(c, st, why);
        } else {
            seen[expert_at[s]] = 1;
        }
    }
    for (int32_t e = 0; e < n && st->code == MOE_OK; e++) {
        if (!seen[e]) {
            snprintf(why, sizeof why, "leaves expert %d of layer %d without a slot", e, layer);
            refuse(c, st, why);
        }
    }
    moe_free(seen);
    return st->code;
}

/* Rank 0. */
static int read_file(const moe_config *c, int32_t *expert_at, moe_status *st) {
    const int64_t slots = (int64_t)moe_config_slots_per_device(c) * c->cluster.devices;
    moe_npy_header h;
    moe_status inner = {0};
    void *data = NULL;
    if (moe_npy_read(c->placement.file, &h, &data, &inner) != MOE_OK) {
        moe_fail(st, inner.code, "placement.file: %s", inner.message);
    } else if (check_shape(c, &h, st) == MOE_OK) {
        for (int32_t l = 0; l < moe_config_moe_layers(c) && st->code == MOE_OK; l++) {
            for (int64_t s = 0; s < slots; s++) {
                const int64_t id = moe_npy_i64(&h, data, (h.num_dims == 1 ? 0 : l * slots) + s);
                expert_at[l * slots + s] = id < 0 || id > INT32_MAX ? -1 : (int32_t)id;
            }
            check_layer(c, l, expert_at + l * slots, st);
        }
    }
    moe_free(data);
    return st->code;
}

int moe_input_read_placement(const moe_comm *comm,
                             const moe_config *c,
                             moe_input *in,
                             moe_status *st) {
    const int64_t count =
        (int64_t)moe_config_moe_layers(c) * moe_config_slots_per_device(c) * c->cluster.devices;
    in->expert_at = moe_alloc(count, sizeof *in->expert_at, "placement");
    if (comm->rank == 0) {
        read_file(c, in->expert_at, st);
    }
    if (moe_comm_agree(comm, st) == MOE_OK) {
        moe_comm_bcast(comm, in->expert_at, count * (int64_t)sizeof *in->expert_at, 0);
    }
    return st->code;
}
