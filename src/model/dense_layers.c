/* dense_layers.c: the dense layers of a stack: parameters, forward and backward. */
#include "model/dense_layers.h"

#include <stdio.h>
#include <string.h>

#include "base/norm.h"

/* --- setting up --- */

/* Adapters belong to experts: where experts have them, the dense FFN is a swiglu, as a shared
 * expert is. */
static void init_layer(moe_dense_layer *layer, const moe_config *c, int32_t l) {
    const int64_t h = c->model.hidden_size;
    *layer = (moe_dense_layer){.norm_index = -1, .w = {-1, -1, -1}};
    moe_ffn_init(&layer->ffn, &(moe_ffn_shape){.type = c->model.expert_type == MOE_EXPERT_LORA
                                                           ? MOE_EXPERT_SWIGLU
                                                           : c->model.expert_type,
                                               .kind = MOE_FFN_DENSE,
                                               .count = 1,
                                               .hidden = h,
                                               .width = c->model.intermediate_size,
                                               .seed = c->run.seed,
                                               .layer = l});
    if (c->model.norm == MOE_NORM_RMSNORM) {
        layer->norm = moe_alloc(h, sizeof(real), "norm weights");
        for (int64_t i = 0; i < h; i++) {
            layer->norm[i] = 1;
        }
    }
}

void moe_dense_layers_init(moe_dense_layers *d, const moe_context *context, bool keep_inputs) {
    const moe_config *c = context->config;
    *d = (moe_dense_layers){.context = context, .num_layers = c->model.first_dense_layers};
    if (d->num_layers == 0) {
        return;
    }
    d->layer = moe_alloc(d->num_layers, sizeof *d->layer, "dense layers");
    for (int32_t l = 0; l < d->num_layers; l++) {
        init_layer(&d->layer[l], c, l);
    }
    d->num_activations = keep_inputs ? d->num_layers : 1;
    d->activations = moe_alloc_zero(d->num_activations, sizeof *d->activations, "dense layers");
}

void moe_dense_layers_free(moe_dense_layers *d) {
    for (int32_t l = 0; l < d->num_layers; l++) {
        moe_free(d->layer[l].norm);
        moe_ffn_free(&d->layer[l].ffn);
    }
    for (int32_t i = 0; i < d->num_activations; i++) {
        moe_block_free(&d->activations[i].block);
    }
    moe_expert_buffers_free(&d->buffers);
    moe_free(d->layer);
    moe_free(d->activations);
    *d = (moe_dense_layers){0};
}

/* Returns where the tensor stands in the table; columns 0: a vector [rows]. */
static int add_tensor(moe_parameters *parameters,
                      int32_t l,
                      const char *what,
                      int64_t rows,
                      int64_t columns,
                      real *value) {
    char name[64];
    if (!value) {
        return -1;
    }
    snprintf(name, sizeof name, "layer%d.%s", l, what);
    const int index = moe_parameters_add(parameters, name, columns > 0,
                                         columns > 0 ? rows * columns : rows, value);
    parameters->p[index].columns = columns;
    return index;
}

void moe_dense_layers_register(moe_dense_layers *d, int32_t l, moe_parameters *parameters) {
    moe_dense_layer *layer = &d->layer[l];
    const int64_t h = layer->ffn.hidden, f = layer->ffn.width;
    d->parameters = parameters;
    layer->norm_index = add_tensor(parameters, l, "norm", h, 0, layer->norm);
    layer->w[0] = add_tensor(parameters, l, "dense.w1", f, h, layer->ffn.w1);
    layer->w[1] = add_tensor(parameters, l, "dense.w2", h, f, layer->ffn.w2);
    layer->w[2] = add_tensor(parameters, l, "dense.w3", f, h, layer->ffn.w3);
}

/* --- forward --- */

static void reserve(const moe_dense_layers *d, const moe_dense_layer *layer, int32_t l) {
    moe_dense_activations *a = &d->activations[l % d->num_activations];
    const int64_t tokens = d->context->batch->num_tokens;
    const int64_t inner = d->context->keep ? tokens * layer->ffn.width : 0;
    moe_block_array table[] = {
        MOE_ARRAY(a->u, layer->norm ? tokens * layer->ffn.hidden : 0),
        MOE_ARRAY(a->inverse_rms, layer->norm ? tokens : 0),
        MOE_ARRAY(a->h1, inner),
        MOE_ARRAY(a->h3, inner),
    };
    moe_block_reserve(&a->block, table, MOE_ARRAYS(table), "activations of dense layers");
}

/* The rows of `array` [T,width] from token `begin` on; NULL where there is no array. */
static real *rows_of(real *array, int64_t begin, int64_t width) {
    return array ? array + begin * width : NULL;
}

void moe_dense_layers_forward(moe_dense_layers *d, int32_t l, const real *x, real *y) {
    const moe_dense_layer *layer = &d->layer[l];
    const moe_batch *b = d->context->batch;
    const int64_t h = layer->ffn.hidden, f = layer->ffn.width;
    moe_dense_activations *a = &d->activations[l % d->num_activations];
    const double start = moe_comm_time();
    const real *u = x;
    reserve(d, layer, l);
    a->x = x;
    if (layer->norm) {
        moe_rmsnorm(x, layer->norm, b->num_tokens, h, a->u, a->inverse_rms);
        u = a->u;
    }
    d->buffers.bf16 = d->context->bf16;
    for (int32_t j = 0; j < b->num_local_devices; j++) {
        const int64_t begin = b->device_offset[j], rows = b->device_offset[j + 1] - begin;
        moe_experts_shared_forward(&layer->ffn, rows, u + begin * h, &d->buffers,
                                   rows_of(a->h1, begin, f), rows_of(a->h3, begin, f),
                                   y + begin * h);
    }
    moe_timeline_add(d->context->timeline, MOE_SPAN_DENSE, l, start, moe_comm_time(), NULL);
}

/* --- backward --- */

/* The partial of local device j of parameter `index`. */
static real *partial_of(const moe_dense_layers *d, int index, int32_t j) {
    return index < 0 ? NULL : d->parameters->p[index].partial + j * d->parameters->p[index].size;
}

static void norm_backward(const moe_dense_layers *d, int32_t l, real *dx) {
    const moe_dense_layer *layer = &d->layer[l];
    const moe_dense_activations *a = &d->activations[l];
    const moe_batch *b = d->context->batch;
    const int64_t h = layer->ffn.hidden;
    if (!layer->norm) {
        return;
    }
    for (int32_t j = 0; j < b->num_local_devices; j++) {
        const int64_t begin = b->device_offset[j], rows = b->device_offset[j + 1] - begin;
        moe_rmsnorm_weight_gradient(a->x + begin * h, a->inverse_rms + begin, dx + begin * h, rows,
                                    h, partial_of(d, layer->norm_index, j));
    }
    moe_rmsnorm_backward(a->x, layer->norm, a->inverse_rms, dx, b->num_tokens, h, dx);
}

void moe_dense_layers_backward(moe_dense_layers *d, int32_t l, const real *dy, real *dx) {
    const moe_dense_layer *layer = &d->layer[l];
    const moe_batch *b = d->context->batch;
    const moe_dense_activations *a = &d->activations[l];
    const int64_t h = layer->ffn.hidden, f = layer->ffn.width;
    const real *u = layer->norm ? a->u : a->x;
    const bool kept = d->context->keep;
    const double start = moe_comm_time();
    for (int32_t j = 0; j < b->num_local_devices; j++) {
        const int64_t begin = b->device_offset[j], rows = b->device_offset[j + 1] - begin;
        const moe_ffn_gradient g = {.w1 = partial_of(d, layer->w[0], j),
                                    .w2 = partial_of(d, layer->w[1], j),
                                    .w3 = partial_of(d, layer->w[2], j)};
        moe_experts_shared_backward(
            &layer->ffn, &g, rows, u + begin * h, kept ? rows_of(a->h1, begin, f) : NULL,
            kept ? rows_of(a->h3, begin, f) : NULL, dy + begin * h, &d->buffers, dx + begin * h);
    }
    norm_backward(d, l, dx);
    moe_timeline_add(d->context->timeline, MOE_SPAN_DENSE_BACKWARD, l, start, moe_comm_time(),
                     NULL);
}
