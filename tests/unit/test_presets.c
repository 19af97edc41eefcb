/* test_presets.c: every preset's documented settings (method.md section 7; the public code where that says nothing) are what runs: the resolved
 * configuration has them, and so has the router, the losses and the capacity made from it. */
#include <string.h>

#include "../check.h"
#include "moesim/balance.h"
#include "moesim/capacity.h"
#include "moesim/config_table.h"
#include "moesim/router.h"

/* What is documented of one system. */
typedef struct documented {
    const char *preset;
    int32_t experts, shared, top_k, devices; /* experts 0: the user's */
    enum moe_score_func score;
    bool norm;
    double scale;
    enum moe_loss trains; /* the loss that alpha 1 belongs to */
    double alpha, alpha_device, alpha_comm, z;
    enum moe_scope scope;
    enum moe_capacity_policy policy;
    double factor;
} documented;

static const documented systems[] = {
    {"deepseek_moe_2b", 63, 1, 7, 1, MOE_SCORE_SOFTMAX, false, 1, MOE_LOSS_EXPERT, 0.01, 0, 0, 0, MOE_SCOPE_SEQUENCE, MOE_CAPACITY_NONE, 0},
    {"deepseek_moe_16b", 64, 2, 6, 1, MOE_SCORE_SOFTMAX, false, 1, MOE_LOSS_EXPERT, 0.001, 0, 0, 0, MOE_SCOPE_SEQUENCE, MOE_CAPACITY_NONE,
     0},
    {"deepseek_moe_145b", 128, 4, 12, 4, MOE_SCORE_SOFTMAX, false, 1, MOE_LOSS_EXPERT, 0.003, 0.05, 0, 0, MOE_SCOPE_SEQUENCE,
     MOE_CAPACITY_NONE, 0},
    {"deepseek_v2", 160, 2, 6, 8, MOE_SCORE_SOFTMAX, false, 16, MOE_LOSS_EXPERT, 0.003, 0.05, 0.02, 0, MOE_SCOPE_SEQUENCE,
     MOE_CAPACITY_DEVICE, 1},
    {"deepseek_v2_lite", 64, 2, 6, 1, MOE_SCORE_SOFTMAX, false, 1, MOE_LOSS_EXPERT, 0.001, 0, 0, 0, MOE_SCOPE_SEQUENCE, MOE_CAPACITY_NONE,
     0},
    {"deepseek_v3", 256, 1, 8, 64, MOE_SCORE_SIGMOID, true, 2.5, MOE_LOSS_EXPERT, 1e-4, 0, 0, 0, MOE_SCOPE_SEQUENCE, MOE_CAPACITY_NONE, 0},
    {"mixtral", 8, 0, 2, 8, MOE_SCORE_SOFTMAX_TOPK, false, 1, MOE_LOSS_MIXTRAL, 0.02, 0, 0, 0, MOE_SCOPE_GLOBAL, MOE_CAPACITY_NONE, 0},
    {"qwen2_moe", 64, 1, 8, 8, MOE_SCORE_SOFTMAX, false, 1, MOE_LOSS_MIXTRAL, 0.001, 0, 0, 0, MOE_SCOPE_GLOBAL, MOE_CAPACITY_NONE, 0},
    {"olmoe", 64, 0, 8, 8, MOE_SCORE_SOFTMAX, false, 1, MOE_LOSS_MIXTRAL, 0.01, 0, 0, 0.001, MOE_SCOPE_GLOBAL, MOE_CAPACITY_NONE, 0},
    {"switch", 128, 0, 1, 8, MOE_SCORE_SOFTMAX, false, 1, MOE_LOSS_SWITCH, 0.01, 0, 0, 0.001, MOE_SCOPE_SEQUENCE, MOE_CAPACITY_SEQUENCE,
     1.25},
    {"gshard", 128, 0, 2, 128, MOE_SCORE_SOFTMAX, true, 1, MOE_LOSS_GSHARD, 0.01, 0, 0, 0, MOE_SCOPE_DEVICE, MOE_CAPACITY_EXPERT, 2},
    {"mixlora", 8, 0, 2, 8, MOE_SCORE_SOFTMAX, true, 1, MOE_LOSS_MIXTRAL, 0.001, 0, 0, 0, MOE_SCOPE_GLOBAL, MOE_CAPACITY_NONE, 0},
    {"mixlora_switch", 8, 0, 1, 8, MOE_SCORE_SOFTMAX, false, 1, MOE_LOSS_SWITCH, 0.001, 0, 0, 0.001, MOE_SCOPE_GLOBAL,
     MOE_CAPACITY_SEQUENCE, 1},
    {"mixlora_dynamic", 8, 0, 8, 8, MOE_SCORE_SOFTMAX, false, 1, MOE_LOSS_MIXTRAL, 0.001, 0, 0, 0, MOE_SCOPE_GLOBAL, MOE_CAPACITY_NONE, 0},
    {"megatron", 0, 0, 2, 8, MOE_SCORE_SOFTMAX_TOPK, false, 1, MOE_LOSS_EXPERT, 0.01, 0, 0, 0.001, MOE_SCOPE_GLOBAL, MOE_CAPACITY_NONE, 0},
    {"deepspeed_top1", 0, 0, 1, 8, MOE_SCORE_SOFTMAX, false, 1, MOE_LOSS_GSHARD, 0.01, 0, 0, 0, MOE_SCOPE_DEVICE, MOE_CAPACITY_EXPERT, 1},
    {"deepspeed_top2", 0, 0, 2, 8, MOE_SCORE_SOFTMAX, true, 1, MOE_LOSS_GSHARD, 0.01, 0, 0, 0, MOE_SCOPE_DEVICE, MOE_CAPACITY_EXPERT, 1},
    {"deepspeed_topk", 0, 0, 4, 8, MOE_SCORE_SOFTMAX, true, 1, MOE_LOSS_EXPERT, 0.01, 0, 0, 0, MOE_SCOPE_DEVICE, MOE_CAPACITY_EXPERT, 1},
    {"tutel", 0, 0, 2, 8, MOE_SCORE_SOFTMAX, true, 1, MOE_LOSS_GSHARD, 0.01, 0, 0, 0, MOE_SCOPE_DEVICE, MOE_CAPACITY_EXPERT, 1},
    {"fastmoe_naive", 0, 0, 2, 8, MOE_SCORE_SOFTMAX_TOPK, false, 1, MOE_LOSS_EXPERT, 0, 0, 0, 0, MOE_SCOPE_SEQUENCE, MOE_CAPACITY_NONE, 0},
    {"fastmoe_gshard", 0, 0, 2, 8, MOE_SCORE_SOFTMAX_TOPK, false, 1, MOE_LOSS_GSHARD, 0.01, 0, 0, 0, MOE_SCOPE_DEVICE, MOE_CAPACITY_EXPERT,
     1.2},
    {"fastmoe_switch", 0, 0, 1, 8, MOE_SCORE_SOFTMAX, false, 1, MOE_LOSS_SWITCH, 0.01, 0, 0, 0, MOE_SCOPE_DEVICE, MOE_CAPACITY_EXPERT, 1.2},
};
enum { NUM_SYSTEMS = sizeof systems / sizeof systems[0] };

static bool resolve(moe_config *c, const char *preset, int32_t devices) {
    char set[128];
    moe_status st = {0};
    moe_config_defaults(c);
    snprintf(set, sizeof set, "router.preset=%s", preset);
    moe_config_set(c, set, &st);
    snprintf(set, sizeof set, "cluster.devices=%d", devices);
    moe_config_set(c, set, &st);
    if (st.code == MOE_OK) moe_config_resolve(c, 1, &st);
    CHECK_MSG(st.code == MOE_OK, "%s: %s", preset, st.message);
    return st.code == MOE_OK;
}

static void check_router(const documented *d, const moe_config *c) {
    moe_router r;
    moe_router_init(&r, c, NULL);
    CHECK_MSG(d->experts == 0 || r.num_experts == d->experts, "%s: %d experts", d->preset, r.num_experts);
    CHECK_MSG(c->model.num_shared_experts == d->shared && r.top_k == d->top_k, "%s: %d shared, top %d", d->preset,
              c->model.num_shared_experts, r.top_k);
    CHECK_MSG(r.score_func == d->score && r.norm_topk_prob == d->norm && r.routed_scaling_factor == d->scale, "%s", d->preset);
}

static void check_losses(const documented *d, const moe_config *c) {
    moe_balance b;
    double wanted[MOE_NUM_LOSSES] = {0};
    moe_balance_init(&b, c);
    wanted[d->trains] = d->alpha;
    wanted[MOE_LOSS_DEVICE] = d->alpha_device;
    wanted[MOE_LOSS_COMM] = d->alpha_comm;
    wanted[MOE_LOSS_Z] = d->z;
    for (int l = 0; l < MOE_NUM_LOSSES; l++)
        CHECK_MSG(b.alpha[l] == wanted[l], "%s: alpha of %s is %g, not %g", d->preset, moe_loss_names[l], b.alpha[l], wanted[l]);
    CHECK_MSG(c->balance.scope == (int)d->scope, "%s: scope %d", d->preset, c->balance.scope);
}

static void check_capacity(const documented *d, const moe_config *c) {
    CHECK_MSG(c->capacity.policy == (int)d->policy, "%s: policy %d", d->preset, c->capacity.policy);
    if (d->policy != MOE_CAPACITY_NONE)
        CHECK_MSG(c->capacity.capacity_factor == d->factor, "%s: factor %g", d->preset, c->capacity.capacity_factor);
}

/* What only some systems have. */
static void check_details(void) {
    moe_config c;
    if (resolve(&c, "deepseek_v2", 8))
        CHECK(c.router.group_limit == MOE_GROUP_MAX && c.router.topk_group == 3 && c.comm_limit == 3 && c.capacity.exempt_sequences == 0.1);
    if (resolve(&c, "deepseek_v3", 64))
        CHECK(c.router.group_limit == MOE_GROUP_TOP2_SUM && c.router.num_groups == 8 && c.router.topk_group == 4 &&
              c.router.bias_update_rate == 1e-3);
    if (resolve(&c, "gshard", 128))
        CHECK(c.router.method == MOE_METHOD_GSHARD && c.router.second_choice == MOE_SECOND_RANDOM && c.capacity.first_choices);
    if (resolve(&c, "fastmoe_gshard", 8)) CHECK(c.router.second_choice == MOE_SECOND_RANDOM && c.capacity.rounding == MOE_ROUNDING_FASTMOE);
    if (resolve(&c, "mixlora_dynamic", 8))
        CHECK(c.router.method == MOE_METHOD_TOP_P && c.router.top_p == 0.8 && c.router.temperature_on == MOE_TEMPERATURE_PROBABILITIES &&
              c.model.expert_type == MOE_EXPERT_LORA && c.model.lora_rank == 16);
    if (resolve(&c, "megatron", 8)) CHECK(c.balance.aux_selection == MOE_AUX_UNLIMITED);
    if (resolve(&c, "deepspeed_top2", 8)) CHECK(c.capacity.min_capacity == 4 && c.capacity.first_choices && c.capacity.renormalize);
    if (resolve(&c, "tutel", 8)) CHECK(c.capacity.rounding == MOE_ROUNDING_TUTEL && c.balance.importance_of == MOE_IMPORTANCE_SCORES);
}

int main(void) {
    CHECK(moe_num_presets == NUM_SYSTEMS);
    for (int i = 0; i < NUM_SYSTEMS; i++) {
        moe_config c;
        CHECK_MSG(moe_preset_find(systems[i].preset) != NULL, "%s", systems[i].preset);
        if (!resolve(&c, systems[i].preset, systems[i].devices)) continue;
        check_router(&systems[i], &c);
        check_losses(&systems[i], &c);
        check_capacity(&systems[i], &c);
    }
    check_details();
    return check_verdict();
}
