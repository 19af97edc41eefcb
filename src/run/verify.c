/* verify.c: moesim --verify: figures that docs/method.md gives exactly, out of the program's own
 * router, counts, losses and optimiser.
 *
 * A world is a small resolved configuration with a batch of keyed random logits and what the router
 * made of it. Most worlds are the same on every rank; the one about scopes spreads its devices over
 * the ranks. */
#include "run/verify.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "balance/scopes.h"
#include "base/alloc.h"
#include "base/exact.h"
#include "base/rng.h"
#include "config/config.h"
#include "config/value.h"
#include "data/batch.h"
#include "exchange/plan.h"
#include "exchange/row_format.h"
#include "measure/imbalance.h"
#include "placement/balancer.h"
#include "router/group_theorem.h"
#include "router/groups.h"
#include "router/router.h"
#include "router/scores.h"
#include "train/optimizer.h"
#include "world/topology.h"

/* --- what is printed --- */

typedef struct verification {
    const moe_comm *comm;
    int made, failed;
} verification;

/* Prints "name: expected ..., found ..., ok", within 80 columns, and counts it. */
MOE_PRINTF(4, 5)
static void say(verification *v, const char *name, bool ok, const char *format, ...) {
    va_list args;
    v->made++;
    v->failed += !ok;
    if (v->comm->rank != 0) {
        return;
    }
    printf("%s: ", name);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf(", %s\n", ok ? "ok" : "FAILED");
}

static void compare(verification *v,
                    const char *name,
                    double expected,
                    double found,
                    double tolerance) {
    say(v, name, fabs(found - expected) <= tolerance, "expected %.7g, found %.7g", expected, found);
}

/* --- a world --- */

typedef struct world {
    moe_config c;
    moe_batch batch;
    moe_placement placement;
    moe_router router;
    moe_balance balance;
    real *logits; /* [T,N] */
    moe_routing routing;
    moe_stats segments; /* one cell for each segment */
    moe_stats cell;     /* one cell, the sum of all segments of this rank */
} world;

static moe_logits logits_of(const world *w) {
#ifdef MOE_REAL_DOUBLE
    return (moe_logits){.f64 = w->logits};
#else
    return (moe_logits){.f32 = w->logits};
#endif
}

/* Fills the logits with independent normal numbers times `spread`. With any spread but 0 every set
 * of K experts is as likely as any other. */
static void fill_logits(world *w, double spread) {
    int64_t n = w->c.model.num_experts;
    w->logits = moe_alloc_zero(w->batch.num_tokens * n, sizeof(real), "logits");
    for (int64_t t = 0; t < w->batch.num_tokens && spread > 0; t++) {
        moe_rng_normal((moe_rng){1, MOE_RNG_TEST}, 0, (uint64_t)(w->batch.first_token + t), spread,
                       w->logits + t * n, n);
    }
}

static void make_world(world *w, int rank, int ranks, double spread, const moe_setting *settings) {
    moe_status st = {0};
    int64_t bad;
    *w = (world){0};
    moe_config_defaults(&w->c);
    moe_value_override_all(&w->c, settings, &st);
    if (st.code == MOE_OK) {
        moe_config_resolve(&w->c, ranks, &st);
    }
    MOE_ASSERT(st.code == MOE_OK);
    int32_t n = w->c.model.num_experts, d = w->c.cluster.devices;
    moe_batch_layout(&w->batch, w->c.data.tokens_per_device * d, w->c.data.sequence_length, d, rank,
                     ranks);
    moe_placement_block(&w->placement, n, d);
    moe_router_init(&w->router, &w->c.router, &w->c.balance, n, d, NULL);
    moe_balance_init(&w->balance, &w->c.balance, moe_config_moe_layers(&w->c), w->c.comm_limit);
    fill_logits(w, spread);
    moe_stats_reserve(&w->segments, n, d, w->batch.num_segments);
    moe_stats_reserve(&w->cell, n, d, 1);
    moe_draw draw = {.seed = (uint64_t)w->c.run.seed};
    moe_router_route(&w->router, &draw, &w->batch, &w->placement, logits_of(w), NULL, &w->routing,
                     &w->segments, &bad);
    for (int64_t i = 0; i < w->batch.num_segments; i++) {
        moe_stats_add(&w->cell, w->cell.cell, moe_stats_cell(&w->segments, i));
    }
}

static void free_world(world *w) {
    moe_batch_free(&w->batch);
    moe_placement_free(&w->placement);
    moe_free(w->logits);
    moe_routing_free(&w->routing);
    moe_stats_free(&w->segments);
    moe_stats_free(&w->cell);
}

/* The number of distinct devices of token t. Here every device is a group. */
static int32_t reach(const world *w, int64_t t) {
    const int64_t *row = w->routing.row_offset + t;
    return moe_groups_distinct(&w->router, w->routing.expert + row[0], (int32_t)(row[1] - row[0]));
}

static double mean_reach(const world *w, double *error) {
    double tokens = (double)w->batch.num_tokens;
    double sum = 0;
    double squares = 0;
    for (int64_t t = 0; t < w->batch.num_tokens; t++) {
        double x = reach(w, t);
        sum += x;
        squares += x * x;
    }
    *error = sqrt((squares / tokens - sum / tokens * (sum / tokens)) / tokens);
    return sum / tokens;
}

/* --- docs/method.md section 1: devices of a token; +- is 4 standard errors --- */

#define SPREAD_OUT                                                                             \
    MOE_SET(model, num_experts, 160), MOE_SET(router, top_k, 6), MOE_SET(cluster, devices, 8), \
        MOE_SET(data, tokens_per_device, 1250)
#define LIMITED_TO_3 MOE_SET(router, group_limit, max), MOE_SET(router, topk_group, 3)

static void verify_simulated(verification *v, const world *w, const char *name, double expected) {
    double error, found = mean_reach(w, &error);
    say(v, name, fabs(found - expected) <= 4 * error, "expected %.6f +- %.6f, found %.6f", expected,
        4 * error, found);
}

/* Compares two routings of the same tokens, without and with a group limit, and lets the self-check
 * of every run do the same; here no token is left out. */
static void verify_theorem(verification *v, const world *limited, const world *greedy) {
    int64_t differ = 0;
    int64_t eligible = 0;
    int64_t violations = 0;
    int64_t tokens = limited->batch.num_tokens;
    for (int64_t t = 0; t < tokens; t++) {
        int32_t free_reach = reach(greedy, t), most = limited->c.router.topk_group;
        differ += reach(limited, t) != (free_reach < most ? free_reach : most);
    }
    moe_group_theorem_check(&limited->router, logits_of(limited), &limited->routing, NULL, 1,
                            &eligible, &violations);
    say(v, "groups = min(M, greedy), 10^4 tokens", differ == 0, "expected 0 to differ, found %lld",
        (long long)differ);
    say(v, "the same by every run's self-check", violations == 0 && eligible > tokens / 2,
        "expected 0 of %lld, found %lld", (long long)eligible, (long long)violations);
}

static void verify_reach(verification *v) {
    const double unlimited = 4.458600, limit3 = 2.995002;
    world greedy, limited;
    make_world(&greedy, 0, 1, 1, MOE_SETTINGS(SPREAD_OUT));
    make_world(&limited, 0, 1, 1, MOE_SETTINGS(SPREAD_OUT, LIMITED_TO_3));
    compare(v, "E[X], N,D,K = 160,8,6, formula", unlimited,
            moe_imbalance_expected_reach(160, 8, 6, 8), 5e-7);
    compare(v, "E[X], N,D,K = 160,8,6, M = 3, formula", limit3,
            moe_imbalance_expected_reach(160, 8, 6, 3), 5e-7);
    verify_simulated(v, &greedy, "E[X] of 10^4 random tokens", unlimited);
    verify_simulated(v, &limited, "E[X], M = 3, of 10^4 tokens", limit3);
    verify_theorem(v, &limited, &greedy);
    free_world(&greedy);
    free_world(&limited);
}

/* The sum of a token's scores, and that of its normalised weights, is 1. */
static void verify_sums(verification *v) {
    world w;
    double scores = 0, weights = 0;
    make_world(&w, 0, 1, 3,
               MOE_SETTINGS(MOE_SET(model, num_experts, 64), MOE_SET(router, top_k, 6),
                            MOE_SET(router, norm_topk_prob, yes), MOE_SET(cluster, devices, 8),
                            MOE_SET(data, tokens_per_device, 125)));
    double z[64], s[64];
    for (int64_t t = 0; t < w.batch.num_tokens; t++) {
        double all = 0, chosen = 0;
        for (int32_t i = 0; i < 64; i++) {
            z[i] = (double)w.logits[t * 64 + i];
        }
        moe_scores_fill(&w.router, z, s, NULL);
        for (int32_t i = 0; i < 64; i++) {
            all += s[i];
        }
        for (int64_t i = w.routing.row_offset[t]; i < w.routing.row_offset[t + 1]; i++) {
            chosen += (double)w.routing.weight[i];
        }
        scores = fmax(scores, fabs(all - 1));
        weights = fmax(weights, fabs(chosen - 1));
    }
    compare(v, "sum of scores - 1, largest of 1000", 0, scores, 1e-14);
    compare(v, "sum of weights - 1, largest of 1000", 0, weights, sizeof(real) == 4 ? 1e-6 : 1e-14);
    free_world(&w);
}

/* --- docs/method.md section 2: losses --- */

/* With experts dealt in turn and all scores equal, every loss has its value at balance. */
static void verify_balance(verification *v) {
    world w;
    double loss[MOE_NUM_LOSSES], error;
    make_world(&w, 0, 1, 0,
               MOE_SETTINGS(MOE_SET(model, num_experts, 64), MOE_SET(router, top_k, 6),
                            MOE_SET(router, method, round_robin), MOE_SET(cluster, devices, 4),
                            MOE_SET(data, tokens_per_device, 256)));
    moe_balance_losses(&w.balance, &w.placement, &w.cell, w.cell.cell, loss);
    double devices = mean_reach(&w, &error);
    compare(v, "expert loss at balance", 1, loss[MOE_LOSS_EXPERT], 1e-12);
    compare(v, "device loss at balance", 1, loss[MOE_LOSS_DEVICE], 1e-12);
    compare(v, "communication loss at balance = mean(X)/M", devices / w.c.comm_limit,
            loss[MOE_LOSS_COMM], 1e-12);
    compare(v, "mixtral loss at balance = K", 6, loss[MOE_LOSS_MIXTRAL], 1e-12);
    compare(v, "importance loss at balance", 0, loss[MOE_LOSS_IMPORTANCE], 1e-12);
    compare(v, "load variation at balance", 0, loss[MOE_LOSS_LOAD], 1e-12);
    compare(v, "router entropy of equal scores = log N", log(64), loss[MOE_LOSS_ENTROPY], 1e-12);
    free_world(&w);
}

/* f'' that counts selections is K/M = 2 times f', to the last bit; f'' that counts tokens is not.
 */
static void verify_selections(verification *v) {
    world w;
    int64_t differ = 0, same = 0;
    double first[MOE_COEFFICIENTS * 160], third[MOE_COEFFICIENTS * 160];
    make_world(&w, 0, 1, 1,
               MOE_SETTINGS(SPREAD_OUT, LIMITED_TO_3, MOE_SET(balance, comm_count, selections),
                            MOE_SET(balance, alpha_device, 1)));
    moe_balance_coefficients(&w.balance, &w.placement, &w.cell, w.cell.cell, first);
    w.balance.alpha[MOE_LOSS_DEVICE] = 0;
    w.balance.alpha[MOE_LOSS_COMM] = 1;
    moe_balance_coefficients(&w.balance, &w.placement, &w.cell, w.cell.cell, third);
    for (int32_t d = 0; d < 8; d++) {
        differ += third[d * 20] != 2 * first[d * 20];
    }
    w.balance.comm_count = MOE_COUNT_TOKENS;
    moe_balance_coefficients(&w.balance, &w.placement, &w.cell, w.cell.cell, third);
    for (int32_t d = 0; d < 8; d++) {
        same += third[d * 20] == 2 * first[d * 20];
    }
    say(v, "f'' of selections = (K/M) f'", differ == 0,
        "expected 0 of 8 devices to differ, found %lld", (long long)differ);
    say(v, "f'' of tokens is not (K/M) f'", same == 0,
        "expected 0 of 8 devices to agree, found %lld", (long long)same);
    free_world(&w);
}

/* Fills a row of 2N doubles, f_i and P_i, for each device of this rank. */
static void fill_means(const world *w, const moe_scopes *s, double *row) {
    int32_t n = w->c.model.num_experts;
    for (int64_t j = 0; j < s->device.num_cells; j++) {
        for (int32_t i = 0; i < n; i++) {
            int64_t *cell = moe_stats_cell(&s->device, j);
            double tokens = (double)cell[MOE_STAT_TOKENS],
                   count = (double)moe_stats_counts(&s->device, cell)[i];
            row[j * 2 * n + i] = n * count / (w->c.router.top_k * tokens);
            row[j * 2 * n + n + i] = moe_exact_value01(moe_stats_score_hi(&s->device, cell)[i],
                                                       moe_stats_score_lo(&s->device, cell)[i]) /
                                     tokens;
        }
    }
}

/* The sum over experts of the covariance of f_i and P_i over D devices; row is [D][2N]. */
static double covariances(const double *row, int64_t devices, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double f = 0;
        double p = 0;
        double product = 0;
        for (int64_t d = 0; d < devices; d++) {
            f += row[d * 2 * n + i] / (double)devices;
            p += row[d * 2 * n + n + i] / (double)devices;
        }
        for (int64_t d = 0; d < devices; d++) {
            product += (row[d * 2 * n + i] - f) * (row[d * 2 * n + n + i] - p) / (double)devices;
        }
        sum += product;
    }
    return sum;
}

/* The mean over devices of a device's loss exceeds the loss of the global batch by the covariance
 * of f and P over the devices. Their number is the least multiple of the ranks from 8 on. */
static void verify_scopes(verification *v) {
    const moe_comm *comm = v->comm;
    int32_t devices = comm->size * ((8 + comm->size - 1) / comm->size);
    char experts_text[16], devices_text[16];
    snprintf(experts_text, sizeof experts_text, "%d", 4 * devices);
    snprintf(devices_text, sizeof devices_text, "%d", devices);
    const moe_setting settings[] = {{MOE_KEY(model, num_experts), experts_text},
                                    {MOE_KEY(cluster, devices), devices_text},
                                    MOE_SET(router, top_k, 6),
                                    MOE_SET(data, tokens_per_device, 64),
                                    {MOE_KEY_NONE, NULL}};
    world w;
    moe_scopes s = {0};
    make_world(&w, comm->rank, comm->size, 1, settings);
    moe_scopes_reduce(&s, comm, &w.balance, &w.placement, &w.batch, &w.segments, NULL);
    int64_t row = 2 * (int64_t)w.c.model.num_experts,
            *bytes = moe_alloc(comm->size, sizeof *bytes, "sizes");
    double *mine = moe_alloc(s.device.num_cells * row, sizeof *mine, "means"),
           *all = moe_alloc(devices * row, sizeof *all, "means");
    for (int q = 0; q < comm->size; q++) {
        bytes[q] = devices / comm->size * row * (int64_t)sizeof *mine;
    }
    fill_means(&w, &s, mine);
    moe_comm_allgatherv(comm, mine, all, bytes);
    compare(v, "device - global loss = covariance", covariances(all, devices, row / 2),
            s.loss[MOE_SCOPE_DEVICE][MOE_LOSS_EXPERT] - s.loss[MOE_SCOPE_GLOBAL][MOE_LOSS_EXPERT],
            1e-12);
    moe_free(bytes);
    moe_free(mine);
    moe_free(all);
    moe_scopes_free(&s);
    free_world(&w);
}

/* --- docs/method.md sections 4 and 8: rows, and one step of AdamW --- */

/* Rows of hidden 7168 with K = 8, fp8 out and bf16 back, in each protocol. */
static void verify_rows(verification *v) {
    static const struct {
        enum moe_row_protocol protocol;
        double out, back;
    } rows[] = {{MOE_ROW_BARE, 7392, 14336},
                {MOE_ROW_DEEPEP_LOW_LATENCY, 7408, 14336},
                {MOE_ROW_DEEPEP_NORMAL, 7472, 14384},
                {MOE_ROW_DEEPEP_V2, 7488, 14368}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const enum moe_row_protocol p = rows[i].protocol;
        const char *protocol = moe_config_enum_name(MOE_KEY(exchange, row_protocol), (int)p);
        char name[64];
        snprintf(name, sizeof name, "row of 7168, %s, bytes out", protocol);
        compare(v, name, rows[i].out,
                (double)moe_row_format_wire_bytes(p, MOE_PAYLOAD_FP8, 7168, 8, false), 0);
        snprintf(name, sizeof name, "row of 7168, %s, bytes back", protocol);
        compare(v, name, rows[i].back,
                (double)moe_row_format_wire_bytes(p, MOE_PAYLOAD_BF16, 7168, 8, true), 0);
    }
}

/* One row for each token and device: 8 of 256 experts on 16 devices. */
static void verify_rows_of_16(verification *v) {
    world w;
    make_world(&w, 0, 1, 1,
               MOE_SETTINGS(MOE_SET(model, num_experts, 256), MOE_SET(router, top_k, 8),
                            MOE_SET(cluster, devices, 16), MOE_SET(data, tokens_per_device, 625)));
    compare(v, "rows a token, N,D,K = 256,16,8", 6.5233,
            moe_imbalance_expected_reach(256, 16, 8, 16), 5e-5);
    verify_simulated(v, &w, "rows a token, 10^4 tokens",
                     moe_imbalance_expected_reach(256, 16, 8, 16));
    free_world(&w);
}

/* One row for each token and node, as the plan of mode two_level has them: 8 of 256 experts on 64
 * devices in 8 nodes. A node is missed with probability C(224,8) / C(256,8). */
static void verify_rows_to_nodes(verification *v) {
    enum { NODES = 8, TOKENS = 64 * 157 };
    world w;
    moe_plan plan = {0};
    make_world(&w, 0, 1, 1,
               MOE_SETTINGS(MOE_SET(model, num_experts, 256), MOE_SET(router, top_k, 8),
                            MOE_SET(cluster, devices, 64), MOE_SET(cluster, devices_per_node, 8),
                            MOE_SET(data, tokens_per_device, 157)));
    w.placement.devices_per_node = w.c.cluster.devices_per_node;
    moe_plan_build(&plan, MOE_EXCHANGE_TWO_LEVEL, &w.batch, &w.placement, 1, &w.routing);
    double sum = 0, squares = 0;
    for (int64_t t = 0; t < w.batch.num_tokens; t++) {
        double x = (double)(plan.token_row_offset[t + 1] - plan.token_row_offset[t]);
        sum += x;
        squares += x * x;
    }
    const double mean = sum / TOKENS, error = sqrt((squares / TOKENS - mean * mean) / TOKENS),
                 expected = moe_imbalance_expected_reach(256, NODES, 8, NODES);
    compare(v, "rows to nodes, N,nodes,K = 256,8,8", 5.294652, expected, 5e-7);
    say(v, "rows to nodes, 10^4 tokens", fabs(mean - expected) <= 4 * error,
        "expected %.6f +- %.6f, found %.6f", expected, 4 * error, mean);
    moe_plan_free(&plan);
    free_world(&w);
}

/* From p = 1 with g = 0.5, lr = 0.1 and decay wd = 0.01 the first step takes lr wd p + lr g / (|g|
 * + eps) off and leaves 1 - 0.001 - 0.1 (1 - 2e-8). */
static void verify_adamw(verification *v) {
    moe_config c;
    moe_status st = {0};
    moe_parameters all = {0};
    real value = 1;
    moe_config_defaults(&c);
    moe_value_override_all(
        &c, MOE_SETTINGS(MOE_SET(train, optimizer, adamw), MOE_SET(train, weight_decay, 0.01)),
        &st);
    MOE_ASSERT(st.code == MOE_OK);
    moe_parameters_init(&all, 1, 1);
    int i = moe_parameters_add(&all, "value", true, 1, &value);
    moe_optimizer_init(&all, &c);
    all.p[i].gradient[0] = (real)0.5;
    moe_optimizer_step(&all, &c, 0, 0.1, 0.5);
    compare(v, "AdamW, first step from 1 with gradient 0.5", 0.899000002, (double)value,
            sizeof(real) == 4 ? 2e-7 : 1e-10);
    moe_parameters_free(&all);
}

/* --- docs/method.md section 8: EPLB --- */

/* One layer of the example in EPLB's README: 12 experts, 16 slots, 4 groups, 2 nodes, 8 devices. */
typedef struct eplb_example {
    const char *slots, *balance; /* what is compared */
    double load[12];
    int32_t expert[16];
    double mean_over_max; /* of the devices' loads */
} eplb_example;

static const eplb_example eplb_examples[] = {
    {"EPLB README, layer 0, experts in slots",
     "EPLB README, layer 0, mean/max",
     {90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86},
     {5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1},
     0.8277},
    {"EPLB README, layer 1, experts in slots",
     "EPLB README, layer 1, mean/max",
     {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27},
     {7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1},
     0.8050},
};

static void verify_eplb_example(verification *v, const eplb_example *example) {
    const moe_balancer_problem problem = {.num_experts = 12,
                                          .devices = 8,
                                          .nodes = 2,
                                          .groups = 4,
                                          .slots_per_device = 2,
                                          .load = example->load};
    moe_balancer_answer answer = {0};
    double load[8], sum = 0;
    int differ = 0;
    moe_balancer_place(moe_balancer_find("eplb"), &problem, &answer);
    for (int32_t s = 0; s < answer.slots; s++) {
        differ += answer.expert[s] != example->expert[s];
        sum += answer.served[s];
    }
    say(v, example->slots, differ == 0, "expected 0 of 16 to differ, found %d", differ);
    compare(v, example->balance, example->mean_over_max,
            sum / 8 / moe_balancer_device_load(&answer, 8, load), 5e-5);
    moe_balancer_answer_free(&answer);
}

/* Loads for which EPLB's allotment is hard to pack: the busiest device of each. */
static void verify_packing(verification *v) {
    static const double load[] = {600, 560, 120, 120, 20, 10, 10, 10};
    static const struct {
        const char *name, *text;
        double busiest;
    } rows[] = {{"eplb", "8 uneven experts in 16 slots, busiest device, eplb", 232},
                {"flashlb", "the same, flashlb", 590.0 / 3},
                {"optimal", "the same, the best there is", 590.0 / 3}};
    const moe_balancer_problem problem = {.num_experts = 8,
                                          .devices = 8,
                                          .nodes = 1,
                                          .groups = 1,
                                          .slots_per_device = 2,
                                          .load = load};
    moe_balancer_answer answer = {0};
    double each[8];
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        moe_balancer_place(moe_balancer_find(rows[i].name), &problem, &answer);
        compare(v, rows[i].text, rows[i].busiest, moe_balancer_device_load(&answer, 8, each), 1e-9);
    }
    moe_balancer_answer_free(&answer);
}

static void verify_eplb(verification *v) {
    verify_packing(v);
    for (size_t i = 0; i < sizeof eplb_examples / sizeof eplb_examples[0]; i++) {
        verify_eplb_example(v, &eplb_examples[i]);
    }
}

int moe_verify(const moe_comm *comm, moe_status *st) {
    verification v = {.comm = comm};
    moe_topology topology;
    moe_topology_init(comm, 0, &topology);
    verify_reach(&v);
    verify_sums(&v);
    verify_balance(&v);
    verify_selections(&v);
    verify_scopes(&v);
    verify_rows(&v);
    verify_rows_of_16(&v);
    verify_rows_to_nodes(&v);
    verify_adamw(&v);
    verify_eplb(&v);
    if (v.failed) {
        moe_fail(st, MOE_RUN_FAILED, "--verify: %d of %d figures are not what they should be",
                 v.failed, v.made);
    }
    return moe_comm_agree(comm, st);
}
