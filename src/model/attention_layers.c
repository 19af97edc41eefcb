/* attention_layers.c: the attention of all layers of a stack. */
#include "model/attention_layers.h"

#include <stdio.h>

/* --- setting up --- */

static void allocate_sums(moe_attention_layers *a, bool keep_inputs) {
    const moe_batch *batch = a->context->batch;
    a->sum = moe_alloc(a->num_layers, sizeof *a->sum, "inputs of the layers");
    for (int32_t l = 0; l < a->num_layers; l++) {
        const bool own = l == 0 || keep_inputs;
        a->sum[l] = own ? moe_alloc(batch->num_tokens * a->shape.hidden, sizeof(real),
                                    "inputs of the layers")
                        : a->sum[0];
    }
}

void moe_attention_layers_init(moe_attention_layers *a,
                               const moe_context *context,
                               bool keep_inputs) {
    const moe_config *c = context->config;
    *a = (moe_attention_layers){.context = context};
    if (c->model.attention == MOE_ATTENTION_NONE) {
        return;
    }
    a->shape = moe_attention_shape_of(c);
    a->num_layers = c->model.num_layers;
    a->layer = moe_alloc(a->num_layers, sizeof *a->layer, "attention");
    for (int32_t l = 0; l < a->num_layers; l++) {
        moe_attention_init(&a->layer[l], &a->shape, c->run.seed, l);
    }
    a->num_activations = keep_inputs && !c->train.recompute ? a->num_layers : 1;
    a->activations = moe_alloc_zero(a->num_activations, sizeof *a->activations, "attention");
    moe_attention_work_init(&a->work, &a->shape, context->batch->sequence_length);
    allocate_sums(a, keep_inputs);
}

void moe_attention_layers_free(moe_attention_layers *a) {
    for (int32_t l = a->num_layers - 1; l >= 0; l--) {
        moe_attention_free(&a->layer[l]);
        if (l == 0 || a->sum[l] != a->sum[0]) {
            moe_free(a->sum[l]);
        }
    }
    for (int32_t i = 0; i < a->num_activations; i++) {
        moe_attention_activations_free(&a->activations[i]);
    }
    moe_attention_work_free(&a->work);
    moe_attention_cache_free(&a->cache);
    moe_attention_decode_work_free(&a->decode_work);
    moe_free(a->layer);
    moe_free(a->activations);
    moe_free(a->sum);
    moe_free(a->index);
    *a = (moe_attention_layers){0};
}

void moe_attention_layers_remember(moe_attention_layers *a, int64_t places) {
    if (a->num_layers == 0) {
        return;
    }
    moe_attention_cache_init(&a->cache, &a->shape, a->num_layers, a->context->batch->num_segments,
                             places);
    moe_attention_work_free(&a->work);
    moe_attention_work_init(&a->work, &a->shape, places);
}

void moe_attention_layers_register(moe_attention_layers *a, int32_t l, moe_parameters *parameters) {
    if (a->num_layers == 0) {
        return;
    }
    if (!a->index) {
        a->parameters = parameters;
        a->index = moe_alloc(a->num_layers, sizeof *a->index, "table of parameters");
    }
    for (int i = 0; i < MOE_ATTENTION_TENSORS; i++) {
        char name[64];
        const moe_attention_tensor_shape t =
            moe_attention_tensor_of(&a->shape, (enum moe_attention_tensor)i);
        snprintf(name, sizeof name, "layer%d.attention.%s", l, t.name);
        a->index[l][i] = -1;
        if (t.rows > 0) {
            a->index[l][i] =
                moe_parameters_add(parameters, name, !t.norm, t.rows * t.columns, a->layer[l].w[i]);
            parameters->p[a->index[l][i]].columns = t.norm ? 0 : t.columns;
        }
    }
}

/* --- forward and backward --- */

static moe_attention_activations *activations_of(const moe_attention_layers *a, int32_t l) {
    return &a->activations[l % a->num_activations];
}

static void add_span(const moe_attention_layers *a,
                     enum moe_span_kind kind,
                     int32_t l,
                     double begin) {
    moe_timeline_add(a->context->timeline, kind, l, begin, moe_comm_time(), NULL);
}

/* y = the attention of layer l, without the residual. */
static void attend(moe_attention_layers *a, int32_t l, const real *x, real *y) {
    const moe_batch *batch = a->context->batch;
    if (a->decodes) {
        moe_attention_decode(&a->shape, &a->layer[l], &a->work.rotary, &a->cache, l, x,
                             &a->decode_work, y);
        return;
    }
    moe_attention_forward(&a->shape, &a->layer[l], batch, x, activations_of(a, l), &a->work, y);
    if (a->cache.num_layers > 0) {
        moe_attention_cache_fill(&a->cache, &a->shape, l, batch, activations_of(a, l), &a->work);
    }
}

const real *moe_attention_layers_forward(moe_attention_layers *a, int32_t l, const real *x) {
    if (a->num_layers == 0) {
        return x;
    }
    const moe_batch *batch = a->context->batch;
    const double begin = moe_comm_time();
    real *sum = a->sum[l];
    attend(a, l, x, sum);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < batch->num_tokens * a->shape.hidden; i++) {
        sum[i] += x[i];
    }
    add_span(a, MOE_SPAN_ATTENTION, l, begin);
    return sum;
}

void moe_attention_layers_backward(moe_attention_layers *a,
                                   int32_t l,
                                   const real *x,
                                   real *gradient) {
    real *partial[MOE_ATTENTION_TENSORS];
    if (a->num_layers == 0) {
        return;
    }
    const moe_batch *batch = a->context->batch;
    const double begin = moe_comm_time();
    for (int i = 0; i < MOE_ATTENTION_TENSORS; i++) {
        const int at = a->index[l][i];
        partial[i] = at < 0 ? NULL : a->parameters->p[at].partial;
    }
    if (!a->context->keep) {
        moe_attention_forward(&a->shape, &a->layer[l], batch, x, activations_of(a, l), &a->work,
                              NULL);
    }
    moe_attention_backward(&a->shape, &a->layer[l], batch, x, activations_of(a, l), &a->work,
                           gradient, partial, gradient);
    add_span(a, MOE_SPAN_ATTENTION_BACKWARD, l, begin);
}
