/* serving.c: see serving.h. */
#include "model/serving.h"

#include <string.h>

#include "model/migration.h"
#include "router/count.h"

/* --- made and freed --- */

/* Native experts in the first slots of every device; in those for copies, which serve nothing yet,
 * the device's own ones once more. */
static void put_home(moe_placement *p, int32_t *expert_at) {
    const int32_t native = p->num_experts / p->devices;
    for (int32_t s = 0; s < moe_placement_slots(p); s++) {
        expert_at[s] = s / p->slots_per_device * native + s % p->slots_per_device % native;
    }
    moe_placement_fill(p, expert_at);
}

void moe_serving_reset(const moe_context *context) {
    if (!context->serving || !context->serving->plans) {
        return;
    }
    for (int32_t l = 0; l < moe_config_moe_layers(context->config); l++) {
        put_home(&context->placements[l], context->serving->expert_at);
    }
}

moe_serving *moe_serving_make(const moe_context *context) {
    const moe_config *c = context->config;
    const char *what = "who serves whom";
    if (!moe_config_splits_batches(c)) {
        return NULL;
    }
    const int64_t n = c->model.num_experts, devices = c->cluster.devices;
    const int64_t slots = moe_placement_slots(&context->placements[0]);
    moe_serving *s = moe_alloc_zero(1, sizeof *s, what);
    s->balancer = moe_balancer_find(
        moe_config_enum_name(MOE_KEY(placement, policy), (int)c->placement.policy));
    s->plans = s->balancer->timing == MOE_BALANCER_PLANS;
    s->count = moe_alloc(devices * n, sizeof *s->count, what);
    s->share = moe_alloc(devices * slots, sizeof *s->share, what);
    s->load = moe_alloc(n, sizeof *s->load, what);
    s->served = moe_alloc(slots, sizeof *s->served, what);
    s->expert_at = moe_alloc(slots, sizeof *s->expert_at, what);
    s->walk.place = moe_alloc(n, sizeof *s->walk.place, what);
    s->walk.left = moe_alloc(n, sizeof *s->walk.left, what);
    for (int32_t l = 0; l < moe_config_moe_layers(c); l++) {
        moe_split_init(&context->placements[l]);
        if (s->plans) {
            put_home(&context->placements[l], s->expert_at);
        }
    }
    return s;
}

void moe_serving_free(moe_serving *s) {
    if (!s) {
        return;
    }
    moe_free(s->count);
    moe_free(s->share);
    moe_free(s->load);
    moe_free(s->served);
    moe_free(s->expert_at);
    moe_free(s->walk.place);
    moe_free(s->walk.left);
    moe_balancer_answer_free(&s->answer);
    moe_slot_copies_free(&s->copies);
    moe_free(s);
}

/* --- deciding --- */

moe_balancer_problem moe_serving_problem(const moe_config *c,
                                         const moe_placement *p,
                                         const double *load) {
    return (moe_balancer_problem){.num_experts = p->num_experts,
                                  .devices = p->devices,
                                  .nodes = p->devices / p->devices_per_node,
                                  .groups = c->router.num_groups,
                                  .slots_per_device = p->slots_per_device,
                                  .load = load,
                                  .within_slots = true};
}

/* Collective. */
static void count_choices(moe_serving *s, const moe_context *context, const moe_routing *routing) {
    const moe_batch *b = context->batch;
    const int64_t n = context->config->model.num_experts;
    memset(s->count, 0, (size_t)(b->devices * n) * sizeof *s->count);
    for (int32_t j = 0; j < b->num_local_devices; j++) {
        int64_t *count = s->count + (b->first_device + j) * n;
        for (int64_t i = routing->row_offset[b->device_offset[j]];
             i < routing->row_offset[b->device_offset[j + 1]]; i++) {
            count[routing->expert[i]]++;
        }
    }
    moe_comm_sum_i64(context->comm, s->count, b->devices * n);
    for (int64_t e = 0; e < n; e++) {
        s->load[e] = 0;
        for (int64_t d = 0; d < b->devices; d++) {
            s->load[e] += (double)s->count[d * n + e];
        }
    }
}

/* Rank 0. A slot for a copy that serves nothing keeps one of its device's own experts. */
static void ask_balancer(moe_serving *s, const moe_config *c, const moe_placement *p) {
    const moe_balancer_problem problem = moe_serving_problem(c, p, s->load);
    const int32_t native = p->num_experts / p->devices;
    moe_balancer_answer *a = &s->answer;
    if (s->plans) {
        moe_balancer_place(s->balancer, &problem, a);
    } else {
        moe_balancer_answer_of(&problem, p->expert_at, a);
        moe_balancer_split(s->balancer, &problem, a);
    }
    MOE_ASSERT(a->slots == moe_placement_slots(p));
    for (int32_t i = 0; i < a->slots; i++) {
        const int32_t device = i / p->slots_per_device, at = i % p->slots_per_device;
        const bool idle = s->plans && at >= native && a->served[i] == 0;
        s->expert_at[i] = idle ? device * native + at % native : a->expert[i];
        s->served[i] = a->served[i];
    }
}

/* --- copies --- */

/* Lists what is copied from home, or back to it. Returns how many go to another node. */
static int32_t list_copies(moe_serving *s, const moe_context *context, bool back) {
    const moe_placement *p = &context->placements[0];
    const int32_t native = p->num_experts / p->devices, each = p->slots_per_device;
    const int32_t slots = moe_placement_slots(p);
    int32_t across = 0;
    moe_slot_copies_begin(&s->copies, slots);
    for (int32_t i = 0; i < slots; i++) {
        const int32_t home = s->expert_at[i] / native, device = i / each;
        if (home == device) {
            continue;
        }
        const int32_t slot = home * each + s->expert_at[i] % native;
        moe_slot_copies_add(&s->copies, back ? i : slot, back ? slot : i);
        across += home / p->devices_per_node != device / p->devices_per_node;
    }
    moe_slot_copies_end(&s->copies, context->comm, context->batch->num_local_devices * each);
    return across;
}

static void add_bytes(moe_fetch_metrics *metrics, int32_t copies, int32_t across, int64_t bytes) {
    metrics->bytes += copies * bytes;
    metrics->cross_node_bytes += across * bytes;
}

static void fetch(moe_serving *s,
                  const moe_context *context,
                  const moe_layer *layer,
                  moe_fetch_metrics *metrics) {
    const int32_t across = list_copies(s, context, false);
    if (s->copies.num > 0) {
        const int64_t bytes = moe_migration_blocks(&s->copies, context->comm, layer, NULL, NULL);
        add_bytes(metrics, s->copies.num, across, bytes);
    }
    metrics->copies += s->copies.num;
    moe_placement_fill(&context->placements[layer->index], s->expert_at);
}

static void return_parameter(moe_slot_copies *c, const moe_comm *comm, const moe_parameter *p) {
    moe_slot_copies_run(c, comm, p->gradient, p->size);
    for (int64_t i = 0; i < c->num_received; i++) {
        real *to = p->gradient + c->received[i] * p->size;
        const real *from = c->arrived + i * p->size;
        for (int64_t k = 0; k < p->size; k++) {
            to[k] += from[k];
        }
    }
    for (int64_t i = 0; i < c->num_sent; i++) {
        memset(p->gradient + c->sent[i] * p->size, 0, (size_t)p->size * sizeof *p->gradient);
    }
}

void moe_serving_return(const moe_context *context,
                        const moe_layer *layer,
                        const moe_layer_indices *indices,
                        moe_parameters *all,
                        moe_fetch_metrics *metrics) {
    moe_serving *s = context->serving;
    moe_placement *p = &context->placements[layer->index];
    int index[MOE_EXPERT_TENSORS];
    if (!s || !s->plans) {
        return;
    }
    memcpy(s->expert_at, p->expert_at, (size_t)moe_placement_slots(p) * sizeof *s->expert_at);
    const double begin = moe_comm_time();
    const int32_t across = list_copies(s, context, true);
    moe_layer_expert_indices(indices, index);
    for (int i = 0; i < MOE_EXPERT_TENSORS && s->copies.num > 0; i++) {
        if (index[i] >= 0) {
            const moe_parameter *tensor = &all->p[index[i]];
            return_parameter(&s->copies, context->comm, tensor);
            add_bytes(metrics, s->copies.num, across, tensor->size * (int64_t)sizeof(real));
        }
    }
    put_home(p, s->expert_at);
    metrics->fetch_seconds += moe_comm_time() - begin;
}

/* --- who serves whom --- */

/* Collective. Every rank finds where the runs of its own tokens end. */
static void find_runs(moe_serving *s,
                      const moe_context *context,
                      moe_placement *p,
                      const moe_routing *routing) {
    const moe_batch *b = context->batch;
    const int64_t slots = moe_placement_slots(p);
    moe_split_share(p, s->count, s->served, s->share);
    memset(p->until, 0, (size_t)(b->devices * slots) * sizeof *p->until);
    for (int32_t j = 0; j < b->num_local_devices; j++) {
        const int32_t device = b->first_device + j;
        const int64_t *share = s->share + device * slots;
        moe_split_begin(p, device, share, &s->walk);
        for (int64_t t = b->device_offset[j]; t < b->device_offset[j + 1]; t++) {
            for (int64_t i = routing->row_offset[t]; i < routing->row_offset[t + 1]; i++) {
                moe_split_choice(p, device, share, &s->walk, routing->expert[i],
                                 b->first_token + t);
            }
        }
        moe_split_end(p, device, &s->walk);
    }
    moe_comm_sum_i64(context->comm, p->until, b->devices * slots);
}

void moe_serving_begin(const moe_context *context, const moe_layer *layer) {
    if (context->serving) {
        moe_split_forget(&context->placements[layer->index]);
    }
}

void moe_serving_decide(const moe_context *context,
                        const moe_layer *layer,
                        const moe_routing *routing,
                        moe_stats *stats,
                        moe_fetch_metrics *metrics) {
    moe_serving *s = context->serving;
    if (!s) {
        return;
    }
    moe_placement *p = &context->placements[layer->index];
    const int64_t slots = moe_placement_slots(p);
    const double begin = moe_comm_time();
    *metrics = (moe_fetch_metrics){.on = true};
    count_choices(s, context, routing);
    if (context->comm->rank == 0) {
        ask_balancer(s, context->config, p);
    }
    moe_comm_bcast(context->comm, s->served, slots * (int64_t)sizeof *s->served, 0);
    moe_comm_bcast(context->comm, s->expert_at, slots * (int64_t)sizeof *s->expert_at, 0);
    const double decided = moe_comm_time();
    if (s->plans) {
        fetch(s, context, layer, metrics);
    }
    metrics->fetch_seconds = moe_comm_time() - decided;
    find_runs(s, context, p, routing);
    moe_count_devices_again(&layer->router, p, context->batch, routing, stats);
    metrics->decide_seconds = decided - begin;
}
