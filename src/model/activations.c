/* activations.c: the memory of a forward pass, and how others look at it. */
#include "model/layer.h"
#include "router/noise.h"

void moe_activations_reserve(moe_activations *a,
                             const moe_layer *layer,
                             const moe_context *context,
                             const moe_draw *draw) {
    int64_t tokens = context->batch->num_tokens;
    int64_t hidden = tokens * context->config->model.hidden_size;
    int64_t logits = layer->gate && !context->by_device ? tokens * layer->router.num_experts : 0;
    int64_t inner = context->keep ? tokens * layer->shared.width : 0;
    bool jitters = layer->gate && moe_noise_jitters(&layer->router, draw);
    bool smooth = draw->training && moe_noise_keeps_clean(&layer->router);
    bool shared = layer->shared.count > 0;
    moe_block_array table[] = {
        MOE_ARRAY(a->u, layer->norm ? hidden : 0),
        MOE_ARRAY(a->inverse_rms, layer->norm ? tokens : 0),
        MOE_ARRAY(a->jittered, jitters ? hidden : 0),
        MOE_ARRAY(a->gate_logits, logits),
        MOE_ARRAY(a->clean, smooth ? logits : 0),
        MOE_ARRAY(a->v, draw->training && layer->gate_noise ? logits : 0),
        MOE_ARRAY(a->shared_y, shared ? hidden : 0),
        MOE_ARRAY(a->shared_h1, shared ? inner : 0),
        MOE_ARRAY(a->shared_h3, shared ? inner : 0),
    };
    moe_block_reserve(&a->block, table, MOE_ARRAYS(table), "activations");
}

void moe_activations_free(moe_activations *a) {
    moe_block_free(&a->block);
    moe_routing_free(&a->routing);
    moe_drop_free(&a->drop);
    moe_stats_free(&a->segments);
    moe_scopes_free(&a->scopes);
    moe_by_device_free(&a->by_device);
    moe_plan_free(&a->plan);
    moe_exchange_free(&a->exchange);
    moe_expert_buffers_free(&a->buffers);
    *a = (moe_activations){0};
}

const moe_routing *moe_activations_sent(const moe_activations *a) {
    return a->drop.on ? &a->drop.sent : &a->routing;
}

const moe_routing *moe_activations_weighted(const moe_activations *a) {
    return a->drop.on && a->drop.reweighted ? &a->drop.sent : &a->routing;
}

const int32_t *moe_activations_servers(const moe_activations *a) {
    return a->drop.on && a->drop.moves && !a->drop.reweighted ? a->drop.server : NULL;
}

/* Rows of a chunk: of other ranks, and of the own one. */
static int64_t rows_of_chunk(const moe_chunk_order *o, int32_t chunk) {
    return moe_chunk_begin(o, chunk + 1) - moe_chunk_begin(o, chunk) + o->own[chunk + 1] -
           o->own[chunk];
}

moe_span_rows moe_activations_rows(const moe_activations *a, int32_t chunk) {
    const moe_inbox *in = &a->exchange.inbox;
    const moe_chunk_order *o = &in->order;
    if (in->chunks == 1) {
        return (moe_span_rows){.sent = a->plan.num_rows,
                               .received = in->num_rows,
                               .own = in->own_end - in->own_begin,
                               .selections = in->num_pairs};
    }
    moe_span_rows rows = {.sent = rows_of_chunk(&a->exchange.sent, chunk),
                          .received = rows_of_chunk(o, chunk),
                          .own = o->own[chunk + 1] - o->own[chunk],
                          .chunk = chunk};
    for (int64_t s = 0; s < (int64_t)in->num_local * in->slots; s++) {
        const int64_t *offset = in->group_offset + s * in->chunks + chunk;
        rows.selections += offset[1] - offset[0];
    }
    return rows;
}

/* --- what was on its way --- */

static void let_exchange_work(void *exchange) {
    moe_exchange_progress(exchange);
}

moe_experts_pause moe_activations_pause(moe_activations *a) {
    return (moe_experts_pause){a->exchange.inbox.chunks > 1 ? let_exchange_work : NULL,
                               &a->exchange};
}

static void add_flight(const moe_activations *a,
                       const moe_context *context,
                       enum moe_span_kind kind,
                       int32_t depth,
                       enum moe_way way,
                       int32_t chunk) {
    const moe_flight *f = moe_exchange_flight(&a->exchange, way, chunk);
    const moe_span_rows rows = {.sent = f->sent, .received = f->received, .chunk = chunk};
    moe_timeline_add(context->timeline, (int)kind, depth, f->begin, f->end, &rows);
}

void moe_activations_flights(const moe_activations *a,
                             const moe_context *context,
                             int32_t depth,
                             bool backward,
                             moe_layer_metrics *metrics) {
    const moe_overlap *seconds = &a->exchange.air.seconds;
    const enum moe_span_kind there = backward ? MOE_SPAN_FLIGHT_DISPATCH_BACKWARD
                                              : MOE_SPAN_FLIGHT_DISPATCH,
                             back = backward ? MOE_SPAN_FLIGHT_COMBINE_BACKWARD
                                             : MOE_SPAN_FLIGHT_COMBINE;
    const int32_t chunks = a->exchange.inbox.chunks;
    if (chunks == 1 || context->comm->size == 1) {
        return;
    }
    metrics->overlap.in_flight += seconds->in_flight;
    metrics->overlap.waited += seconds->waited;
    for (int32_t j = 0; j < chunks; j++) {
        add_flight(a, context, there, depth, MOE_WAY_THERE, j);
        add_flight(a, context, back, depth, MOE_WAY_BACK, j);
    }
}
