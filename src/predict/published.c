/* published.c: the published figures, and the formulas put to the same situations. */
#include "predict/published.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/rng.h"
#include "config/config.h"
#include "exchange/row_format.h"
#include "measure/imbalance.h"
#include "predict/cluster_files.h"
#include "predict/cost.h"

enum { HIDDEN = 7168, WIDTH = 2048, TOP_K = 8, NUM_EXPERTS = 256, IN_NODE = 8 };

const moe_published_head moe_published_heads[MOE_NUM_PUBLISHED] = {
    {"H800, DeepEP low latency, 128 tokens a GPU", "us", 0.06},
    {"H800, DeepEP normal mode, 4096 tokens a GPU", "GB/s", 0.06},
    {"H200, DeepEP low latency", "us", 0.10},
    {"H200, DeepEP normal mode, 24 SMs", "us", 0.15},
    {"H200, routed experts, uniform loads", "ms", 0.10},
    {"H200, routed experts, power law over uniform loads", "x", 0.15},
};

double moe_published_error(double measured, double predicted) {
    return predicted / measured - 1;
}

/* --- clusters --- */

typedef enum machine { H800, H200 } machine;

/* The machine's cluster file for a number of devices. */
static moe_cluster cluster_of(machine m, int32_t devices) {
    const char *text = m == H800 ? moe_cluster_file_h800 : moe_cluster_file_h200;
    moe_config c;
    moe_status st = {0};
    moe_config_defaults(&c);
    moe_config_parse(&c, text, (int64_t)strlen(text), m == H800 ? "h800.ini" : "h200.ini", &st);
    MOE_ASSERT(st.code == MOE_OK);
    c.cluster.devices = devices;
    return moe_cluster_of(&c);
}

static double row_bytes(enum moe_row_protocol protocol, bool back) {
    return (double)moe_row_format_wire_bytes(protocol, back ? MOE_PAYLOAD_BF16 : MOE_PAYLOAD_FP8,
                                             HIDDEN, TOP_K, back);
}

/* --- exchanges --- */

static double low_latency_seconds(machine m, int32_t devices, double rows, bool back) {
    const moe_cluster cluster = cluster_of(m, devices);
    const double nodes = devices / (double)IN_NODE;
    const double inside = rows * (IN_NODE - 1) / (IN_NODE * nodes),
                 across = rows * (nodes - 1) / nodes;
    const moe_cost_traffic t = {inside, inside, across, across};
    return moe_cost_exchange(&cluster, &t, row_bytes(MOE_ROW_DEEPEP_LOW_LATENCY, back), 1);
}

/* reach: the most nodes of a token. */
static double rows_to_nodes(int32_t devices, double tokens, int32_t reach) {
    const int32_t nodes = devices / IN_NODE;
    return tokens * moe_imbalance_expected_reach(NUM_EXPERTS, nodes, TOP_K, reach);
}

static double normal_seconds(machine m, int32_t devices, double tokens, int32_t reach, bool back) {
    const moe_cluster cluster = cluster_of(m, devices);
    const double nodes = devices / (double)IN_NODE;
    const double across = rows_to_nodes(devices, tokens, reach) * (nodes - 1) / nodes,
                 forwarded = tokens *
                             moe_imbalance_expected_reach(NUM_EXPERTS, devices, TOP_K, devices) *
                             (IN_NODE - 1) / IN_NODE;
    const moe_cost_traffic t = {forwarded, forwarded, across, across};
    return moe_cost_exchange(&cluster, &t, row_bytes(MOE_ROW_DEEPEP_NORMAL, back),
                             nodes > 1 ? 2 : 1);
}

/* --- experts --- */

static const moe_cost_expert expert = {HIDDEN, WIDTH, 3, 1, 2};

static double experts_seconds(const moe_cluster *k, double tokens, const double *rows, int32_t n) {
    double products = 0, selections = 0;
    for (int32_t i = 0; i < n; i++) {
        products += moe_cost_product(k, rows[i], 3.0 * HIDDEN * WIDTH, 1);
        selections += rows[i];
    }
    return moe_cost_experts(k, products, moe_cost_expert_pass(&expert, tokens, selections));
}

static double uniform_seconds(const moe_cluster *k, double tokens, int32_t n) {
    double rows[NUM_EXPERTS];
    for (int32_t i = 0; i < n; i++) {
        rows[i] = TOP_K * tokens / NUM_EXPERTS;
    }
    return experts_seconds(k, tokens, rows, n);
}

/* Popularities x with density x^-alpha between 1 and `most`, by inverting their distribution. */
static void draw_popularity(double alpha, double most, int32_t draw, double x[NUM_EXPERTS]) {
    const moe_rng rng = {(uint64_t)draw, MOE_RNG_TEST};
    const double power = 1 - alpha;
    for (int32_t i = 0; i < NUM_EXPERTS; i++) {
        const double u = moe_rng_uniform(rng, (uint64_t)i, 0, 0);
        x[i] = pow((pow(most, power) - 1) * u + 1, 1 / power);
    }
}

/* Scales x to 8 T selections, at most T for each expert: what an expert cannot take goes to the
 * others in proportion. */
static void make_quotas(double tokens, double x[NUM_EXPERTS]) {
    bool full[NUM_EXPERTS] = {false};
    double left = TOP_K * tokens;
    for (bool again = true; again;) {
        double sum = 0;
        again = false;
        for (int32_t i = 0; i < NUM_EXPERTS; i++) {
            sum += full[i] ? 0 : x[i];
        }
        const double scale = left / sum;
        for (int32_t i = 0; i < NUM_EXPERTS; i++) {
            if (!full[i] && x[i] * scale > tokens) {
                full[i] = again = true;
                x[i] = tokens;
                left -= tokens;
            }
        }
        for (int32_t i = 0; i < NUM_EXPERTS && !again; i++) {
            x[i] *= full[i] ? 1 : scale;
        }
    }
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The busiest device of a power law: the median over draws. */
static double power_law_seconds(const moe_cluster *k, double tokens, int32_t n, double alpha) {
    enum { DRAWS = 15 };
    double seconds[DRAWS] = {0};
    for (int32_t draw = 0; draw < DRAWS; draw++) {
        double x[NUM_EXPERTS], most = 0;
        int32_t busiest = 0;
        draw_popularity(alpha, 0.8 * tokens, draw, x);
        make_quotas(tokens, x);
        for (int32_t first = 0; first < NUM_EXPERTS; first += n) {
            double rows = 0;
            for (int32_t i = 0; i < n; i++) {
                rows += x[first + i];
            }
            if (rows > most) {
                most = rows;
                busiest = first;
            }
        }
        seconds[draw] = experts_seconds(k, tokens, x + busiest, n);
    }
    qsort(seconds, DRAWS, sizeof *seconds, ascending);
    return seconds[DRAWS / 2];
}

/* --- the tables --- */

enum { MOST_CELLS = 1024 };
typedef struct cells {
    moe_published_cell *cell; /* [MOST_CELLS] */
    int32_t count;
} cells;

static moe_published_cell *add(cells *all,
                               enum moe_published_table table,
                               int32_t devices,
                               int64_t tokens,
                               const char *what,
                               double measured,
                               double predicted) {
    MOE_ASSERT(all->count < MOST_CELLS);
    moe_published_cell *c = &all->cell[all->count++];
    *c = (moe_published_cell){.table = table,
                              .devices = devices,
                              .tokens = tokens,
                              .measured = measured,
                              .predicted = predicted,
                              .other = NAN};
    snprintf(c->what, sizeof c->what, "%s", what);
    return c;
}

static const char *const one_node = "one node: NVLink alone";

/* DeepEP's README. Its test masks 10 of 1024 selections. */
static void compare_h800(cells *all) {
    static const double us[][2] = {{77, 114},  {118, 195}, {155, 273},
                                   {173, 314}, {192, 369}, {194, 360}};
    static const double gbps[][2] = {{153, 158}, {43, 43}, {58, 57}, {51, 50}};
    for (int i = 0; i < 6; i++) {
        for (int back = 0; back < 2; back++) {
            const int32_t devices = IN_NODE << i;
            moe_published_cell *c = add(all, MOE_PUBLISHED_H800_LOW_LATENCY, devices, 128,
                                        back ? "combine" : "dispatch", us[i][back],
                                        1e6 * low_latency_seconds(H800, devices, 1014, back));
            c->other = 1e6 * low_latency_seconds(H200, devices, 1014, back);
            c->outside = i == 0 ? one_node : NULL;
        }
    }
    for (int i = 0; i < 4; i++) {
        for (int back = 0; back < 2; back++) {
            const int32_t devices = IN_NODE << i;
            const double rows =
                i == 0 ? 4096 * moe_imbalance_expected_reach(NUM_EXPERTS, devices, TOP_K, devices)
                       : rows_to_nodes(devices, 4096, 4);
            const double bytes = rows * row_bytes(MOE_ROW_DEEPEP_NORMAL, back);
            moe_published_cell *c =
                add(all, MOE_PUBLISHED_H800_NORMAL, devices, 4096, back ? "combine" : "dispatch",
                    gbps[i][back], bytes / normal_seconds(H800, devices, 4096, 4, back) / 1e9);
            c->outside = i == 0   ? one_node
                         : i == 1 ? "two nodes: forwarding inside the node binds, and rows of both "
                                    "kinds share the SMs"
                                  : NULL;
        }
    }
}

static void compare_low_latency(cells *all) {
    static const struct {
        int32_t nodes, tokens, experts;
        double us[2];
    } rows[] = {
#define LOW_LATENCY(nodes, tokens, experts, out, back) {nodes, tokens, experts, {out, back}},
#include "predict/published_low_latency.def"
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        for (int back = 0; back < 2; back++) {
            char what[24];
            const int32_t devices = rows[i].nodes * IN_NODE;
            const double selections = (double)TOP_K * rows[i].tokens;
            snprintf(what, sizeof what, "%s, N %d", back ? "combine" : "dispatch", rows[i].experts);
            moe_published_cell *c =
                add(all, MOE_PUBLISHED_LOW_LATENCY, devices, rows[i].tokens, what, rows[i].us[back],
                    1e6 * low_latency_seconds(H200, devices, selections, back));
            c->other = 1e6 * low_latency_seconds(H800, devices, selections, back);
            c->outside = rows[i].nodes == 1    ? one_node
                         : rows[i].tokens < 16 ? "fewer than 16 tokens: not all destinations"
                                               : NULL;
        }
    }
}

static void compare_normal(cells *all) {
    static const struct {
        int32_t nodes, tokens;
        double us[2];
    } rows[] = {
#define NORMAL(nodes, tokens, out, back) {nodes, tokens, {out, back}},
#include "predict/published_normal.def"
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        for (int back = 0; back < 2; back++) {
            const int32_t nodes = rows[i].nodes, devices = nodes * IN_NODE;
            moe_published_cell *c = add(
                all, MOE_PUBLISHED_NORMAL, devices, rows[i].tokens, back ? "combine" : "dispatch",
                rows[i].us[back], 1e6 * normal_seconds(H200, devices, rows[i].tokens, nodes, back));
            c->outside = nodes == 8   ? "EP 64 falls to 17 to 20 GB/s, which no byte count explains"
                         : nodes == 2 ? "two nodes: 24 SMs copy at 9 to 12 GB/s each, which binds"
                         : rows[i].tokens < 512
                             ? "fewer than 512 tokens: kernels and barriers alone"
                             : NULL;
        }
    }
}

static void compare_experts(cells *all) {
    static const double alpha[] = {0.6, 0.8, 1.01, 1.02, 1.2};
    static const struct {
        int32_t devices, tokens;
        double ms[6];
    } rows[] = {
#define EXPERTS(devices, tokens, ...) {devices, tokens, {__VA_ARGS__}},
#include "predict/published_experts.def"
#undef EXPERTS
    };
    const moe_cluster cluster = cluster_of(H200, IN_NODE);
    const size_t count = sizeof rows / sizeof rows[0];
    for (size_t i = 0; i < count; i++) {
        const int32_t n = NUM_EXPERTS / rows[i].devices;
        moe_published_cell *c =
            add(all, MOE_PUBLISHED_EXPERTS, rows[i].devices, rows[i].tokens, "uniform",
                rows[i].ms[0], 1e3 * uniform_seconds(&cluster, rows[i].tokens, n));
        c->outside = rows[i].devices == 8 && rows[i].tokens <= 4096
                         ? "less time than reading the weights of 32 experts"
                         : NULL;
    }
    for (size_t i = 0; i < count; i++) {
        const int32_t n = NUM_EXPERTS / rows[i].devices;
        const double even = uniform_seconds(&cluster, rows[i].tokens, n);
        for (int a = 0; a < 5; a++) {
            char what[24];
            snprintf(what, sizeof what, "power law %.4g", alpha[a]);
            const double skewed = power_law_seconds(&cluster, rows[i].tokens, n, alpha[a]);
            moe_published_cell *c =
                add(all, MOE_PUBLISHED_IMBALANCE, rows[i].devices, rows[i].tokens, what,
                    rows[i].ms[1 + a] / rows[i].ms[0], skewed / even);
            c->outside = rows[i].devices == 32 ? NULL
                                               : "the uniform loads of 8 and 128 devices are not "
                                                 "those of the formula";
        }
    }
}

int32_t moe_published_compare(moe_published_cell **out) {
    cells all = {.cell = moe_alloc(MOST_CELLS, sizeof *all.cell, "published figures")};
    compare_h800(&all);
    compare_low_latency(&all);
    compare_normal(&all);
    compare_experts(&all);
    *out = all.cell;
    return all.count;
}
