/* unit_presets.c: every preset's documented settings (docs/method.md section 7; the public code
 * where that says nothing) are what runs: tokens go through the router, the losses and the capacity
 * that its configuration makes, and come out as the oracle says for a router written down from the
 * documents. tests/run/cli_golden_all.py runs the presets on what their own code recorded. */
#include <string.h>

#include "balance/balance.h"
#include "capacity/capacity.h"
#include "check.h"
#include "config/config.h"
#include "config/presets.h"
#include "random_router.h"
#include "reference.h"
#include "router/router.h"

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
    {"deepseek_moe_2b", 63, 1, 7, 1, MOE_SCORE_SOFTMAX, false, 1, MOE_LOSS_EXPERT, 0.01, 0, 0, 0,
     MOE_SCOPE_SEQUENCE, MOE_CAPACITY_NONE, 0},
    {"deepseek_moe_16b", 64, 2, 6, 1, MOE_SCORE_SOFTMAX, false, 1, MOE_LOSS_EXPERT, 0.001, 0, 0, 0,
     MOE_SCOPE_SEQUENCE, MOE_CAPACITY_NONE, 0},
    {"deepseek_moe_145b", 128, 4, 12, 4, MOE_SCORE_SOFTMAX, false, 1, MOE_LOSS_EXPERT, 0.003, 0.05,
     0, 0, MOE_SCOPE_SEQUENCE, MOE_CAPACITY_NONE, 0},
    {"deepseek_v2", 160, 2, 6, 8, MOE_SCORE_SOFTMAX, false, 16, MOE_LOSS_EXPERT, 0.003, 0.05, 0.02,
     0, MOE_SCOPE_SEQUENCE, MOE_CAPACITY_DEVICE, 1},
    {"deepseek_v2_lite", 64, 2, 6, 1, MOE_SCORE_SOFTMAX, false, 1, MOE_LOSS_EXPERT, 0.001, 0, 0, 0,
     MOE_SCOPE_SEQUENCE, MOE_CAPACITY_NONE, 0},
    {"deepseek_v3", 256, 1, 8, 64, MOE_SCORE_SIGMOID, true, 2.5, MOE_LOSS_EXPERT, 1e-4, 0, 0, 0,
     MOE_SCOPE_SEQUENCE, MOE_CAPACITY_NONE, 0},
    {"deepseek_v2_mini", 32, 2, 4, 8, MOE_SCORE_SOFTMAX, false, 4, MOE_LOSS_EXPERT, 0.003, 0.05,
     0.02, 0, MOE_SCOPE_SEQUENCE, MOE_CAPACITY_DEVICE, 1},
    {"deepseek_v3_mini", 32, 1, 4, 8, MOE_SCORE_SIGMOID, true, 2.5, MOE_LOSS_EXPERT, 1e-4, 0, 0, 0,
     MOE_SCOPE_SEQUENCE, MOE_CAPACITY_NONE, 0},
    {"mixtral", 8, 0, 2, 8, MOE_SCORE_SOFTMAX_TOPK, false, 1, MOE_LOSS_MIXTRAL, 0.02, 0, 0, 0,
     MOE_SCOPE_GLOBAL, MOE_CAPACITY_NONE, 0},
    {"qwen2_moe", 64, 1, 8, 8, MOE_SCORE_SOFTMAX, false, 1, MOE_LOSS_MIXTRAL, 0.001, 0, 0, 0,
     MOE_SCOPE_GLOBAL, MOE_CAPACITY_NONE, 0},
    {"olmoe", 64, 0, 8, 8, MOE_SCORE_SOFTMAX, false, 1, MOE_LOSS_MIXTRAL, 0.01, 0, 0, 0.001,
     MOE_SCOPE_GLOBAL, MOE_CAPACITY_NONE, 0},
    {"switch", 128, 0, 1, 8, MOE_SCORE_SOFTMAX, false, 1, MOE_LOSS_SWITCH, 0.01, 0, 0, 0.001,
     MOE_SCOPE_SEQUENCE, MOE_CAPACITY_SEQUENCE, 1.25},
    {"gshard", 128, 0, 2, 128, MOE_SCORE_SOFTMAX, true, 1, MOE_LOSS_GSHARD, 0.01, 0, 0, 0,
     MOE_SCOPE_DEVICE, MOE_CAPACITY_EXPERT, 2},
    {"mixlora", 8, 0, 2, 8, MOE_SCORE_SOFTMAX, true, 1, MOE_LOSS_MIXTRAL, 0.001, 0, 0, 0,
     MOE_SCOPE_GLOBAL, MOE_CAPACITY_NONE, 0},
    {"mixlora_switch", 8, 0, 1, 8, MOE_SCORE_SOFTMAX, false, 1, MOE_LOSS_SWITCH, 0.001, 0, 0, 0.001,
     MOE_SCOPE_GLOBAL, MOE_CAPACITY_SEQUENCE, 1},
    {"mixlora_dynamic", 8, 0, 8, 8, MOE_SCORE_SOFTMAX, false, 1, MOE_LOSS_MIXTRAL, 0.001, 0, 0, 0,
     MOE_SCOPE_GLOBAL, MOE_CAPACITY_NONE, 0},
    {"megatron", 0, 0, 2, 8, MOE_SCORE_SOFTMAX_TOPK, false, 1, MOE_LOSS_EXPERT, 0.01, 0, 0, 0.001,
     MOE_SCOPE_GLOBAL, MOE_CAPACITY_NONE, 0},
    {"deepspeed_top1", 0, 0, 1, 8, MOE_SCORE_SOFTMAX, false, 1, MOE_LOSS_GSHARD, 0.01, 0, 0, 0,
     MOE_SCOPE_DEVICE, MOE_CAPACITY_EXPERT, 1},
    {"deepspeed_top2", 0, 0, 2, 8, MOE_SCORE_SOFTMAX, true, 1, MOE_LOSS_GSHARD, 0.01, 0, 0, 0,
     MOE_SCOPE_DEVICE, MOE_CAPACITY_EXPERT, 1},
    {"deepspeed_topk", 0, 0, 4, 8, MOE_SCORE_SOFTMAX, true, 1, MOE_LOSS_EXPERT, 0.01, 0, 0, 0,
     MOE_SCOPE_DEVICE, MOE_CAPACITY_EXPERT, 1},
    {"tutel", 0, 0, 2, 8, MOE_SCORE_SOFTMAX, true, 1, MOE_LOSS_GSHARD, 0.01, 0, 0, 0,
     MOE_SCOPE_DEVICE, MOE_CAPACITY_EXPERT, 1},
    {"fastmoe_naive", 0, 0, 2, 8, MOE_SCORE_SOFTMAX_TOPK, false, 1, MOE_LOSS_EXPERT, 0, 0, 0, 0,
     MOE_SCOPE_SEQUENCE, MOE_CAPACITY_NONE, 0},
    {"fastmoe_gshard", 0, 0, 2, 8, MOE_SCORE_SOFTMAX_TOPK, false, 1, MOE_LOSS_GSHARD, 0.01, 0, 0, 0,
     MOE_SCOPE_DEVICE, MOE_CAPACITY_EXPERT, 1.2},
    {"fastmoe_switch", 0, 0, 1, 8, MOE_SCORE_SOFTMAX, false, 1, MOE_LOSS_SWITCH, 0.01, 0, 0, 0,
     MOE_SCOPE_DEVICE, MOE_CAPACITY_EXPERT, 1.2},
};
enum { NUM_SYSTEMS = sizeof systems / sizeof systems[0] };

/* experts: where they are the user's. */
static bool resolve(moe_config *c, const char *preset, int32_t devices, int32_t experts) {
    char set[128];
    moe_status st = {0};
    moe_config_defaults(c);
    snprintf(set, sizeof set, "router.preset=%s", preset);
    moe_config_set(c, set, &st);
    snprintf(set, sizeof set, "cluster.devices=%d", devices);
    moe_config_set(c, set, &st);
    snprintf(set, sizeof set, "model.num_experts=%d", experts);
    for (int i = 0; i < NUM_SYSTEMS; i++) {
        if (strcmp(systems[i].preset, preset) == 0 && systems[i].experts == 0) {
            moe_config_set(c, set, &st);
        }
    }
    if (st.code == MOE_OK) {
        moe_config_resolve(c, 1, &st);
    }
    CHECK_MSG(st.code == MOE_OK, "%s: %s", preset, st.message);
    return st.code == MOE_OK;
}

static void check_router(const documented *d, const moe_config *c) {
    moe_router r;
    moe_router_init(&r, &c->router, &c->balance, c->model.num_experts, c->cluster.devices, NULL);
    CHECK_MSG(d->experts == 0 || r.num_experts == d->experts, "%s: %d experts", d->preset,
              r.num_experts);
    CHECK_MSG(c->model.num_shared_experts == d->shared && r.top_k == d->top_k,
              "%s: %d shared, top %d", d->preset, c->model.num_shared_experts, r.top_k);
    CHECK_MSG(r.score_func == d->score && r.norm_topk_prob == d->norm &&
                  r.routed_scaling_factor == d->scale,
              "%s", d->preset);
}

static void check_losses(const documented *d, const moe_config *c) {
    moe_balance b;
    double wanted[MOE_NUM_LOSSES] = {0};
    moe_balance_init(&b, &c->balance, c->model.num_layers, c->comm_limit);
    wanted[d->trains] = d->alpha;
    wanted[MOE_LOSS_DEVICE] = d->alpha_device;
    wanted[MOE_LOSS_COMM] = d->alpha_comm;
    wanted[MOE_LOSS_Z] = d->z;
    for (int l = 0; l < MOE_NUM_LOSSES; l++) {
        CHECK_MSG(b.alpha[l] == wanted[l], "%s: alpha of %s is %g, not %g", d->preset,
                  moe_loss_names[l], b.alpha[l], wanted[l]);
    }
    CHECK_MSG(c->balance.scope == d->scope, "%s: scope %d", d->preset, c->balance.scope);
}

static void check_capacity(const documented *d, const moe_config *c) {
    CHECK_MSG(c->capacity.policy == d->policy, "%s: policy %d", d->preset, c->capacity.policy);
    if (d->policy != MOE_CAPACITY_NONE) {
        CHECK_MSG(c->capacity.capacity_factor == d->factor, "%s: factor %g", d->preset,
                  c->capacity.capacity_factor);
    }
}

/* --- what runs --- */

enum { PER_DEVICE = 16, SEQUENCE = 32 };

typedef struct fixture {
    const documented *d;
    const moe_config *c;
    moe_router router, wanted; /* of the configuration; of the documents */
    moe_balance balance;
    moe_batch batch;
    moe_placement placement;
    moe_routing routing;
    moe_stats stats;
    double *z;
} fixture;

/* Written down from the table above, and what docs/method.md section 7 adds of two systems. */
static moe_router documented_router(const documented *d, int32_t experts) {
    moe_router r = {.num_experts = experts,
                    .top_k = d->top_k,
                    .num_groups = 1,
                    .topk_group = 1,
                    .score_func = d->score,
                    .norm_topk_prob = d->norm,
                    .norm_single = true,
                    .scale_normalized = true,
                    .routed_scaling_factor = d->scale};
    if (strcmp(d->preset, "deepseek_v2") == 0 || strcmp(d->preset, "deepseek_v2_mini") == 0) {
        r.group_limit = MOE_GROUP_MAX;
        r.num_groups = 8;
        r.topk_group = 3;
    }
    if (strncmp(d->preset, "deepseek_v3", 11) == 0) {
        r.group_limit = MOE_GROUP_TOP2_SUM;
        r.num_groups = 8;
        r.topk_group = 4;
    }
    return r;
}

static fixture fixture_make(const documented *d, const moe_config *c) {
    fixture f = {.d = d, .c = c};
    int64_t bad, tokens = (int64_t)c->cluster.devices * PER_DEVICE;
    moe_router_init(&f.router, &c->router, &c->balance, c->model.num_experts, c->cluster.devices,
                    NULL);
    moe_balance_init(&f.balance, &c->balance, c->model.num_layers, c->comm_limit);
    f.wanted = documented_router(d, c->model.num_experts);
    moe_batch_layout(&f.batch, tokens, SEQUENCE, c->cluster.devices, 0, 1);
    moe_placement_block(&f.placement, c->model.num_experts, c->cluster.devices);
    moe_stats_reserve(&f.stats, c->model.num_experts, c->cluster.devices, f.batch.num_segments);
    f.z = moe_alloc(tokens * c->model.num_experts, sizeof *f.z, "test");
    for (int64_t i = 0; i < tokens * c->model.num_experts; i++) { /* some experts are liked better
                                                                   */
        f.z[i] = random_logit(17, 0, (uint64_t)(i / c->model.num_experts),
                              (uint64_t)(i % c->model.num_experts)) +
                 (i % c->model.num_experts % 7 == 0);
    }
    moe_router_route(&f.router, &(moe_draw){0}, &f.batch, &f.placement, (moe_logits){.f64 = f.z},
                     NULL, &f.routing, &f.stats, &bad);
    CHECK_EQ(bad, -1);
    return f;
}

static void fixture_free(fixture *f) {
    moe_batch_free(&f->batch);
    moe_placement_free(&f->placement);
    moe_routing_free(&f->routing);
    moe_stats_free(&f->stats);
    moe_free(f->z);
}

/* MixLoRA-dynamic: the best experts up to the first whose sum of probabilities exceeds 0.8, weights
 * not normalised. */
static int32_t documented_top_p(const fixture *f,
                                const double *s,
                                int32_t *expert,
                                double *weight) {
    double sum = 0;
    int32_t count = ref_select(&f->wanted, s, s, expert, weight), k = 0;
    while (k < count && sum <= 0.8) {
        sum += s[expert[k++]];
    }
    return k;
}

/* GShard: the second best stays with probability 2 g2 (g2 of the two normalised), g1 is normalised
 * with it all the same. */
static int32_t documented_gshard(const fixture *f,
                                 const double *s,
                                 int32_t found,
                                 int32_t *expert,
                                 double *weight,
                                 double *expected_second) {
    ref_select(&f->wanted, s, s, expert, weight);
    *expected_second += fmin(1, 2 * s[expert[1]] / (s[expert[0]] + s[expert[1]]));
    return found == 1 || found == 2 ? found : 2; /* which of the two is chance: see the mean */
}

static void check_choices(const fixture *f) {
    int32_t n = f->router.num_experts, expert[128];
    double *s = moe_alloc(n, sizeof *s, "test");
    double weight[128];
    double lse;
    double second = 0;
    double expected_second = 0;
    int64_t wrong = 0;
    for (int64_t t = 0; t < f->batch.num_tokens; t++) {
        int64_t at = f->routing.row_offset[t];
        int32_t found = (int32_t)(f->routing.row_offset[t + 1] - at), count;
        ref_scores(&f->wanted, f->z + t * n, s, &lse);
        if (strcmp(f->d->preset, "mixlora_dynamic") == 0) {
            count = documented_top_p(f, s, expert, weight);
        } else if (strstr(f->d->preset, "gshard")) {
            count = documented_gshard(f, s, found, expert, weight, &expected_second);
        } else {
            count = ref_select(&f->wanted, f->z + t * n, s, expert, weight);
        }
        second += found == 2;
        wrong += found != count;
        for (int32_t k = 0; k < count && k < found; k++) {
            wrong += f->routing.expert[at + k] != expert[k] ||
                     fabs((double)f->routing.weight[at + k] - weight[k]) > 1e-5 * weight[k];
        }
    }
    CHECK_MSG(wrong == 0, "%s: %lld choices or weights are not as documented", f->d->preset,
              (long long)wrong);
    if (strstr(f->d->preset, "gshard")) {
        CHECK_MSG(fabs(second - expected_second) < 4 * sqrt((double)f->batch.num_tokens),
                  "%s: %g second choices, %g expected", f->d->preset, second, expected_second);
    }
    moe_free(s);
}

static int32_t scope_of(const fixture *f, int64_t t) {
    if (f->d->scope == MOE_SCOPE_SEQUENCE) {
        return (int32_t)(t / SEQUENCE);
    }
    return f->d->scope == MOE_SCOPE_DEVICE ? (int32_t)(t / PER_DEVICE) : 0;
}

/* The loss that alpha trains, of one set of tokens, by its definition. */
static double documented_loss(const fixture *f, int32_t scope) {
    int32_t n = f->router.num_experts;
    double *count = moe_alloc_zero(4 * (int64_t)n, sizeof *count, "test");
    double *first = count + n;
    double *p = first + n;
    double *s = p + n;
    double lse;
    double sum = 0;
    double tokens = 0, selections = 0;
    for (int64_t t = 0; t < f->batch.num_tokens; t++) {
        if (scope_of(f, t) != scope) {
            continue;
        }
        ref_scores(&f->wanted, f->z + t * n, s, &lse);
        ref_normalized(&f->wanted, s, s);
        tokens++;
        for (int32_t i = 0; i < n; i++) {
            p[i] += s[i];
        }
        for (int64_t k = f->routing.row_offset[t]; k < f->routing.row_offset[t + 1]; k++) {
            count[f->routing.expert[k]]++;
            first[f->routing.expert[k]] += k == f->routing.row_offset[t];
            selections++;
        }
    }
    for (int32_t i = 0; i < n; i++) {
        double f_i = f->d->trains == MOE_LOSS_EXPERT    ? count[i] / selections
                     : f->d->trains == MOE_LOSS_MIXTRAL ? count[i] / tokens
                                                        : first[i] / tokens;
        sum += n * f_i * p[i] / tokens;
    }
    moe_free(count);
    return sum;
}

/* Cells of the documented scope against the definition, and times alpha. */
static void check_trained(const fixture *f) {
    moe_stats cells = {0};
    int32_t last = scope_of(f, f->batch.num_tokens - 1);
    moe_stats_reserve(&cells, f->router.num_experts, f->c->cluster.devices, last + 1);
    for (int64_t i = 0; i < f->batch.num_segments; i++) {
        moe_stats_add(&cells, moe_stats_cell(&cells, scope_of(f, f->batch.segment[i].begin)),
                      moe_stats_cell(&f->stats, i));
    }
    for (int32_t scope = 0; scope <= last; scope += last / 3 + 1) {
        double loss[MOE_NUM_LOSSES], wanted = f->d->alpha * documented_loss(f, scope);
        moe_balance_losses(&f->balance, &f->placement, &cells, moe_stats_cell(&cells, scope), loss);
        double found = f->balance.alpha[f->d->trains] * loss[f->d->trains];
        CHECK_MSG(fabs(found - wanted) <= 1e-12 * wanted, "%s: loss %.17g, documented %.17g",
                  f->d->preset, found, wanted);
    }
    moe_stats_free(&cells);
}

static void check_what_runs(const documented *d, const moe_config *c) {
    fixture f = fixture_make(d, c);
    check_choices(&f);
    check_trained(&f);
    fixture_free(&f);
}

/* Pairs of one target, by each system's own formula, for 64 tokens of a device (a sequence for
 * sequence's) and 16 experts where they are the user's; deepseek_v2 of a batch of 512 tokens: 512 x
 * 6 / 8. */
static void check_sizes_of_capacity(void) {
    static const struct {
        const char *preset;
        int32_t devices;
        int64_t tokens, pairs;
    } sizes[] = {
        {"deepseek_v2", 8, 512, 384},  {"switch", 8, 256, 3},         {"gshard", 128, 64, 2},
        {"mixlora_switch", 8, 64, 32}, {"deepspeed_top1", 8, 64, 4},  {"deepspeed_top1", 8, 24, 4},
        {"deepspeed_top2", 8, 64, 8},  {"deepspeed_topk", 8, 64, 16}, {"tutel", 8, 70, 10},
        {"fastmoe_gshard", 8, 64, 9},  {"fastmoe_switch", 8, 64, 5}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        moe_config c;
        moe_capacity k;
        if (!resolve(&c, sizes[i].preset, sizes[i].devices, 16)) {
            continue;
        }
        moe_capacity_init(&k, &c);
        int64_t pairs = moe_capacity_pairs(&k, sizes[i].tokens, sizes[i].tokens * c.router.top_k);
        CHECK_MSG(pairs == sizes[i].pairs, "%s: %lld pairs of %lld tokens, not %lld",
                  sizes[i].preset, (long long)pairs, (long long)sizes[i].tokens,
                  (long long)sizes[i].pairs);
    }
}

/* What only some systems have. */
static void check_details(void) {
    moe_config c;
    if (resolve(&c, "deepseek_v2", 8, 64)) {
        CHECK(c.router.group_limit == MOE_GROUP_MAX && c.router.topk_group == 3 &&
              c.comm_limit == 3 && c.capacity.exempt_sequences == 0.1);
    }
    if (resolve(&c, "deepseek_v3", 64, 64)) {
        CHECK(c.router.group_limit == MOE_GROUP_TOP2_SUM && c.router.num_groups == 8 &&
              c.router.topk_group == 4 && c.router.bias_update_rate == 1e-3);
    }
    if (resolve(&c, "gshard", 128, 64)) {
        CHECK(c.router.method == MOE_METHOD_GSHARD && c.router.second_choice == MOE_SECOND_RANDOM &&
              c.capacity.first_choices);
    }
    if (resolve(&c, "fastmoe_gshard", 8, 64)) {
        CHECK(c.router.second_choice == MOE_SECOND_RANDOM &&
              c.capacity.rounding == MOE_ROUNDING_FASTMOE);
    }
    if (resolve(&c, "mixlora_dynamic", 8, 64)) {
        CHECK(c.router.method == MOE_METHOD_TOP_P && c.router.top_p == 0.8 &&
              c.router.temperature_on == MOE_TEMPERATURE_PROBABILITIES &&
              c.model.expert_type == MOE_EXPERT_LORA && c.model.lora_rank == 16);
    }
    if (resolve(&c, "megatron", 8, 64)) {
        CHECK_EQ(c.balance.aux_selection, MOE_AUX_UNLIMITED);
    }
    if (resolve(&c, "deepspeed_top2", 8, 64)) {
        CHECK(c.capacity.min_capacity == 4 && c.capacity.first_choices && c.capacity.renormalize);
    }
    if (resolve(&c, "switch", 8, 64)) {
        CHECK(c.router.jitter == 0.01 && !c.router.jitter_experts &&
              c.capacity.drop == MOE_DROP_POSITION);
    }
    static const char *const hugging_face[] = {"mixtral", "qwen2_moe", "olmoe", "mixlora",
                                               "mixlora_dynamic"};
    for (int i = 0; i < 5; i++) {
        if (resolve(&c, hugging_face[i], 8, 64)) {
            CHECK(c.balance.aux_form == MOE_AUX_MIXTRAL && c.balance.aux_layers == MOE_LAYERS_ALL);
        }
    }
    if (resolve(&c, "tutel", 8, 64)) {
        CHECK(c.capacity.rounding == MOE_ROUNDING_TUTEL &&
              c.balance.importance_of == MOE_IMPORTANCE_SCORES);
    }
}

int main(void) {
    CHECK_EQ(moe_num_presets, NUM_SYSTEMS);
    for (int i = 0; i < NUM_SYSTEMS; i++) {
        moe_config c;
        CHECK_MSG(moe_preset_find(systems[i].preset) != NULL, "%s", systems[i].preset);
        if (!resolve(&c, systems[i].preset, systems[i].devices, 64)) {
            continue;
        }
        RUN(check_router, &systems[i], &c);
        RUN(check_losses, &systems[i], &c);
        RUN(check_capacity, &systems[i], &c);
        RUN(check_what_runs, &systems[i], &c);
    }
    RUN(check_details);
    RUN(check_sizes_of_capacity);
    return check_verdict();
}
