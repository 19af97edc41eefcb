/* idle.c: the rules that say which keys have no effect beside which others. */
#include "config/idle.h"

#include <string.h>

#include "config/config.h"
#include "config/table.h"
#include "config/value.h"

static bool drops_nothing(const moe_config *c) {
    return c->capacity.policy == MOE_CAPACITY_NONE;
}
/* What generates has the keys of the run that was trained. */
static bool trains_not(const moe_config *c) {
    return c->run.mode == MOE_MODE_FORWARD;
}
static bool generates_not(const moe_config *c) {
    return !moe_config_generates(c);
}
static bool trains(const moe_config *c) {
    return c->run.mode == MOE_MODE_TRAIN;
}
static bool is_not_top_p(const moe_config *c) {
    return c->router.method != MOE_METHOD_TOP_P;
}
static bool sends_no_fp8(const moe_config *c) {
    return c->exchange.payload != MOE_PAYLOAD_FP8;
}
static bool sends_to_devices(const moe_config *c) {
    return c->exchange.mode != MOE_EXCHANGE_TWO_LEVEL;
}
static bool is_synthetic(const moe_config *c) {
    return c->data.source == MOE_SOURCE_SYNTHETIC;
}
static bool is_not_synthetic(const moe_config *c) {
    return !is_synthetic(c);
}
static bool is_recorded(const moe_config *c) {
    return c->data.source == MOE_SOURCE_LOGITS || c->data.source == MOE_SOURCE_ROUTING;
}
static bool has_boundaries(const moe_config *c) {
    return c->data.boundaries[0] != '\0';
}
static bool has_no_scores(const moe_config *c) {
    return moe_config_recorded(c) && c->data.scores[0] == '\0';
}
static bool is_not_text(const moe_config *c) {
    return c->data.source != MOE_SOURCE_TEXT;
}
static bool is_loaded(const moe_config *c) {
    return c->model.load[0] != '\0';
}
static bool multiplies_nothing(const moe_config *c) {
    return c->model.expert_type == MOE_EXPERT_IDENTITY;
}
static bool is_not_lora(const moe_config *c) {
    return c->model.expert_type != MOE_EXPERT_LORA;
}
/* The last layer's residual is left to what follows the layers: a loss or nothing. */
static bool is_one_layer(const moe_config *c) {
    return c->model.num_layers == 1 && c->run.mode == MOE_MODE_FORWARD;
}
static bool has_no_limit(const moe_config *c) {
    return c->router.group_limit == MOE_GROUP_NONE;
}
static bool is_not_sinkhorn(const moe_config *c) {
    return c->router.method != MOE_METHOD_SINKHORN;
}
static bool has_no_temperature(const moe_config *c) {
    return c->router.method == MOE_METHOD_TOP_P && c->router.temperature == 1;
}
static bool normalises_never(const moe_config *c) {
    return !c->router.norm_topk_prob && !moe_config_weights_over_chosen(c);
}
static bool scales_nothing(const moe_config *c) {
    return c->router.routed_scaling_factor == 1;
}
static bool chooses_several(const moe_config *c) {
    return c->router.norm_topk_prob && c->router.top_k > 1;
}
static bool has_no_jitter(const moe_config *c) {
    return trains(c) && c->router.jitter == 0;
}
static bool moves_no_bias(const moe_config *c) {
    return trains(c) && c->router.bias_update_rate == 0;
}
static bool is_sgd(const moe_config *c) {
    return trains(c) && c->train.optimizer == MOE_OPTIMIZER_SGD;
}
static bool is_not_global(const moe_config *c) {
    return c->balance.scope != MOE_SCOPE_GLOBAL;
}
static bool is_one_micro_batch(const moe_config *c) {
    return trains(c) && c->train.accumulate == 1;
}
static bool validates_never(const moe_config *c) {
    return trains(c) && c->train.validation_every == 0;
}
static bool attends_not(const moe_config *c) {
    return c->model.attention == MOE_ATTENTION_NONE;
}
static bool is_not_mla(const moe_config *c) {
    return c->model.attention == MOE_ATTENTION_MHA;
}
static bool is_mla(const moe_config *c) {
    return c->model.attention == MOE_ATTENTION_MLA;
}
static bool turns_nothing(const moe_config *c) {
    return c->model.attention != MOE_ATTENTION_NONE && c->model.rope_dim == 0;
}
static bool has_no_dense_layer(const moe_config *c) {
    return c->model.first_dense_layers == 0;
}
static bool rebalances_not(const moe_config *c) {
    return c->placement.rebalance_every == 0;
}

#define KEYS(...)                 \
    (const enum moe_key_id[]) {   \
        __VA_ARGS__, MOE_KEY_NONE \
    }

/* A rule: when `idle` is true, the keys have no effect. */
static const struct {
    const enum moe_key_id *keys; /* end with MOE_KEY_NONE */
    bool whole_section;          /* all keys of the section of the first one are meant */
    enum moe_key_id because;     /* its value makes them idle */
    bool (*idle)(const moe_config *);
} rules[] = {
    {KEYS(MOE_KEY(capacity, policy)), true, MOE_KEY(capacity, policy), drops_nothing},
    {KEYS(MOE_KEY(train, optimizer)), true, MOE_KEY(run, mode), trains_not},
    {KEYS(MOE_KEY(router, noise),
          MOE_KEY(router, noise_form),
          MOE_KEY(router, jitter),
          MOE_KEY(router, jitter_experts),
          MOE_KEY(router, expert_dropout),
          MOE_KEY(router, bias_update_rate),
          MOE_KEY(router, bias_update),
          MOE_KEY(router, bias_centered),
          MOE_KEY(balance, begin_step),
          MOE_KEY(balance, ramp_steps),
          MOE_KEY(balance, global_batch)),
     false, MOE_KEY(run, mode), trains_not},
    {KEYS(MOE_KEY(balance, global_batch)), false, MOE_KEY(balance, scope), is_not_global},
    {KEYS(MOE_KEY(balance, global_batch)), false, MOE_KEY(train, accumulate), is_one_micro_batch},
    {KEYS(MOE_KEY(run, steps)), false, MOE_KEY(run, mode), moe_config_generates},
    {KEYS(MOE_KEY(generate, run)), true, MOE_KEY(run, mode), generates_not},
    {KEYS(MOE_KEY(output, tensors)), false, MOE_KEY(run, mode), trains},
    {KEYS(MOE_KEY(exchange, node_sum)), false, MOE_KEY(exchange, mode), sends_to_devices},
    {KEYS(MOE_KEY(exchange, fp8_scale)), false, MOE_KEY(exchange, payload), sends_no_fp8},
    {KEYS(MOE_KEY(model, lora_alpha), MOE_KEY(model, lora_rank)), false,
     MOE_KEY(model, expert_type), is_not_lora},
    {KEYS(MOE_KEY(model, num_heads),
          MOE_KEY(model, num_kv_heads),
          MOE_KEY(model, head_dim),
          MOE_KEY(model, rope_dim),
          MOE_KEY(model, rope_theta),
          MOE_KEY(model, rope_order),
          MOE_KEY(model, kv_lora_rank),
          MOE_KEY(model, q_lora_rank)),
     false, MOE_KEY(model, attention), attends_not},
    {KEYS(MOE_KEY(model, kv_lora_rank), MOE_KEY(model, q_lora_rank)), false,
     MOE_KEY(model, attention), is_not_mla},
    {KEYS(MOE_KEY(model, num_kv_heads)), false, MOE_KEY(model, attention), is_mla},
    {KEYS(MOE_KEY(model, rope_theta), MOE_KEY(model, rope_order)), false, MOE_KEY(model, rope_dim),
     turns_nothing},
    {KEYS(MOE_KEY(model, intermediate_size)), false, MOE_KEY(model, first_dense_layers),
     has_no_dense_layer},
    {KEYS(MOE_KEY(model, compute)), false, MOE_KEY(model, expert_type), multiplies_nothing},
    {KEYS(MOE_KEY(model, residual)), false, MOE_KEY(model, num_layers), is_one_layer},
    {KEYS(MOE_KEY(router, score_func)), false, MOE_KEY(data, scores), has_no_scores},
    {KEYS(MOE_KEY(router, norm_topk_prob),
          MOE_KEY(router, routed_scaling_factor),
          MOE_KEY(router, scale_normalized),
          MOE_KEY(router, norm_single),
          MOE_KEY(router, bias_file),
          MOE_KEY(balance, z_loss)),
     false, MOE_KEY(data, source), moe_config_recorded},
    {KEYS(MOE_KEY(balance, alpha_expert),
          MOE_KEY(balance, alpha_device),
          MOE_KEY(balance, alpha_comm)),
     false, MOE_KEY(data, scores), has_no_scores},
    {KEYS(MOE_KEY(router, num_groups), MOE_KEY(router, topk_group)), false,
     MOE_KEY(router, group_limit), has_no_limit},
    {KEYS(MOE_KEY(router, norm_topk_prob), MOE_KEY(router, norm_single)), false,
     MOE_KEY(router, score_func), moe_config_weights_over_chosen},
    {KEYS(MOE_KEY(router, scale_normalized), MOE_KEY(router, norm_single)), false,
     MOE_KEY(router, norm_topk_prob), normalises_never},
    {KEYS(MOE_KEY(router, norm_single)), false, MOE_KEY(router, top_k), chooses_several},
    {KEYS(MOE_KEY(router, scale_normalized)), false, MOE_KEY(router, routed_scaling_factor),
     scales_nothing},
    {KEYS(MOE_KEY(router, top_p), MOE_KEY(router, temperature_on)), false, MOE_KEY(router, method),
     is_not_top_p},
    {KEYS(MOE_KEY(router, temperature_on)), false, MOE_KEY(router, temperature),
     has_no_temperature},
    {KEYS(MOE_KEY(router, sinkhorn_tolerance), MOE_KEY(router, sinkhorn_iterations)), false,
     MOE_KEY(router, method), is_not_sinkhorn},
    {KEYS(MOE_KEY(router, gate_scale)), false, MOE_KEY(data, source), is_recorded},
    {KEYS(MOE_KEY(router, gate_scale),
          MOE_KEY(data, tokens_per_device),
          MOE_KEY(data, skew),
          MOE_KEY(data, num_topics),
          MOE_KEY(data, drift),
          MOE_KEY(data, topic_strength),
          MOE_KEY(data, topic_persistence)),
     false, MOE_KEY(model, load), is_loaded},
    {KEYS(MOE_KEY(router, jitter_experts)), false, MOE_KEY(router, jitter), has_no_jitter},
    {KEYS(MOE_KEY(router, bias_update), MOE_KEY(router, bias_centered)), false,
     MOE_KEY(router, bias_update_rate), moves_no_bias},
    {KEYS(MOE_KEY(train, beta1), MOE_KEY(train, beta2), MOE_KEY(train, epsilon)), false,
     MOE_KEY(train, optimizer), is_sgd},
    {KEYS(MOE_KEY(train, validation_batches)), false, MOE_KEY(train, validation_every),
     validates_never},
    {KEYS(MOE_KEY(train, context), MOE_KEY(train, validation_share)), false, MOE_KEY(data, source),
     is_not_text},
    {KEYS(MOE_KEY(placement, window), MOE_KEY(placement, hysteresis)), false,
     MOE_KEY(placement, rebalance_every), rebalances_not},
    {KEYS(MOE_KEY(data, sequence_length)), false, MOE_KEY(data, boundaries), has_boundaries},
    {KEYS(MOE_KEY(data, path)), false, MOE_KEY(data, source), is_synthetic},
    {KEYS(MOE_KEY(data, skew),
          MOE_KEY(data, num_topics),
          MOE_KEY(data, drift),
          MOE_KEY(data, topic_strength),
          MOE_KEY(data, topic_persistence)),
     false, MOE_KEY(data, source), is_not_synthetic},
    {KEYS(MOE_KEY(data, tokens_per_device)), false, MOE_KEY(data, source), is_recorded},
};
enum { NUM_RULES = sizeof rules / sizeof rules[0] };

static bool is_meant_by(int rule, enum moe_key_id key) {
    const enum moe_key_id *keys = rules[rule].keys;
    if (rules[rule].whole_section) {
        return moe_table_same_section(keys[0], key);
    }
    while (*keys != MOE_KEY_NONE && *keys != key) {
        keys++;
    }
    return *keys == key;
}

/* Whether the key was set by hand to something else than the default, and is not only left over in
 * a file whose other key --set has changed. */
static bool was_meant(const moe_config *c,
                      const moe_config *defaults,
                      enum moe_key_id key,
                      enum moe_key_id because) {
    char value[MOE_VALUE_TEXT_MAX], other[MOE_VALUE_TEXT_MAX];
    if (c->place[key] == MOE_PLACE_DEFAULT || c->place[key] == MOE_PLACE_PRESET || key == because) {
        return false;
    }
    if (c->place[because] == MOE_PLACE_SET && c->place[key] != MOE_PLACE_SET) {
        return false;
    }
    moe_value_format(c, key, value);
    moe_value_format(defaults, key, other);
    return strcmp(value, other) != 0;
}

/* Whether an earlier rule has named the key. */
static bool is_named(const moe_idle *idle, int count, enum moe_key_id key) {
    while (count > 0 && idle[count - 1].key != key) {
        count--;
    }
    return count > 0;
}

int moe_idle_find(const moe_config *c, moe_idle *idle, int room) {
    moe_config defaults;
    int count = 0;
    moe_config_defaults(&defaults);
    for (int r = 0; r < NUM_RULES; r++) {
        if (!rules[r].idle(c)) {
            continue;
        }
        for (enum moe_key_id k = 0; k < MOE_NUM_KEYS && count < room; k++) {
            if (is_meant_by(r, k) && was_meant(c, &defaults, k, rules[r].because) &&
                !is_named(idle, count, k)) {
                idle[count++] = (moe_idle){k, rules[r].because};
            }
        }
    }
    return count;
}
