/* stack.c: the loops over the layers: forward, backward, and evaluation. */
#include "model/stack.h"

#include <string.h>

#include "base/alloc.h"
#include "base/sums.h"
#include "model/serving.h"

/* --- setting up --- */

static void allocate_inputs(moe_stack *s, bool keep_inputs) {
    const moe_context *context = s->context;
    int64_t size = context->batch->num_tokens * context->config->model.hidden_size;
    const int32_t depth = moe_stack_depth(s);
    s->x = moe_alloc(depth + 1, sizeof *s->x, "inputs of the layers");
    for (int32_t l = 0; l <= depth; l++) {
        bool own = l == 0 || keep_inputs;
        s->x[l] = own ? moe_alloc(size, sizeof(real), "inputs of the layers") : s->x[0];
    }
    s->y = moe_alloc(size, sizeof(real), "output of a layer");
}

void moe_stack_init(moe_stack *s, moe_context *context, int32_t num_activations, bool keep_inputs) {
    *s = (moe_stack){.context = context,
                     .num_layers = moe_config_moe_layers(context->config),
                     .num_activations = num_activations};
    moe_dense_layers_init(&s->dense, context, keep_inputs);
    s->layer = moe_alloc(s->num_layers, sizeof *s->layer, "layers");
    for (int32_t l = 0; l < s->num_layers; l++) {
        moe_layer_init(&s->layer[l], context, l);
    }
    s->activations = moe_alloc_zero(num_activations, sizeof *s->activations, "activations");
    moe_attention_layers_init(&s->attention, context, keep_inputs);
    allocate_inputs(s, keep_inputs);
}

void moe_stack_register(moe_stack *s, moe_parameters *parameters) {
    s->parameters = parameters;
    s->indices = moe_alloc(s->num_layers, sizeof *s->indices, "table of parameters");
    for (int32_t l = 0; l < s->dense.num_layers; l++) {
        moe_attention_layers_register(&s->attention, l, parameters);
        moe_dense_layers_register(&s->dense, l, parameters);
    }
    for (int32_t l = 0; l < s->num_layers; l++) {
        moe_attention_layers_register(&s->attention, s->layer[l].depth, parameters);
        s->indices[l] = moe_layer_register(&s->layer[l], s->context, parameters);
    }
}

void moe_stack_free(moe_stack *s) {
    for (int32_t l = 0; l < s->num_layers; l++) {
        moe_layer_free(&s->layer[l]);
    }
    for (int32_t i = 0; i < s->num_activations; i++) {
        moe_activations_free(&s->activations[i]);
    }
    for (int32_t l = moe_stack_depth(s); s->x && l >= 0; l--) {
        if (l == 0 || s->x[l] != s->x[0]) {
            moe_free(s->x[l]);
        }
    }
    moe_free(s->layer);
    moe_free(s->activations);
    moe_free(s->x);
    moe_free(s->y);
    moe_free(s->indices);
    moe_backward_free(&s->backward);
    moe_attention_layers_free(&s->attention);
    moe_dense_layers_free(&s->dense);
    *s = (moe_stack){0};
}

void moe_stack_turn_weights(moe_stack *s) {
    for (int32_t l = 0; l < s->dense.num_layers; l++) {
        moe_ffn_turn(&s->dense.layer[l].ffn);
    }
    for (int32_t l = 0; l < s->num_layers; l++) {
        moe_ffn_turn(&s->layer[l].experts);
        moe_ffn_turn(&s->layer[l].shared);
    }
}

/* --- forward --- */

/* out = y + residual. The residual is added last (docs/method.md section 5), in forward and in
 * backward alike; out may be the residual's array. */
static void add_residual(const moe_stack *s, const real *y, const real *residual, real *out) {
    const moe_context *context = s->context;
    const int64_t h = context->config->model.hidden_size;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < context->batch->num_tokens; t++) {
        if (context->config->model.residual) {
            moe_sum_of_vectors(y + t * h, residual + t * h, h, out + t * h);
        } else {
            memcpy(out + t * h, y + t * h, (size_t)h * sizeof *out);
        }
    }
}

/* The dense layers, which nobody observes. */
static void dense_forward(moe_stack *s) {
    moe_timeline *timeline = s->context->timeline;
    for (int32_t l = 0; l < s->dense.num_layers; l++) {
        int64_t span = moe_timeline_begin(timeline, MOE_SPAN_LAYER, l, moe_comm_time());
        const real *x = moe_attention_layers_forward(&s->attention, l, s->x[l]);
        moe_dense_layers_forward(&s->dense, l, x, s->y);
        add_residual(s, s->y, x, s->x[l + 1]);
        moe_timeline_end(timeline, span, moe_comm_time());
    }
}

int moe_stack_forward(moe_stack *s,
                      const moe_observer *observer,
                      moe_step_metrics *metrics,
                      moe_status *st) {
    moe_timeline *timeline = s->context->timeline;
    dense_forward(s);
    for (int32_t l = 0; l < s->num_layers; l++) {
        const int32_t depth = s->layer[l].depth;
        int64_t span = moe_timeline_begin(timeline, MOE_SPAN_LAYER, depth, moe_comm_time());
        const real *x = moe_attention_layers_forward(&s->attention, depth, s->x[depth]);
        moe_layer_forward(&s->layer[l], s->context, x, s->y, moe_stack_activations(s, l),
                          &metrics->layer[l]);
        if (observer && observer->after_layer &&
            observer->after_layer(observer->self, s, l, metrics, st) != MOE_OK) {
            moe_timeline_end(timeline, span, moe_comm_time());
            return st->code;
        }
        moe_layer_losses(&s->layer[l], s->context, moe_stack_activations(s, l), &metrics->layer[l]);
        add_residual(s, s->y, x, s->x[depth + 1]);
        moe_timeline_end(timeline, span, moe_comm_time());
    }
    return MOE_OK;
}

/* --- backward --- */

void moe_stack_backward(moe_stack *s,
                        const moe_observer *observer,
                        real *gradient,
                        moe_step_metrics *metrics) {
    for (int32_t l = s->num_layers - 1; l >= 0; l--) {
        if (observer && observer->before_backward) {
            observer->before_backward(observer->self, s, l, gradient);
        }
        moe_layer_backward(&s->layer[l], &s->indices[l], s->context, moe_stack_activations(s, l),
                           s->parameters, gradient, &s->backward, s->y, &metrics->layer[l]);
        if (observer && observer->after_backward) {
            observer->after_backward(observer->self, s, l);
        }
        moe_serving_return(s->context, &s->layer[l], &s->indices[l], s->parameters,
                           &metrics->layer[l].fetch);
        add_residual(s, s->y, gradient, gradient);
        moe_attention_layers_backward(&s->attention, s->layer[l].depth, s->x[s->layer[l].depth],
                                      gradient);
    }
    for (int32_t l = s->dense.num_layers - 1; l >= 0; l--) {
        moe_dense_layers_backward(&s->dense, l, gradient, s->y);
        add_residual(s, s->y, gradient, gradient);
        moe_attention_layers_backward(&s->attention, l, s->x[l], gradient);
    }
}

/* --- evaluation --- */

static void run_layer(void *self,
                      int32_t l,
                      const real *x,
                      real *y,
                      moe_activations *a,
                      moe_layer_metrics *metrics) {
    const moe_stack *s = self;
    moe_layer_forward(&s->layer[l], s->context, x, y, a, metrics);
}

void moe_stack_evaluate(moe_stack *s, moe_stack_run_layer *run, void *self) {
    moe_context *context = s->context;
    moe_timeline *timeline = context->timeline;
    bool keep = context->keep;
    moe_layer_metrics unused = {
        .distinct_tokens_per_device = moe_scratch_take(
            context->batch->scratch, context->batch->devices, sizeof(int64_t), "evaluation")};
    context->keep = false;
    context->timeline = NULL; /* the caller records one span for all of it */
    dense_forward(s);
    for (int32_t l = 0; l < s->num_layers; l++) {
        const int32_t depth = s->layer[l].depth;
        const real *x = moe_attention_layers_forward(&s->attention, depth, s->x[depth]);
        (run ? run : run_layer)(run ? self : s, l, x, s->y, moe_stack_activations(s, l), &unused);
        add_residual(s, s->y, x, s->x[depth + 1]);
    }
    moe_serving_reset(context);
    context->keep = keep;
    context->timeline = timeline;
    moe_scratch_give(context->batch->scratch, unused.distinct_tokens_per_device);
}
