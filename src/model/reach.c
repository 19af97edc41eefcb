/* reach.c: see reach.h. */
#include "model/reach.h"

#include "router/scores.h"
#include "router/select.h"

moe_reached moe_reach_of(const moe_layer *layer,
                         const moe_context *context,
                         const moe_batch *batch,
                         int64_t token,
                         const int32_t *expert,
                         int64_t k,
                         int64_t *stamp,
                         int64_t *by_device) {
    const int32_t per_node = context->config->cluster.devices_per_node;
    const int64_t own = moe_batch_device_of(batch, batch->first_token + token) / per_node;
    int64_t *node_stamp = stamp + batch->devices;
    moe_reached found = {0};
    for (int64_t i = 0; i < k; i++) {
        const int32_t device = moe_reach_device(layer, batch, expert[i], token),
                      node = device / per_node;
        found.devices += stamp[device] != token + 1;
        found.nodes += node_stamp[node] != token + 1;
        found.remote_nodes += node_stamp[node] != token + 1 && node != own;
        stamp[device] = node_stamp[node] = token + 1;
        if (by_device) {
            by_device[device]++;
        }
    }
    return found;
}

bool moe_reach_has_limit(const moe_context *context) {
    return context->router.group_limit != MOE_GROUP_NONE && !moe_config_recorded(context->config);
}

moe_reached moe_reach_unlimited(const moe_layer *layer,
                                const moe_context *context,
                                const moe_batch *batch,
                                moe_logits logits) {
    moe_router greedy = layer->router;
    moe_draw draw = {.seed = (uint64_t)context->config->run.seed};
    int32_t n = greedy.num_experts;
    int64_t devices = 0, nodes = 0;
    const uint8_t *routed = moe_batch_routed(batch);
    if (!moe_reach_has_limit(context)) {
        return (moe_reached){0};
    }
    greedy.group_limit = MOE_GROUP_NONE;
    greedy.scratch = batch->scratch;
#pragma omp parallel reduction(+ : devices, nodes)
    {
        moe_select select;
        moe_select_reserve(&select, &greedy, &draw);
        double *z = moe_scratch_take(batch->scratch, 2 * (int64_t)n, sizeof *z, "tally"),
               *s = z + n;
        int32_t *expert = moe_scratch_take(batch->scratch, greedy.top_k, sizeof *expert, "tally");
        int64_t *stamp = moe_scratch_take_zero(batch->scratch, 2 * (int64_t)batch->devices,
                                               sizeof *stamp, "tally");
#pragma omp for schedule(static)
        for (int64_t token = 0; token < batch->num_tokens; token++) {
            if ((routed && !routed[token]) ||
                moe_scores_read_logits(logits, token, n, z) & MOE_ROW_BAD) {
                continue;
            }
            moe_scores_fill(&greedy, z, s, NULL);
            int32_t k = moe_select_experts(&select, &greedy, z, s, 1, expert, NULL);
            const moe_reached found =
                moe_reach_of(layer, context, batch, token, expert, k, stamp, NULL);
            devices += found.devices;
            nodes += found.nodes;
        }
        moe_select_free(&select);
        moe_scratch_give(batch->scratch, z);
        moe_scratch_give(batch->scratch, expert);
        moe_scratch_give(batch->scratch, stamp);
    }
    return (moe_reached){.devices = devices, .nodes = nodes};
}
