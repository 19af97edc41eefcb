/* layer_forward.c: one MoE layer in the order in which data flows. Read moe_layer_forward, at the
 * end, first. */
#include <string.h>

#include "base/norm.h"
#include "model/by_device.h"
#include "model/gate.h"
#include "model/layer.h"
#include "model/serving.h"
#include "router/noise.h"

/* --- norm --- */

static void norm_forward(const moe_layer *layer,
                         const moe_context *context,
                         const real *x,
                         moe_activations *a) {
    a->layer_x = a->x = a->gate_x = x;
    if (!layer->norm) {
        return;
    }
    moe_rmsnorm(x, layer->norm, context->batch->num_tokens, context->config->model.hidden_size,
                a->u, a->inverse_rms);
    a->x = a->gate_x = a->u;
}

/* --- gate --- */

/* The gate, and with router.jitter_experts the experts too, read the jittered vectors. */
static void jitter_forward(const moe_layer *layer,
                           const moe_draw *draw,
                           const moe_context *context,
                           moe_activations *a) {
    if (!layer->gate || !moe_noise_jitters(&layer->router, draw)) {
        return;
    }
    moe_noise_jitter(&layer->router, draw, context->batch, context->config->model.hidden_size, a->x,
                     a->jittered);
    a->gate_x = a->jittered;
    if (context->config->router.jitter_experts) {
        a->x = a->jittered;
    }
}

/* In training: keeps what smooth load and importance need of the logits, then adds the learned
 * noise. */
static void noise_forward(const moe_layer *layer,
                          const moe_draw *draw,
                          const moe_context *context,
                          moe_activations *a) {
    const moe_router *r = &layer->router;
    int64_t n = r->num_experts;
    if (a->clean) {
        memcpy(a->clean, a->gate_logits, (size_t)(context->batch->num_tokens * n) * sizeof(real));
    }
    if (layer->gate_noise) {
        moe_gate_logits(layer->gate_noise, context->batch, a->gate_x,
                        context->config->model.hidden_size, n, a->v);
        moe_noise_add_learned(r, draw, context->batch, a->v, a->gate_logits);
    }
}

static void gate_forward(const moe_layer *layer,
                         const moe_draw *draw,
                         const moe_context *context,
                         moe_activations *a) {
    const moe_config *c = context->config;
    if (c->data.source == MOE_SOURCE_LOGITS) {
        a->logits = moe_gate_recorded_logits(layer, context, 0);
    } else if (!moe_config_recorded(c)) {
        moe_gate_logits(layer->gate, context->batch, a->gate_x, c->model.hidden_size,
                        c->model.num_experts, a->gate_logits);
        if (context->trains) {
            noise_forward(layer, draw, context, a);
        }
        moe_noise_perturb(&layer->router, draw, context->batch, a->gate_logits);
        a->logits = moe_gate_computed_logits(a->gate_logits);
    }
}

/* --- router --- */

/* The logits before noise, where a smooth load or the importance looks at them. */
static const moe_noisy *noisy_of(const moe_context *context, moe_activations *a) {
    if (!context->trains || !moe_noise_keeps_clean(&context->router)) {
        return NULL;
    }
    a->noisy = (moe_noisy){a->clean, a->v};
    return &a->noisy;
}

/* Who of the routing is sent (docs/method.md section 3). Everything that the balance losses see was
 * counted before. */
static void drop(const moe_layer *layer, const moe_context *context, moe_activations *a) {
    a->drop.on = false;
    if (context->capacity.policy == MOE_CAPACITY_NONE) {
        return;
    }
    moe_drop_decide(&a->drop, &(moe_drop_job){.comm = context->comm,
                                              .capacity = &context->capacity,
                                              .batch = context->batch,
                                              .placement = layer->placement,
                                              .router = &layer->router,
                                              .logits = a->logits,
                                              .routing = &a->routing,
                                              .step = context->step});
}

static void router_forward(const moe_layer *layer,
                           const moe_draw *draw,
                           const moe_context *context,
                           moe_activations *a,
                           moe_layer_metrics *metrics) {
    const moe_batch *b = context->batch;
    a->first_bad_token = -1;
    moe_serving_begin(context, layer);
    const moe_placement *p = layer->placement;
    moe_stats_reserve_slots(&a->segments, p->num_experts, p->devices,
                            p->replicated ? moe_placement_slots(p) : 0, b->num_segments);
    if (moe_config_recorded(context->config)) {
        moe_gate_route_recorded(layer, &layer->router, context, b, 0, &a->routing, &a->segments);
    } else {
        moe_router_route(&layer->router, draw, b, layer->placement, a->logits, noisy_of(context, a),
                         &a->routing, &a->segments, &a->first_bad_token);
    }
    moe_serving_decide(context, layer, &a->routing, &a->segments, &metrics->fetch);
    drop(layer, context, a);
}

/* --- shared experts --- */

static void shared_forward(const moe_layer *layer,
                           const moe_context *context,
                           moe_activations *a,
                           real *y) {
    const moe_batch *b = context->batch;
    int64_t h = context->config->model.hidden_size, f = layer->shared.width;
    if (layer->shared.count == 0) {
        return;
    }
    for (int32_t j = 0; j < b->num_local_devices; j++) {
        int64_t begin = b->device_offset[j], rows = b->device_offset[j + 1] - begin;
        moe_experts_shared_forward(&layer->shared, rows, a->x + begin * h, &a->buffers,
                                   context->keep ? a->shared_h1 + begin * f : NULL,
                                   context->keep ? a->shared_h3 + begin * f : NULL,
                                   a->shared_y + begin * h);
    }
    const uint8_t *routed = moe_batch_routed(context->batch);
    for (int64_t t = 0; t < context->batch->num_tokens && routed; t++) {
        if (!routed[t]) {
            memset(a->shared_y + t * h, 0, (size_t)h * sizeof *a->shared_y);
        }
    }
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < b->num_tokens * h; i++) {
        a->shared_y[i] *= (real)layer->shared_copies;
        y[i] += a->shared_y[i];
    }
}

/* --- the layer --- */

typedef struct stopwatch {
    moe_timeline *timeline;
    moe_layer_metrics *metrics;
    int32_t layer;
    double time; /* when the last phase ended */
} stopwatch;

static void phase_until(stopwatch *w, enum moe_phase which, double end, const moe_span_rows *rows) {
    w->metrics->phase_seconds[which] += end - w->time;
    moe_timeline_add(w->timeline, which, w->layer, w->time, end, rows);
    w->time = end;
}

/* The time since the last phase was this one's, as may have been times before. rows: NULL where the
 * phase moves none. */
static void phase_with(stopwatch *w, enum moe_phase which, const moe_span_rows *rows) {
    phase_until(w, which, moe_comm_time(), rows);
}
static void phase(stopwatch *w, enum moe_phase which) {
    phase_with(w, which, NULL);
}

/* Gate, router and losses at a time. The threads are in one or the other at any moment: each phase
 * gets its share of their time, one after the other. */
static void by_device_forward(const moe_layer *layer,
                              const moe_draw *draw,
                              const moe_context *context,
                              moe_activations *a,
                              stopwatch *w) {
    double shares[3];
    moe_by_device_route(layer, context, draw, a, shares);
    drop(layer, context, a);
    const double begin = w->time, whole = moe_comm_time() - begin;
    phase_until(w, MOE_PHASE_GATE, begin + shares[0] * whole, NULL);
    phase_until(w, MOE_PHASE_ROUTE, begin + (shares[0] + shares[1]) * whole, NULL);
    phase_until(w, MOE_PHASE_BALANCE, begin + whole, NULL);
}

static void dispatch(const moe_layer *layer,
                     const moe_context *context,
                     moe_activations *a,
                     moe_layer_metrics *metrics) {
    const moe_config *c = context->config;
    moe_exchange *e = &a->exchange;
    e->host = context->host;
    e->dispatched = context->dispatched;
    e->combined = context->combined;
    e->node_sum = c->exchange.node_sum;
    e->chunks = context->counts_only ? 1 : c->exchange.chunks;
    moe_exchange_dispatch(e, context->comm, &a->plan, layer->placement, a->x,
                          context->counts_only ? 1 : c->model.hidden_size,
                          context->batch->num_tokens_global * moe_config_most_experts(c));
    metrics->metadata_block_bytes = e->block_words * (int64_t)sizeof *e->block;
}

/* Dispatch, experts, combine: y [T,H]. Chunk after chunk, the experts compute while the next
 * vectors, and the last results, travel. */
static void routed_forward(const moe_layer *layer,
                           const moe_context *context,
                           moe_activations *a,
                           real *y,
                           stopwatch *watch) {
    const moe_config *c = context->config;
    moe_exchange *e = &a->exchange;
    a->buffers.bf16 = context->bf16;
    dispatch(layer, context, a, watch->metrics);
    if (context->counts_only) {
        if (context->batch->num_tokens > 0) {
            memcpy(y, a->x,
                   (size_t)(context->batch->num_tokens * c->model.hidden_size) * sizeof *y);
        }
        return;
    }
    const moe_experts_pause pause = moe_activations_pause(a);
    for (int32_t chunk = 0; chunk < e->inbox.chunks; chunk++) {
        const moe_span_rows rows = moe_activations_rows(a, chunk);
        moe_exchange_receive(e, &a->plan, chunk);
        phase_with(watch, MOE_PHASE_DISPATCH, &rows);
        moe_experts_forward(&layer->experts, &e->inbox, chunk, &a->buffers, context->keep, &pause);
        phase_with(watch, MOE_PHASE_EXPERT, &rows);
        moe_exchange_return(e, chunk, a->buffers.results);
        if (chunk + 1 == e->inbox.chunks) {
            moe_exchange_combine(e, &a->plan, a->buffers.results, c->cluster.devices_per_node, y);
        }
        phase_with(watch, MOE_PHASE_COMBINE, &rows);
    }
    moe_activations_flights(a, context, layer->depth, false, watch->metrics);
}

void moe_layer_forward(const moe_layer *layer,
                       const moe_context *context,
                       const real *x,
                       real *y,
                       moe_activations *a,
                       moe_layer_metrics *metrics) {
    const moe_config *c = context->config;
    const moe_batch *b = context->batch;
    moe_draw draw = moe_layer_draw(layer, context);
    memset(metrics->phase_seconds, 0, sizeof metrics->phase_seconds);
    stopwatch watch = {context->timeline, metrics, layer->depth, moe_comm_time()};
    moe_activations_reserve(a, layer, context, &draw);
    norm_forward(layer, context, x, a);
    jitter_forward(layer, &draw, context, a);
    a->by_device.on = false;
    a->logits = (moe_logits){NULL, NULL};
    if (context->by_device) {
        by_device_forward(layer, &draw, context, a, &watch);
    } else {
        gate_forward(layer, &draw, context, a);
        phase(&watch, MOE_PHASE_GATE);
        router_forward(layer, &draw, context, a, metrics);
        phase(&watch, MOE_PHASE_ROUTE);
    }
    moe_plan_build(&a->plan, c->exchange.mode, b, layer->placement, context->comm->size,
                   moe_activations_sent(a));
    phase(&watch, MOE_PHASE_PLAN);
    routed_forward(layer, context, a, y, &watch);
    shared_forward(layer, context, a, y);
    phase(&watch, MOE_PHASE_SHARED);
    if (!a->by_device.on) {
        moe_layer_losses_count(layer, context, a);
        phase(&watch, MOE_PHASE_BALANCE);
    }
}
