/* layer.c: the parameters of a layer: made, freed, and put into the table of what is trained. */
#include "model/layer.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/rng.h"

/* --- made and freed --- */

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
    const moe_placement *p = &context->placements[index];
    int64_t h = c->model.hidden_size, f = c->model.moe_intermediate_size;
    *layer = (moe_layer){.index = index,
                         .depth = c->model.first_dense_layers + index,
                         .placement = p,
                         .router = context->router};
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
    shape.kind = MOE_FFN_SHARED;
    shape.count = 1;
    shape.width = f * c->model.num_shared_experts;
    shape.id = NULL;
    if (shape.type == MOE_EXPERT_LORA) {
        shape.type = MOE_EXPERT_SWIGLU;
    }
    layer->shared_copies = shape.type == MOE_EXPERT_IDENTITY ? c->model.num_shared_experts : 1;
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

/* --- the table of parameters --- */

/* A matrix [rows, columns] that all ranks have, or with columns 0 a vector [rows]. */
static int add_replicated(moe_parameters *all,
                          int32_t layer,
                          const char *what,
                          bool decay,
                          int64_t rows,
                          int64_t columns,
                          real *value) {
    char name[64];
    if (!value) {
        return -1;
    }
    snprintf(name, sizeof name, "layer%d.%s", layer, what);
    int index = moe_parameters_add(all, name, decay, columns ? rows * columns : rows, value);
    all->p[index].columns = columns;
    return index;
}

/* A matrix [rows, columns] of each local expert. */
static int add_experts(moe_parameters *all,
                       const moe_layer *layer,
                       const char *what,
                       int64_t rows,
                       int64_t columns,
                       const moe_context *context,
                       real *value) {
    char name[64];
    const moe_ffn *f = &layer->experts;
    const moe_placement *p = layer->placement;
    if (!value) {
        return -1;
    }
    snprintf(name, sizeof name, "layer%d.experts.%s", layer->depth, what);
    const int64_t first = (int64_t)context->batch->first_device * p->slots_per_device;
    int index = moe_parameters_add_experts(all, name, f->count, p->num_experts, rows * columns,
                                           p->expert_at + first, value);
    all->p[index].columns = columns;
    all->p[index].copy = p->replicated ? p->is_copy + first : NULL;
    return index;
}

void moe_layer_expert_indices(const moe_layer_indices *i, int index[MOE_EXPERT_TENSORS]) {
    const int all[MOE_EXPERT_TENSORS] = {i->w1, i->w2, i->w3, i->a1, i->a2,
                                         i->a3, i->b1, i->b2, i->b3};
    memcpy(index, all, sizeof all);
}

moe_layer_indices moe_layer_register(const moe_layer *layer,
                                     const moe_context *context,
                                     moe_parameters *all) {
    int32_t i = layer->depth;
    const moe_ffn *e = &layer->experts;
    int64_t h = e->hidden;
    int64_t f = e->width;
    int64_t r = e->rank;
    int64_t n = context->config->model.num_experts;
    int64_t shared = layer->shared.width;
    bool frozen = r > 0;
    return (moe_layer_indices){
        .gate = add_replicated(all, i, "gate", true, n, h, layer->gate),
        .gate_noise = add_replicated(all, i, "gate_noise", true, n, h, layer->gate_noise),
        .norm = add_replicated(all, i, "norm", false, h, 0, layer->norm),
        .w1 = add_experts(all, layer, "w1", f, h, context, frozen ? NULL : e->w1),
        .w2 = add_experts(all, layer, "w2", h, f, context, frozen ? NULL : e->w2),
        .w3 = add_experts(all, layer, "w3", f, h, context, frozen ? NULL : e->w3),
        .a1 = add_experts(all, layer, "a1", r, h, context, e->a1),
        .a2 = add_experts(all, layer, "a2", r, f, context, e->a2),
        .a3 = add_experts(all, layer, "a3", r, h, context, e->a3),
        .b1 = add_experts(all, layer, "b1", f, r, context, e->b1),
        .b2 = add_experts(all, layer, "b2", h, r, context, e->b2),
        .b3 = add_experts(all, layer, "b3", f, r, context, e->b3),
        .shared_w1 = add_replicated(all, i, "shared.w1", true, shared, h, layer->shared.w1),
        .shared_w2 = add_replicated(all, i, "shared.w2", true, h, shared, layer->shared.w2),
        .shared_w3 = add_replicated(all, i, "shared.w3", true, shared, h, layer->shared.w3),
    };
}

/* --- chance --- */

moe_draw moe_layer_draw(const moe_layer *layer, const moe_context *context) {
    const moe_run_config *run = &context->config->run;
    return (moe_draw){.seed = (uint64_t)run->seed,
                      .step = context->trains ? context->draw : context->step,
                      .layer = layer->index,
                      .training = context->trains,
                      .evaluating = run->mode != MOE_MODE_FORWARD && !context->trains};
}
