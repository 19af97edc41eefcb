/* terminal_load.c: how evenly experts and devices are loaded: metrics with their formulas, a bar
 * per device, and the device matrix. */
#include <stddef.h>
#include <string.h>

#include "base/alloc.h"
#include "output/chart.h"
#include "output/terminal_internal.h"

static const struct {
    enum moe_load load;
    const char *title;
} loads[] = {
    {MOE_LOAD_OF_EXPERT, "experts, selections"},
    {MOE_LOAD_OF_DEVICE, "devices, selections"},
    {MOE_LOAD_OF_RECEIVED, "devices, rows received"},
    {MOE_LOAD_OF_SENT, "devices, rows sent"},
};

/* A narrow terminal does without mean/max, entropy and MaxVio: the first and the last of them
 * follow from max/mean. */
static const moe_table metrics_table = {80, {{41, 9}, {66, 8}, {33, 8}}};

static void print_metrics(const moe_screen *s,
                          const char *title,
                          const moe_imbalance *m,
                          bool is_mean) {
    moe_screen_row(s, &metrics_table, "  %-22s %8s %7s %8s %7s %7s %7s %5s\n", title,
                   moe_format_number(m->max_over_mean, 3).s, moe_format_number(m->maxvio, 3).s,
                   moe_format_number(m->balancedness, 3).s, moe_format_number(m->cv, 3).s,
                   moe_format_number(m->gini, 3).s, moe_format_number(m->entropy, 3).s,
                   moe_format_number(m->idle, is_mean).s);
}

/* Neighbours with the same formula stand together: "p50, p90, p99: percentiles". */
static void print_formulas(const moe_screen *s) {
    char text[1024] = "";
    size_t length = 0;
    for (const moe_imbalance_formula *f = moe_imbalance_formulas; f->name; f++) {
        bool goes_on = f[1].name && !strcmp(f->formula, f[1].formula);
        length += (size_t)snprintf(text + length, sizeof text - length, "%s%s%s%s", f->name,
                                   goes_on ? ", " : ": ", goes_on ? "" : f->formula,
                                   goes_on || !f[1].name ? "" : "; ");
    }
    fputs(moe_screen_paint(s, MOE_DIM), s->out);
    moe_screen_wrapped(s, 2, "", "%s", text);
    fputs(moe_screen_paint(s, MOE_PLAIN), s->out);
}

/* An array of n counts, summed over the layers. Owner: the caller, moe_free. */
static int64_t *sum_layers(const moe_step_metrics *m, size_t member, int64_t n) {
    int64_t *sum = moe_alloc(n, sizeof *sum, "a sum over layers");
    moe_figures_sum_layers(m, member, n, sum);
    return sum;
}

static moe_formatted block_words(const moe_chart_blocks *b) {
    moe_formatted text = {""};
    if (b->size > 1) {
        snprintf(text.s, sizeof text.s, ", by %s of %d devices", b->by_node ? "node" : "block",
                 b->size);
    }
    return text;
}

static void print_balance(const moe_screen *s,
                          const moe_step_metrics *m,
                          const moe_imbalance balance[MOE_NUM_LOADS]) {
    moe_screen_heading(s, "Balance%s", moe_terminal_layers(m, "mean").s);
    moe_screen_row(s, &metrics_table, "  %-22s %8s %7s %8s %7s %7s %7s %5s\n", "", "max/mean",
                   "MaxVio", "mean/max", "CV", "Gini", "entropy", "idle");
    for (size_t i = 0; i < sizeof loads / sizeof loads[0]; i++) {
        print_metrics(s, loads[i].title, &balance[loads[i].load], m->num_layers > 1);
    }
    print_formulas(s);
}

static void print_matrix(const moe_screen *s,
                         const moe_step_metrics *m,
                         const moe_chart_blocks *blocks) {
    moe_sparse matrix = {0};
    for (int32_t l = 0; l < m->num_layers; l++) {
        moe_sparse_add(&matrix, &m->layer[l].matrix);
    }
    moe_screen_heading(s, "Dispatch rows from device to device%s%s", block_words(blocks).s,
                       moe_terminal_layers(m, "sum").s);
    moe_chart_matrix(s, blocks, &matrix);
    moe_sparse_free(&matrix);
}

void moe_terminal_load(const moe_screen *s, const moe_config *c, const moe_step_metrics *m) {
    moe_imbalance balance[MOE_NUM_LOADS];
    moe_figures_balance(m, c->cluster.devices_per_node, balance);
    moe_chart_blocks blocks = moe_chart_blocks_of(m->devices, c->cluster.devices_per_node);
    int64_t d = m->devices;
    int64_t *load = sum_layers(m, offsetof(moe_layer_metrics, counts_per_device), d);
    int64_t *rows = sum_layers(m, offsetof(moe_layer_metrics, received_rows), d);

    if (s->full) {
        print_balance(s, m, balance);
    }
    moe_screen_heading(s, "Load per device: selections%s%s", block_words(&blocks).s,
                       moe_terminal_layers(m, "sum").s);
    moe_chart_bars(s, &blocks, load, rows);
    if (s->full) {
        print_matrix(s, m, &blocks);
    }
    moe_free(load);
    moe_free(rows);
}
