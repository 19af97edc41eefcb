/* by_device.c: see by_device.h. */
#include "model/by_device.h"

#include <omp.h>
#include <string.h>

#include "model/gate.h"
#include "model/layer.h"
#include "model/reach.h"
#include "router/group_theorem.h"
#include "router/noise.h"

enum { PARTS_OF_THREAD = 4 }; /* so that a thread that is slow leaves some to the others */

enum { GATE, ROUTER, LOSSES };

typedef struct job { /* of the whole pass */
    const moe_layer *layer;
    const moe_context *context;
    const moe_draw *draw;
    moe_activations *a;
    int32_t most;       /* selections of a token */
    bool keep_distinct; /* a self-check compares them with the rows of the plan */
} job;

/* --- memory --- */

static void reserve_cells(const job *j, moe_device_worker *w, int64_t segments) {
    const moe_placement *p = j->layer->placement;
    moe_stats_reserve_slots(&w->segments, p->num_experts, p->devices,
                            p->replicated ? moe_placement_slots(p) : 0, segments);
}

/* For any of the devices, so that it does not matter which thread takes which. */
static void reserve_worker(const job *j, moe_device_worker *w) {
    const moe_batch *b = j->context->batch;
    const int64_t n = j->layer->gate ? j->context->config->model.num_experts : 0;
    int64_t tokens = 0;
    for (int32_t d = 0; d < b->num_local_devices; d++) {
        const int64_t of_device = b->device_offset[d + 1] - b->device_offset[d];
        tokens = of_device > tokens ? of_device : tokens;
    }
    moe_block_array table[] = {MOE_ARRAY(w->logits, tokens * n)};
    moe_block_reserve(&w->block, table, MOE_ARRAYS(table), "logits");
    reserve_cells(j, w, moe_device_batch_reserve(&w->device, b));
    moe_routing_reserve(&w->routing, tokens, j->most);
    w->router = j->layer->router;
    w->router.scratch = &w->scratch;
    w->unlimited = (moe_reached){0};
    w->theorem = (moe_group_evidence){0};
    memset(w->seconds, 0, sizeof w->seconds);
}

static void reserve(const job *j) {
    moe_by_device *d = &j->a->by_device;
    const moe_batch *b = j->context->batch;
    const int threads = omp_get_max_threads();
    moe_block_array table[] = {
        MOE_ARRAY(d->distinct, j->keep_distinct ? b->num_tokens * j->most : 0),
        MOE_ARRAY(d->num_distinct, j->keep_distinct ? b->num_local_devices : 0),
    };
    moe_block_reserve(&d->block, table, MOE_ARRAYS(table), "distinct tokens");
    if (d->num_workers < threads) {
        moe_device_worker *more = moe_alloc_zero(threads, sizeof *more, "device by device");
        if (d->num_workers > 0) {
            memcpy(more, d->worker, (size_t)d->num_workers * sizeof *more);
        }
        moe_free(d->worker);
        d->worker = more;
        d->num_workers = threads;
    }
    for (int i = 0; i < d->num_workers; i++) {
        reserve_worker(j, &d->worker[i]);
    }
    moe_routing_reserve(&j->a->routing, b->num_tokens, j->most);
}

void moe_by_device_free(moe_by_device *d) {
    for (int i = 0; i < d->num_workers; i++) {
        moe_device_worker *w = &d->worker[i];
        moe_scratch_free(&w->scratch);
        moe_device_batch_free(&w->device);
        moe_block_free(&w->block);
        moe_stats_free(&w->segments);
        moe_routing_free(&w->routing);
        moe_scopes_part_free(&w->part);
    }
    moe_free(d->worker);
    moe_block_free(&d->block);
    *d = (moe_by_device){0};
}

/* --- one device --- */

static moe_logits gate(const job *j, moe_device_worker *w, int64_t begin) {
    const moe_config *c = j->context->config;
    const moe_batch *b = &w->device.batch;
    const int64_t h = c->model.hidden_size, n = c->model.num_experts;
    if (moe_config_recorded(c)) {
        return (moe_logits){NULL, NULL};
    }
    if (c->data.source == MOE_SOURCE_LOGITS) {
        return moe_gate_recorded_logits(j->layer, j->context, begin);
    }
    moe_gate_logits(j->layer->gate, b, j->a->gate_x + begin * h, h, n, w->logits);
    moe_noise_perturb(&w->router, j->draw, b, w->logits);
    return moe_gate_computed_logits(w->logits);
}

/* Returns the first bad token of the device, or -1. */
static int64_t route(const job *j, moe_device_worker *w, int64_t begin, moe_logits logits) {
    const moe_placement *p = j->layer->placement;
    const moe_batch *b = &w->device.batch;
    int64_t bad = -1;
    reserve_cells(j, w, b->num_segments);
    if (moe_config_recorded(j->context->config)) {
        moe_gate_route_recorded(j->layer, &w->router, j->context, b, begin, &w->routing,
                                &w->segments);
    } else {
        moe_router_route(&w->router, j->draw, b, p, logits, NULL, &w->routing, &w->segments, &bad);
    }
    return bad;
}

/* Copies what was chosen into the routing of all devices, where every token has room for `most`. */
static void keep_routing(const job *j, const moe_device_worker *w, int64_t begin) {
    const moe_routing *from = &w->routing;
    moe_routing *to = &j->a->routing;
    for (int64_t t = 0; t < from->num_tokens; t++) {
        const int64_t first = from->row_offset[t], at = (begin + t) * j->most;
        const size_t count = (size_t)(from->row_offset[t + 1] - first);
        to->row_offset[begin + t + 1] = (int64_t)count;
        if (count > 0) {
            memcpy(to->expert + at, from->expert + first, count * sizeof *to->expert);
            memcpy(to->weight + at, from->weight + first, count * sizeof *to->weight);
            memcpy(to->score + at, from->score + first, count * sizeof *to->score);
        }
    }
}

static void keep_distinct(const job *j, const moe_device_worker *w, int32_t device, int64_t begin) {
    moe_by_device *d = &j->a->by_device;
    moe_sparse_cell *cell = d->distinct + begin * j->most;
    const int32_t devices = w->segments.devices;
    int64_t count = 0;
    if (!j->keep_distinct) {
        return;
    }
    for (int32_t to = 0; to < devices && w->segments.num_cells > 0; to++) {
        int64_t tokens = 0;
        for (int64_t i = 0; i < w->segments.num_cells; i++) {
            tokens += moe_stats_device_tokens(&w->segments, moe_stats_cell(&w->segments, i))[to];
        }
        if (tokens > 0) {
            cell[count++] = (moe_sparse_cell){device, to, tokens};
        }
    }
    d->num_distinct[device] = count;
}

/* What the tally asks of the logits, which are forgotten after this. */
static void look_at_logits(const job *j, moe_device_worker *w, moe_logits logits) {
    const moe_router *r = &w->router;
    if (!moe_reach_has_limit(j->context)) {
        return;
    }
    const moe_reached found = moe_reach_unlimited(j->layer, j->context, &w->device.batch, logits);
    w->unlimited.devices += found.devices;
    w->unlimited.nodes += found.nodes;
    if (r->group_limit == MOE_GROUP_MAX) {
        int64_t tokens = 0, bad = 0;
        moe_group_theorem_check(r, logits, &w->routing, moe_batch_routed(&w->device.batch), 1,
                                &tokens, &bad);
        w->theorem.tokens += tokens;
        w->theorem.bad += bad;
    }
}

typedef struct found {   /* what speaks against a run: the smallest, or MAX where there is none */
    int64_t bad;         /* local token */
    int32_t unconverged; /* device */
} found;

/* Local device `device`. */
static void one_device(const job *j, moe_device_worker *w, int32_t device, found *f) {
    const moe_batch *b = j->context->batch;
    const int64_t begin = b->device_offset[device];
    const double start = omp_get_wtime();
    moe_device_batch_set(&w->device, b, device);
    w->device.batch.scratch = &w->scratch;
    const moe_logits logits = gate(j, w, begin);
    const double gated = omp_get_wtime();
    const int64_t bad = route(j, w, begin, logits);
    keep_routing(j, w, begin);
    keep_distinct(j, w, device, begin);
    look_at_logits(j, w, logits);
    const double routed = omp_get_wtime();
    moe_scopes_part_add(&j->a->scopes, &w->part, &j->context->balance, j->layer->placement,
                        &w->device.batch, &w->segments);
    w->seconds[GATE] += gated - start;
    w->seconds[ROUTER] += routed - gated;
    w->seconds[LOSSES] += omp_get_wtime() - routed;
    const int32_t unconverged = w->routing.unconverged_device;
    f->bad = bad >= 0 && begin + bad < f->bad ? begin + bad : f->bad;
    f->unconverged =
        unconverged >= 0 && unconverged < f->unconverged ? unconverged : f->unconverged;
}

static void one_part(const job *j, moe_device_worker *w, int32_t parts, int32_t p, found *f) {
    const moe_batch *b = j->context->batch;
    moe_scopes_part_start(&j->a->scopes, &w->part);
    for (int32_t d = moe_scopes_part_begin(b, parts, p); d < moe_scopes_part_begin(b, parts, p + 1);
         d++) {
        one_device(j, w, d, f);
    }
    moe_scopes_part_finish(&j->a->scopes, &w->part);
}

/* --- all devices --- */

static void add_up_workers(moe_by_device *d) {
    d->unlimited = (moe_reached){0};
    d->theorem = (moe_group_evidence){0};
    for (int i = 0; i < d->num_workers; i++) {
        d->unlimited.devices += d->worker[i].unlimited.devices;
        d->unlimited.nodes += d->worker[i].unlimited.nodes;
        d->theorem.tokens += d->worker[i].theorem.tokens;
        d->theorem.bad += d->worker[i].theorem.bad;
    }
}

static void share_time(const moe_by_device *d, double shares[3]) {
    double sum = 0;
    for (int k = 0; k < 3; k++) {
        shares[k] = 0;
        for (int i = 0; i < d->num_workers; i++) {
            shares[k] += d->worker[i].seconds[k];
        }
        sum += shares[k];
    }
    for (int k = 0; k < 3; k++) {
        shares[k] = sum > 0 ? shares[k] / sum : 1.0 / 3;
    }
}

void moe_by_device_route(const moe_layer *layer,
                         const moe_context *context,
                         const moe_draw *draw,
                         moe_activations *a,
                         double shares[3]) {
    const moe_batch *b = context->batch;
    const job j = {.layer = layer,
                   .context = context,
                   .draw = draw,
                   .a = a,
                   .most = moe_config_most_experts(context->config),
                   .keep_distinct = !moe_context_rows_not_tokens(context)};
    found all = {INT64_MAX, INT32_MAX};
    reserve(&j);
    const int32_t most_parts = a->by_device.num_workers * PARTS_OF_THREAD;
    const int32_t parts = b->num_local_devices < most_parts ? b->num_local_devices : most_parts;
    moe_scopes_start(&a->scopes, b, layer->placement, parts);
#pragma omp parallel
    {
        const int32_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
        moe_device_worker *w = &a->by_device.worker[thread];
        found mine = {INT64_MAX, INT32_MAX};
        if (thread < parts) { /* the first part is always the same, so that memory is found in the
                                 first step */
            one_part(&j, w, parts, thread, &mine);
        }
#pragma omp for schedule(dynamic)
        for (int32_t p = threads; p < parts; p++) {
            one_part(&j, w, parts, p, &mine);
        }
#pragma omp critical(moe_by_device)
        {
            all.bad = mine.bad < all.bad ? mine.bad : all.bad;
            all.unconverged =
                mine.unconverged < all.unconverged ? mine.unconverged : all.unconverged;
        }
    }
    moe_scopes_parts_done(&a->scopes, &context->balance, layer->placement);
    moe_routing_close_gaps(&a->routing, j.most);
    a->routing.unconverged_device = all.unconverged == INT32_MAX ? -1 : all.unconverged;
    a->first_bad_token = all.bad == INT64_MAX ? -1 : all.bad;
    add_up_workers(&a->by_device);
    a->by_device.on = true;
    a->losses_counted = true;
    share_time(&a->by_device, shares);
}
