/* unit_golden_routing.c: the router and the balance losses against DeepSeek's and Hugging Face's
 * own code (tests/golden/routing; each case.json names its source). Argument: the folder of cases,
 * if not the one that was compiled in. */
#include <jansson.h>
#include <string.h>

#include "balance/balance.h"
#include "base/alloc.h"
#include "base/npy.h"
#include "check.h"
#include "router/group_theorem.h"
#include "router/loss_gradient.h"
#include "router/router.h"
#include "router/scores.h"
#include "router/select.h"

#ifndef MOESIM_GOLDEN_DIR
#define MOESIM_GOLDEN_DIR "tests/golden"
#endif

static const char *const cases[] = {"ds2_E160_K5_G10_M2",
                                    "ds2_E16_K2_G4_M2_small",
                                    "ds2_E256_K8_G8_M4",
                                    "ds2_E60_K4_G6_M2_norm_zipf",
                                    "ds2_E60_K6_G12_M12_batch",
                                    "ds2_E64_K7_G4_M4_norm_batch",
                                    "ds2_E6_K3_G2_M2_norm_scale",
                                    "ds2_T4096_E8_K2_G4_M1",
                                    "ds2_collapse_E32_K4_G8_M2",
                                    "ds2_dominant40_E32_K2_G4_M2",
                                    "ds2_onetoken_E16_K4_G4_M2",
                                    "ds2_tiny_T4_E8_K2_G4_M2",
                                    "ds2_v2_E160_K6_G8_M3",
                                    "ds2_v2_E160_K6_G8_M3_zipf",
                                    "ds3_E160_K8_G10_M5",
                                    "ds3_E256_K8_G8_M4_bias",
                                    "ds3_E60_K4_G6_M2_zerobias",
                                    "ds3_E64_K6_G16_M3_nonorm",
                                    "ds3inf_E256_K8_G8_M4_bias",
                                    "ds3inf_E60_K7_G4_M2",
                                    "ds3inf_E64_K6_G1",
                                    "ds3inf_softmax_nobias_E64_K6_G8_M3",
                                    "hfds2_E160_K6_G8_M3",
                                    "hfds2_E60_K3_G6_M1",
                                    "hfds3_E256_K8_G8_M4_bias",
                                    "hfds3_E32_K1_G4_M2_top1",
                                    "ties_ds2_equal_E160_K6_G8_M3",
                                    "ties_ds3_saturated80_E64_K8_G8_M4"};
enum { NUM_CASES = sizeof cases / sizeof cases[0], CASES_WITH_GRADIENT = 8 };

static int cases_run, weights_run, gradients_run, losses_compared;

typedef struct array {
    moe_npy_header header;
    void *data;
} array;

typedef struct golden {
    const char *dir, *name;
    json_t *settings, *expected;
    array logits, idx, weight, weight_f64, bias;
    double *bias_f64;
    moe_router router;
    moe_batch batch;
    moe_placement placement;
    moe_routing routing;
    moe_stats segments, sequence, global;
} golden;

/* --- reading --- */

static json_t *load_json(const golden *g, const char *file) {
    char path[4096];
    json_error_t error;
    snprintf(path, sizeof path, "%s/%s/%s", g->dir, g->name, file);
    json_t *root = json_load_file(path, 0, &error);
    CHECK_MSG(root, "%s: %s", path, error.text);
    return root;
}

static array load_array(const golden *g, const char *file) {
    char path[4096];
    array a = {0};
    moe_status st = {0};
    snprintf(path, sizeof path, "%s/%s/%s", g->dir, g->name, file);
    CHECK_MSG(moe_npy_read(path, &a.header, &a.data, &st) == MOE_OK, "%s", st.message);
    return a;
}

static bool has_file(const golden *g, const char *file) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s/%s", g->dir, g->name, file);
    FILE *f = fopen(path, "rb");
    if (f) {
        fclose(f);
    }
    return f != NULL;
}

static int32_t setting_int(const golden *g, const char *key) {
    return (int32_t)json_integer_value(json_object_get(g->settings, key));
}

static bool setting_is(const golden *g, const char *key, const char *value) {
    const char *text = json_string_value(json_object_get(g->settings, key));
    return text && strcmp(text, value) == 0;
}

/* DeepSeek-V2's code normalises OR scales, and like DeepSeek-V3's training code does not normalise
 * a single expert; DeepSeek-V3's inference code and Hugging Face's do both, always. */
static void set_router(golden *g) {
    bool v2 = setting_is(g, "family", "ds2"), single = !v2 && !setting_is(g, "family", "ds3");
    g->router = (moe_router){
        .num_experts = setting_int(g, "E"),
        .top_k = setting_int(g, "top_k"),
        .num_groups = setting_int(g, "n_group"),
        .topk_group = setting_int(g, "topk_group"),
        .score_func =
            setting_is(g, "score_func", "sigmoid") ? MOE_SCORE_SIGMOID : MOE_SCORE_SOFTMAX,
        .group_limit = setting_is(g, "group_score", "max") ? MOE_GROUP_MAX : MOE_GROUP_TOP2_SUM,
        .norm_topk_prob = json_is_true(json_object_get(g->settings, "norm_topk_prob")),
        .norm_single = single,
        .scale_normalized = !v2,
        .routed_scaling_factor =
            json_number_value(json_object_get(g->settings, "routed_scaling_factor")),
        .bias = g->bias_f64,
        .comm_count_local = true};
}

static void load_bias(golden *g) {
    if (!setting_is(g, "bias", "bias.npy")) {
        return;
    }
    g->bias = load_array(g, "bias.npy");
    g->bias_f64 = moe_alloc(g->bias.header.count, sizeof(double), "test");
    for (int64_t i = 0; i < g->bias.header.count; i++) {
        g->bias_f64[i] = moe_npy_f64(&g->bias.header, g->bias.data, i);
    }
}

static bool golden_load(golden *g) {
    g->settings = load_json(g, "case.json");
    g->expected = load_json(g, "expected.json");
    if (!g->settings || !g->expected) {
        return false;
    }
    g->logits = load_array(g, "logits.npy");
    g->idx = load_array(g, "topk_idx.npy");
    g->weight = load_array(g, "topk_weight.npy");
    if (has_file(g, "topk_weight_f64.npy")) {
        g->weight_f64 = load_array(g, "topk_weight_f64.npy");
    }
    load_bias(g);
    set_router(g);
    return g->logits.data && g->idx.data && g->weight.data && g->logits.header.dtype == MOE_F32;
}

static void golden_free(golden *g) {
    array *all[] = {&g->logits, &g->idx, &g->weight, &g->weight_f64, &g->bias};
    for (int i = 0; i < 5; i++) {
        moe_free(all[i]->data);
    }
    moe_free(g->bias_f64);
    moe_batch_free(&g->batch);
    moe_placement_free(&g->placement);
    moe_routing_free(&g->routing);
    moe_stats_free(&g->segments);
    moe_stats_free(&g->sequence);
    moe_stats_free(&g->global);
    json_decref(g->settings);
    json_decref(g->expected);
}

/* --- routing --- */

/* From segments to sequences and the global batch. */
static void add_segments(golden *g) {
    moe_stats_reserve(&g->sequence, g->router.num_experts, g->placement.devices,
                      g->batch.num_sequences);
    moe_stats_reserve(&g->global, g->router.num_experts, g->placement.devices, 1);
    for (int64_t i = 0; i < g->batch.num_segments; i++) {
        const int64_t *cell = moe_stats_cell(&g->segments, i);
        moe_stats_add(&g->segments, moe_stats_cell(&g->sequence, g->batch.segment[i].sequence),
                      cell);
        moe_stats_add(&g->segments, g->global.cell, cell);
    }
}

static void route(golden *g) {
    int32_t devices = setting_int(g, "n_device"), n = g->router.num_experts;
    int64_t bad;
    moe_batch_layout(&g->batch, setting_int(g, "T"), setting_int(g, "S"), devices, 0, 1);
    moe_placement_block(&g->placement, n, devices);
    moe_stats_reserve(&g->segments, n, devices, g->batch.num_segments);
    moe_router_route(&g->router, &(moe_draw){0}, &g->batch, &g->placement,
                     (moe_logits){.f32 = g->logits.data}, NULL, &g->routing, &g->segments, &bad);
    CHECK_MSG(bad == -1, "%s", g->name);
    add_segments(g);
}

static void check_choice(const golden *g) {
    int64_t t_count = setting_int(g, "T");
    int64_t k = g->router.top_k;
    int64_t wrong = 0;
    double worst = 0;
    CHECK_MSG(g->routing.num_selections == t_count * k && g->idx.header.count == t_count * k, "%s",
              g->name);
    for (int64_t i = 0; i < t_count * k && i < g->routing.num_selections; i++) {
        double wanted = moe_npy_f64(&g->weight.header, g->weight.data, i);
        wrong += g->routing.expert[i] != moe_npy_i64(&g->idx.header, g->idx.data, i);
        worst =
            fmax(worst, fabs((double)g->routing.weight[i] - wanted) / fmax(fabs(wanted), 1e-30));
    }
    CHECK_MSG(wrong == 0, "%s: %lld experts differ", g->name, (long long)wrong);
    CHECK_MSG(worst < 1e-5, "%s: weights off by %g", g->name, worst);
}

/* Weights before rounding, token by token. */
static void check_weights_f64(const golden *g) {
    if (!g->weight_f64.data) {
        return;
    }
    int32_t n = g->router.num_experts, k = g->router.top_k, expert[64];
    double *z = moe_alloc(2 * (int64_t)n, sizeof *z, "test");
    double *s = z + n;
    double weight[64];
    double lse;
    double worst = 0;
    for (int64_t t = 0; t < setting_int(g, "T"); t++) {
        for (int32_t i = 0; i < n; i++) {
            z[i] = moe_npy_f64(&g->logits.header, g->logits.data, t * n + i);
        }
        moe_scores_fill(&g->router, z, s, &lse);
        int32_t count = moe_select_token(&g->router, &(moe_draw){0}, t, z, s, expert, weight);
        for (int32_t j = 0; j < count; j++) {
            double wanted = moe_npy_f64(&g->weight_f64.header, g->weight_f64.data, t * k + j);
            worst = fmax(worst, fabs(weight[j] - wanted) / fmax(fabs(wanted), 1e-300));
        }
    }
    CHECK_MSG(worst < 1e-12, "%s: double weights off by %g", g->name, worst);
    moe_free(z);
}

static void check_counts(const golden *g,
                         const moe_stats *s,
                         int64_t *cell,
                         const json_t *experts,
                         const char *what) {
    for (size_t i = 0; i < json_array_size(experts); i++) {
        CHECK_MSG(moe_stats_counts(s, cell)[i] == json_integer_value(json_array_get(experts, i)),
                  "%s: %s, expert %zu", g->name, what, i);
    }
}

static void check_all_counts(const golden *g) {
    const json_t *distinct = json_object_get(g->expected, "distinct_tokens_per_device");
    const json_t *per_sequence = json_object_get(g->expected, "counts_per_expert_per_sequence");
    const json_t *total = json_object_get(g->expected, "counts_per_expert");
    CHECK_MSG(json_array_size(total) == (size_t)g->router.num_experts &&
                  json_array_size(distinct) == (size_t)g->placement.devices,
              "%s", g->name);
    check_counts(g, &g->global, g->global.cell, total, "counts_per_expert");
    for (size_t i = 0; i < json_array_size(per_sequence); i++) {
        check_counts(g, &g->sequence, moe_stats_cell(&g->sequence, (int64_t)i),
                     json_array_get(per_sequence, i), "counts per sequence");
    }
    for (size_t d = 0; d < json_array_size(distinct); d++) {
        CHECK_MSG(moe_stats_device_tokens(&g->global, g->global.cell)[d] ==
                      json_integer_value(json_array_get(distinct, d)),
                  "%s: device %zu", g->name, d);
    }
}

static void check_theorem(const golden *g) {
    int64_t eligible, violations;
    moe_group_theorem_check(&g->router, (moe_logits){.f32 = g->logits.data}, &g->routing, NULL, 1,
                            &eligible, &violations);
    CHECK_MSG(violations == 0, "%s: %lld of %lld tokens", g->name, (long long)violations,
              (long long)eligible);
    if (setting_is(g, "family", "ds2") && !json_is_true(json_object_get(g->settings, "ties"))) {
        CHECK_MSG(eligible > 0, "%s", g->name);
    }
}

/* --- losses --- */

static moe_balance balance_of(const golden *g, bool misreading_count, bool misreading_mean) {
    return (moe_balance){.comm_limit = g->router.topk_group,
                         .comm_count = misreading_count ? MOE_COUNT_SELECTIONS : MOE_COUNT_TOKENS,
                         .device_p = misreading_mean ? MOE_DEVICE_P_MEAN : MOE_DEVICE_P_SUM,
                         .has_scores = true,
                         .has_logits = true};
}

static void losses_in(const golden *g,
                      const moe_balance *b,
                      const moe_stats *s,
                      double mean[MOE_NUM_LOSSES]) {
    for (int l = 0; l < MOE_NUM_LOSSES; l++) {
        mean[l] = 0;
    }
    for (int64_t i = 0; i < s->num_cells; i++) {
        double loss[MOE_NUM_LOSSES];
        moe_balance_losses(b, &g->placement, s, moe_stats_cell(s, i), loss);
        for (int l = 0; l < MOE_NUM_LOSSES; l++) {
            mean[l] += loss[l] / (double)s->num_cells;
        }
    }
}

static void compare_loss(const golden *g, const json_t *wanted, double got, const char *what) {
    double value = json_number_value(wanted);
    CHECK_MSG(json_is_number(wanted) && fabs(got - value) <= 1e-10 * fabs(value),
              "%s: %s = %.17g, expected %.17g", g->name, what, got, value);
    losses_compared++;
}

/* The three losses of one variant of expected.json, all of which must be there. */
static void check_variant(const golden *g,
                          const char *variant,
                          const moe_balance *b,
                          const moe_stats *s) {
    double loss[MOE_NUM_LOSSES];
    losses_in(g, b, s, loss);
    for (int l = 0; l < MOE_LOSS_Z; l++) {
        char key[128];
        snprintf(key, sizeof key, "%s@%s", moe_loss_names[l], variant);
        compare_loss(g, json_object_get(json_object_get(g->expected, "variants"), key), loss[l],
                     key);
    }
}

/* losses.*.f64_raw of a DeepSeek-V2 case. */
static void check_raw(const golden *g, const moe_stats *s) {
    double loss[MOE_NUM_LOSSES];
    moe_balance b = balance_of(g, false, false);
    losses_in(g, &b, s, loss);
    for (int l = 0; l < MOE_LOSS_Z; l++) {
        compare_loss(g,
                     json_object_get(
                         json_object_get(json_object_get(g->expected, "losses"), moe_loss_names[l]),
                         "f64_raw"),
                     loss[l], moe_loss_names[l]);
    }
}

static void check_v2_losses(const golden *g) {
    moe_balance paper = balance_of(g, false, false);
    moe_balance mean = balance_of(g, true, true);
    moe_balance sum = balance_of(g, true, false);
    check_raw(g, json_is_true(json_object_get(g->settings, "seq_aux")) ? &g->sequence : &g->global);
    check_variant(g, "paper_per_sequence", &paper, &g->sequence);
    check_variant(g, "paper_batch", &paper, &g->global);
    check_variant(g, "reading_mean_p_selections", &mean, &g->sequence);
    check_variant(g, "reading_sum_p_selections", &sum, &g->sequence);
}

static void check_v3_loss(const golden *g) {
    double loss[MOE_NUM_LOSSES];
    moe_balance b = balance_of(g, false, false);
    losses_in(g, &b, &g->sequence, loss);
    const json_t *wanted = json_object_get(
        json_object_get(json_object_get(g->expected, "losses"), "v3_seq_balance"), "f64_raw");
    compare_loss(g, wanted, loss[MOE_LOSS_EXPERT], "v3_seq_balance");
}

static void check_losses(const golden *g) {
    if (setting_is(g, "family", "ds2")) {
        check_v2_losses(g);
    } else if (!setting_is(g, "family", "hfds2")) {
        check_v3_loss(g); /* no losses are recorded for Hugging Face's DeepSeek-V2 */
    }
}

/* The stored losses of ties_* belong to the experts that torch chose among equals: they are
 * compared on that choice, taken as recorded. What is ours, the lowest index, has its losses in the
 * variants @paper_lowest_index_ties of ties_ds2; ties_ds3 has none, and test_golden_all.py compares
 * its loss with equations 17 to 20 on topk_idx.npy. */
static void use_choice_of_torch(golden *g) {
    int32_t n = g->router.num_experts;
    int64_t tokens = setting_int(g, "T");
    array torch = load_array(g, "topk_idx_torch_f64.npy");
    double *z = moe_alloc(n, sizeof *z, "test"),
           *scores = moe_alloc(tokens * n, sizeof *scores, "test");
    for (int64_t t = 0; t < tokens; t++) {
        for (int32_t i = 0; i < n; i++) {
            z[i] = moe_npy_f64(&g->logits.header, g->logits.data, t * n + i);
        }
        moe_scores_fill(&g->router, z, scores + t * n, NULL);
    }
    moe_stats_reserve(&g->segments, n, g->placement.devices, g->batch.num_segments);
    moe_router_route_recorded(&g->router, &g->batch, &g->placement, torch.data, g->router.top_k,
                              NULL, scores, &g->routing, &g->segments);
    add_segments(g);
    moe_free(z);
    moe_free(scores);
    moe_free(torch.data);
}

static void check_ties(golden *g) {
    moe_balance paper = balance_of(g, false, false);
    if (setting_is(g, "family", "ds2")) {
        check_variant(g, "paper_lowest_index_ties", &paper, &g->sequence);
    }
    use_choice_of_torch(g);
    check_losses(g);
}

/* --- gradient --- */

static void check_gradient_of(const golden *g,
                              enum moe_loss which,
                              const char *alpha,
                              const char *file) {
    int64_t count = g->logits.header.count;
    bool per_sequence = json_is_true(json_object_get(g->settings, "seq_aux"));
    const moe_stats *s = per_sequence ? &g->sequence : &g->global;
    moe_balance b = balance_of(g, false, false);
    array wanted = load_array(g, file);
    double *dlogits = moe_alloc_zero(count, sizeof *dlogits, "test");
    double *a = moe_alloc(MOE_COEFFICIENTS * (int64_t)g->router.num_experts, sizeof *a, "test");
    double largest = 0;
    double worst = 0;
    b.alpha[which] = json_number_value(json_object_get(g->settings, alpha));
    for (int64_t i = 0; i < g->batch.num_segments; i++) {
        const moe_segment *segment = &g->batch.segment[i];
        int64_t *cell = moe_stats_cell(s, per_sequence ? segment->sequence : 0);
        moe_balance_coefficients(&b, &g->placement, s, cell, a);
        moe_loss_coefficients all = {
            .a = a, .inverse_tokens = 1 / ((double)cell[MOE_STAT_TOKENS] * (double)s->num_cells)};
        moe_loss_gradient(&g->router, &g->batch, (moe_logits){.f32 = g->logits.data}, NULL,
                          &g->routing, segment->begin, segment->end, &all, dlogits);
    }
    CHECK_MSG(wanted.header.count == count, "%s: %s", g->name, file);
    for (int64_t i = 0; i < count && wanted.header.count == count; i++) {
        double value = moe_npy_f64(&wanted.header, wanted.data, i);
        largest = fmax(largest, fabs(value));
        worst = fmax(worst, fabs(dlogits[i] - value));
    }
    CHECK_MSG(worst <= 1e-10 * largest + 1e-18, "%s: %s off by %g of %g", g->name, file, worst,
              largest);
    moe_free(wanted.data);
    moe_free(dlogits);
    moe_free(a);
}

static void check_gradients(const golden *g) {
    if (!has_file(g, "dlogits_expert.npy")) {
        return;
    }
    check_gradient_of(g, MOE_LOSS_EXPERT, "alpha1", "dlogits_expert.npy");
    check_gradient_of(g, MOE_LOSS_DEVICE, "alpha2", "dlogits_device.npy");
    check_gradient_of(g, MOE_LOSS_COMM, "alpha3", "dlogits_comm.npy");
    gradients_run++;
}

static void run_case(const char *dir, const char *name) {
    golden g = {.dir = dir, .name = name};
    if (golden_load(&g)) {
        route(&g);
        check_choice(&g);
        check_weights_f64(&g);
        weights_run += g.weight_f64.data != NULL;
        check_all_counts(&g);
        check_theorem(&g);
        check_gradients(&g);
        if (json_is_true(json_object_get(g.settings, "ties"))) {
            check_ties(&g);
        } else {
            check_losses(&g);
        }
        cases_run++;
    }
    golden_free(&g);
}

int main(int argc, char **argv) {
    char dir[2048];
    snprintf(dir, sizeof dir, "%s/routing", argc > 1 ? argv[1] : MOESIM_GOLDEN_DIR);
    for (int i = 0; i < NUM_CASES; i++) {
        RUN(run_case, dir, cases[i]);
    }
    printf("%d of %d cases, %d with gradients, %d losses\n", cases_run, NUM_CASES, gradients_run,
           losses_compared);
    CHECK_MSG(cases_run == NUM_CASES, "%d cases ran", cases_run);
    CHECK_MSG(weights_run == NUM_CASES - 1, "%d cases with weights in double",
              weights_run); /* ds2_T4096_E8_K2_G4_M1
                               has
                               none
                             */
    CHECK_MSG(gradients_run == CASES_WITH_GRADIENT, "%d cases with gradients", gradients_run);
    return check_verdict();
}
