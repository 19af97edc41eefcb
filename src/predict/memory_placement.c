/* memory_placement.c: what placements take beside the slots themselves: the loads that decide, and
 * the experts on their way. */
#include "predict/internal.h"

/* Where batches are split: who serves whom [D,slots], of each layer and shared; choices [D,N]. */
static int64_t splits(const moe_config *c) {
    const int64_t d = c->cluster.devices;
    const int64_t slots = add(c->model.num_experts, c->placement.redundant_experts);
    const int64_t cells =
        add(mul3(add(moe_config_moe_layers(c), 1), d, slots), mul(d, c->model.num_experts));
    return moe_config_splits_batches(c) ? mul(cells, WORD) : 0;
}

int64_t moe_memory_loads(const moe_config *c) {
    const int64_t n = c->model.num_experts, layers = moe_config_moe_layers(c);
    const int64_t window = c->placement.rebalance_every > 0 ? c->placement.window : 0;
    const int64_t loads = mul3(mul(window > 0 ? window : 1, layers), n, DOUBLE);
    const int64_t pairs =
        c->placement.policy == MOE_PLACEMENT_JOINT ? mul3(mul(layers, n), n, DOUBLE + WORD) : 0;
    return add(splits(c), moe_config_places_by_load(c) ? add(loads, pairs) : 0);
}

int64_t moe_memory_staging(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t h = c->model.hidden_size, f = c->model.moe_intermediate_size;
    const int64_t tensor = c->model.expert_type == MOE_EXPERT_LORA
                               ? mul(c->model.lora_rank, h > f ? h : f)
                               : mul(s->matrices > 0 ? h : 0, f);
    const int64_t redundant = c->compares_placements ? 0 : c->placement.redundant_experts;
    const int64_t slots = div_up(add(c->model.num_experts, redundant), s->ranks);
    const bool moves = moe_config_places_by_load(c) || moe_config_copies_for_batches(c);
    const int64_t moving = moves ? mul(2, slots) : 0;
    const int64_t summed =
        s->train ? mul3(4, moe_config_moe_layers(c), div_up(redundant, s->ranks)) : 0;
    return mul3(add(moving, summed), tensor, REAL);
}
