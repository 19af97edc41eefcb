/* unit_golden_dialects.c: routers and losses against the code of Hugging Face, Megatron-Core,
 * DeepSpeed, FastMoE, Tutel and MixLoRA (tests/golden/routing; each case.json names its source).
 * What dropping does to them (kept, slots, capacity) is test_golden_capacity's; what is left to it
 * is printed and counted here. DeepSeek's cases are test_golden_routing's. Argument: the folder of
 * cases. */
#include <math.h>
#include <string.h>

#include "balance/balance.h"
#include "base/alloc.h"
#include "check.h"
#include "golden_case.h"
#include "router/router.h"
#include "router/scores.h"

static const char *const cases[] = {"deepspeed_top1_E8_cf1",
                                    "deepspeed_top2_E60_cf125",
                                    "deepspeed_top2_E8_cf1",
                                    "deepspeed_topk_E16_K3_probs_cf2",
                                    "deepspeed_topk_E16_K4_position",
                                    "fastmoe_gshard_E16_W4",
                                    "fastmoe_gshard_E8_cf05",
                                    "fastmoe_switch_E6_cf2",
                                    "mcore_drop_position_E60_K4_cf075",
                                    "mcore_drop_position_E8_K2_cf1",
                                    "mcore_nodrop_E4_K2_cf4",
                                    "mcore_pad_probs_E16_K2_cf125",
                                    "mcore_seqaux_E60_K4_B4",
                                    "mcore_sinkhorn_E8_K1",
                                    "mcore_sqrtsoftplus_E64_K4",
                                    "mcore_z_extreme80_E6_K2",
                                    "mixlora_E6_K3_mask",
                                    "mixlora_dynamic_E16_p05_t05",
                                    "mixlora_dynamic_E8_p08",
                                    "mixlora_switch_E16_cap4",
                                    "mixtral_E8_K2",
                                    "mixtral_E8_K2_mask",
                                    "mixtral_extreme80_E8_K2",
                                    "olmoe_E16_K1_norm",
                                    "qwen2_E60_K4",
                                    "simplified_gate_sigmoid_E64_K8",
                                    "switch_E128_cap64_nodrop",
                                    "switch_E16_cap2_tight",
                                    "tutel_bpr_E16_K4",
                                    "tutel_importance_E16_K2",
                                    "tutel_nodrop_E6_K3"};
enum { NUM_CASES = sizeof cases / sizeof cases[0] };
static int cases_run, losses_compared, left_to_capacity;

typedef struct dialect {
    golden_case g;
    golden_array logits, idx, weight, kept, mask;
    moe_router router;
    moe_balance balance;
    moe_batch batch;
    moe_placement placement;
    moe_routing routing;
    moe_stats segments, sequence, global;
} dialect;

static bool is_family(const dialect *d, const char *name) {
    return golden_is(&d->g, "family", name);
}

/* --- settings --- */

/* Megatron-Core: softmax before top-k, or after it; sinkhorn chooses by balanced logits and weighs
 * by sigmoid (K = 1). */
static enum moe_score_func score_of(const dialect *d) {
    if (golden_is(&d->g, "score_func", "sigmoid") || golden_true(&d->g, "sinkhorn")) {
        return MOE_SCORE_SIGMOID;
    }
    if (golden_is(&d->g, "score_func", "sqrtsoftplus")) {
        return MOE_SCORE_SQRTSOFTPLUS;
    }
    bool after = golden_true(&d->g, "softmax_after_topk") ||
                 (is_family(d, "megatron") && !golden_true(&d->g, "use_pre_softmax"));
    return after ? MOE_SCORE_SOFTMAX_TOPK : MOE_SCORE_SOFTMAX;
}

static void set_router(dialect *d) {
    double scale = golden_number(&d->g, "routed_scaling_factor"),
           temperature = golden_number(&d->g, "temperature");
    bool sinkhorn = golden_true(&d->g, "sinkhorn"),
         top_p = golden_is(&d->g, "topk_method", "top_p");
    d->router = (moe_router){.num_experts = golden_int(&d->g, "E"),
                             .top_k = golden_int(&d->g, "top_k"),
                             .num_groups = 1,
                             .topk_group = 1,
                             .method = top_p      ? MOE_METHOD_TOP_P
                                       : sinkhorn ? MOE_METHOD_SINKHORN
                                                  : MOE_METHOD_TOPK,
                             .score_func = score_of(d),
                             .norm_topk_prob = golden_true(&d->g, "norm_topk_prob") && !sinkhorn,
                             .norm_single = true,
                             .scale_normalized = true,
                             .routed_scaling_factor = scale == 0 ? 1 : scale,
                             .top_p = golden_number(&d->g, "top_p"),
                             .temperature = temperature,
                             .temperature_on = MOE_TEMPERATURE_PROBABILITIES,
                             .sinkhorn_tolerance = 1e-4,
                             .sinkhorn_iterations = 1000,
                             .importance_of = MOE_IMPORTANCE_SCORES,
                             .comm_count_local = true};
    d->balance = (moe_balance){.comm_limit = 1,
                               .has_scores = true,
                               .has_logits = true,
                               .importance_of = MOE_IMPORTANCE_SCORES};
    if (!golden_is(&d->g, "loss_fn", "importance")) {
        return;
    }
    d->router.noise = golden_number(&d->g, "gate_noise") / d->router.num_experts;
    d->router.load_form = d->balance.load_form = MOE_LOAD_TUTEL;
}

static bool load(dialect *d) {
    if (!golden_open(&d->g)) {
        return false;
    }
    d->logits = golden_load_array(&d->g, "logits.npy");
    d->idx = golden_load_array(&d->g, "topk_idx.npy");
    d->weight =
        golden_load_array(&d->g, golden_has(&d->g, "topk_weight_f64.npy") ? "topk_weight_f64.npy"
                                                                          : "topk_weight.npy");
    if (golden_has(&d->g, "kept.npy")) {
        d->kept = golden_load_array(&d->g, "kept.npy");
    }
    if (golden_has(&d->g, "attention_mask.npy")) {
        d->mask = golden_load_array(&d->g, "attention_mask.npy");
    }
    set_router(d);
    return d->logits.data && d->idx.data && d->weight.data;
}

static void unload(dialect *d) {
    golden_array *all[] = {&d->logits, &d->idx, &d->weight, &d->kept, &d->mask};
    for (int i = 0; i < 5; i++) {
        moe_free(all[i]->data);
    }
    moe_free(d->batch.counted);
    moe_batch_free(&d->batch);
    moe_placement_free(&d->placement);
    moe_routing_free(&d->routing);
    moe_stats_free(&d->segments);
    moe_stats_free(&d->sequence);
    moe_stats_free(&d->global);
    golden_close(&d->g);
}

/* --- routing --- */

static void add_segments(dialect *d) {
    moe_stats_reserve(&d->sequence, d->router.num_experts, d->placement.devices,
                      d->batch.num_sequences);
    moe_stats_reserve(&d->global, d->router.num_experts, d->placement.devices, 1);
    for (int64_t i = 0; i < d->batch.num_segments; i++) {
        const int64_t *cell = moe_stats_cell(&d->segments, i);
        moe_stats_add(&d->segments, moe_stats_cell(&d->sequence, d->batch.segment[i].sequence),
                      cell);
        moe_stats_add(&d->segments, d->global.cell, cell);
    }
}

/* The references see one batch: one device that holds all tokens, whose choices go to the case's
 * devices. */
static void route(dialect *d) {
    int64_t tokens = golden_int(&d->g, "T"), bad;
    moe_batch_layout(&d->batch, tokens, golden_int(&d->g, "S"), 1, 0, 1);
    if (d->mask.data) {
        d->batch.counted = moe_alloc(tokens, 1, "test");
    }
    for (int64_t t = 0; t < tokens && d->mask.data; t++) {
        d->batch.counted[t] = moe_npy_i64(&d->mask.header, d->mask.data, t) != 0;
    }
    moe_placement_block(&d->placement, d->router.num_experts, golden_int(&d->g, "n_device"));
    moe_stats_reserve(&d->segments, d->router.num_experts, d->placement.devices,
                      d->batch.num_segments);
    moe_router_route(&d->router, &(moe_draw){0}, &d->batch, &d->placement,
                     (moe_logits){.f32 = d->logits.data}, NULL, &d->routing, &d->segments, &bad);
    CHECK_MSG(bad == -1 && d->routing.unconverged_device == -1, "%s", d->g.name);
    add_segments(d);
}

/* What the reference's weight of choice k of token t is made of: DeepSpeed's are final (0 where
 * dropped, normalised over what is kept). */
static double final_weight(const dialect *d, int64_t t, int64_t k, int64_t count) {
    const moe_routing *r = &d->routing;
    int64_t begin = r->row_offset[t], stride = d->router.top_k;
    double sum = 0;
    if (!is_family(d, "deepspeed")) {
        return (double)r->weight[begin + k];
    }
    if (!moe_npy_i64(&d->kept.header, d->kept.data, t * stride + k)) {
        return 0;
    }
    for (int64_t j = 0; j < count; j++) {
        sum += moe_npy_i64(&d->kept.header, d->kept.data, t * stride + j) ? r->score[begin + j] : 0;
    }
    return r->score[begin + k] / (d->router.top_k > 1 ? sum : 1);
}

static void check_choice(const dialect *d) {
    int64_t stride = d->idx.header.count / golden_int(&d->g, "T"), wrong = 0;
    double worst = 0;
    for (int64_t t = 0; t < d->routing.num_tokens; t++) {
        int64_t begin = d->routing.row_offset[t], count = d->routing.row_offset[t + 1] - begin;
        for (int64_t k = 0; k < stride; k++) {
            int64_t wanted = moe_npy_i64(&d->idx.header, d->idx.data, t * stride + k);
            wrong += wanted != (k < count ? d->routing.expert[begin + k] : -1);
            if (wanted < 0 || k >= count) {
                continue;
            }
            double w = golden_f64(&d->weight, t * stride + k);
            worst = fmax(worst, fabs(final_weight(d, t, k, count) - w) / fmax(fabs(w), 1e-30));
        }
    }
    CHECK_MSG(wrong == 0, "%s: %lld of %lld places differ", d->g.name, (long long)wrong,
              (long long)d->idx.header.count);
    CHECK_MSG(worst < 1e-5, "%s: weights off by %g", d->g.name, worst);
}

/* counts [N] is working memory. */
static void check_counts_per_sequence(const dialect *d, int64_t *counts) {
    const json_t *per_sequence = json_object_get(d->g.expected, "counts_per_expert_per_sequence");
    for (size_t b = 0; b < json_array_size(per_sequence); b++) {
        const json_t *wanted = json_array_get(per_sequence, b);
        int64_t length = golden_int(&d->g, "S"), begin = (int64_t)b * length;
        memset(counts, 0, (size_t)d->router.num_experts * sizeof *counts);
        for (int64_t i = d->routing.row_offset[begin]; i < d->routing.row_offset[begin + length];
             i++) {
            counts[d->routing.expert[i]]++;
        }
        for (int32_t i = 0; i < d->router.num_experts; i++) {
            CHECK_MSG(counts[i] == json_integer_value(json_array_get(wanted, (size_t)i)),
                      "%s: sequence %zu, expert %d", d->g.name, b, i);
        }
    }
}

/* Counts of the whole batch, padding included: what the router chose. */
static void check_counts(const dialect *d) {
    const json_t *experts = json_object_get(d->g.expected, "counts_per_expert");
    const json_t *distinct = json_object_get(d->g.expected, "distinct_tokens_per_device");
    int64_t *counts = moe_alloc_zero(d->router.num_experts, sizeof *counts, "test");
    for (int64_t i = 0; i < d->routing.num_selections; i++) {
        counts[d->routing.expert[i]]++;
    }
    CHECK_MSG(json_array_size(experts) == (size_t)d->router.num_experts, "%s", d->g.name);
    for (int32_t i = 0; i < d->router.num_experts; i++) {
        CHECK_MSG(counts[i] == json_integer_value(json_array_get(experts, (size_t)i)),
                  "%s: expert %d", d->g.name, i);
    }
    for (size_t i = 0; i < json_array_size(distinct) && !d->mask.data; i++) {
        CHECK_MSG(moe_stats_device_tokens(&d->global, d->global.cell)[i] ==
                      json_integer_value(json_array_get(distinct, i)),
                  "%s: device %zu", d->g.name, i);
    }
    check_counts_per_sequence(d, counts);
    moe_free(counts);
}

/* --- losses --- */

static double loss_in(const dialect *d, const moe_stats *s, enum moe_loss which) {
    double loss[MOE_NUM_LOSSES], mean = 0;
    for (int64_t i = 0; i < s->num_cells; i++) {
        moe_balance_losses(&d->balance, &d->placement, s, moe_stats_cell(s, i), loss);
        mean += loss[which] / (double)s->num_cells;
    }
    return mean;
}

static void compare(const dialect *d, const char *name, double got) {
    const json_t *wanted = golden_loss(&d->g, name);
    double value = json_number_value(wanted);
    CHECK_MSG(json_is_number(wanted) && fabs(got - value) <= 1e-10 * fabs(value),
              "%s: %s = %.17g, expected %.17g", d->g.name, name, got, value);
    losses_compared++;
}

static double global_loss(const dialect *d, enum moe_loss which) {
    return loss_in(d, &d->global, which);
}

/* top1gating and top2gating count first choices, topkgating all of them. */
static void check_deepspeed(dialect *d) {
    const char *function =
        json_string_value(json_array_get(json_object_get(d->g.settings, "functions"), 0));
    bool topk = function && strncmp(function, "topkgating", 10) == 0;
    compare(d, "l_aux", global_loss(d, topk ? MOE_LOSS_EXPERT : MOE_LOSS_GSHARD));
}

/* Multiplied by (experts of a worker)^2, not N^2. */
static void check_fastmoe(dialect *d) {
    double workers = golden_number(&d->g, "world_size");
    bool one = d->router.top_k == 1;
    compare(d, "loss",
            global_loss(d, one ? MOE_LOSS_SWITCH : MOE_LOSS_GSHARD) /
                (one ? 1 : workers * workers));
}

static void check_megatron(dialect *d) {
    if (d->router.method == MOE_METHOD_SINKHORN) {
        return; /* Megatron-Core has no auxiliary loss with it */
    }
    compare(d, "aux", global_loss(d, MOE_LOSS_EXPERT));
    compare(d, "seq_aux", loss_in(d, &d->sequence, MOE_LOSS_EXPERT));
    compare(d, "z", global_loss(d, MOE_LOSS_Z));
}

/* Hugging Face's Switch takes f after dropping and counts every dropped token for expert 0. */
static void count_after_dropping(dialect *d) {
    int64_t tokens = d->routing.num_tokens, n = d->router.num_experts;
    int32_t *idx = moe_alloc(tokens, sizeof *idx, "test");
    double *z = moe_alloc(n, sizeof *z, "test"),
           *scores = moe_alloc(tokens * n, sizeof *scores, "test");
    for (int64_t t = 0; t < tokens; t++) {
        idx[t] = moe_npy_i64(&d->kept.header, d->kept.data, t) ? d->routing.expert[t] : 0;
        for (int64_t i = 0; i < n; i++) {
            z[i] = golden_f64(&d->logits, t * n + i);
        }
        moe_scores_fill(&d->router, z, scores + t * n, NULL);
    }
    moe_stats_reserve(&d->segments, d->router.num_experts, d->placement.devices,
                      d->batch.num_segments);
    moe_router_route_recorded(&d->router, &d->batch, &d->placement, idx, 1, NULL, scores,
                              &d->routing, &d->segments);
    add_segments(d);
    moe_free(idx);
    moe_free(z);
    moe_free(scores);
}

static void check_switch(dialect *d) {
    compare(d, "z", global_loss(d, MOE_LOSS_Z));
    if (is_family(d, "mixlora")) { /* before dropping, over the batch */
        compare(d, "aux", global_loss(d, MOE_LOSS_SWITCH));
        return;
    }
    compare(d, "aux_predrop", loss_in(d, &d->sequence, MOE_LOSS_SWITCH));
    count_after_dropping(d);
    compare(d, "aux_hf_postdrop", loss_in(d, &d->sequence, MOE_LOSS_SWITCH));
}

static void check_tutel(dialect *d) {
    if (d->balance.load_form == MOE_LOAD_TUTEL) {
        compare(d, "load_importance",
                (global_loss(d, MOE_LOSS_IMPORTANCE) + global_loss(d, MOE_LOSS_LOAD)) / 2);
    } else {
        compare(d, "gshard", global_loss(d, MOE_LOSS_GSHARD));
    }
}

static void check_losses(dialect *d) {
    if (is_family(d, "deepspeed")) {
        check_deepspeed(d);
    } else if (is_family(d, "fastmoe")) {
        check_fastmoe(d);
    } else if (is_family(d, "megatron")) {
        check_megatron(d);
    } else if (is_family(d, "tutel")) {
        check_tutel(d);
    } else if (is_family(d, "switch") || golden_is(&d->g, "routing_strategy", "mixlora-switch")) {
        check_switch(d);
    } else if (!is_family(d, "simplified_gate")) { /* it has no loss */
        compare(d, "aux", global_loss(d, MOE_LOSS_MIXTRAL));
    }
}

/* --- */

static void run_case(const char *dir, const char *name) {
    dialect d = {.g = {.dir = dir, .name = name}};
    if (load(&d)) {
        route(&d);
        check_choice(&d);
        check_counts(&d);
        check_losses(&d);
        cases_run++;
    }
    if (d.kept.data) {
        printf("%s: kept%s, capacity and dropped counts: see golden_capacity\n", name,
               golden_has(&d.g, "slot.npy") ? ", slots" : "");
        left_to_capacity++;
    }
    unload(&d);
}

int main(int argc, char **argv) {
    char dir[2048];
    snprintf(dir, sizeof dir, "%s/routing", argc > 1 ? argv[1] : MOESIM_GOLDEN_DIR);
    for (int i = 0; i < NUM_CASES; i++) {
        RUN(run_case, dir, cases[i]);
    }
    printf("%d of %d cases, %d losses; %d have parts that golden_capacity compares\n", cases_run,
           NUM_CASES, losses_compared, left_to_capacity);
    CHECK_MSG(cases_run == NUM_CASES, "%d cases ran", cases_run);
    CHECK_MSG(losses_compared == 48, "%d losses", losses_compared);
    CHECK_MSG(left_to_capacity == 18, "%d cases with dropping", left_to_capacity);
    return check_verdict();
}
