/* resolve.c: makes a configuration complete for a number of ranks. The order is: preset, what does
 * not exist yet, segmentation, zeros that become numbers, combinations, comm_limit. */
#include <stdio.h>
#include <string.h>

#include "config/check.h"
#include "config/config.h"
#include "config/presets.h"
#include "config/refuse.h"
#include "config/table.h"
#include "config/value.h"

/* Gives the keys that were not given the values of the preset, if there is one. */
static void apply_preset(moe_config *c) {
    moe_status st = {0};
    const moe_preset *preset = moe_preset_find(c->router.preset);
    if (preset == NULL) {
        return;
    }
    for (const moe_setting *s = preset->settings; s->key != MOE_KEY_NONE; s++) {
        if (c->given[s->key]) {
            continue;
        }
        moe_value_set(c, s->key, s->value, "preset", &st);
        MOE_ASSERT(st.code == MOE_OK);
        c->place[s->key] = MOE_PLACE_PRESET;
    }
}

/* Cuts every expert into m (DeepSeekMoE, arXiv 2401.06066): N experts of width F become mN of width
 * F/m, of which N_s are the shared ones, and a token chooses mK - N_s. The compute of a token (mK
 * experts of width F/m) and the parameters (mN of them) stay those of K and N experts of width F.
 */
static int derive_segmentation(moe_config *c, moe_status *st) {
    const int32_t m = c->model.expert_segmentation, width = c->model.moe_intermediate_size;
    const int64_t experts = (int64_t)m * c->model.num_experts - c->model.num_shared_experts;
    const int64_t chosen = (int64_t)m * c->router.top_k - c->model.num_shared_experts;
    const enum moe_key_id k = MOE_KEY(model, expert_segmentation);
    const bool chooses = !c->top_k_is_recorded;
    c->segmented.parts = m;
    c->segmented.num_experts = c->model.num_experts;
    c->segmented.top_k = c->router.top_k;
    c->segmented.moe_intermediate_size = width;
    if (m == 1) {
        return MOE_OK;
    }
    if (width % m != 0) {
        return moe_refuse_key(c, k, st, "it has to divide model.moe_intermediate_size = %d", width);
    }
    if ((chooses && chosen < 1) || experts < 1) {
        return moe_refuse_key(
            c, k, st,
            "model.num_shared_experts = %d leaves %lld of m x top_k = %lld chosen "
            "experts, at least 1 is needed",
            c->model.num_shared_experts, (long long)chosen, (long long)m * c->router.top_k);
    }
    if (experts > moe_keys[MOE_KEY(model, num_experts)].max ||
        (chooses && chosen > moe_keys[MOE_KEY(router, top_k)].max)) {
        return moe_refuse_key(
            c, k, st,
            "m x N - N_s = %lld experts and m x K - N_s = %lld chosen are more than %.0f and %.0f",
            (long long)experts, (long long)chosen, moe_keys[MOE_KEY(model, num_experts)].max,
            moe_keys[MOE_KEY(router, top_k)].max);
    }
    c->model.num_experts = (int32_t)experts;
    if (chooses) {
        c->router.top_k = (int32_t)chosen;
    }
    c->model.moe_intermediate_size = width / m;
    c->model.expert_segmentation = 1;
    return MOE_OK;
}

/* The number of experts that a token can choose among. */
static int32_t most_in_kept_groups(const moe_config *c) {
    const int64_t kept =
        (int64_t)c->router.topk_group * (c->model.num_experts / c->router.num_groups);
    return c->router.group_limit == MOE_GROUP_NONE || kept > c->model.num_experts
               ? c->model.num_experts
               : (int32_t)kept;
}

/* Whether the value of a key stands beside another key that may imply it. A default gives way, and
 * so does the value of a file or of a preset when the other key was given by --set. */
static bool stands(const moe_config *c, enum moe_key_id k, enum moe_key_id beside) {
    return c->place[k] == MOE_PLACE_SET ||
           (c->place[k] != MOE_PLACE_DEFAULT && c->place[beside] != MOE_PLACE_SET);
}

/* Sets what the method implies where a key does not stand. With sinkhorn the scores are those of
 * Megatron-Core. */
static void derive_method(moe_config *c) {
    const enum moe_key_id method = MOE_KEY(router, method);
    const bool chose_k = stands(c, MOE_KEY(router, top_k), method);
    if (!chose_k && c->router.method == MOE_METHOD_SWITCH) {
        c->router.top_k = 1;
    }
    if (!chose_k && c->router.method == MOE_METHOD_GSHARD) {
        c->router.top_k = 2;
    }
    if (!chose_k && c->router.method == MOE_METHOD_TOP_P) {
        c->router.top_k = most_in_kept_groups(c);
    }
    if (moe_config_ignores_scores(c) && !stands(c, MOE_KEY(router, group_limit), method)) {
        c->router.group_limit = MOE_GROUP_NONE;
    }
    if (c->router.method == MOE_METHOD_SINKHORN &&
        c->place[MOE_KEY(router, score_func)] == MOE_PLACE_DEFAULT) {
        c->router.score_func = c->router.top_k == 1 ? MOE_SCORE_SIGMOID : MOE_SCORE_SOFTMAX;
    }
}

/* Nothing is chosen where the routing is recorded, so that what a preset says about the choice
 * gives way: the configuration that is printed is one that is accepted again. */
static void derive_recorded(moe_config *c) {
    if (!c->given[MOE_KEY(router, method)]) {
        c->router.method = MOE_METHOD_TOPK;
    }
    if (!c->given[MOE_KEY(router, second_choice)]) {
        c->router.second_choice = MOE_SECOND_BEST;
    }
    if (!c->given[MOE_KEY(capacity, renormalize)]) {
        c->capacity.renormalize = false;
    }
}

/* Of a sequence the later tokens go, whatever a default or a preset says. */
static void derive_drop(moe_config *c) {
    const enum moe_key_id drop = MOE_KEY(capacity, drop), policy = MOE_KEY(capacity, policy);
    const bool chosen = c->given[drop] && stands(c, drop, policy);
    if (c->capacity.policy == MOE_CAPACITY_SEQUENCE && !chosen) {
        c->capacity.drop = MOE_DROP_POSITION;
    }
}

/* The widths of DeepSeek-V2 beside that of a head: d_R = d / 2, r = 4 d. A head that cannot be as
 * wide as it should be stays at 0, and is refused. */
static void derive_attention(moe_config *c) {
    moe_model_config *m = &c->model;
    if (m->head_dim == 0 && m->hidden_size % m->num_heads == 0) {
        m->head_dim = m->hidden_size / m->num_heads;
    }
    if (c->place[MOE_KEY(model, rope_dim)] == MOE_PLACE_DEFAULT) {
        m->rope_dim = m->attention == MOE_ATTENTION_MHA ? m->head_dim / 2 * 2
                      : m->head_dim < 4                 ? 2
                                                        : m->head_dim / 4 * 2;
    }
    if (m->kv_lora_rank == 0 && m->attention == MOE_ATTENTION_MLA) {
        m->kv_lora_rank = 4 * m->head_dim;
    }
}

/* The devices of a host; 0 where the hosts cannot be nodes, which is refused. */
static int32_t devices_per_host(const moe_config *c) {
    const moe_config_hosts *h = &c->hosts;
    if (h->count <= 1) {
        return c->cluster.devices;
    }
    return h->unequal || h->mixed ? 0 : c->cluster.devices / h->count;
}

/* The dense layers of a preset give way: to a model with no more layers than these, and to a
 * recording or a folder of weights, which have none. */
static void derive_dense(moe_config *c, bool has_none) {
    moe_model_config *m = &c->model;
    if (!c->given[MOE_KEY(model, first_dense_layers)]) {
        const int32_t most = has_none ? 0 : m->num_layers - 1;
        m->first_dense_layers = m->first_dense_layers < most ? m->first_dense_layers : most;
    }
    if (m->first_dense_layers > 0 && m->intermediate_size == 0) {
        const int64_t width =
            m->moe_intermediate_size * ((int64_t)c->router.top_k + (int64_t)m->num_shared_experts);
        const int32_t most = (int32_t)moe_keys[MOE_KEY(model, intermediate_size)].max;
        m->intermediate_size = width < most ? (int32_t)width : most;
    }
}

/* Replaces zeros and keys that were not given by what they stand for. */
static void derive_defaults(moe_config *c) {
    const bool loaded = c->model.load[0] != '\0';
    const bool recorded =
        c->data.source == MOE_SOURCE_LOGITS || c->data.source == MOE_SOURCE_ROUTING;
    if (c->cluster.devices == 0) {
        c->cluster.devices = c->ranks;
    }
    const enum moe_key_id per_node = MOE_KEY(cluster, devices_per_node);
    const bool part_of_node =
        c->place[per_node] == MOE_PLACE_CLUSTER && c->cluster.devices_per_node > c->cluster.devices;
    if (part_of_node) {
        c->cluster.devices_per_node = c->cluster.devices;
    }
    if (c->cluster.devices_per_node == 0) {
        c->cluster.devices_per_node = devices_per_host(c);
    }
    if (c->router.num_groups == 0) {
        /* experts that do not divide among the devices, which redundant ones fill up, are no groups
         */
        const bool divides = c->model.num_experts % c->cluster.devices == 0;
        const bool fills = c->placement.redundant_experts > 0 && !c->compares_placements;
        const bool grouped = divides || !fills || c->router.group_limit != MOE_GROUP_NONE;
        c->router.num_groups = grouped ? c->cluster.devices : 1;
    }
    if (c->router.topk_group == 0) {
        c->router.topk_group = c->router.num_groups;
    }
    if (!c->given[MOE_KEY(model, residual)]) {
        c->model.residual = !loaded;
    }
    if (!c->given[MOE_KEY(model, norm)]) {
        c->model.norm = !loaded && (c->model.num_layers > 1 || c->run.mode == MOE_MODE_TRAIN)
                            ? MOE_NORM_RMSNORM
                            : MOE_NORM_NONE;
    }
    if ((recorded || loaded) && !c->given[MOE_KEY(model, attention)]) {
        c->model.attention = MOE_ATTENTION_NONE; /* of a preset: there are no vectors to attend to
                                                  */
    }
    if (c->model.attention != MOE_ATTENTION_NONE) {
        derive_attention(c);
    }
    if (recorded && !stands(c, MOE_KEY(run, steps), MOE_KEY(data, source))) {
        c->run.steps = 1;
        c->steps_are_recorded = true;
    }
    const bool may_join =
        c->balance.aux_form == MOE_AUX_MIXTRAL || c->balance.aux_form == MOE_AUX_SWITCH;
    if (!may_join && !c->given[MOE_KEY(balance, aux_layers)]) {
        c->balance.aux_layers = MOE_LAYERS_EACH;
    }
    if (moe_config_recorded(c)) {
        derive_recorded(c);
    }
    derive_drop(c);
    derive_method(c);
    derive_dense(c, recorded || loaded);
}

/* M of f'' (docs/method.md section 2). */
static int32_t comm_limit(const moe_config *c) {
    const int32_t k = moe_config_most_experts(c), devices = c->cluster.devices;
    const int64_t reach = k < devices ? k : devices;
    if (c->router.group_limit == MOE_GROUP_NONE || !moe_config_in_blocks(c)) {
        return (int32_t)reach;
    }
    if (moe_config_groups_are_devices(c)) {
        return c->router.topk_group;
    }
    const int64_t limit = moe_config_group_span(c);
    return (int32_t)(limit < reach ? limit : reach);
}

int32_t moe_config_most_experts(const moe_config *c) {
    return c->router.method == MOE_METHOD_EXPERT_CHOICE ? c->model.num_experts : c->router.top_k;
}

bool moe_config_scores_sum_to_one(const moe_config *c) {
    switch (c->router.score_func) { /* without a default, so that the compiler asks for each */
    case MOE_SCORE_SOFTMAX:
    case MOE_SCORE_SOFTMAX_TOPK:
        return true;
    case MOE_SCORE_SIGMOID:
    case MOE_SCORE_SQRTSOFTPLUS:
        return false;
    }
    return false;
}

bool moe_config_weights_over_chosen(const moe_config *c) {
    switch (c->router.score_func) {
    case MOE_SCORE_SOFTMAX_TOPK:
        return true;
    case MOE_SCORE_SOFTMAX:
    case MOE_SCORE_SIGMOID:
    case MOE_SCORE_SQRTSOFTPLUS:
        return false;
    }
    return false;
}

static int complete(moe_config *c, int32_t ranks, moe_status *st) {
    c->ranks = ranks;
    derive_defaults(c);
    if (moe_check_combinations(c, st) != MOE_OK) {
        return st->code;
    }
    c->comm_limit = moe_config_has_loads_only(c) ? 0 : comm_limit(c);
    return MOE_OK;
}

/* --- too few devices --- */

/* Whether what was asked for is accepted on this number of devices. */
static bool fits(const moe_config *asked, int32_t devices, int32_t ranks) {
    moe_config c = *asked;
    moe_status st = {0};
    c.cluster.devices = devices;
    return complete(&c, ranks, &st) == MOE_OK;
}

/* How many more devices make the configuration one that is accepted: 8, as scripts/run has them, or
 * else the fewest, on these ranks if there are any; 0 where none up to 64 do. */
static int32_t fitting_devices(const moe_config *asked, int32_t ranks) {
    const int32_t usual = 8, most = 64;
    if (ranks < usual && fits(asked, usual, ranks)) {
        return usual;
    }
    for (int32_t devices = 2 * ranks; devices <= most; devices += ranks) {
        if (fits(asked, devices, ranks)) {
            return devices;
        }
    }
    if (ranks < usual && fits(asked, usual, usual)) {
        return usual;
    }
    for (int32_t devices = ranks + 1; devices <= most; devices++) {
        if (fits(asked, devices, devices)) {
            return devices;
        }
    }
    return 0;
}

/* Where cluster.devices = 0 makes every rank a device, and another number of devices would be
 * accepted, the refusal goes on to say so. */
static void advise_devices(const moe_config *asked, int32_t ranks, moe_status *st) {
    const int32_t devices = asked->cluster.devices == 0 ? fitting_devices(asked, ranks) : 0;
    const size_t length = strlen(st->message);
    if (devices == 0) {
        return;
    }
    char set[64] = "";
    if (devices % ranks == 0) {
        snprintf(set, sizeof set, "add --set cluster.devices=%d, or ", devices);
    }
    snprintf(st->message + length, sizeof st->message - length,
             "; there is one device for each of %d rank%s here (cluster.devices = 0): %sstart %d "
             "ranks (mpirun -np %d)",
             ranks, ranks == 1 ? "" : "s", set, devices, devices);
}

/* --- the whole --- */

int moe_config_resolve(moe_config *c, int32_t ranks, moe_status *st) {
    MOE_ASSERT(ranks >= 1 && c->ranks == 0);
    apply_preset(c);
    c->top_k_is_recorded = moe_config_recorded(c) && !c->given[MOE_KEY(router, top_k)];
    if (moe_check_available(c, st) != MOE_OK || derive_segmentation(c, st) != MOE_OK) {
        return st->code;
    }
    const moe_config asked = *c;
    if (complete(c, ranks, st) != MOE_OK) {
        advise_devices(&asked, ranks, st);
    }
    return st->code;
}

int moe_config_recorded_top_k(moe_config *c, int32_t k, moe_status *st) {
    const enum moe_key_id key = MOE_KEY(router, top_k);
    MOE_ASSERT(c->ranks > 0);
    if (c->given[key] && c->router.top_k != k) {
        return moe_refuse_key(c, key, st, "the recorded routing has %d experts per token", k);
    }
    if (k < 1 || k > moe_keys[key].max) {
        return moe_fail(st, MOE_USER, "%.200s: %d experts per token, from 1 to %.0f are allowed",
                        c->data.path, k, moe_keys[key].max);
    }
    c->router.top_k = k;
    c->top_k_is_recorded = false;
    if (moe_check_combinations(c, st) != MOE_OK) {
        return st->code;
    }
    c->comm_limit = comm_limit(c);
    return MOE_OK;
}

int moe_config_recorded_steps(moe_config *c, int64_t steps, moe_status *st) {
    const enum moe_key_id key = MOE_KEY(run, steps);
    MOE_ASSERT(c->ranks > 0);
    if (c->steps_are_recorded) {
        c->run.steps = steps;
        c->steps_are_recorded = false;
    }
    if (c->run.steps > steps) {
        return moe_refuse_key(c, key, st, "the recording has %lld step%s", (long long)steps,
                              steps == 1 ? "" : "s");
    }
    return MOE_OK;
}
