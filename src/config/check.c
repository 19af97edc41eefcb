/* check.c: which combinations of keys have a meaning. Every refusal is one sentence that names the
 * key, its place and value, and what is allowed. */
#include "config/check.h"

#include <string.h>

#include "config/config.h"
#include "config/hint.h"
#include "config/refuse.h"
#include "config/table.h"
#include "config/value.h"

/* --- features that do not exist yet --- */

/* Keys of which only some values exist so far. A row goes when its feature is built. */
static const struct {
    enum moe_key_id key;
    const char *available; /* the values that exist, separated by blanks */
    const char *feature;   /* what the other values stand for */
} not_yet[] = {
    {MOE_KEY(exchange, algorithm), "mpi", "an algorithm other than mpi"},
};

/* Whether `value` is one of the words of `list`. */
static bool is_listed(const char *list, const char *value) {
    const size_t length = strlen(value);
    for (const char *at = strstr(list, value); at != NULL; at = strstr(at + 1, value)) {
        if ((at == list || at[-1] == ' ') && (at[length] == '\0' || at[length] == ' ')) {
            return true;
        }
    }
    return false;
}

/* Keys that only --placements reads. */
static int check_comparing(const moe_config *c, moe_status *st) {
    const enum moe_key_id key = c->placement.load[0] != '\0' ? MOE_KEY(placement, load)
                                : c->placement.fit > 0       ? MOE_KEY(placement, fit)
                                : c->placement.score > 0     ? MOE_KEY(placement, score)
                                                             : MOE_KEY_NONE;
    if (key == MOE_KEY_NONE || c->compares_placements) {
        return MOE_OK;
    }
    return moe_refuse_key(c, key, st, "it goes with moesim --placements, a run does not read it");
}

int moe_check_available(const moe_config *c, moe_status *st) {
    for (size_t i = 0; i < sizeof not_yet / sizeof not_yet[0]; i++) {
        char value[MOE_VALUE_TEXT_MAX];
        moe_value_format(c, not_yet[i].key, value);
        if (!is_listed(not_yet[i].available, value)) {
            return moe_refuse_key(c, not_yet[i].key, st, "%s is not available yet, allowed is %s",
                                  not_yet[i].feature, not_yet[i].available);
        }
    }
    return check_comparing(c, st);
}

/* --- devices and groups --- */

/* Hosts that are no nodes of equal size with neighbouring devices. */
static int refuse_hosts(const moe_config *c, moe_status *st) {
    return moe_refuse_key(
        c, MOE_KEY(cluster, devices_per_node), st,
        "each host would be a node, and %s: %s, or give the number of devices of a node",
        c->hosts.unequal ? "these hosts have different numbers of ranks"
                         : "the ranks of a host do not follow each other",
        c->hosts.unequal ? "start as many on each" : "map ranks by slot and not by node");
}

static int check_devices(const moe_config *c, moe_status *st) {
    const int32_t n = c->model.num_experts, devices = c->cluster.devices;
    const enum moe_key_id k_experts = MOE_KEY(model, num_experts),
                          k_devices = MOE_KEY(cluster, devices);
    if (devices % c->ranks != 0) {
        return moe_refuse_key(c, k_devices, st,
                              "it has to be a multiple of the number of ranks (here %d)", c->ranks);
    }
    if (c->cluster.devices_per_node == 0) {
        return refuse_hosts(c, st);
    }
    if (devices % c->cluster.devices_per_node != 0) {
        return moe_refuse_key(c, MOE_KEY(cluster, devices_per_node), st,
                              "it has to divide cluster.devices = %d", devices);
    }
    if (moe_config_has_loads_only(c)) {
        return MOE_OK; /* a balancer says itself what it needs of experts and groups */
    }
    if (n % devices != 0 && (c->compares_placements || c->placement.redundant_experts == 0)) {
        return moe_refuse_key(
            c, moe_refuse_written(c, k_experts, k_devices), st,
            "model.num_experts has to be a multiple of cluster.devices (here %d and %d)", n,
            devices);
    }
    if (n % c->router.num_groups != 0) {
        return moe_refuse_key(c, MOE_KEY(router, num_groups), st,
                              "it has to divide model.num_experts = %d", n);
    }
    return MOE_OK;
}

/* What the rules that keep the best groups need of the numbers of experts and groups. */
static int check_group_rule(const moe_config *c, moe_status *st) {
    const int32_t k = c->router.top_k;
    const int32_t m = c->router.topk_group;
    const int32_t groups = c->router.num_groups;
    const enum moe_key_id k_or_m =
        moe_refuse_written(c, MOE_KEY(router, topk_group), MOE_KEY(router, top_k));
    if (c->router.group_limit == MOE_GROUP_QUOTA && k % m != 0) {
        return moe_refuse_key(c, k_or_m, st,
                              "group_limit = quota needs a router.top_k that is a multiple of "
                              "router.topk_group (here %d and %d)",
                              k, m);
    }
    if (c->router.group_limit == MOE_GROUP_TOPK_SUM && k < m) {
        return moe_refuse_key(c, k_or_m, st,
                              "group_limit = topk_sum needs a router.top_k of at least "
                              "router.topk_group (here %d and %d)",
                              k, m);
    }
    if (c->router.group_limit == MOE_GROUP_TOP2_SUM && c->model.num_experts / groups < 2) {
        return moe_refuse_key(c, MOE_KEY(router, group_limit), st,
                              "it needs groups of at least 2 experts (here model.num_experts = %d "
                              "in router.num_groups = %d)",
                              c->model.num_experts, groups);
    }
    return MOE_OK;
}

static int check_group_limit(const moe_config *c, moe_status *st) {
    const int32_t k = c->router.top_k;
    const int32_t m = c->router.topk_group;
    const int32_t groups = c->router.num_groups;
    const int32_t size = c->model.num_experts / groups;
    const enum moe_key_id key_m = MOE_KEY(router, topk_group);
    if (c->router.group_limit == MOE_GROUP_NONE) {
        return MOE_OK;
    }
    if (m > groups) {
        return moe_refuse_key(c, key_m, st, "at most router.num_groups = %d is allowed (0 = all%s)",
                              groups,
                              groups == c->cluster.devices ? "; each device is a group" : "");
    }
    if (c->top_k_is_recorded) {
        return MOE_OK;
    }
    if (k > (int64_t)m * size) {
        return moe_refuse_key(c, moe_refuse_written(c, MOE_KEY(router, top_k), key_m), st,
                              "router.top_k experts have to fit in router.topk_group groups (here "
                              "%d in %d of %d experts each)",
                              k, m, size);
    }
    return check_group_rule(c, st);
}

/* --- router and losses --- */

/* Keys that only some methods know. */
static int check_method(const moe_config *c, moe_status *st) {
    const moe_router_config *r = &c->router;
    const bool one = r->method == MOE_METHOD_SWITCH;
    const bool two = r->method == MOE_METHOD_GSHARD;
    const bool ranked = r->method == MOE_METHOD_TOPK || one || two;
    const bool limited = r->group_limit != MOE_GROUP_NONE;
    const bool ranks_none = moe_config_ignores_scores(c) || r->method == MOE_METHOD_EXPERT_CHOICE;
    const moe_pair_rule rules[] = {
        {limited && ranks_none, MOE_KEY(router, method), MOE_KEY(router, group_limit),
         "it ranks no experts of a token: method = topk, or group_limit = none"},
        {limited && two && r->second_choice == MOE_SECOND_SAMPLED, MOE_KEY(router, second_choice),
         MOE_KEY(router, group_limit), "second_choice = best or random, or group_limit = none"},
        {r->method == MOE_METHOD_TOP_P && r->group_limit == MOE_GROUP_QUOTA,
         MOE_KEY(router, method), MOE_KEY(router, group_limit),
         "a quota fixes how many experts each group gives: method = topk, or group_limit = max"},
        {one && r->top_k != 1, MOE_KEY(router, method), MOE_KEY(router, top_k),
         "switch takes one expert: top_k = 1, or method = topk"},
        {one && r->norm_topk_prob, MOE_KEY(router, method), MOE_KEY(router, norm_topk_prob),
         "switch's weight is the largest score: norm_topk_prob = no, or method = topk"},
        {two && r->top_k != 2, MOE_KEY(router, method), MOE_KEY(router, top_k),
         "gshard takes two experts: top_k = 2, or method = topk"},
        {r->second_choice != MOE_SECOND_BEST && !two, MOE_KEY(router, second_choice),
         MOE_KEY(router, method), "a second choice by chance goes with method = gshard"},
        {r->temperature != 1 && r->method != MOE_METHOD_TOP_P, MOE_KEY(router, temperature),
         MOE_KEY(router, method), "a temperature goes with method = top_p"},
        {r->bias_file[0] != '\0' && !ranked, MOE_KEY(router, bias_file), MOE_KEY(router, method),
         "a bias moves choices by score: method = topk, switch or gshard"},
        {r->bias_update_rate > 0 && !ranked, MOE_KEY(router, bias_update_rate),
         MOE_KEY(router, method), "a bias moves choices by score: method = topk, switch or gshard"},
        {r->method == MOE_METHOD_TOP_P && !moe_config_scores_sum_to_one(c), MOE_KEY(router, method),
         MOE_KEY(router, score_func),
         "top_p adds up probabilities: score_func = softmax or softmax_topk"},
    };
    return moe_refuse_pairs(c, rules, sizeof rules / sizeof rules[0], st);
}

/* What the forms of the load need. Shazeer et al.'s load is the probability to be among the K
 * largest noisy logits, so it needs noise and a choice by the K largest. */
static int check_load(const moe_config *c, moe_status *st) {
    const moe_router_config *r = &c->router;
    const bool shazeer = c->balance.load_form == MOE_LOAD_SHAZEER;
    const bool tutel = c->balance.load_form == MOE_LOAD_TUTEL;
    const bool gaussian = r->noise_form == MOE_NOISE_GAUSSIAN;
    const bool by_largest = r->method == MOE_METHOD_TOPK || r->method == MOE_METHOD_SWITCH;
    const enum moe_key_id form = MOE_KEY(balance, load_form);
    const moe_pair_rule rules[] = {
        {shazeer && gaussian && r->noise <= 0, form, MOE_KEY(router, noise),
         "a smooth load is as wide as the noise: router.noise above 0, or noise_form = softplus"},
        {shazeer && !by_largest, form, MOE_KEY(router, method),
         "it is of the K largest logits: method = topk or switch"},
        {shazeer && r->group_limit != MOE_GROUP_NONE, form, MOE_KEY(router, group_limit),
         "it is of the K largest logits: group_limit = none"},
        {shazeer && r->bias_file[0] != '\0', form, MOE_KEY(router, bias_file),
         "it is of the K largest logits: no bias"},
        {shazeer && r->bias_update_rate > 0, form, MOE_KEY(router, bias_update_rate),
         "it is of the K largest logits: bias_update_rate = 0"},
        {tutel && !gaussian, form, MOE_KEY(router, noise_form),
         "Tutel's noise has a fixed scale: noise_form = gaussian, or load_form = shazeer"},
        {tutel && r->noise <= 0, form, MOE_KEY(router, noise),
         "Tutel's smooth load is as wide as the noise: router.noise above 0"},
        {tutel && !moe_config_scores_sum_to_one(c), form, MOE_KEY(router, score_func),
         "Tutel's smooth load compares probabilities: score_func = softmax or softmax_topk"},
        {c->balance.importance_loss > 0 && c->balance.importance_of == MOE_IMPORTANCE_SCORES &&
             !gaussian,
         MOE_KEY(balance, importance_of), MOE_KEY(router, noise_form),
         "it is of the scores without noise, whose scale is fixed: noise_form = gaussian, or "
         "importance_of = weights"},
        {c->balance.load_loss > 0 && c->balance.load_form == MOE_LOAD_SELECTIONS,
         MOE_KEY(balance, load_loss), form,
         "a count has no gradient: load_form = shazeer or tutel, or load_loss = 0"},
    };
    return moe_refuse_pairs(c, rules, sizeof rules / sizeof rules[0], st);
}

static int check_router(const moe_config *c, moe_status *st) {
    const bool method_given =
        c->router.method != MOE_METHOD_TOPK && c->given[MOE_KEY(router, method)];
    const moe_pair_rule rules[] = {
        {c->balance.aux_layers == MOE_LAYERS_ALL && c->balance.aux_form != MOE_AUX_MIXTRAL &&
             c->balance.aux_form != MOE_AUX_SWITCH,
         MOE_KEY(balance, aux_layers), MOE_KEY(balance, aux_form),
         "the loss over all layers is that of aux_form = mixtral or switch; or aux_layers = each"},
        {!c->balance.comm_count_local && c->balance.comm_count == MOE_COUNT_SELECTIONS,
         MOE_KEY(balance, comm_count_local), MOE_KEY(balance, comm_count),
         "tokens that stay are left out of a count of tokens: comm_count = tokens, or "
         "comm_count_local = yes"},
        {moe_config_recorded(c) && method_given, MOE_KEY(router, method), MOE_KEY(data, source),
         "a recorded routing is taken as it is: data.source = logits, or no method"},
    };
    if (check_method(c, st) != MOE_OK || check_load(c, st) != MOE_OK) {
        return st->code;
    }
    return moe_refuse_pairs(c, rules, sizeof rules / sizeof rules[0], st);
}

/* --- placement --- */

static int check_slots(const moe_config *c, moe_status *st) {
    const int64_t slots = (int64_t)c->model.num_experts + c->placement.redundant_experts;
    const enum moe_key_id k = MOE_KEY(placement, redundant_experts);
    if (slots % c->cluster.devices != 0) {
        return moe_refuse_key(c, k, st,
                              "with model.num_experts = %d that makes %lld slots, which is no "
                              "multiple of cluster.devices = %d",
                              c->model.num_experts, (long long)slots, c->cluster.devices);
    }
    if (slots / c->cluster.devices > c->model.num_experts) {
        return moe_refuse_key(c, k, st,
                              "a device would have %lld slots, more than there are experts",
                              (long long)(slots / c->cluster.devices));
    }
    return MOE_OK;
}

/* What splits every batch needs replicas to split it among; and it counts what is really chosen. */
static int check_splitting(const moe_config *c, moe_status *st) {
    if (c->placement.redundant_experts == 0) {
        return moe_refuse_pair(c, MOE_KEY(placement, policy), MOE_KEY(placement, redundant_experts),
                               "it shares batches with copies, which need slots: a multiple of "
                               "cluster.devices",
                               st);
    }
    if (c->balance.aux_selection == MOE_AUX_UNLIMITED) {
        return moe_refuse_pair(c, MOE_KEY(placement, policy), MOE_KEY(balance, aux_selection),
                               "what a batch is split by is the selection that is sent", st);
    }
    return MOE_OK;
}

/* Algorithms in which every expert has a home need as many of them on each device. */
static int check_homes(const moe_config *c, moe_status *st) {
    const bool homes = moe_config_splits_batches(c) || c->placement.policy == MOE_PLACEMENT_EPIC;
    if (homes && c->model.num_experts % c->cluster.devices != 0) {
        return moe_refuse_key(c, MOE_KEY(placement, policy), st,
                              "every device is home to as many experts there, and "
                              "cluster.devices = %d does not divide model.num_experts = %d",
                              c->cluster.devices, c->model.num_experts);
    }
    return MOE_OK;
}

/* What a placement by load needs, and who may ask for what it does. */
static int check_by_load(const moe_config *c, moe_status *st) {
    const moe_placement_config *p = &c->placement;
    if (c->compares_placements) {
        return MOE_OK;
    }
    if (check_homes(c, st) != MOE_OK ||
        (moe_config_splits_batches(c) && check_splitting(c, st) != MOE_OK)) {
        return st->code;
    }
    if (p->rebalance_every > 0 && moe_config_copies_for_batches(c)) {
        return moe_refuse_pair(c, MOE_KEY(placement, rebalance_every), MOE_KEY(placement, policy),
                               "it copies experts anew for every batch and moves none between "
                               "steps: rebalance_every = 0",
                               st);
    }
    if (p->rebalance_every > 0 && !moe_config_places_by_load(c)) {
        return moe_refuse_pair(c, MOE_KEY(placement, rebalance_every), MOE_KEY(placement, policy),
                               "it looks at no load: policy = eplb, or rebalance_every = 0", st);
    }
    if (p->window > c->run.steps) {
        return moe_refuse_key(c, MOE_KEY(placement, window), st,
                              "the run has %lld step%s, and a window is part of it",
                              (long long)c->run.steps, c->run.steps == 1 ? "" : "s");
    }
    if (p->policy == MOE_PLACEMENT_EPLB && c->model.num_experts % c->router.num_groups != 0) {
        return moe_refuse_key(c, MOE_KEY(placement, policy), st,
                              "router.num_groups = %d makes groups of unequal size",
                              c->router.num_groups);
    }
    return MOE_OK;
}

static int check_placement(const moe_config *c, moe_status *st) {
    const bool file = c->placement.policy == MOE_PLACEMENT_FILE;
    if (check_slots(c, st) != MOE_OK) {
        return st->code;
    }
    if (file && c->placement.file[0] == '\0') {
        return moe_refuse_key(c, MOE_KEY(placement, policy), st,
                              "placement.file has to name the file to read");
    }
    if (!file && c->placement.file[0] != '\0') {
        return moe_refuse_pair(c, MOE_KEY(placement, policy), MOE_KEY(placement, file),
                               "policy = file reads placement.file, and no other policy does", st);
    }
    if (check_by_load(c, st) != MOE_OK) {
        return st->code;
    }
    return MOE_OK;
}

/* --- sizes, data, capacity --- */

/* Products that the program computes in 64 bits have to fit there with room to spare. */
static int check_sizes(const moe_config *c, moe_status *st) {
    const double tokens = (double)c->data.tokens_per_device * c->cluster.devices;
    const double most = 1099511627776.0; /* 2^40 */
    const double matrices =
        (double)c->model.num_experts * c->model.moe_intermediate_size * c->model.hidden_size;
    const enum moe_key_id k_tokens = MOE_KEY(data, tokens_per_device);
    if (tokens >= most) {
        return moe_refuse_key(
            c, k_tokens, st,
            "times cluster.devices = %d it has to stay below 2^40 = 1099511627776 tokens",
            c->cluster.devices);
    }
    if (!c->top_k_is_recorded && tokens * c->router.top_k >= most) {
        return moe_refuse_key(
            c, k_tokens, st,
            "times cluster.devices = %d and router.top_k = %d it has to stay below "
            "2^40 = 1099511627776 selections",
            c->cluster.devices, c->router.top_k);
    }
    if (tokens * c->model.hidden_size >= most * 1024 ||
        tokens * c->model.num_experts >= most * 1024) {
        return moe_refuse_key(
            c, k_tokens, st,
            "the batch has %.0f tokens: times hidden_size and times num_experts it has "
            "to stay below 2^50",
            tokens);
    }
    if (matrices * c->model.num_layers >= most * 1024) {
        return moe_refuse_key(
            c, MOE_KEY(model, num_experts), st,
            "times hidden_size = %d, moe_intermediate_size = %d and num_layers = %d it "
            "has to stay below 2^50 weights",
            c->model.hidden_size, c->model.moe_intermediate_size, c->model.num_layers);
    }
    return MOE_OK;
}

static int check_data(const moe_config *c, moe_status *st) {
    const char *source = moe_table_enum_name(MOE_KEY(data, source), c->data.source);
    const bool recorded =
        c->data.source == MOE_SOURCE_LOGITS || c->data.source == MOE_SOURCE_ROUTING;
    if (c->data.source != MOE_SOURCE_SYNTHETIC && c->data.path[0] == '\0') {
        return moe_refuse_key(c, MOE_KEY(data, source), st,
                              "data.path has to name the file to read");
    }
    if (recorded && c->run.mode == MOE_MODE_TRAIN) {
        return moe_refuse_pair(c, MOE_KEY(run, mode), MOE_KEY(data, source),
                               "a recording has no target to learn and no gate to train: mode = "
                               "forward, or source = synthetic or text",
                               st);
    }
    if (!recorded && c->data.mask[0] != '\0') {
        return moe_refuse_key(c, MOE_KEY(data, mask), st,
                              "a mask goes with data.source = logits or routing, not with %s",
                              source);
    }
    if (c->data.padding == MOE_PADDING_DROPPED && c->data.mask[0] == '\0') {
        return moe_refuse_key(c, MOE_KEY(data, padding), st,
                              "data.mask has to name the file that marks padding");
    }
    if (c->data.source == MOE_SOURCE_TEXT && c->data.boundaries[0] != '\0') {
        return moe_refuse_key(c, MOE_KEY(data, boundaries), st,
                              "the sequences of a text are windows of one length "
                              "(data.sequence_length): data.source = logits, routing or synthetic");
    }
    if (c->data.source != MOE_SOURCE_ROUTING && c->data.weights[0] != '\0') {
        return moe_refuse_key(c, MOE_KEY(data, weights), st,
                              "recorded weights go with data.source = routing, not with %s",
                              source);
    }
    if (c->data.source != MOE_SOURCE_ROUTING && c->data.scores[0] != '\0') {
        return moe_refuse_key(c, MOE_KEY(data, scores), st,
                              "recorded scores go with data.source = routing, not with %s", source);
    }
    return MOE_OK;
}

/* A checkpoint to begin with, the model of a text, and nothing that looks at later tokens. */
static int check_generate(const moe_config *c, moe_status *st) {
    const enum moe_key_id mode = MOE_KEY(run, mode);
    if (!moe_config_generates(c)) {
        return MOE_OK;
    }
    if (c->generate.run[0] == '\0') {
        return moe_refuse_key(c, mode, st,
                              "it continues a prompt with a trained model: moesim --resume RUN "
                              "--set run.mode=generate, or generate.run, names the run whose "
                              "checkpoint is read");
    }
    if (c->data.source != MOE_SOURCE_TEXT) {
        return moe_refuse_pair(c, mode, MOE_KEY(data, source),
                               "only a model of text has a next byte: a run with source = text",
                               st);
    }
    if (c->router.method == MOE_METHOD_EXPERT_CHOICE) {
        return moe_refuse_pair(c, mode, MOE_KEY(router, method),
                               "experts would choose among tokens that are not there yet", st);
    }
    if (c->capacity.policy != MOE_CAPACITY_NONE) {
        return moe_refuse_pair(c, mode, MOE_KEY(capacity, policy),
                               "what is dropped would depend on the other sequences: "
                               "--set capacity.policy=none",
                               st);
    }
    if (c->output.tensors) {
        return moe_refuse_pair(c, mode, MOE_KEY(output, tensors),
                               "y.npy is that of a forward run: --set output.tensors=no", st);
    }
    if (c->generate.prompt[0] != '\0' && c->generate.prompts[0] != '\0') {
        return moe_refuse_pair(c, MOE_KEY(generate, prompt), MOE_KEY(generate, prompts),
                               "one of the two says what is continued", st);
    }
    if (c->generate.prompt[0] == '\0' && c->generate.prompts[0] == '\0') {
        return moe_refuse_key(c, mode, st,
                              "the prompt is empty: generate.prompt needs at least one byte to "
                              "continue, or generate.prompts a file of them");
    }
    return MOE_OK;
}

/* A key of [capacity] that needs another value of the key `other` when `broken` is true. */
typedef struct capacity_rule {
    bool broken;
    enum moe_key_id key;
    const char *needs;
    enum moe_key_id other;
} capacity_rule;

static int refuse_capacity(const moe_config *c, const capacity_rule *rule, moe_status *st) {
    char value[MOE_VALUE_TEXT_MAX], quoted[MOE_QUOTE_MAX];
    moe_value_format(c, rule->other, value);
    moe_hint_quote(value, quoted);
    return moe_refuse_key(c, rule->key, st, "it needs %s (here %s = %s)", rule->needs,
                          moe_keys[rule->other].full, quoted);
}

/* The rules hold once anything has a capacity. */
static int check_capacity(const moe_config *c, moe_status *st) {
    const moe_capacity_config *k = &c->capacity;
    const enum moe_key_id policy = MOE_KEY(capacity, policy);
    const bool device = k->policy == MOE_CAPACITY_DEVICE;
    const bool sequence = k->policy == MOE_CAPACITY_SEQUENCE;
    const bool normalised = c->router.norm_topk_prob || moe_config_weights_over_chosen(c);
    const capacity_rule rules[] = {
        {device && k->expert_capacity > 0, MOE_KEY(capacity, expert_capacity),
         "policy expert or sequence: a device has a capacity_factor", policy},
        {sequence && k->exempt_sequences > 0, MOE_KEY(capacity, exempt_sequences),
         "policy device or expert: there sequences share a budget", policy},
        {sequence && k->capacity_scope == MOE_CAPACITY_PER_DEVICE,
         MOE_KEY(capacity, capacity_scope),
         "policy device or expert: a sequence has its budget wherever its tokens are", policy},
        {sequence && k->drop != MOE_DROP_POSITION, MOE_KEY(capacity, drop),
         "policy device or expert: of a sequence the later tokens go (drop = position)", policy},
        {k->pad_to_capacity && k->policy != MOE_CAPACITY_EXPERT, MOE_KEY(capacity, pad_to_capacity),
         "policy expert: one buffer an expert", policy},
        {k->renormalize && !normalised, MOE_KEY(capacity, renormalize),
         "normalised weights: norm_topk_prob = yes or score_func = softmax_topk",
         MOE_KEY(router, norm_topk_prob)},
        {k->renormalize && moe_config_recorded(c), MOE_KEY(capacity, renormalize),
         "a router that makes the weights", MOE_KEY(data, source)},
        {k->overflow == MOE_OVERFLOW_NEXT_CHOICE && moe_config_recorded(c),
         MOE_KEY(capacity, overflow), "logits, which tell the next choice", MOE_KEY(data, source)},
        {k->overflow == MOE_OVERFLOW_NEXT_CHOICE && moe_config_ignores_scores(c),
         MOE_KEY(capacity, overflow), "a method that looks at scores, which tell the next choice",
         MOE_KEY(router, method)},
    };
    for (size_t i = 0; k->policy != MOE_CAPACITY_NONE && i < sizeof rules / sizeof rules[0]; i++) {
        if (rules[i].broken) {
            return refuse_capacity(c, &rules[i], st);
        }
    }
    return MOE_OK;
}

int moe_check_combinations(const moe_config *c, moe_status *st) {
    if (check_devices(c, st) != MOE_OK) {
        return st->code;
    }
    if (moe_check_layers(c, st) != MOE_OK || check_placement(c, st) != MOE_OK) {
        return st->code;
    }
    if (moe_config_has_loads_only(c)) {
        return MOE_OK; /* there are no tokens and no router */
    }
    if (!c->top_k_is_recorded && c->router.top_k > c->model.num_experts) {
        const enum moe_key_id k =
            moe_refuse_written(c, MOE_KEY(router, top_k), MOE_KEY(model, num_experts));
        return moe_refuse_key(c, k, st,
                              "router.top_k may be at most model.num_experts (here %d and %d)",
                              c->router.top_k, c->model.num_experts);
    }
    if (check_router(c, st) != MOE_OK || check_group_limit(c, st) != MOE_OK ||
        check_data(c, st) != MOE_OK || moe_check_attention(c, st) != MOE_OK ||
        check_capacity(c, st) != MOE_OK || check_generate(c, st) != MOE_OK ||
        check_sizes(c, st) != MOE_OK) {
        return st->code;
    }
    return moe_check_exchange(c, st);
}
