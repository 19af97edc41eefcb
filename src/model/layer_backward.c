/* backward.c: the gradient of one MoE layer, in the order of forward reversed. */
#include "model/layer_backward.h"

#include <stdio.h>
#include <string.h>

#include "base/gemm.h"
#include "model/norm.h"
#include "router/noise.h"
#include "router/weight_gradient.h"

/* --- the table of parameters --- */

static int add_replicated(
    moe_parameters *all, int32_t layer, const char *what, bool decay, int64_t size, real *value) {
    char name[64];
    if (!value) {
        return -1;
    }
    snprintf(name, sizeof name, "layer%d.%s", layer, what);
    return moe_parameters_add(all, name, decay, size, value);
}

/* A matrix [rows, columns] of each local expert. */
static int add_experts(moe_parameters *all,
                       int32_t layer,
                       const char *what,
                       int64_t rows,
                       int64_t columns,
                       const moe_ffn *f,
                       const moe_context *context,
                       real *value) {
    char name[64];
    const moe_placement *p = &context->placement;
    if (!value) {
        return -1;
    }
    snprintf(name, sizeof name, "layer%d.experts.%s", layer, what);
    return moe_parameters_add_experts(
        all, name, f->count, p->num_experts, rows * columns,
        p->expert_at + (int64_t)context->batch->first_device * p->slots_per_device, value);
}

moe_layer_slots moe_layer_register(const moe_layer *layer,
                                   const moe_context *context,
                                   moe_parameters *all) {
    int32_t i = layer->index;
    const moe_ffn *e = &layer->experts;
    int64_t h = e->hidden;
    int64_t f = e->width;
    int64_t r = e->rank;
    int64_t shared = layer->shared.hidden * layer->shared.width;
    bool frozen = r > 0;
    return (moe_layer_slots){
        .gate = add_replicated(all, i, "gate", true, h * context->config->model.num_experts,
                               layer->gate),
        .gate_noise = add_replicated(all, i, "gate_noise", true,
                                     h * context->config->model.num_experts, layer->gate_noise),
        .norm = add_replicated(all, i, "norm", false, h, layer->norm),
        .w1 = add_experts(all, i, "w1", f, h, e, context, frozen ? NULL : e->w1),
        .w2 = add_experts(all, i, "w2", h, f, e, context, frozen ? NULL : e->w2),
        .w3 = add_experts(all, i, "w3", f, h, e, context, frozen ? NULL : e->w3),
        .a1 = add_experts(all, i, "a1", r, h, e, context, e->a1),
        .a2 = add_experts(all, i, "a2", r, f, e, context, e->a2),
        .a3 = add_experts(all, i, "a3", r, h, e, context, e->a3),
        .b1 = add_experts(all, i, "b1", f, r, e, context, e->b1),
        .b2 = add_experts(all, i, "b2", h, r, e, context, e->b2),
        .b3 = add_experts(all, i, "b3", f, r, e, context, e->b3),
        .shared_w1 = add_replicated(all, i, "shared.w1", true, shared, layer->shared.w1),
        .shared_w2 = add_replicated(all, i, "shared.w2", true, shared, layer->shared.w2),
        .shared_w3 = add_replicated(all, i, "shared.w3", true, shared, layer->shared.w3),
    };
}

static real *gradient_of(const moe_parameters *all, int slot) {
    return slot < 0 ? NULL : all->p[slot].gradient;
}
static real *partial_of(const moe_parameters *all, int slot, int32_t j) {
    return slot < 0 ? NULL : all->p[slot].partial + j * all->p[slot].size;
}

/* --- experts: dW, dx of the routed path, dg --- */

const moe_routing *moe_weights_routing(const moe_activations *a) {
    return a->drop.on && a->drop.reweighted ? &a->drop.sent : &a->routing;
}

static void routed_backward(const moe_layer *layer,
                            const moe_layer_slots *slots,
                            const moe_context *context,
                            moe_activations *a,
                            moe_parameters *all,
                            const real *dy,
                            moe_backward *b) {
    moe_ffn_gradient g = {.w1 = gradient_of(all, slots->w1),
                          .w3 = gradient_of(all, slots->w3),
                          .w2 = gradient_of(all, slots->w2),
                          .a1 = gradient_of(all, slots->a1),
                          .a3 = gradient_of(all, slots->a3),
                          .a2 = gradient_of(all, slots->a2),
                          .b1 = gradient_of(all, slots->b1),
                          .b3 = gradient_of(all, slots->b3),
                          .b2 = gradient_of(all, slots->b2)};
    moe_timeline *t = context->timeline;
    moe_span_rows rows = moe_layer_rows(a);
    double start = moe_comm_time(), sent, computed;
    moe_exchange_dispatch_gradient(&a->exchange, &a->plan, dy);
    moe_timeline_add(t, MOE_SPAN_DISPATCH_BACKWARD, layer->index, start, sent = moe_comm_time(),
                     &rows);
    moe_experts_backward(&layer->experts, &g, &a->exchange.inbox, &a->buffers, context->keep);
    moe_timeline_add(t, MOE_SPAN_EXPERT_BACKWARD, layer->index, sent, computed = moe_comm_time(),
                     &rows);
    moe_exchange_combine(&a->exchange, &a->plan, a->buffers.results,
                         context->config->cluster.devices_per_node, b->du);
    moe_reserve_varying(&b->pairs, &b->pairs_room, a->plan.num_pairs, sizeof(real),
                        "gradients of the weights");
    moe_reserve_varying(&b->dg, &b->dg_room, moe_weights_routing(a)->num_selections, sizeof(real),
                        "gradients of the weights");
    moe_exchange_return_pairs(&a->exchange, &a->plan, a->buffers.dg, b->pairs);
    bool apart = moe_weights_routing(a) != moe_sent_routing(a);
    for (int64_t i = 0; i < moe_weights_routing(a)->num_selections; i++) {
        b->dg[i] = 0;
    }
    for (int64_t p = 0; p < a->plan.num_pairs; p++) {
        int64_t i = a->plan.pair_selection[p];
        b->dg[apart ? a->drop.selection[i] : i] = b->pairs[p];
    }
    moe_timeline_add(t, MOE_SPAN_COMBINE_BACKWARD, layer->index, computed, moe_comm_time(), &rows);
}

/* --- router and gate --- */

/* dlogits = d(sum alpha L)/dz + d<y, dy>/dz through the combine weights. */
static void logits_gradient(const moe_layer *layer,
                            const moe_context *context,
                            const moe_activations *a,
                            moe_backward *b) {
    int64_t n = context->batch->num_tokens * context->router.num_experts;
    moe_reserve(&b->dlogits, &b->dlogits_room, n, sizeof(double), "gradient of the logits");
    moe_reserve(&b->dz, &b->dz_room, n, sizeof(real), "gradient of the logits");
    if (layer->gate_noise) {
        moe_reserve(&b->spread, &b->spread_room, n, sizeof(double), "gradient of the noise");
    }
    moe_layer_dlogits(layer, context, a, b->dlogits, layer->gate_noise ? b->spread : NULL);
    moe_weight_gradient(&layer->router, a->logits, moe_weights_routing(a), b->dg, b->dlogits);
    for (int64_t i = 0; i < n; i++) {
        b->dz[i] = (real)b->dlogits[i];
    }
}

/* Of v = u Wn^T, where noise was added. */
static bool noise_gradient(const moe_layer *layer,
                           const moe_context *context,
                           const moe_activations *a,
                           moe_backward *b) {
    const moe_router *r = &layer->router;
    moe_draw draw = moe_layer_draw(layer, context);
    if (!layer->gate_noise || !context->trains) {
        return false;
    }
    moe_reserve(&b->dv, &b->dv_room, context->batch->num_tokens * r->num_experts, sizeof(real),
                "gradient of the noise");
    moe_noise_learned_gradient(r, &draw, context->batch, a->v, b->dlogits, b->spread, b->dv);
    return true;
}

/* Where the gradient of what the gate read goes: with jitter apart, as it still has to go through
 * it. */
static real *gate_dx(const moe_context *context, const moe_activations *a, moe_backward *b) {
    int64_t n = context->batch->num_tokens * context->config->model.hidden_size;
    if (a->gate_x == a->x) {
        return b->du;
    }
    moe_reserve(&b->gate_dx, &b->gate_room, n, sizeof(real), "gradient of the layer's input");
    if (n > 0) {
        memset(b->gate_dx, 0, (size_t)n * sizeof(real));
    }
    return b->gate_dx;
}

/* Jitter multiplies: by the same factors the other way, of the gate's input alone or of everything
 * that was read. */
static void jitter_backward(const moe_layer *layer,
                            const moe_context *context,
                            const moe_activations *a,
                            moe_backward *b) {
    const moe_router *r = &layer->router;
    moe_draw draw = moe_layer_draw(layer, context);
    int64_t h = context->config->model.hidden_size;
    if (!moe_noise_jitters(r, &draw) || !layer->gate) {
        return;
    }
    if (a->gate_x == a->x) {
        moe_noise_jitter(r, &draw, context->batch, h, b->du, b->du);
        return;
    }
    moe_noise_jitter(r, &draw, context->batch, h, b->gate_dx, b->gate_dx);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < context->batch->num_tokens * h; i++) {
        b->du[i] += b->gate_dx[i];
    }
}

/* logits = u Wg^T:  dWg += dz^T u (one GEMM per device), du += dz Wg; the same of v and Wn. */
static void gate_backward(const moe_layer *layer,
                          const moe_layer_slots *slots,
                          const moe_context *context,
                          const moe_activations *a,
                          moe_parameters *all,
                          moe_backward *b) {
    int64_t h = context->config->model.hidden_size, n = context->router.num_experts;
    if (!layer->gate) {
        return;
    }
    bool noise = noise_gradient(layer, context, a, b);
    real *du = gate_dx(context, a, b);
#pragma omp parallel for schedule(dynamic)
    for (int32_t j = 0; j < context->batch->num_local_devices; j++) {
        int64_t begin = context->batch->device_offset[j],
                rows = context->batch->device_offset[j + 1] - begin;
        moe_gemm_tn(n, h, rows, b->dz + begin * n, a->gate_x + begin * h, 1,
                    partial_of(all, slots->gate, j));
        moe_gemm_nn(rows, h, n, b->dz + begin * n, layer->gate, 1, du + begin * h);
        if (!noise) {
            continue;
        }
        moe_gemm_tn(n, h, rows, b->dv + begin * n, a->gate_x + begin * h, 1,
                    partial_of(all, slots->gate_noise, j));
        moe_gemm_nn(rows, h, n, b->dv + begin * n, layer->gate_noise, 1, du + begin * h);
    }
}

/* --- shared experts and norm --- */

static void shared_backward(const moe_layer *layer,
                            const moe_layer_slots *slots,
                            const moe_context *context,
                            moe_activations *a,
                            moe_parameters *all,
                            const real *dy,
                            moe_backward *b) {
    int64_t h = context->config->model.hidden_size;
    int64_t f = layer->shared.width;
    int64_t n = context->batch->num_tokens * h;
    if (layer->shared.count == 0) {
        return;
    }
    moe_reserve(&b->shared_dx, &b->shared_room, n, sizeof(real), "gradient of the shared experts");
    for (int32_t j = 0; j < context->batch->num_local_devices; j++) {
        int64_t begin = context->batch->device_offset[j],
                rows = context->batch->device_offset[j + 1] - begin;
        moe_ffn_gradient g = {.w1 = partial_of(all, slots->shared_w1, j),
                              .w3 = partial_of(all, slots->shared_w3, j),
                              .w2 = partial_of(all, slots->shared_w2, j)};
        moe_experts_shared_backward(&layer->shared, &g, rows, a->x + begin * h,
                                    context->keep ? a->shared_h1 + begin * f : NULL,
                                    context->keep ? a->shared_h3 + begin * f : NULL, dy + begin * h,
                                    &a->buffers, b->shared_dx + begin * h);
    }
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        b->du[i] += b->shared_dx[i];
    }
}

static void norm_backward(const moe_layer *layer,
                          const moe_layer_slots *slots,
                          const moe_context *context,
                          const moe_activations *a,
                          moe_parameters *all,
                          const moe_backward *b,
                          real *dx) {
    int64_t h = context->config->model.hidden_size, tokens = context->batch->num_tokens;
    if (!layer->norm) {
        memcpy(dx, b->du, (size_t)(tokens * h) * sizeof(real));
        return;
    }
    for (int32_t j = 0; j < context->batch->num_local_devices; j++) {
        int64_t begin = context->batch->device_offset[j],
                rows = context->batch->device_offset[j + 1] - begin;
        moe_rmsnorm_weight_gradient(a->layer_x + begin * h, a->inverse_rms + begin,
                                    b->du + begin * h, rows, h, partial_of(all, slots->norm, j));
    }
    moe_rmsnorm_backward(a->layer_x, layer->norm, a->inverse_rms, b->du, tokens, h, dx);
}

/* Bytes of backward: dy and dx travel along the same rows as x and y; dg returns as metadata. */
static void backward_volume(moe_layer_metrics *metrics) {
    int64_t pair_bytes = (int64_t)sizeof(real);
    metrics->volume[MOE_DISPATCH_BACKWARD] = metrics->volume[MOE_COMBINE];
    metrics->volume[MOE_COMBINE_BACKWARD] = metrics->volume[MOE_COMBINE];
    moe_volume *v = &metrics->volume[MOE_COMBINE_BACKWARD];
    v->metadata_bytes = 0;
    for (int level = 0; level < MOE_NUM_LEVELS; level++) {
        v->by_level[level].metadata_bytes = metrics->pairs_by_level[level] * pair_bytes;
        v->metadata_bytes += v->by_level[level].metadata_bytes;
    }
}

void moe_layer_backward(const moe_layer *layer,
                        const moe_layer_slots *slots,
                        const moe_context *context,
                        moe_activations *a,
                        moe_parameters *all,
                        const real *dy,
                        moe_backward *b,
                        real *dx,
                        moe_layer_metrics *metrics) {
    int64_t n = context->batch->num_tokens * context->config->model.hidden_size;
    moe_timeline *t = context->timeline;
    double start = moe_comm_time(), routed, gated, end;
    int64_t whole = moe_timeline_begin(t, MOE_PHASE_BACKWARD, layer->index, start);
    moe_reserve(&b->du, &b->du_room, n, sizeof(real), "gradient of the layer's input");
    routed_backward(layer, slots, context, a, all, dy, b);
    routed = moe_comm_time();
    logits_gradient(layer, context, a, b);
    gate_backward(layer, slots, context, a, all, b);
    moe_timeline_add(t, MOE_SPAN_ROUTER_BACKWARD, layer->index, routed, gated = moe_comm_time(),
                     NULL);
    shared_backward(layer, slots, context, a, all, dy, b);
    jitter_backward(layer, context, a, b);
    norm_backward(layer, slots, context, a, all, b, dx);
    backward_volume(metrics);
    moe_timeline_add(t, MOE_SPAN_SHARED_BACKWARD, layer->index, gated, end = moe_comm_time(), NULL);
    moe_timeline_end(t, whole, end);
    metrics->phase_seconds[MOE_PHASE_BACKWARD] = end - start;
}

void moe_backward_free(moe_backward *b) {
    moe_free(b->dlogits);
    moe_free(b->dz);
    moe_free(b->spread);
    moe_free(b->dv);
    moe_free(b->gate_dx);
    moe_free(b->dg);
    moe_free(b->pairs);
    moe_free(b->du);
    moe_free(b->shared_dx);
    *b = (moe_backward){0};
}
