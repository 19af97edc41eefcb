/* config_resolve.c: makes a configuration complete for a number of ranks, and refuses combinations
 * without a meaning.
 *
 * Order: preset -> what does not exist yet -> segmentation -> zeros become numbers -> validation ->
 * comm_limit. */
#include <stdarg.h>
#include <string.h>

#include "config/table.h"

#define KEY(section, name) moe_key_find(#section, #name)

/* What exists so far: any other value of these keys is refused. A row goes when its feature lands.
 */
static const struct {
    const char *key, *available; /* values separated by blanks; "" = the empty path */
    const char *what;
} not_yet[] = {
    {"run.mode", "forward train", "generating"},
    {"model.attention", "none", "attention"},
    {"exchange.mode", "selection token", "the two-level exchange"},
    {"exchange.chunks", "1", "exchange in chunks"},
    {"exchange.transport", "alltoallv", "a transport other than alltoallv"},
    {"exchange.algorithm", "mpi", "an algorithm other than mpi"},
    {"exchange.payload", "fp32", "a payload narrower than fp32"},
    {"exchange.combine_payload", "fp32", "a payload narrower than fp32"},
    {"placement.policy", "block", "a placement other than block"},
    {"placement.redundant_experts", "0", "a placement with replicas"},
    {"placement.rebalance_every", "0", "a placement that changes"},
};

/* Where key k's value comes from: "file:line", "--set", "preset NAME" or "default". */
static void place_of_key(const moe_config *c, int k, char place[MOE_PLACE_TEXT_MAX]) {
    const int32_t from = c->place[k];
    if (from > 0) {
        moe_hint_place(c->file, from, place);
    } else if (from == MOE_PLACE_PRESET) {
        snprintf(place, MOE_PLACE_TEXT_MAX, "preset %s", c->router.preset);
    } else {
        snprintf(place, MOE_PLACE_TEXT_MAX, "%s", from == MOE_PLACE_SET ? "--set" : "default");
    }
}

/* "place: section.key = value: sentence". */
MOE_PRINTF(4, 5)
static int fail_key(const moe_config *c, int k, moe_status *st, const char *format, ...) {
    char place[MOE_PLACE_TEXT_MAX], value[MOE_VALUE_TEXT_MAX], quoted[68], sentence[400];
    va_list args;
    va_start(args, format);
    vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    place_of_key(c, k, place);
    moe_key_format(c, k, value);
    moe_hint_quote(value, quoted);
    return moe_fail(st, MOE_USER, "%s: %s.%s = %s: %s", place, moe_keys[k].section,
                    moe_keys[k].name, quoted, sentence);
}

/* Of two keys that do not go together, the one that the user wrote (the first when both or none).
 */
static int written(const moe_config *c, int first, int second) {
    return !c->given[first] && c->given[second] ? second : first;
}

static int apply_preset(moe_config *c, moe_status *st) {
    if (c->router.preset[0] == '\0') {
        return MOE_OK;
    }
    const moe_preset *preset = moe_preset_find(c->router.preset);
    char value[MOE_VALUE_TEXT_MAX];
    if (preset->settings == NULL) {
        return fail_key(c, KEY(router, preset), st, "this preset is not available yet: %s",
                        preset->description);
    }
    for (int k = 0; k < moe_num_keys; k++) {
        if (c->given[k] || !moe_preset_value(preset, k, value)) {
            continue;
        }
        moe_key_set(c, k, value, "preset", st);
        MOE_ASSERT(st->code == MOE_OK);
        c->place[k] = MOE_PLACE_PRESET;
    }
    return MOE_OK;
}

/* Is `value` one of the words of `list`? The empty list has the empty value. */
static bool listed(const char *list, const char *value) {
    const size_t length = strlen(value);
    if (list[0] == '\0' || length == 0) {
        return list[0] == '\0' && length == 0;
    }
    for (const char *at = strstr(list, value); at != NULL; at = strstr(at + 1, value)) {
        if ((at == list || at[-1] == ' ') && (at[length] == '\0' || at[length] == ' ')) {
            return true;
        }
    }
    return false;
}

static int check_available(const moe_config *c, moe_status *st) {
    for (size_t i = 0; i < sizeof not_yet / sizeof not_yet[0]; i++) {
        const int k = moe_key_find_full(not_yet[i].key, strlen(not_yet[i].key));
        char value[MOE_VALUE_TEXT_MAX];
        MOE_ASSERT(k >= 0);
        moe_key_format(c, k, value);
        if (listed(not_yet[i].available, value)) {
            continue;
        }
        return fail_key(c, k, st, "%s is not available yet, allowed is %s", not_yet[i].what,
                        not_yet[i].available[0] != '\0' ? not_yet[i].available : "nothing");
    }
    return MOE_OK;
}

/* DeepSeekMoE: N experts of width F become mN of width F/m, of which N_s are the shared ones; mK -
 * N_s are chosen. Compute per token (mK experts of F/m) and parameters (mN of F/m) stay those of K
 * and N experts of width F. */
static int derive_segmentation(moe_config *c, moe_status *st) {
    const int32_t m = c->model.expert_segmentation, width = c->model.moe_intermediate_size;
    const int64_t experts = (int64_t)m * c->model.num_experts - c->model.num_shared_experts;
    const int64_t chosen = (int64_t)m * c->router.top_k - c->model.num_shared_experts;
    const int k = KEY(model, expert_segmentation);
    c->segmented.parts = m;
    c->segmented.num_experts = c->model.num_experts;
    c->segmented.top_k = c->router.top_k;
    c->segmented.moe_intermediate_size = width;
    if (m == 1) {
        return MOE_OK;
    }
    if (width % m != 0) {
        return fail_key(c, k, st, "it has to divide model.moe_intermediate_size = %d", width);
    }
    if (chosen < 1 || experts < 1) {
        return fail_key(c, k, st,
                        "model.num_shared_experts = %d leaves %lld of m x top_k = %lld chosen "
                        "experts, at least 1 is needed",
                        c->model.num_shared_experts, (long long)chosen,
                        (long long)m * c->router.top_k);
    }
    if (experts > moe_keys[KEY(model, num_experts)].max ||
        chosen > moe_keys[KEY(router, top_k)].max) {
        return fail_key(
            c, k, st,
            "m x N - N_s = %lld experts and m x K - N_s = %lld chosen are more than %.0f and %.0f",
            (long long)experts, (long long)chosen, moe_keys[KEY(model, num_experts)].max,
            moe_keys[KEY(router, top_k)].max);
    }
    c->model.num_experts = (int32_t)experts;
    c->router.top_k = (int32_t)chosen;
    c->model.moe_intermediate_size = width / m;
    c->model.expert_segmentation = 1;
    return MOE_OK;
}

static bool ignores_scores(const moe_config *c) {
    return c->router.method == MOE_METHOD_HASH || c->router.method == MOE_METHOD_RANDOM ||
           c->router.method == MOE_METHOD_ROUND_ROBIN;
}

/* Experts that a token can choose among. */
static int32_t most_in_kept_groups(const moe_config *c) {
    const int64_t kept =
        (int64_t)c->router.topk_group * (c->model.num_experts / c->router.num_groups);
    return c->router.group_limit == MOE_GROUP_NONE || kept > c->model.num_experts
               ? c->model.num_experts
               : (int32_t)kept;
}

/* Does the value of key k stand beside a method? A default does not, nor does a file's or a
 * preset's beside --set router.method. */
static bool stands(const moe_config *c, int k) {
    return c->place[k] == MOE_PLACE_SET ||
           (c->place[k] != MOE_PLACE_DEFAULT && c->place[KEY(router, method)] != MOE_PLACE_SET);
}

/* What a method implies where a key does not stand. */
static void derive_method(moe_config *c) {
    const bool chose_k = stands(c, KEY(router, top_k));
    if (!chose_k && c->router.method == MOE_METHOD_SWITCH) {
        c->router.top_k = 1;
    }
    if (!chose_k && c->router.method == MOE_METHOD_GSHARD) {
        c->router.top_k = 2;
    }
    if (!chose_k && c->router.method == MOE_METHOD_TOP_P) {
        c->router.top_k = most_in_kept_groups(c);
    }
    if (ignores_scores(c) && !stands(c, KEY(router, group_limit))) {
        c->router.group_limit = MOE_GROUP_NONE;
    }
    if (c->router.method == MOE_METHOD_SINKHORN &&
        c->place[KEY(router, score_func)] == MOE_PLACE_DEFAULT) {
        c->router.score_func =
            c->router.top_k == 1 ? MOE_SCORE_SIGMOID : MOE_SCORE_SOFTMAX; /* as
                                                                             Megatron-Core
                                                                           */
    }
}

/* Zeros and keys not given become what they stand for. */
static void derive_defaults(moe_config *c) {
    const bool loaded = c->model.load[0] != '\0';
    const bool recorded =
        c->data.source == MOE_SOURCE_LOGITS || c->data.source == MOE_SOURCE_ROUTING;
    if (c->cluster.devices == 0) {
        c->cluster.devices = c->ranks;
    }
    if (c->cluster.devices_per_node == 0) {
        c->cluster.devices_per_node = c->cluster.devices;
    }
    if (c->router.num_groups == 0) {
        c->router.num_groups = c->cluster.devices;
    }
    if (c->router.topk_group == 0) {
        c->router.topk_group = c->router.num_groups;
    }
    if (!c->given[KEY(model, residual)]) {
        c->model.residual = !loaded;
    }
    if (!c->given[KEY(model, norm)]) {
        c->model.norm = !loaded && (c->model.num_layers > 1 || c->run.mode == MOE_MODE_TRAIN)
                            ? MOE_NORM_RMSNORM
                            : MOE_NORM_NONE;
    }
    if (recorded) {
        c->run.steps = 1;
    }
    if (c->balance.aux_form != MOE_AUX_MIXTRAL && !c->given[KEY(balance, aux_layers)]) {
        c->balance.aux_layers = MOE_LAYERS_EACH;
    }
    derive_method(c);
}

static int check_devices(const moe_config *c, moe_status *st) {
    const int32_t n = c->model.num_experts, devices = c->cluster.devices;
    const int k_experts = KEY(model, num_experts), k_devices = KEY(cluster, devices);
    if (devices % c->ranks != 0) {
        return fail_key(c, k_devices, st,
                        "it has to be a multiple of the number of ranks (here %d)", c->ranks);
    }
    if (devices % c->cluster.devices_per_node != 0) {
        return fail_key(c, KEY(cluster, devices_per_node), st,
                        "it has to divide cluster.devices = %d", devices);
    }
    if (n % devices != 0) {
        return fail_key(
            c, written(c, k_experts, k_devices), st,
            "model.num_experts has to be a multiple of cluster.devices (here %d and %d)", n,
            devices);
    }
    if (n % c->router.num_groups != 0) {
        return fail_key(c, KEY(router, num_groups), st, "it has to divide model.num_experts = %d",
                        n);
    }
    return MOE_OK;
}

static int check_group_limit(const moe_config *c, moe_status *st) {
    const int32_t k = c->router.top_k;
    const int32_t m = c->router.topk_group;
    const int32_t groups = c->router.num_groups;
    const int32_t size = c->model.num_experts / groups;
    const int k_m = KEY(router, topk_group);
    const int k_top = KEY(router, top_k);
    const int k_limit = KEY(router, group_limit);
    if (c->router.group_limit == MOE_GROUP_NONE) {
        return MOE_OK;
    }
    if (m > groups) {
        return fail_key(c, k_m, st, "at most router.num_groups = %d is allowed (0 = all%s)", groups,
                        groups == c->cluster.devices ? "; each device is a group" : "");
    }
    if (k > (int64_t)m * size) {
        return fail_key(c, written(c, k_top, k_m), st,
                        "router.top_k experts have to fit in router.topk_group groups (here %d in "
                        "%d of %d experts each)",
                        k, m, size);
    }
    if (c->router.group_limit == MOE_GROUP_QUOTA && k % m != 0) {
        return fail_key(c, written(c, k_m, k_top), st,
                        "group_limit = quota needs a router.top_k that is a multiple of "
                        "router.topk_group (here %d and %d)",
                        k, m);
    }
    if (c->router.group_limit == MOE_GROUP_TOPK_SUM && k < m) {
        return fail_key(c, written(c, k_m, k_top), st,
                        "group_limit = topk_sum needs a router.top_k of at least router.topk_group "
                        "(here %d and %d)",
                        k, m);
    }
    if (c->router.group_limit == MOE_GROUP_TOP2_SUM && size < 2) {
        return fail_key(c, k_limit, st,
                        "it needs groups of at least 2 experts (here model.num_experts = %d in "
                        "router.num_groups = %d)",
                        c->model.num_experts, groups);
    }
    return MOE_OK;
}

/* Two keys that do not go together: names both, and what would. */
static int fail_pair(
    const moe_config *c, int k, int other, const char *consistent, moe_status *st) {
    char value[MOE_VALUE_TEXT_MAX];
    const int shown = written(c, k, other), beside = shown == k ? other : k;
    moe_key_format(c, beside, value);
    return fail_key(c, shown, st, "it does not go with %s.%s = %.60s: %s", moe_keys[beside].section,
                    moe_keys[beside].name, value, consistent);
}

/* Keys that only some methods know. */
static int check_method(const moe_config *c, moe_status *st) {
    const int method = c->router.method;
    const int k = KEY(router, method);
    const int top_k = KEY(router, top_k);
    const bool one = method == MOE_METHOD_SWITCH,
               ranked = method == MOE_METHOD_TOPK || one || method == MOE_METHOD_GSHARD;
    const bool sampled =
        method == MOE_METHOD_GSHARD && c->router.second_choice == MOE_SECOND_SAMPLED;
    if (c->router.group_limit != MOE_GROUP_NONE &&
        (ignores_scores(c) || method == MOE_METHOD_EXPERT_CHOICE)) {
        return fail_pair(c, k, KEY(router, group_limit),
                         "it ranks no experts of a token: method = topk, or group_limit = none",
                         st);
    }
    if (c->router.group_limit != MOE_GROUP_NONE && sampled) {
        return fail_pair(c, KEY(router, second_choice), KEY(router, group_limit),
                         "second_choice = best or random, or group_limit = none", st);
    }
    if (one && c->router.top_k != 1) {
        return fail_pair(c, k, top_k, "switch takes one expert: top_k = 1, or method = topk", st);
    }
    if (one && c->router.norm_topk_prob) {
        return fail_pair(
            c, k, KEY(router, norm_topk_prob),
            "switch's weight is the largest score: norm_topk_prob = no, or method = topk", st);
    }
    if (method == MOE_METHOD_GSHARD && c->router.top_k != 2) {
        return fail_pair(c, k, top_k, "gshard takes two experts: top_k = 2, or method = topk", st);
    }
    if (c->router.second_choice != MOE_SECOND_BEST && method != MOE_METHOD_GSHARD) {
        return fail_pair(c, KEY(router, second_choice), k,
                         "a second choice by chance goes with method = gshard", st);
    }
    if (c->router.temperature != 1 && method != MOE_METHOD_TOP_P) {
        return fail_pair(c, KEY(router, temperature), k, "a temperature goes with method = top_p",
                         st);
    }
    if (c->router.bias_file[0] != '\0' && !ranked) {
        return fail_pair(c, KEY(router, bias_file), k,
                         "a bias moves choices by score: method = topk, switch or gshard", st);
    }
    if (c->router.bias_update_rate > 0 && !ranked) {
        return fail_pair(c, KEY(router, bias_update_rate), k,
                         "a bias moves choices by score: method = topk, switch or gshard", st);
    }
    return MOE_OK;
}

/* Shazeer et al.'s load asks for the probability to be among the K largest noisy logits. */
static int check_noisy_load(const moe_config *c, moe_status *st) {
    const int form = KEY(balance, load_form), method = c->router.method;
    if (c->router.noise_form == MOE_NOISE_GAUSSIAN && c->router.noise <= 0) {
        return fail_pair(
            c, form, KEY(router, noise),
            "a smooth load is as wide as the noise: router.noise above 0, or noise_form = softplus",
            st);
    }
    if (method != MOE_METHOD_TOPK && method != MOE_METHOD_SWITCH) {
        return fail_pair(c, form, KEY(router, method),
                         "it is of the K largest logits: method = topk or switch", st);
    }
    if (c->router.group_limit != MOE_GROUP_NONE) {
        return fail_pair(c, form, KEY(router, group_limit),
                         "it is of the K largest logits: group_limit = none", st);
    }
    if (c->router.bias_file[0] != '\0') {
        return fail_pair(c, form, KEY(router, bias_file), "it is of the K largest logits: no bias",
                         st);
    }
    if (c->router.bias_update_rate > 0) {
        return fail_pair(c, form, KEY(router, bias_update_rate),
                         "it is of the K largest logits: bias_update_rate = 0", st);
    }
    return MOE_OK;
}

/* Scores that a method or a loss needs. */
static int check_router(const moe_config *c, moe_status *st) {
    const bool sums_to_one =
        c->router.score_func == MOE_SCORE_SOFTMAX || c->router.score_func == MOE_SCORE_SOFTMAX_TOPK;
    const int score = KEY(router, score_func), form = KEY(balance, load_form);
    if (check_method(c, st) != MOE_OK) {
        return st->code;
    }
    if (c->router.method == MOE_METHOD_TOP_P && !sums_to_one) {
        return fail_pair(c, KEY(router, method), score,
                         "top_p adds up probabilities: score_func = softmax or softmax_topk", st);
    }
    if (c->balance.load_form == MOE_LOAD_SHAZEER && check_noisy_load(c, st) != MOE_OK) {
        return st->code;
    }
    if (c->balance.load_form == MOE_LOAD_TUTEL && c->router.noise_form != MOE_NOISE_GAUSSIAN) {
        return fail_pair(
            c, form, KEY(router, noise_form),
            "Tutel's noise has a fixed scale: noise_form = gaussian, or load_form = shazeer", st);
    }
    if (c->balance.load_form == MOE_LOAD_TUTEL && c->router.noise <= 0) {
        return fail_pair(c, form, KEY(router, noise),
                         "Tutel's smooth load is as wide as the noise: router.noise above 0", st);
    }
    if (c->balance.load_form == MOE_LOAD_TUTEL && !sums_to_one) {
        return fail_pair(
            c, form, score,
            "Tutel's smooth load compares probabilities: score_func = softmax or softmax_topk", st);
    }
    if (c->balance.load_loss > 0 && c->balance.load_form == MOE_LOAD_SELECTIONS) {
        return fail_pair(c, KEY(balance, load_loss), form,
                         "a count has no gradient: load_form = shazeer or tutel, or load_loss = 0",
                         st);
    }
    if (c->balance.aux_layers == MOE_LAYERS_ALL && c->balance.aux_form != MOE_AUX_MIXTRAL) {
        return fail_pair(
            c, KEY(balance, aux_layers), KEY(balance, aux_form),
            "the loss over all layers is that of aux_form = mixtral; or aux_layers = each", st);
    }
    if (c->data.source == MOE_SOURCE_ROUTING && c->router.method != MOE_METHOD_TOPK &&
        c->given[KEY(router, method)]) {
        return fail_pair(c, KEY(router, method), KEY(data, source),
                         "a recorded routing is taken as it is: data.source = logits, or no method",
                         st);
    }
    return MOE_OK;
}

/* Products that the program relies on to fit in 64 bits with room to spare. */
static int check_sizes(const moe_config *c, moe_status *st) {
    const double tokens = (double)c->data.tokens_per_device * c->cluster.devices,
                 most = 1099511627776.0; /* 2^40 */
    const double matrices =
        (double)c->model.num_experts * c->model.moe_intermediate_size * c->model.hidden_size;
    const int k_tokens = KEY(data, tokens_per_device);
    if (tokens >= most) {
        return fail_key(
            c, k_tokens, st,
            "times cluster.devices = %d it has to stay below 2^40 = 1099511627776 tokens",
            c->cluster.devices);
    }
    if (tokens * c->router.top_k >= most) {
        return fail_key(c, k_tokens, st,
                        "times cluster.devices = %d and router.top_k = %d it has to stay below "
                        "2^40 = 1099511627776 selections",
                        c->cluster.devices, c->router.top_k);
    }
    if (tokens * c->model.hidden_size >= most * 1024 ||
        tokens * c->model.num_experts >= most * 1024) {
        return fail_key(c, k_tokens, st,
                        "the batch has %.0f tokens: times hidden_size and times num_experts it has "
                        "to stay below 2^50",
                        tokens);
    }
    if (matrices * c->model.num_layers >= most * 1024) {
        return fail_key(c, KEY(model, num_experts), st,
                        "times hidden_size = %d, moe_intermediate_size = %d and num_layers = %d it "
                        "has to stay below 2^50 weights",
                        c->model.hidden_size, c->model.moe_intermediate_size, c->model.num_layers);
    }
    return MOE_OK;
}

static int check_data(const moe_config *c, moe_status *st) {
    const char *source = moe_config_enum_name("data.source", c->data.source);
    const bool recorded =
        c->data.source == MOE_SOURCE_LOGITS || c->data.source == MOE_SOURCE_ROUTING;
    if (c->data.source != MOE_SOURCE_SYNTHETIC && c->data.path[0] == '\0') {
        return fail_key(c, KEY(data, source), st, "data.path has to name the file to read");
    }
    if (!recorded && c->data.mask[0] != '\0') {
        return fail_key(c, KEY(data, mask), st,
                        "a mask goes with data.source = logits or routing, not with %s", source);
    }
    if (c->data.source != MOE_SOURCE_ROUTING && c->data.weights[0] != '\0') {
        return fail_key(c, KEY(data, weights), st,
                        "recorded weights go with data.source = routing, not with %s", source);
    }
    if (c->data.source != MOE_SOURCE_ROUTING && c->data.scores[0] != '\0') {
        return fail_key(c, KEY(data, scores), st,
                        "recorded scores go with data.source = routing, not with %s", source);
    }
    return MOE_OK;
}

/* Of a capacity.* key and the key it does not go with, both named. */
static int fail_capacity(
    const moe_config *c, int k, const char *needs, const char *other, moe_status *st) {
    const int o = moe_key_find_full(other, strlen(other));
    char value[MOE_VALUE_TEXT_MAX], quoted[68];
    moe_key_format(c, o, value);
    moe_hint_quote(value, quoted);
    return fail_key(c, k, st, "it needs %s (here %s = %s)", needs, other, quoted);
}

static int check_capacity(const moe_config *c, moe_status *st) {
    const char *policy = "capacity.policy";
    const int p = c->capacity.policy;
    const int scope = KEY(capacity, capacity_scope);
    const int drop = KEY(capacity, drop);
    const bool sequence = p == MOE_CAPACITY_SEQUENCE,
               recorded = c->data.source == MOE_SOURCE_ROUTING;
    const bool normalised =
        c->router.norm_topk_prob || c->router.score_func == MOE_SCORE_SOFTMAX_TOPK;
    if (p == MOE_CAPACITY_NONE) {
        return MOE_OK;
    }
    if (p == MOE_CAPACITY_DEVICE && c->capacity.expert_capacity > 0) {
        return fail_capacity(c, KEY(capacity, expert_capacity),
                             "policy expert or sequence: a device has a capacity_factor", policy,
                             st);
    }
    if (sequence && c->capacity.exempt_sequences > 0) {
        return fail_capacity(c, KEY(capacity, exempt_sequences),
                             "policy device or expert: there sequences share a budget", policy, st);
    }
    if (sequence && c->capacity.capacity_scope == MOE_CAPACITY_PER_DEVICE) {
        return fail_capacity(
            c, scope, "policy device or expert: a sequence has its budget wherever its tokens are",
            policy, st);
    }
    if (sequence && c->given[drop] && c->capacity.drop != MOE_DROP_POSITION) {
        return fail_capacity(
            c, drop, "policy device or expert: of a sequence the later tokens go (drop = position)",
            policy, st);
    }
    if (c->capacity.pad_to_capacity && p != MOE_CAPACITY_EXPERT) {
        return fail_capacity(c, KEY(capacity, pad_to_capacity),
                             "policy expert: one buffer an expert", policy, st);
    }
    if (c->capacity.renormalize && !normalised) {
        return fail_capacity(
            c, KEY(capacity, renormalize),
            "normalised weights: norm_topk_prob = yes or score_func = softmax_topk",
            "router.norm_topk_prob", st);
    }
    if (c->capacity.renormalize && recorded) {
        return fail_capacity(c, KEY(capacity, renormalize), "a router that makes the weights",
                             "data.source", st);
    }
    if (c->capacity.overflow == MOE_OVERFLOW_NEXT_CHOICE && recorded) {
        return fail_capacity(c, KEY(capacity, overflow), "logits, which tell the next choice",
                             "data.source", st);
    }
    return MOE_OK;
}

static int check(const moe_config *c, moe_status *st) {
    if (check_devices(c, st) != MOE_OK) {
        return st->code;
    }
    if (c->router.top_k > c->model.num_experts) {
        const int k = written(c, KEY(router, top_k), KEY(model, num_experts));
        return fail_key(c, k, st, "router.top_k may be at most model.num_experts (here %d and %d)",
                        c->router.top_k, c->model.num_experts);
    }
    if (check_router(c, st) != MOE_OK || check_group_limit(c, st) != MOE_OK ||
        check_data(c, st) != MOE_OK || check_capacity(c, st) != MOE_OK) {
        return st->code;
    }
    return check_sizes(c, st);
}

/* Most devices that hold experts of one group: D/G when groups divide devices, 1 when devices
 * divide groups. */
static int32_t devices_of_a_group(const moe_config *c) {
    const int64_t size = c->model.num_experts / c->router.num_groups,
                  share = c->model.num_experts / c->cluster.devices;
    int64_t most = 1;
    for (int64_t g = 0; g < c->router.num_groups; g++) {
        const int64_t devices = ((g + 1) * size - 1) / share - g * size / share + 1;
        if (devices > most) {
            most = devices;
        }
    }
    return (int32_t)most;
}

/* M of f'' (method.md, 2). */
static int32_t comm_limit(const moe_config *c) {
    const int32_t k = moe_config_most_experts(c), devices = c->cluster.devices;
    const int64_t reach = k < devices ? k : devices;
    if (c->router.group_limit == MOE_GROUP_NONE) {
        return (int32_t)reach;
    }
    if (c->router.num_groups == devices) {
        return c->router.topk_group;
    }
    const int64_t limit = (int64_t)c->router.topk_group * devices_of_a_group(c);
    return (int32_t)(limit < reach ? limit : reach);
}

int32_t moe_config_most_experts(const moe_config *c) {
    return c->router.method == MOE_METHOD_EXPERT_CHOICE ? c->model.num_experts : c->router.top_k;
}

int moe_config_resolve(moe_config *c, int32_t ranks, moe_status *st) {
    MOE_ASSERT(ranks >= 1 && c->ranks == 0);
    if (apply_preset(c, st) != MOE_OK || check_available(c, st) != MOE_OK ||
        derive_segmentation(c, st) != MOE_OK) {
        return st->code;
    }
    c->ranks = ranks;
    derive_defaults(c);
    if (check(c, st) != MOE_OK) {
        return st->code;
    }
    c->comm_limit = comm_limit(c);
    return MOE_OK;
}

int moe_config_recorded_top_k(moe_config *c, int32_t k, moe_status *st) {
    const int key = KEY(router, top_k);
    MOE_ASSERT(c->ranks > 0);
    if (c->given[key] && c->router.top_k != k) {
        return fail_key(c, key, st, "the recorded routing has %d experts per token", k);
    }
    if (k < 1 || k > moe_keys[key].max) {
        return moe_fail(st, MOE_USER, "%.200s: %d experts per token, from 1 to %.0f are allowed",
                        c->data.path, k, moe_keys[key].max);
    }
    c->router.top_k = k;
    if (check(c, st) != MOE_OK) {
        return st->code;
    }
    c->comm_limit = comm_limit(c);
    return MOE_OK;
}
