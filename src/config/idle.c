/* config_idle.c: keys that were changed and have no effect beside the other keys, so that nobody
 * takes them for what made the figures. */
#include <string.h>

#include "config/table.h"

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
static bool is_synthetic(const moe_config *c) {
    return c->data.source == MOE_SOURCE_SYNTHETIC;
}
static bool is_not_synthetic(const moe_config *c) {
    return !is_synthetic(c);
}
static bool is_recorded(const moe_config *c) {
    return c->data.source == MOE_SOURCE_LOGITS || c->data.source == MOE_SOURCE_ROUTING;
}
static bool always(const moe_config *c) {
    (void)c;
    return true;
}

/* keys: names separated by blanks, "section." for all of a section but `because`. because: the key
 * whose value makes them idle; NULL: nothing uses them yet. */
static const struct {
    const char *keys, *because;
    bool (*idle)(const moe_config *);
} rules[] = {
    {"capacity.", "capacity.policy", drops_nothing},
    {"train.", "run.mode", trains_not},
    {"router.noise router.noise_form router.jitter router.jitter_experts router.expert_dropout "
     "router.bias_update_rate router.bias_update "
     "router.bias_centered balance.begin_step balance.ramp_steps",
     "run.mode", trains_not},
    {"output.tensors", "run.mode", trains},
    {"router.top_p", "router.method", is_not_top_p},
    {"data.path", "data.source", is_synthetic},
    {"data.skew data.num_topics", "data.source", is_not_synthetic},
    {"data.tokens_per_device", "data.source", is_recorded},
    {"cluster.intra_gbps cluster.inter_gbps cluster.intra_latency_us cluster.inter_latency_us "
     "cluster.device_tflops cluster.efficiency",
     NULL, always},
};

static bool names(const char *keys, int k) {
    char full[MOE_KEY_TEXT_MAX + 1];
    int length = snprintf(full, sizeof full, "%s.%s", moe_keys[k].section, moe_keys[k].name);
    size_t section = strlen(moe_keys[k].section) + 1;
    if (strncmp(keys, full, section) == 0 && keys[section] == '\0') {
        return true;
    }
    for (const char *at = strstr(keys, full); at; at = strstr(at + 1, full)) {
        if ((at == keys || at[-1] == ' ') && (at[length] == ' ' || at[length] == '\0')) {
            return true;
        }
    }
    return false;
}

/* Set by hand to something else than the default; and not only left over in a file whose other key
 * --set has changed. */
static bool was_meant(const moe_config *c, const moe_config *defaults, int k, int because) {
    char value[MOE_VALUE_TEXT_MAX], other[MOE_VALUE_TEXT_MAX];
    if (c->place[k] == MOE_PLACE_DEFAULT || c->place[k] == MOE_PLACE_PRESET || k == because) {
        return false;
    }
    if (because >= 0 && c->place[because] == MOE_PLACE_SET && c->place[k] != MOE_PLACE_SET) {
        return false;
    }
    moe_key_format(c, k, value);
    moe_key_format(defaults, k, other);
    return strcmp(value, other) != 0;
}

int moe_config_idle(const moe_config *c, int *key, int *because, int room) {
    moe_config defaults;
    int count = 0;
    moe_config_defaults(&defaults);
    for (size_t r = 0; r < sizeof rules / sizeof rules[0]; r++) {
        if (!rules[r].idle(c)) {
            continue;
        }
        int cause =
            rules[r].because ? moe_key_find_full(rules[r].because, strlen(rules[r].because)) : -1;
        for (int k = 0; k < moe_num_keys && count < room; k++) {
            if (!names(rules[r].keys, k) || !was_meant(c, &defaults, k, cause)) {
                continue;
            }
            key[count] = k;
            because[count++] = cause;
        }
    }
    return count;
}
