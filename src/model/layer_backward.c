/* layer_backward.c: the gradient of one MoE layer: layer_forward.c read from its end.
 * moe_layer_backward, at the end of this file, is the order. X_backward is the transpose of
 * X_forward or of the step of the exchange that is called X.
 *
 *   combine    y = sum g FFN(u)        the rows of dy go to the experts, as the rows of x went
 *   experts    FFN(u)                  dW, dg = <FFN(u), dy>, du of every pair
 *   dispatch   a row for each device   du = sum of what the rows bring back
 *   router     g from the logits       dlogits from dg, and from the balance losses
 *   gate       logits = u Wg^T         dWg, du
 *   norm       u from x                dw, dx
 *
 * The transpose of combine sends rows as dispatch does, and the transpose of dispatch adds rows up
 * as combine does. The timeline and the volumes name what moves: "dispatch backward" is the way of
 * dy to the experts, "combine backward" the way of dx and dg back.
 *
 * The shared experts stand beside the routed path; their part of du is added after the gate's. */
#include <string.h>

#include "base/gemm.h"
#include "base/norm.h"
#include "model/layer.h"
#include "router/noise.h"
#include "router/weight_gradient.h"

/* What the steps of backward share. */
typedef struct pass {
    const moe_layer *layer;
    const moe_layer_indices *indices;
    const moe_context *context;
    moe_activations *a;
    moe_parameters *all;
    moe_backward *b;
    moe_draw draw;
    int64_t hidden, num_experts;
} pass;

/* The partial of local device j of a replicated parameter. */
static real *partial_of(const pass *p, int index, int32_t j) {
    return index < 0 ? NULL : p->all->p[index].partial + j * p->all->p[index].size;
}

static void reserve(const pass *p) {
    const moe_activations *a = p->a;
    moe_backward *b = p->b;
    int64_t tokens = p->context->batch->num_tokens;
    int64_t hidden = tokens * p->hidden, logits = tokens * p->num_experts;
    bool noise = p->layer->gate_noise != NULL;
    moe_block_array by_token[] = {
        MOE_ARRAY(b->dlogits, logits),
        MOE_ARRAY(b->dz, logits),
        MOE_ARRAY(b->spread, noise ? logits : 0),
        MOE_ARRAY(b->dv, noise ? logits : 0),
        MOE_ARRAY(b->gate_dx, a->gate_x != a->x ? hidden : 0),
        MOE_ARRAY(b->du, hidden),
        MOE_ARRAY(b->shared_dx, p->layer->shared.count ? hidden : 0),
    };
    moe_block_array by_pair[] = {
        MOE_ARRAY(b->dg, moe_activations_weighted(a)->num_selections),
        MOE_ARRAY(b->dg_by_pair, a->plan.num_pairs),
    };
    moe_block_reserve(&b->block, by_token, MOE_ARRAYS(by_token), "gradients of the activations");
    moe_block_reserve_varying(&b->pair_block, by_pair, MOE_ARRAYS(by_pair),
                              "gradients of the weights");
}

void moe_backward_free(moe_backward *b) {
    moe_block_free(&b->block);
    moe_block_free(&b->pair_block);
    *b = (moe_backward){0};
}

/* --- combine, experts, dispatch --- */

/* Where the gradients of an expert parameter go. */
static real *gradient_of(const pass *p, int index, bool *replace) {
    return index < 0 ? NULL : moe_parameters_expert_gradient(p->all, index, replace);
}

/* Where those of all experts go, in all chunks: asking for them says once whether they are the
 * first ones of the step. */
static moe_ffn_gradient expert_gradients(const pass *p) {
    const moe_layer_indices *s = p->indices;
    bool replace = false;
    moe_ffn_gradient g = {.w1 = gradient_of(p, s->w1, &replace),
                          .w3 = gradient_of(p, s->w3, &replace),
                          .w2 = gradient_of(p, s->w2, &replace),
                          .a1 = gradient_of(p, s->a1, &replace),
                          .a3 = gradient_of(p, s->a3, &replace),
                          .a2 = gradient_of(p, s->a2, &replace),
                          .b1 = gradient_of(p, s->b1, &replace),
                          .b3 = gradient_of(p, s->b3, &replace),
                          .b2 = gradient_of(p, s->b2, &replace)};
    g.replace = replace;
    return g;
}

/* dg in the order of the routing whose weights were made from the scores: 0 where a pair was
 * dropped. */
static void order_dg(const pass *p) {
    const moe_activations *a = p->a;
    const moe_routing *weighted = moe_activations_weighted(a);
    bool apart = weighted != moe_activations_sent(a);
    for (int64_t i = 0; i < weighted->num_selections; i++) {
        p->b->dg[i] = 0;
    }
    for (int64_t pair = 0; pair < a->plan.num_pairs; pair++) {
        int64_t i = a->plan.pair_selection[pair];
        p->b->dg[apart ? a->drop.selection[i] : i] = p->b->dg_by_pair[pair];
    }
}

/* What the experts of a chunk made travels; after the last one it is added up. */
static void dispatch_backward(const pass *p, int32_t chunk) {
    moe_activations *a = p->a;
    moe_exchange_return(&a->exchange, chunk, a->buffers.results);
    if (chunk + 1 < a->exchange.inbox.chunks) {
        return;
    }
    moe_exchange_combine(&a->exchange, &a->plan, a->buffers.results,
                         p->context->config->cluster.devices_per_node, p->b->du);
    moe_exchange_return_pairs(&a->exchange, &a->plan, a->buffers.dg, p->b->dg_by_pair);
    order_dg(p);
}

/* --- router --- */

/* dlogits = d(sum alpha L)/dz + d<y, dy>/dz through the combine weights. */
static void router_backward(const pass *p) {
    moe_backward *b = p->b;
    int64_t n = p->context->batch->num_tokens * p->num_experts;
    moe_layer_dlogits(p->layer, p->context, p->a, b->dlogits, b->spread);
    moe_weight_gradient(&p->layer->router, p->a->logits, moe_activations_weighted(p->a),
                        moe_activations_servers(p->a), b->dg, b->dlogits);
    for (int64_t i = 0; i < n; i++) {
        b->dz[i] = (real)b->dlogits[i];
    }
}

/* --- gate --- */

/* dv of v = u W_noise^T; false where no noise was added. */
static bool noise_backward(const pass *p) {
    if (!p->layer->gate_noise || !p->context->trains) {
        return false;
    }
    moe_noise_learned_gradient(&p->layer->router, &p->draw, p->context->batch, p->a->v,
                               p->b->dlogits, p->b->spread, p->b->dv);
    return true;
}

/* Where the gradient of what the gate read goes: apart where jitter still has to be undone. */
static real *gradient_of_gate_x(const pass *p) {
    int64_t n = p->context->batch->num_tokens * p->hidden;
    if (p->a->gate_x == p->a->x) {
        return p->b->du;
    }
    if (n > 0) {
        memset(p->b->gate_dx, 0, (size_t)n * sizeof(real));
    }
    return p->b->gate_dx;
}

/* logits = u Wg^T: dWg += dz^T u with one GEMM a device, du += dz Wg; the same of v and W_noise. */
static void gate_backward(const pass *p) {
    const moe_batch *batch = p->context->batch;
    const moe_layer *layer = p->layer;
    int64_t h = p->hidden, n = p->num_experts;
    if (!layer->gate) {
        return;
    }
    bool noise = noise_backward(p);
    real *du = gradient_of_gate_x(p);
#pragma omp parallel for schedule(dynamic)
    for (int32_t j = 0; j < batch->num_local_devices; j++) {
        int64_t begin = batch->device_offset[j], rows = batch->device_offset[j + 1] - begin;
        const real *x = p->a->gate_x + begin * h;
        moe_gemm_tn(n, h, rows, p->b->dz + begin * n, x, 1, partial_of(p, p->indices->gate, j));
        moe_gemm_nn(rows, h, n, p->b->dz + begin * n, layer->gate, 1, du + begin * h);
        if (noise) {
            const real *dv = p->b->dv + begin * n;
            moe_gemm_tn(n, h, rows, dv, x, 1, partial_of(p, p->indices->gate_noise, j));
            moe_gemm_nn(rows, h, n, dv, layer->gate_noise, 1, du + begin * h);
        }
    }
}

/* Jitter multiplies: by the same factors the other way, for the gate's input alone or for all that
 * was read. */
static void jitter_backward(const pass *p) {
    const moe_router *r = &p->layer->router;
    const moe_batch *batch = p->context->batch;
    if (!moe_noise_jitters(r, &p->draw) || !p->layer->gate) {
        return;
    }
    if (p->a->gate_x == p->a->x) {
        moe_noise_jitter(r, &p->draw, batch, p->hidden, p->b->du, p->b->du);
        return;
    }
    moe_noise_jitter(r, &p->draw, batch, p->hidden, p->b->gate_dx, p->b->gate_dx);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < batch->num_tokens * p->hidden; i++) {
        p->b->du[i] += p->b->gate_dx[i];
    }
}

/* --- shared experts --- */

static void shared_backward(const pass *p, const real *dy) {
    const moe_batch *batch = p->context->batch;
    moe_activations *a = p->a;
    bool keep = p->context->keep;
    int64_t h = p->hidden, f = p->layer->shared.width;
    if (p->layer->shared.count == 0) {
        return;
    }
    for (int32_t j = 0; j < batch->num_local_devices; j++) {
        int64_t begin = batch->device_offset[j], rows = batch->device_offset[j + 1] - begin;
        moe_ffn_gradient g = {.w1 = partial_of(p, p->indices->shared_w1, j),
                              .w3 = partial_of(p, p->indices->shared_w3, j),
                              .w2 = partial_of(p, p->indices->shared_w2, j)};
        moe_experts_shared_backward(&p->layer->shared, &g, rows, a->x + begin * h,
                                    keep ? a->shared_h1 + begin * f : NULL,
                                    keep ? a->shared_h3 + begin * f : NULL, dy + begin * h,
                                    &a->buffers, p->b->shared_dx + begin * h);
    }
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < batch->num_tokens * h; i++) {
        p->b->du[i] += (real)p->layer->shared_copies * p->b->shared_dx[i];
    }
}

/* --- norm --- */

static void norm_backward(const pass *p, real *dx) {
    const moe_batch *batch = p->context->batch;
    const moe_activations *a = p->a;
    int64_t h = p->hidden;
    if (!p->layer->norm) {
        if (batch->num_tokens > 0) {
            memcpy(dx, p->b->du, (size_t)(batch->num_tokens * h) * sizeof(real));
        }
        return;
    }
    for (int32_t j = 0; j < batch->num_local_devices; j++) {
        int64_t begin = batch->device_offset[j], rows = batch->device_offset[j + 1] - begin;
        moe_rmsnorm_weight_gradient(a->layer_x + begin * h, a->inverse_rms + begin,
                                    p->b->du + begin * h, rows, h,
                                    partial_of(p, p->indices->norm, j));
    }
    moe_rmsnorm_backward(a->layer_x, p->layer->norm, a->inverse_rms, p->b->du, batch->num_tokens, h,
                         dx);
}

/* --- the layer --- */

/* The same rows as those of v, with another number of bytes each, and pair_bytes of metadata for
 * each of their pairs. */
static moe_volume same_rows(const moe_volume *v,
                            const moe_layer_metrics *metrics,
                            int64_t row_bytes,
                            int64_t pair_bytes) {
    moe_volume out = {0};
    for (int i = 0; i < MOE_NUM_LEVELS; i++) {
        const enum moe_level level = i;
        for (int hop = 0; hop < MOE_MOST_HOPS; hop++) {
            moe_volume_add_rows(&out, hop, level, v->by_hop[hop][level].rows, row_bytes,
                                metrics->pairs[hop][level] * pair_bytes);
        }
        moe_volume_compare(&out, level, v->selection[level].rows, v->token[level].rows, row_bytes);
    }
    return out;
}

/* dy and dx travel along the same rows as x and y. Nothing else goes with dy, since the experts
 * still have the pairs of the forward pass; dg returns beside dx, as metadata. */
static void backward_volume(const moe_config *c, moe_layer_metrics *metrics) {
    const int64_t bytes = moe_payload_bytes(moe_payload_of_combine(c), c->model.hidden_size);
    moe_volume *v = metrics->volume;
    v[MOE_DISPATCH_BACKWARD] = same_rows(&v[MOE_DISPATCH], metrics, bytes, 0);
    v[MOE_COMBINE_BACKWARD] = same_rows(&v[MOE_COMBINE], metrics, bytes, (int64_t)sizeof(real));
}

/* Adds the span from *begin until now to the timeline, and begins the next one. */
static void span(const pass *p, enum moe_span_kind kind, const moe_span_rows *rows, double *begin) {
    double now = moe_comm_time();
    moe_timeline_add(p->context->timeline, kind, p->layer->depth, *begin, now, rows);
    *begin = now;
}

/* The transposes of combine, experts and dispatch, chunk by chunk. */
static void routed_backward(const pass *p, const real *dy, double *begin) {
    moe_exchange *e = &p->a->exchange;
    const moe_ffn_gradient gradients = expert_gradients(p);
    const moe_experts_pause pause = moe_activations_pause(p->a);
    moe_exchange_dispatch_gradient(e, &p->a->plan, dy);
    for (int32_t chunk = 0; chunk < e->inbox.chunks; chunk++) {
        const moe_span_rows rows = moe_activations_rows(p->a, chunk);
        moe_exchange_receive(e, &p->a->plan, chunk);
        span(p, MOE_SPAN_DISPATCH_BACKWARD, &rows, begin);
        moe_experts_backward(&p->layer->experts, &gradients, &e->inbox, chunk, &p->a->buffers,
                             p->context->keep, &pause);
        span(p, MOE_SPAN_EXPERT_BACKWARD, &rows, begin);
        dispatch_backward(p, chunk);
        span(p, MOE_SPAN_COMBINE_BACKWARD, &rows, begin);
    }
}

void moe_layer_backward(const moe_layer *layer,
                        const moe_layer_indices *indices,
                        const moe_context *context,
                        moe_activations *a,
                        moe_parameters *all,
                        const real *dy,
                        moe_backward *b,
                        real *dx,
                        moe_layer_metrics *metrics) {
    const pass p = {.layer = layer,
                    .indices = indices,
                    .context = context,
                    .a = a,
                    .all = all,
                    .b = b,
                    .draw = moe_layer_draw(layer, context),
                    .hidden = context->config->model.hidden_size,
                    .num_experts = context->router.num_experts};
    double start = moe_comm_time(), begin = start;
    int64_t whole =
        moe_timeline_begin(context->timeline, (int)MOE_PHASE_BACKWARD, layer->depth, start);
    reserve(&p);
    routed_backward(&p, dy, &begin);
    router_backward(&p);
    gate_backward(&p);
    span(&p, MOE_SPAN_ROUTER_BACKWARD, NULL, &begin);
    shared_backward(&p, dy);
    jitter_backward(&p);
    norm_backward(&p, dx);
    backward_volume(context->config, metrics);
    span(&p, MOE_SPAN_SHARED_BACKWARD, NULL, &begin);
    moe_timeline_end(context->timeline, whole, begin);
    moe_activations_flights(a, context, layer->depth, true, metrics);
    metrics->phase_seconds[MOE_PHASE_BACKWARD] = begin - start;
}
