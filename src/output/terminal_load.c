/* report_load.c: how evenly experts and devices are loaded: metrics with their formulas, a bar per
 * device, and the device matrix. */
#include <stddef.h>

#include "base/alloc.h"
#include "measure/imbalance.h"
#include "output/chart.h"
#include "output/terminal_internal.h"

/* A vector of every layer record, by its place in the struct. */
typedef struct load_kind {
    const char *name;
    size_t member;
    bool by_expert;
} load_kind;
static const load_kind kinds[] = {
    {"experts, selections", offsetof(moe_layer_metrics, counts_per_expert), true},
    {"devices, selections", offsetof(moe_layer_metrics, counts_per_device), false},
    {"devices, rows received", offsetof(moe_layer_metrics, received_rows), false},
    {"devices, rows sent", offsetof(moe_layer_metrics, sent_rows), false},
};

/* On a narrow terminal without mean/max, entropy, MaxVio: the first and the last follow from
 * max/mean. */
static const moe_table metrics_table = {80, {{41, 9}, {66, 8}, {33, 8}}};

static const int64_t *vector_of(const moe_layer_metrics *l, size_t member) {
    return *(int64_t *const *)((const char *)l + member);
}

static void print_metrics(const moe_screen *s, const moe_step_metrics *r, const load_kind *kind) {
    double sum[6] = {0}, idle = 0;
    for (int32_t l = 0; l < r->num_layers; l++) {
        moe_imbalance m = moe_imbalance_of(vector_of(&r->layer[l], kind->member),
                                           kind->by_expert ? r->num_experts : r->devices);
        const double value[6] = {m.max_over_mean, m.maxvio, m.balancedness, m.cv,
                                 m.gini,          m.entropy};
        for (int i = 0; i < 6; i++) {
            sum[i] += value[i] / r->num_layers;
        }
        idle += (double)m.idle / r->num_layers;
    }
    moe_formatted text[6];
    for (int i = 0; i < 6; i++) {
        text[i] = moe_format_number(sum[i], 3);
    }
    moe_screen_row(s, &metrics_table, "  %-22s %8s %7s %8s %7s %7s %7s %5s\n", kind->name,
                   text[0].s, text[1].s, text[2].s, text[3].s, text[4].s, text[5].s,
                   moe_format_number(idle, r->num_layers > 1).s);
}

static void print_formulas(const moe_screen *s) {
    char text[1024] = "";
    size_t length = 0;
    for (const moe_imbalance_formula *f = moe_imbalance_formulas; f->name; f++) {
        length += (size_t)snprintf(text + length, sizeof text - length, "%s%s: %s",
                                   f == moe_imbalance_formulas ? "" : "; ", f->name, f->formula);
    }
    fputs(moe_screen_paint(s, MOE_DIM), s->out);
    moe_screen_wrapped(s, 2, "", "%s", text);
    fputs(moe_screen_paint(s, MOE_PLAIN), s->out);
}

/* Sum over layers of a vector of n. Owner: the caller. */
static int64_t *sum_layers(const moe_step_metrics *r, size_t member, int64_t n) {
    int64_t *sum = moe_alloc_zero(n, sizeof *sum, "a sum over layers");
    for (int32_t l = 0; l < r->num_layers; l++) {
        const int64_t *x = vector_of(&r->layer[l], member);
        for (int64_t i = 0; i < n; i++) {
            sum[i] += x[i];
        }
    }
    return sum;
}

static moe_formatted block_words(const moe_blocks *b) {
    moe_formatted text = {""};
    if (b->size > 1) {
        snprintf(text.s, sizeof text.s, ", by %s of %d devices", b->by_node ? "node" : "block",
                 b->size);
    }
    return text;
}

void moe_terminal_load(const moe_screen *s, const moe_config *c, const moe_step_metrics *r) {
    moe_blocks blocks = moe_chart_blocks_of(r->devices, c->cluster.devices_per_node);
    int64_t d = r->devices;
    int64_t *load = sum_layers(r, offsetof(moe_layer_metrics, counts_per_device), d);
    int64_t *rows = sum_layers(r, offsetof(moe_layer_metrics, received_rows), d);
    int64_t *matrix = sum_layers(r, offsetof(moe_layer_metrics, matrix), d * d);

    moe_screen_heading(s, "Balance%s", moe_terminal_layers(r, "mean").s);
    moe_screen_row(s, &metrics_table, "  %-22s %8s %7s %8s %7s %7s %7s %5s\n", "", "max/mean",
                   "MaxVio", "mean/max", "CV", "Gini", "entropy", "idle");
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        print_metrics(s, r, &kinds[i]);
    }
    print_formulas(s);

    moe_screen_heading(s, "Load per device: selections%s%s", block_words(&blocks).s,
                       moe_terminal_layers(r, "sum").s);
    moe_chart_bars(s, &blocks, load, rows);
    moe_screen_heading(s, "Dispatch rows from device to device%s%s", block_words(&blocks).s,
                       moe_terminal_layers(r, "sum").s);
    moe_chart_matrix(s, &blocks, matrix);
    moe_free(load);
    moe_free(rows);
    moe_free(matrix);
}
