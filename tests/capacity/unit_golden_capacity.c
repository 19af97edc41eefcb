/* unit_golden_capacity.c: capacities, kept pairs, slots and counts against the code of eight
 * systems' capacity rules (tests/golden/routing; each case.json names its source), and the final
 * weights where the reference has them. Argument: the folder of cases, if not the compiled-in one.
 */
#include <dirent.h>
#include <jansson.h>
#include <string.h>

#include "base/alloc.h"
#include "base/npy.h"
#include "capacity/drop.h"
#include "check.h"

#ifndef MOESIM_GOLDEN_DIR
#define MOESIM_GOLDEN_DIR "tests/golden"
#endif

enum { EXPECTED_CASES = 18, EXPECTED_SLOTS = 8 };
static int cases_run, slots_run, weights_run;

typedef struct array {
    moe_npy_header header;
    void *data;
} array;

typedef struct golden {
    const char *dir, *name;
    json_t *settings, *expected;
    array logits, idx, kept, slot, weight;
    int64_t tokens;
    moe_router router;
    moe_capacity capacity;
    moe_batch batch;
    moe_placement placement;
    moe_routing routing;
    moe_stats stats;
    moe_drop drop;
} golden;

static json_t *load_json(const golden *g, const char *file) {
    char path[8192];
    json_error_t error;
    snprintf(path, sizeof path, "%s/%s/%s", g->dir, g->name, file);
    json_t *root = json_load_file(path, 0, &error);
    CHECK_MSG(root, "%s: %s", path, error.text);
    return root;
}

static array load_array(const golden *g, const char *file) {
    char path[8192];
    array a = {0};
    moe_status st = {0};
    snprintf(path, sizeof path, "%s/%s/%s", g->dir, g->name, file);
    FILE *f = fopen(path, "rb");
    if (!f) {
        return a;
    }
    fclose(f);
    CHECK_MSG(moe_npy_read(path, &a.header, &a.data, &st) == MOE_OK, "%s", st.message);
    return a;
}

static int32_t setting_int(const golden *g, const char *key) {
    return (int32_t)json_integer_value(json_object_get(g->settings, key));
}
static double setting(const golden *g, const char *key) {
    return json_number_value(json_object_get(g->settings, key));
}
static bool setting_is(const golden *g, const char *key, const char *value) {
    const char *text = json_string_value(json_object_get(g->settings, key));
    return text && strcmp(text, value) == 0;
}
static bool setting_true(const golden *g, const char *key) {
    return json_is_true(json_object_get(g->settings, key));
}

static void set_router(golden *g) {
    double scale = setting(g, "routed_scaling_factor");
    g->router = (moe_router){.num_experts = setting_int(g, "E"),
                             .top_k = setting_int(g, "top_k"),
                             .num_groups = 1,
                             .topk_group = 1,
                             .score_func = MOE_SCORE_SOFTMAX,
                             .norm_topk_prob = setting_true(g, "norm_topk_prob"),
                             .scale_normalized = true,
                             .routed_scaling_factor = scale > 0 ? scale : 1, /* Megatron: 0 stands
                                                                                for none */
                             .comm_count_local = true};
}

static enum moe_rounding rounding_of(const golden *g) {
    if (setting_is(g, "family", "megatron")) {
        return MOE_ROUNDING_MEGATRON;
    }
    if (setting_is(g, "family", "deepspeed")) {
        return MOE_ROUNDING_DEEPSPEED;
    }
    if (setting_is(g, "family", "tutel")) {
        return MOE_ROUNDING_TUTEL;
    }
    return g->router.top_k > 1 ? MOE_ROUNDING_FASTMOE : MOE_ROUNDING_CEIL; /* FastMoE's switch gate
                                                                              rounds up */
}

static enum moe_drop_order order_of(const golden *g) {
    if (setting_is(g, "drop_policy", "batch_prioritized_by_choice_rank")) {
        return MOE_DROP_BATCH_PRIORITY;
    }
    if (!setting_is(g, "drop_policy", "probs")) {
        return MOE_DROP_POSITION;
    }
    return setting_is(g, "family", "deepspeed") ? MOE_DROP_SCORES : MOE_DROP_PROBS; /* DeepSpeed
                                                                                       compares
                                                                                       gates before
                                                                                       they are
                                                                                       normalised */
}

static void set_capacity(golden *g) {
    bool sequence = setting_is(g, "drop_policy", "position_per_sequence");
    g->capacity = (moe_capacity){.policy = sequence ? MOE_CAPACITY_SEQUENCE : MOE_CAPACITY_EXPERT,
                                 .drop = order_of(g),
                                 .rounding = rounding_of(g),
                                 .factor = setting(g, "capacity_factor"),
                                 .expert_capacity = sequence ? setting_int(g, "capacity") : 0,
                                 .min_capacity = setting_int(g, "min_capacity"),
                                 .renormalize = setting_is(g, "family", "deepspeed") &&
                                                g->router.norm_topk_prob,
                                 .pad = setting_true(g, "pad_to_capacity"),
                                 .num_experts = g->router.num_experts,
                                 .devices = setting_int(g, "n_device"),
                                 .top_k = g->router.top_k,
                                 .most_choices = g->router.top_k};
    g->capacity.first_choices = setting_is(g, "drop_policy", "position_by_choice_rank") ||
                                g->capacity.drop == MOE_DROP_BATCH_PRIORITY;
}

static bool golden_load(golden *g) {
    g->settings = load_json(g, "case.json");
    g->expected = load_json(g, "expected.json");
    g->logits = load_array(g, "logits.npy");
    g->idx = load_array(g, "topk_idx.npy");
    g->kept = load_array(g, "kept.npy");
    g->slot = load_array(g, "slot.npy");
    g->weight = load_array(g, "topk_weight.npy");
    if (!g->settings || !g->expected || !g->logits.data || !g->idx.data || !g->kept.data ||
        !g->weight.data) {
        return false;
    }
    g->tokens = g->idx.header.shape[0];
    set_router(g);
    set_capacity(g);
    return true;
}

static void golden_free(golden *g) {
    array *all[] = {&g->logits, &g->idx, &g->kept, &g->slot, &g->weight};
    for (int i = 0; i < 5; i++) {
        moe_free(all[i]->data);
    }
    moe_batch_free(&g->batch);
    moe_placement_free(&g->placement);
    moe_routing_free(&g->routing);
    moe_stats_free(&g->stats);
    moe_drop_free(&g->drop);
    json_decref(g->settings);
    json_decref(g->expected);
}

static void decide(golden *g) {
    int64_t bad;
    moe_comm alone = {.size = 1};
    moe_batch_layout(&g->batch, g->tokens, setting_int(g, "S"), g->capacity.devices, 0, 1);
    moe_placement_block(&g->placement, g->router.num_experts, g->capacity.devices);
    moe_stats_reserve(&g->stats, g->router.num_experts, g->capacity.devices, g->batch.num_segments);
    moe_logits logits = {.f32 = g->logits.data};
    moe_router_route(&g->router, &(moe_draw){0}, &g->batch, &g->placement, logits, NULL,
                     &g->routing, &g->stats, &bad);
    CHECK_EQ(bad, -1);
    moe_drop_decide(&g->drop, &(moe_drop_job){.comm = &alone,
                                              .capacity = &g->capacity,
                                              .batch = &g->batch,
                                              .placement = &g->placement,
                                              .router = &g->router,
                                              .logits = logits,
                                              .routing = &g->routing});
}

static int64_t differ(const array *a, const int64_t *b, int64_t n) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) {
        count += moe_npy_i64(&a->header, a->data, i) != b[i];
    }
    return count;
}

static void check_pairs(const golden *g) {
    int64_t n = g->routing.num_selections, *value = moe_alloc(n, sizeof *value, "test");
    CHECK_MSG(n == g->idx.header.count, "%s: %lld selections", g->name, (long long)n);
    for (int64_t i = 0; i < n; i++) {
        value[i] = g->routing.expert[i];
    }
    CHECK_MSG(differ(&g->idx, value, n) == 0, "%s: %lld experts differ", g->name,
              (long long)differ(&g->idx, value, n));
    for (int64_t i = 0; i < n; i++) {
        value[i] = g->drop.kept[i];
    }
    CHECK_MSG(differ(&g->kept, value, n) == 0, "%s: %lld pairs are kept or dropped wrongly",
              g->name, (long long)differ(&g->kept, value, n));
    for (int64_t i = 0; i < n; i++) {
        value[i] = g->drop.slot[i];
    }
    if (g->slot.data) {
        CHECK_MSG(differ(&g->slot, value, n) == 0, "%s: %lld slots differ", g->name,
                  (long long)differ(&g->slot, value, n));
        slots_run++;
    }
    moe_free(value);
}

static void check_vector(const golden *g, const char *key, const int64_t *mine) {
    json_t *list = json_object_get(g->expected, key);
    CHECK_MSG(json_array_size(list) == (size_t)g->router.num_experts, "%s: %s", g->name, key);
    for (int32_t e = 0; e < g->router.num_experts; e++) {
        CHECK_MSG(json_integer_value(json_array_get(list, (size_t)e)) == mine[e],
                  "%s: %s[%d] = %lld", g->name, key, e, (long long)mine[e]);
    }
}

static void check_counts(const golden *g) {
    const moe_routing *sent = &g->drop.sent;
    int32_t n = g->router.num_experts;
    int64_t *kept = moe_alloc_zero(2 * (int64_t)n, sizeof *kept, "test");
    int64_t *dropped = kept + n;
    int64_t lost = 0;
    for (int64_t i = 0; i < sent->num_selections; i++) {
        kept[sent->expert[i]]++;
    }
    for (int64_t i = 0; i < g->routing.num_selections; i++) {
        dropped[g->routing.expert[i]] += !g->drop.kept[i];
    }
    for (int64_t t = 0; t < g->tokens; t++) {
        lost += sent->row_offset[t + 1] == sent->row_offset[t];
    }
    check_vector(g, "kept_per_expert", kept);
    check_vector(g, "dropped_per_expert", dropped);
    CHECK_MSG(g->drop.capacity == json_integer_value(json_object_get(g->expected, "capacity")),
              "%s: capacity %lld", g->name, (long long)g->drop.capacity);
    CHECK(g->routing.num_selections - sent->num_selections ==
          json_integer_value(json_object_get(g->expected, "dropped_routes")));
    CHECK(lost == json_integer_value(json_object_get(g->expected, "tokens_fully_dropped")));
    if (g->capacity.pad) {
        int64_t rows = json_integer_value(json_object_get(g->expected, "final_map_sum"));
        CHECK_MSG(sent->num_selections + g->drop.padding_rows == rows, "%s: %lld padding rows",
                  g->name, (long long)g->drop.padding_rows);
    }
    moe_free(kept);
}

/* DeepSpeed's weights are those after dropping, the others' those before. */
static void check_weights(const golden *g) {
    bool after = setting_is(g, "family", "deepspeed");
    int64_t n = g->routing.num_selections;
    double *mine = moe_alloc_zero(n, sizeof *mine, "test"), worst = 0;
    for (int64_t i = 0; i < n && !after; i++) {
        mine[i] = (double)g->routing.weight[i];
    }
    for (int64_t i = 0; i < g->drop.sent.num_selections && after; i++) {
        mine[g->drop.selection[i]] = (double)g->drop.sent.weight[i];
    }
    for (int64_t i = 0; i < n; i++) {
        double wanted = moe_npy_f64(&g->weight.header, g->weight.data, i);
        worst = fmax(worst, fabs(mine[i] - wanted) / fmax(fabs(wanted), 1e-30));
    }
    CHECK_MSG(worst <= 1e-5, "%s: weights differ by %g", g->name, worst);
    weights_run++;
    moe_free(mine);
}

static void check_case(const char *dir, const char *name) {
    golden g = {.dir = dir, .name = name};
    if (golden_load(&g)) {
        decide(&g);
        check_pairs(&g);
        check_counts(&g);
        check_weights(&g);
        cases_run++;
    }
    golden_free(&g);
}

static bool has_capacity(const char *name) {
    static const char *const families[] = {"switch_",    "mixlora_switch", "mcore_drop_",
                                           "mcore_pad_", "mcore_nodrop",   "deepspeed_",
                                           "fastmoe_",   "tutel_"};
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) {
        if (strncmp(name, families[i], strlen(families[i])) == 0) {
            return true;
        }
    }
    return false;
}

/* docs/method.md and the golden README: T 200, E 60, K 2, factor 1.25. */
static void check_roundings(void) {
    static const int64_t wanted[] = {9, 9, 9, 8, 10};
    moe_capacity c = {
        .policy = MOE_CAPACITY_EXPERT, .factor = 1.25, .num_experts = 60, .top_k = 2, .devices = 1};
    for (int i = 0; i < 5; i++) {
        c.rounding = (enum moe_rounding)i;
        CHECK_MSG(moe_capacity_pairs(&c, 200, 400) == wanted[i], "rounding %d: %lld", i,
                  (long long)moe_capacity_pairs(&c, 200, 400));
    }
}

int main(int argc, char **argv) {
    char dir[4096];
    snprintf(dir, sizeof dir, "%s", argc > 1 ? argv[1] : MOESIM_GOLDEN_DIR "/routing");
    DIR *folder = opendir(dir);
    CHECK_MSG(folder, "%s", dir);
    for (struct dirent *e; folder && (e = readdir(folder));) {
        if (has_capacity(e->d_name)) {
            RUN(check_case, dir, e->d_name);
        }
    }
    if (folder) {
        closedir(folder);
    }
    RUN(check_roundings);
    printf("%d cases with a capacity: kept, counts and weights of all, slots of %d\n", cases_run,
           slots_run);
    CHECK_MSG(cases_run >= EXPECTED_CASES && slots_run >= EXPECTED_SLOTS &&
                  weights_run == cases_run,
              "%d cases, %d with slots", cases_run, slots_run);
    return check_verdict();
}
