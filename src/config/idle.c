/* idle.c: the rules that say which keys have no effect beside which others. */
#include "config/idle.h"

#include <string.h>

#include "config/config.h"
#include "config/table.h"
#include "config/value.h"

static bool drops_nothing(const moe_config *c) {
    return c->capacity.policy == MOE_CAPACITY_NONE;
}
static bool trains_not(const moe_config *c) {
    return c->run.mode != MOE_MODE_TRAIN;
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
static bool always(const moe_config *c) {
    (void)c;
    return true;
}

#define KEYS(...)                 \
    (const enum moe_key_id[]) {   \
        __VA_ARGS__, MOE_KEY_NONE \
    }

/* A rule: when `idle` is true, the keys have no effect. */
static const struct {
    const enum moe_key_id *keys; /* end with MOE_KEY_NONE */
    bool whole_section;          /* all keys of the section of the first one are meant */
    enum moe_key_id because; /* its value makes them idle; MOE_KEY_NONE: nothing uses them yet */
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
          MOE_KEY(balance, ramp_steps)),
     false, MOE_KEY(run, mode), trains_not},
    {KEYS(MOE_KEY(output, tensors)), false, MOE_KEY(run, mode), trains},
    {KEYS(MOE_KEY(exchange, fp8_scale)), false, MOE_KEY(exchange, payload), sends_no_fp8},
    {KEYS(MOE_KEY(router, top_p)), false, MOE_KEY(router, method), is_not_top_p},
    {KEYS(MOE_KEY(data, sequence_length)), false, MOE_KEY(data, boundaries), has_boundaries},
    {KEYS(MOE_KEY(data, path)), false, MOE_KEY(data, source), is_synthetic},
    {KEYS(MOE_KEY(data, skew), MOE_KEY(data, num_topics)), false, MOE_KEY(data, source),
     is_not_synthetic},
    {KEYS(MOE_KEY(data, tokens_per_device)), false, MOE_KEY(data, source), is_recorded},
    {KEYS(MOE_KEY(cluster, intra_gbps),
          MOE_KEY(cluster, inter_gbps),
          MOE_KEY(cluster, intra_latency_us),
          MOE_KEY(cluster, inter_latency_us),
          MOE_KEY(cluster, device_tflops),
          MOE_KEY(cluster, efficiency)),
     false, MOE_KEY_NONE, always},
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
    if (because != MOE_KEY_NONE && c->place[because] == MOE_PLACE_SET &&
        c->place[key] != MOE_PLACE_SET) {
        return false;
    }
    moe_value_format(c, key, value);
    moe_value_format(defaults, key, other);
    return strcmp(value, other) != 0;
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
            if (is_meant_by(r, k) && was_meant(c, &defaults, k, rules[r].because)) {
                idle[count++] = (moe_idle){k, rules[r].because};
            }
        }
    }
    return count;
}
