/* layer.c: one MoE layer in the order in which data flows. */
#include "model/layer.h"

#include <math.h>
#include <string.h>

#include "base/gemm.h"
#include "base/rng.h"
#include "base/status.h"
#include "base/vector.h"
#include "model/norm.h"
#include "router/loss_gradient.h"
#include "router/noise.h"

/* --- what layers share, parameters --- */

void moe_context_init(moe_context *context,
                      const moe_comm *comm,
                      const moe_config *c,
                      moe_batch *batch,
                      const moe_input *input,
                      moe_scratch *scratch) {
    *context = (moe_context){.comm = comm, .config = c, .batch = batch, .input = input};
    moe_placement_block(&context->placement, c->model.num_experts, c->cluster.devices);
    moe_router_init(&context->router, &c->router, &c->balance, c->model.num_experts,
                    c->cluster.devices, input->bias);
    batch->scratch = context->router.scratch = scratch;
    moe_balance_init(&context->balance, &c->balance, c->model.num_layers, c->comm_limit);
    context->balance.has_logits = !moe_config_recorded(c);
    context->balance.has_scores = !moe_config_recorded(c) || c->data.scores[0];
    moe_capacity_init(&context->capacity, &c->capacity, c->model.num_experts, c->cluster.devices,
                      c->router.top_k, (uint64_t)c->run.seed);
}

static void init_gate(moe_layer *layer, const moe_config *c) {
    int64_t n = c->model.num_experts, h = c->model.hidden_size;
    double scale = c->router.gate_scale / sqrt((double)h);
    layer->gate = moe_alloc(n * h, sizeof(real), "gate weights");
    for (int64_t i = 0; i < n; i++) {
        moe_rng_normal((moe_rng){(uint64_t)c->run.seed, MOE_RNG_GATE}, (uint64_t)layer->index,
                       (uint64_t)i, scale, layer->gate + i * h, h);
    }
}

void moe_layer_init(moe_layer *layer, const moe_context *context, int32_t index) {
    const moe_config *c = context->config;
    const moe_placement *p = &context->placement;
    int64_t h = c->model.hidden_size, f = c->model.moe_intermediate_size;
    *layer = (moe_layer){.index = index, .router = context->router};
    const double *bias =
        context->input->bias ? context->input->bias + (int64_t)index * c->model.num_experts : NULL;
    layer->router.bias = bias;
    if (c->router.bias_update_rate > 0) {
        layer->bias = moe_alloc_zero(c->model.num_experts, sizeof *layer->bias, "router bias");
        if (bias) {
            memcpy(layer->bias, bias, (size_t)c->model.num_experts * sizeof *layer->bias);
        }
        layer->router.bias = layer->bias;
    }
    if (c->data.source == MOE_SOURCE_SYNTHETIC || c->data.source == MOE_SOURCE_TEXT) {
        init_gate(layer, c);
    }
    if (layer->gate && c->router.noise_form == MOE_NOISE_SOFTPLUS) {
        layer->gate_noise =
            moe_alloc_zero((int64_t)c->model.num_experts * h, sizeof(real), "gate weights");
    }
    if (c->model.norm == MOE_NORM_RMSNORM) {
        layer->norm = moe_alloc(h, sizeof(real), "norm weights");
        for (int64_t i = 0; i < h; i++) {
            layer->norm[i] = 1;
        }
    }
    moe_ffn_shape shape = {
        .type = c->model.expert_type,
        .count = (int64_t)context->batch->num_local_devices * p->slots_per_device,
        .hidden = h,
        .width = f,
        .rank = c->model.lora_rank,
        .lora_alpha = c->model.lora_alpha,
        .zero_b = c->run.mode == MOE_MODE_TRAIN,
        .seed = c->run.seed,
        .layer = index,
        .id = p->expert_at + (int64_t)context->batch->first_device * p->slots_per_device};
    moe_ffn_init(&layer->experts, &shape);
    if (c->model.num_shared_experts == 0) {
        return;
    }
    shape.shared = true;
    shape.count = 1;
    shape.width = f * c->model.num_shared_experts;
    shape.id = NULL;
    if (shape.type == MOE_EXPERT_LORA) {
        shape.type = MOE_EXPERT_SWIGLU;
    }
    moe_ffn_init(&layer->shared, &shape);
}

void moe_layer_free(moe_layer *layer) {
    moe_free(layer->gate);
    moe_free(layer->gate_noise);
    moe_free(layer->norm);
    moe_free(layer->bias);
    moe_ffn_free(&layer->experts);
    moe_ffn_free(&layer->shared);
    *layer = (moe_layer){0};
}

/* --- the steps before the router --- */

enum {
    GATE_ROWS = 256
}; /* rows of one gate GEMM: a constant, and no call crosses a device, so the calls depend on the
      device's tokens only */

/* logits [T,N] = u [T,H] * gate [N,H]^T (method.md section 1.1). */
static void gate_logits(
    const real *gate, const moe_batch *b, const real *u, int64_t h, int64_t n, real *logits) {
    for (int32_t j = 0; j < b->num_local_devices; j++) {
#pragma omp parallel for schedule(dynamic)
        for (int64_t begin = b->device_offset[j]; begin < b->device_offset[j + 1];
             begin += GATE_ROWS) {
            int64_t left = b->device_offset[j + 1] - begin,
                    rows = left < GATE_ROWS ? left : GATE_ROWS;
            moe_gemm_nt(rows, n, h, u + begin * h, gate, logits + begin * n);
        }
    }
}

moe_draw moe_layer_draw(const moe_layer *layer, const moe_context *context) {
    const moe_run_config *run = &context->config->run;
    return (moe_draw){.seed = (uint64_t)run->seed,
                      .step = context->trains ? context->draw : context->step,
                      .layer = layer->index,
                      .training = context->trains,
                      .evaluating = run->mode == MOE_MODE_TRAIN && !context->trains};
}

static void jitter(const moe_layer *layer,
                   const moe_draw *d,
                   const moe_context *context,
                   moe_activations *a) {
    int64_t h = context->config->model.hidden_size;
    if (!moe_noise_jitters(&layer->router, d)) {
        return;
    }
    moe_reserve(&a->jittered, &a->jittered_room, context->batch->num_tokens * h, sizeof(real),
                "jittered x");
    moe_noise_jitter(&layer->router, d, context->batch, h, a->x, a->jittered);
    a->gate_x = a->jittered;
    if (context->config->router.jitter_experts) {
        a->x = a->jittered;
    }
}

/* Keeps what the smooth load needs of the logits, then adds the learned noise. */
static void add_noise(const moe_layer *layer,
                      const moe_draw *d,
                      const moe_context *context,
                      moe_activations *a) {
    const moe_router *r = &layer->router;
    int64_t n = r->num_experts;
    int64_t h = context->config->model.hidden_size;
    int64_t count = context->batch->num_tokens * n;
    if (r->load_form == MOE_LOAD_SHAZEER) {
        moe_reserve(&a->clean, &a->clean_room, count, sizeof(real), "logits");
        if (count > 0) {
            memcpy(a->clean, a->gate_logits, (size_t)count * sizeof(real));
        }
    }
    if (!layer->gate_noise) {
        return;
    }
    moe_reserve(&a->v, &a->v_room, count, sizeof(real), "noise on the logits");
    gate_logits(layer->gate_noise, context->batch, a->gate_x, h, n, a->v);
    moe_noise_add_learned(r, d, context->batch, a->v, a->gate_logits);
}

static void make_logits(const moe_layer *layer, const moe_context *context, moe_activations *a) {
    const moe_config *c = context->config;
    const moe_batch *b = context->batch;
    int64_t n = c->model.num_experts, offset = layer->index * b->num_tokens * n;
    a->logits = (moe_logits){NULL, NULL};
    if (c->data.source == MOE_SOURCE_LOGITS) {
        if (context->input->logits_dtype == MOE_F64) {
            a->logits.f64 = (const double *)context->input->logits + offset;
        } else {
            a->logits.f32 = (const float *)context->input->logits + offset;
        }
    } else if (!moe_config_recorded(context->config)) {
        moe_draw draw = moe_layer_draw(layer, context);
        jitter(layer, &draw, context, a);
        moe_reserve(&a->gate_logits, &a->logits_room, b->num_tokens * n, sizeof(real), "logits");
        gate_logits(layer->gate, b, a->gate_x, c->model.hidden_size, n, a->gate_logits);
        if (context->trains) {
            add_noise(layer, &draw, context, a);
        }
        moe_noise_perturb(&layer->router, &draw, b, a->gate_logits);
#ifdef MOE_REAL_DOUBLE
        a->logits.f64 = a->gate_logits;
#else
        a->logits.f32 = a->gate_logits;
#endif
    }
}

/* --- router and losses --- */

/* The logits before noise, where a smooth load looks at them. */
static const moe_noisy *noisy_of(const moe_context *context, moe_activations *a) {
    if (!context->trains || context->config->balance.load_form != MOE_LOAD_SHAZEER) {
        return NULL;
    }
    a->noisy = (moe_noisy){a->clean, a->v};
    return &a->noisy;
}

static void route(const moe_layer *layer, const moe_context *context, moe_activations *a) {
    const moe_batch *b = context->batch;
    const moe_input *in = context->input;
    a->first_bad_token = -1;
    moe_stats_reserve(&a->segments, context->router.num_experts, b->devices, b->num_segments);
    if (moe_config_recorded(context->config)) {
        int64_t t = layer->index * b->num_tokens;
        moe_router_route_recorded(&layer->router, b, &context->placement,
                                  in->routing ? in->routing + t * in->routing_k : NULL,
                                  in->routing_k,
                                  in->weights ? in->weights + t * in->routing_k : NULL,
                                  in->scores ? in->scores + t * context->router.num_experts : NULL,
                                  &a->routing, &a->segments);
    } else {
        moe_draw draw = moe_layer_draw(layer, context);
        moe_router_route(&layer->router, &draw, b, &context->placement, a->logits,
                         noisy_of(context, a), &a->routing, &a->segments, &a->first_bad_token);
    }
}

/* Who of the routing is sent (method.md section 3). Everything that balance sees was counted
 * before. */
static void drop(const moe_layer *layer, const moe_context *context, moe_activations *a) {
    a->drop.on = false;
    if (context->capacity.policy == MOE_CAPACITY_NONE) {
        return;
    }
    moe_drop_decide(&a->drop, &(moe_drop_job){.comm = context->comm,
                                              .capacity = &context->capacity,
                                              .batch = context->batch,
                                              .placement = &context->placement,
                                              .router = &layer->router,
                                              .logits = a->logits,
                                              .routing = &a->routing,
                                              .step = context->step});
}

const moe_routing *moe_sent_routing(const moe_activations *a) {
    return a->drop.on ? &a->drop.sent : &a->routing;
}

const char *moe_rows_not_tokens(const moe_context *context) {
    const moe_config *c = context->config;
    if (c->exchange.mode != MOE_EXCHANGE_TOKEN) {
        return "exchange.mode is not token: rows are selections, not tokens";
    }
    if (c->balance.comm_count != MOE_COUNT_TOKENS) {
        return "balance.comm_count = selections counts selections, not tokens";
    }
    if (!c->balance.comm_count_local) {
        return "balance.comm_count_local = no leaves out rows that stay on their device";
    }
    if (c->balance.aux_selection != MOE_AUX_ACTUAL) {
        return "balance.aux_selection = unlimited counts a selection that is not sent";
    }
    if (c->data.mask[0] && c->data.padding == MOE_PADDING_COUNTED) {
        return "padding tokens are sent but not counted";
    }
    return NULL;
}

/* [num_local][D] rows given to MPI_Alltoallv + rows removed by dropping: the numerator of f'' from
 * what is really sent (method.md section 2). Owner: the caller; taken from b->scratch. */
static int64_t *rows_before_dropping(const moe_batch *b,
                                     const moe_placement *p,
                                     const moe_activations *a) {
    int64_t n = (int64_t)b->num_local_devices * b->devices,
            *rows = moe_scratch_take(b->scratch, n, sizeof *rows, "balance losses");
    memset(rows, 0, (size_t)n * sizeof *rows);
    if (a->drop.on) {
        moe_capacity_removed(b, p, &a->routing, &a->drop.sent, rows);
    }
    for (int64_t i = 0; i < n; i++) {
        rows[i] += a->plan.rows_to[i];
    }
    return rows;
}

/* Mixtral's loss over the tokens of all layers: this layer's cells go to those before; the last one
 * makes the losses. */
static void add_to_all_layers(const moe_layer *layer,
                              const moe_context *context,
                              const moe_activations *a,
                              moe_layer_metrics *metrics) {
    moe_scopes *all = context->all_layers;
    if (!all) {
        return;
    }
    moe_scopes_add_layer(all, &a->scopes, layer->index == 0);
    if (layer->index + 1 < context->config->model.num_layers) {
        return;
    }
    moe_scopes_finish(all, context->comm, &context->balance, &context->placement, context->batch);
    metrics->allreduce_bytes += all->allreduce_bytes;
}

static void balance_losses(const moe_context *context,
                           moe_activations *a,
                           moe_layer_metrics *metrics) {
    int64_t *tokens_to = moe_rows_not_tokens(context)
                             ? NULL
                             : rows_before_dropping(context->batch, &context->placement, a);
    moe_scopes_reduce(&a->scopes, context->comm, &context->balance, &context->placement,
                      context->batch, &a->segments, tokens_to);
    moe_scratch_give(context->batch->scratch, tokens_to);
    metrics->total = 0;
    memcpy(metrics->loss_by_scope, a->scopes.loss, sizeof metrics->loss_by_scope);
    memcpy(metrics->ideal, a->scopes.ideal, sizeof metrics->ideal);
    for (int scope = 0; scope < MOE_NUM_SCOPES; scope++) {
        metrics->loss_by_scope[scope][MOE_LOSS_Z] =
            a->scopes.loss[MOE_SCOPE_GLOBAL][MOE_LOSS_Z]; /* a mean over tokens: one value */
    }
    for (int i = 0; i < MOE_NUM_LOSSES; i++) {
        metrics->loss_raw[i] = metrics->loss_by_scope[context->config->balance.scope][i];
        metrics->loss[i] =
            context->balance.alpha[i] != 0 ? context->balance.alpha[i] * metrics->loss_raw[i] : 0;
        metrics->total += metrics->loss[i];
    }
    metrics->allreduce_bytes = a->scopes.allreduce_bytes;
    const int64_t *tokens = moe_stats_device_tokens(&a->scopes.global, a->scopes.global.cell);
    memcpy(metrics->distinct_tokens_per_device, tokens,
           (size_t)context->batch->devices * sizeof *tokens);
}

/* --- forward --- */

static void add_shared(const moe_layer *layer,
                       const moe_context *context,
                       moe_activations *a,
                       real *y) {
    int64_t n = context->batch->num_tokens;
    int64_t h = context->config->model.hidden_size;
    int64_t f = layer->shared.width;
    if (layer->shared.count == 0) {
        return;
    }
    if (context->keep) {
        moe_reserve(&a->shared_h1, &a->shared_h1_room, n * f, sizeof(real), "shared experts");
        moe_reserve(&a->shared_h3, &a->shared_h3_room, n * f, sizeof(real), "shared experts");
    }
    moe_reserve(&a->shared_y, &a->shared_room, n * h, sizeof(real), "shared experts");
    for (int32_t j = 0; j < context->batch->num_local_devices; j++) {
        int64_t begin = context->batch->device_offset[j],
                rows = context->batch->device_offset[j + 1] - begin;
        moe_experts_shared_forward(&layer->shared, rows, a->x + begin * h, &a->buffers,
                                   context->keep ? a->shared_h1 + begin * f : NULL,
                                   context->keep ? a->shared_h3 + begin * f : NULL,
                                   a->shared_y + begin * h);
    }
    const uint8_t *routed = moe_batch_routed(context->batch);
    for (int64_t t = 0; t < n && routed; t++) {
        if (!routed[t]) {
            memset(a->shared_y + t * h, 0, (size_t)h * sizeof *a->shared_y);
        }
    }
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n * h; i++) {
        y[i] += a->shared_y[i];
    }
}

moe_span_rows moe_layer_rows(const moe_activations *a) {
    const moe_inbox *in = &a->exchange.inbox;
    return (moe_span_rows){a->plan.num_rows, in->num_rows, in->own_end - in->own_begin,
                           in->num_pairs};
}

typedef struct stopwatch {
    moe_timeline *timeline;
    moe_layer_metrics *metrics;
    int32_t layer;
    double time; /* when the last phase ended */
} stopwatch;

/* The time since the last phase is this one's. rows: NULL where it moves none. */
static void phase(stopwatch *w, enum moe_phase which, const moe_activations *rows) {
    double now = moe_comm_time();
    moe_span_rows moved = rows ? moe_layer_rows(rows) : (moe_span_rows){0};
    w->metrics->phase_seconds[which] = now - w->time;
    moe_timeline_add(w->timeline, which, w->layer, w->time, now, &moved);
    w->time = now;
}

void moe_layer_forward(const moe_layer *layer,
                       const moe_context *context,
                       const real *x,
                       real *y,
                       moe_activations *a,
                       moe_layer_metrics *metrics) {
    const moe_config *c = context->config;
    const moe_batch *b = context->batch;
    int64_t h = c->model.hidden_size;
    stopwatch watch = {context->timeline, metrics, layer->index, moe_comm_time()};
    a->layer_x = a->x = a->gate_x = x;
    if (layer->norm) {
        moe_reserve(&a->u, &a->u_room, b->num_tokens * h, sizeof(real), "normed x");
        moe_reserve(&a->inverse_rms, &a->rms_room, b->num_tokens, sizeof(double), "norms");
        moe_rmsnorm(x, layer->norm, b->num_tokens, h, a->u, a->inverse_rms);
        a->x = a->gate_x = a->u;
    }
    make_logits(layer, context, a);
    phase(&watch, MOE_PHASE_GATE, NULL);
    route(layer, context, a);
    drop(layer, context, a);
    phase(&watch, MOE_PHASE_ROUTE, NULL);
    moe_plan_build(&a->plan, c->exchange.mode, b, &context->placement, context->comm->size,
                   moe_sent_routing(a));
    phase(&watch, MOE_PHASE_PLAN, NULL);
    moe_exchange_dispatch(&a->exchange, context->comm, &a->plan, &context->placement, a->x, h,
                          b->num_tokens_global * moe_config_most_experts(c));
    phase(&watch, MOE_PHASE_DISPATCH, a);
    moe_experts_forward(&layer->experts, &a->exchange.inbox, &a->buffers, context->keep);
    phase(&watch, MOE_PHASE_EXPERT, a);
    moe_exchange_combine(&a->exchange, &a->plan, a->buffers.results, c->cluster.devices_per_node,
                         y);
    phase(&watch, MOE_PHASE_COMBINE, a);
    add_shared(layer, context, a, y);
    phase(&watch, MOE_PHASE_SHARED, NULL);
    balance_losses(context, a, metrics);
    add_to_all_layers(layer, context, a, metrics);
    phase(&watch, MOE_PHASE_BALANCE, NULL);
}

/* --- gradient of the losses with respect to the logits --- */

/* The loss over all layers is divided by their tokens: coefficients as if by those of segment i in
 * this layer. */
static void add_all_layers(const moe_context *context,
                           int64_t i,
                           double divisor,
                           double *coefficient) {
    double all;
    int64_t *cell = moe_scopes_cell(context->all_layers, context->config->balance.scope,
                                    context->batch, i, &all);
    moe_balance_add_all_layers(&context->balance, &context->all_layers->global, cell, divisor / all,
                               coefficient);
}

/* The coefficients of segment i, all losses that train. */
static void coefficients(const moe_context *context,
                         const moe_activations *a,
                         int64_t *cell,
                         int64_t i,
                         double divisor,
                         double *a3n) {
    moe_balance_coefficients(&context->balance, &context->placement, &a->scopes.global, cell, a3n);
    if (context->all_layers && context->balance.alpha_all_layers > 0) {
        add_all_layers(context, i, divisor, a3n);
    }
}

void moe_layer_dlogits(const moe_layer *layer,
                       const moe_context *context,
                       const moe_activations *a,
                       double *dlogits,
                       double *spread) {
    const moe_batch *b = context->batch;
    int64_t n = context->router.num_experts;
    double *coefficient = moe_scratch_take(b->scratch, MOE_COEFFICIENTS * n, sizeof *coefficient,
                                           "loss coefficients");
    int64_t counted = a->scopes.global.cell[MOE_STAT_TOKENS];
    bool load = context->balance.alpha[MOE_LOSS_LOAD] != 0 &&
                context->balance.load_form == MOE_LOAD_SHAZEER;
    const moe_noisy *noisy = context->trains ? &a->noisy : NULL;
    if (b->num_tokens > 0) {
        memset(dlogits, 0, (size_t)(b->num_tokens * n) * sizeof *dlogits);
    }
    if (b->num_tokens > 0 && spread) {
        memset(spread, 0, (size_t)(b->num_tokens * n) * sizeof *spread);
    }
    for (int64_t i = 0; i < b->num_segments; i++) {
        double divisor;
        int64_t *cell = moe_scopes_cell(&a->scopes, context->config->balance.scope, b, i, &divisor);
        if (divisor == 0) {
            continue;
        }
        coefficients(context, a, cell, i, divisor, coefficient);
        moe_loss_coefficients all = {.a = coefficient,
                                     .inverse_tokens = 1 / divisor,
                                     .alpha_z = context->balance.alpha[MOE_LOSS_Z],
                                     .inverse_counted = 1 / (double)counted};
        moe_loss_gradient(&layer->router, b, a->logits, &a->routing, b->segment[i].begin,
                          b->segment[i].end, &all, dlogits);
        if (load) {
            moe_smooth_load_gradient(&layer->router, noisy, b, a->logits, &a->routing,
                                     b->segment[i].begin, b->segment[i].end, coefficient + 2 * n,
                                     1 / divisor, dlogits, spread);
        }
    }
    moe_scratch_give(b->scratch, coefficient);
}

void moe_activations_free(moe_activations *a) {
    moe_free(a->u);
    moe_free(a->inverse_rms);
    moe_free(a->gate_logits);
    moe_free(a->jittered);
    moe_free(a->clean);
    moe_free(a->v);
    moe_routing_free(&a->routing);
    moe_drop_free(&a->drop);
    moe_stats_free(&a->segments);
    moe_scopes_free(&a->scopes);
    moe_plan_free(&a->plan);
    moe_exchange_free(&a->exchange);
    moe_expert_buffers_free(&a->buffers);
    moe_free(a->shared_y);
    moe_free(a->shared_h1);
    moe_free(a->shared_h3);
    *a = (moe_activations){0};
}
