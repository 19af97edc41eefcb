/* layer_losses.c: the balance losses of a layer, and their gradient with respect to its logits. */
#include <string.h>

#include "model/layer.h"
#include "router/loss_gradient.h"
#include "router/noise.h"
#include "router/smooth_load.h"

/* --- the losses --- */

void moe_activations_rows_before_dropping(const moe_layer *layer,
                                          const moe_context *context,
                                          const moe_activations *a,
                                          int32_t j,
                                          int64_t *tokens) {
    const moe_plan *plan = &a->plan;
    memset(tokens, 0, (size_t)plan->devices * sizeof *tokens);
    if (a->drop.on) {
        moe_capacity_removed(context->batch, layer->placement, &a->routing, &a->drop.sent, j,
                             tokens);
    }
    for (int64_t c = plan->device_cell[j]; c < plan->device_cell[j + 1]; c++) {
        tokens[plan->cell[c].to] += plan->cell[c].rows;
    }
}

typedef struct sent_rows { /* a moe_sent_rows: see balance/scopes.h */
    const moe_layer *layer;
    const moe_context *context;
    const moe_activations *activations;
} sent_rows;

static void count_sent_rows(const void *self, int32_t j, int64_t *tokens) {
    const sent_rows *s = self;
    moe_activations_rows_before_dropping(s->layer, s->context, s->activations, j, tokens);
}

/* A loss over the tokens of all layers: this layer's cells go to those before; the last one
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
    if (layer->index + 1 < moe_config_moe_layers(context->config)) {
        return;
    }
    moe_scopes_finish(all, context->comm, &context->balance, layer->placement, context->batch);
    metrics->allreduce_bytes += all->allreduce_bytes;
}

static void fill_metrics(const moe_context *context,
                         const moe_activations *a,
                         moe_layer_metrics *metrics) {
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
    const int64_t *tokens =
        moe_stats_device_tokens(&a->scopes.global, moe_scopes_micro_batch(&a->scopes));
    memcpy(metrics->distinct_tokens_per_device, tokens,
           (size_t)context->batch->devices * sizeof *tokens);
}

void moe_layer_losses_count(const moe_layer *layer,
                            const moe_context *context,
                            moe_activations *a) {
    const moe_sent_rows sent = {count_sent_rows, &(sent_rows){layer, context, a}};
    moe_scopes_count(&a->scopes, &context->balance, layer->placement, context->batch, &a->segments,
                     moe_context_rows_not_tokens(context) ? NULL : &sent);
    a->losses_counted = true;
}

void moe_layer_losses_complete(const moe_layer *layer,
                               const moe_context *context,
                               moe_activations *a,
                               moe_layer_metrics *metrics) {
    MOE_ASSERT(a->losses_counted);
    a->losses_counted = false;
    a->scopes.whole =
        context->whole_step ? moe_stats_cell(context->whole_step, layer->index) : NULL;
    a->scopes.micro_batches = context->config->train.accumulate;
    moe_scopes_complete(&a->scopes, &context->balance, layer->placement, context->batch);
    fill_metrics(context, a, metrics);
    add_to_all_layers(layer, context, a, metrics);
}

void moe_layer_losses(const moe_layer *layer,
                      const moe_context *context,
                      moe_activations *a,
                      moe_layer_metrics *metrics) {
    int64_t *words;
    if (a->losses_counted) {
        int64_t count = moe_scopes_vector(&a->scopes, &words);
        moe_comm_sum_i64(context->comm, words, count);
        moe_layer_losses_complete(layer, context, a, metrics);
    }
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
static void coefficients(const moe_layer *layer,
                         const moe_context *context,
                         const moe_activations *a,
                         int64_t *cell,
                         int64_t i,
                         double divisor,
                         double *a3n) {
    moe_balance_coefficients(&context->balance, layer->placement, &a->scopes.global, cell, a3n);
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
    int64_t counted = moe_scopes_tokens(&a->scopes);
    bool load = context->balance.alpha[MOE_LOSS_LOAD] != 0 &&
                context->balance.load_form == MOE_LOAD_SHAZEER;
    const moe_noisy *noisy =
        context->trains && moe_noise_keeps_clean(&layer->router) ? &a->noisy : NULL;
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
        coefficients(layer, context, a, cell, i, divisor, coefficient);
        moe_loss_coefficients all = {.a = coefficient,
                                     .inverse_tokens = 1 / divisor,
                                     .alpha_z = context->balance.alpha[MOE_LOSS_Z],
                                     .inverse_counted = 1 / (double)counted};
        moe_loss_gradient(&layer->router, b, a->logits, noisy, &a->routing, b->segment[i].begin,
                          b->segment[i].end, &all, dlogits);
        if (load) {
            moe_smooth_load_gradient(&layer->router, noisy, b, a->logits, &a->routing,
                                     b->segment[i].begin, b->segment[i].end, coefficient + 2 * n,
                                     1 / divisor, dlogits, spread);
        }
    }
    moe_scratch_give(b->scratch, coefficient);
}
