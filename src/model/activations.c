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

moe_span_rows moe_activations_rows(const moe_activations *a) {
    const moe_inbox *in = &a->exchange.inbox;
    return (moe_span_rows){a->plan.num_rows, in->num_rows, in->own_end - in->own_begin,
                           in->num_pairs};
}
