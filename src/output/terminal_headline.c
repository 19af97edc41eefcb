/* terminal_headline.c: the first sentences of the ending: the busiest device, and what one row per
 * token and device saves. */
#include <math.h>
#include <stddef.h>

#include "base/alloc.h"
#include "output/terminal_internal.h"

typedef struct busiest { /* of devices */
    double over_mean;    /* its load over the mean one; 0 without any load */
    int32_t device, layer;
} busiest;

static busiest busiest_of(const int64_t *load, int32_t devices, int32_t layer) {
    busiest b = {.layer = layer};
    int64_t total = 0;
    for (int32_t d = 0; d < devices; d++) {
        total += load[d];
        b.device = load[d] > load[b.device] ? d : b.device;
    }
    if (total > 0) {
        b.over_mean = (double)load[b.device] * devices / (double)total;
    }
    return b;
}

/* What one row per token and device saves of a row for each selection, and what it would save
 * without the group limit. */
static void write_saving(char text[256],
                         const moe_config *c,
                         const moe_step_metrics *m,
                         const moe_figures *f) {
    const moe_volume *v = &f->volume[MOE_DISPATCH];
    const bool sent = c->exchange.mode != MOE_EXCHANGE_SELECTION;
    const double tokens = (double)m->num_tokens * m->num_layers,
                 bytes = sent ? (double)v->logical_bytes : f->token_rows * f->row_bytes,
                 unlimited = f->mean_devices_unlimited * tokens / (double)f->selections;
    char without[64] = "";
    if (v->selection_bytes <= 0 || (!sent && f->dropped > 0)) {
        return;
    }
    if (c->router.group_limit != MOE_GROUP_NONE && isfinite(unlimited) && f->dropped == 0) {
        snprintf(without, sizeof without, " (%.1f\t%% without group limit)", 100 * (1 - unlimited));
    }
    snprintf(text, 256,
             "One row per token and device, instead of one per selection, %s %.1f\t%% of the "
             "bytes%s.",
             sent ? "saves" : "would save", 100 * (1 - bytes / (double)v->selection_bytes),
             without);
}

/* "Device 6 has 1.26 times the mean load over 4 layers; the worst layer is 3, where device 0 has
 * 2.08 times." */
static void write_load(char text[256], const moe_step_metrics *m) {
    int64_t *sum = moe_alloc(m->devices, sizeof *sum, "the load of the devices");
    busiest worst = {0};
    moe_figures_sum_layers(m, offsetof(moe_layer_metrics, counts_per_device), m->devices, sum);
    const busiest all = busiest_of(sum, m->devices, 0);
    for (int32_t l = 0; l < m->num_layers; l++) {
        const busiest one = busiest_of(m->layer[l].counts_per_device, m->devices, l);
        worst = one.over_mean > worst.over_mean ? one : worst;
    }
    if (m->num_layers > 1) {
        snprintf(text, 256,
                 "Device\t%d has %.2f times the mean load over %d\tlayers; the worst layer is "
                 "%d, where device\t%d has %.2f times.",
                 all.device, all.over_mean, m->num_layers, worst.layer, worst.device,
                 worst.over_mean);
    } else {
        snprintf(text, 256, "Device\t%d has %.2f times the mean load.", all.device, all.over_mean);
    }
    moe_free(sum);
}

void moe_terminal_headline(const moe_screen *s,
                           const moe_config *c,
                           const moe_step_metrics *m,
                           const moe_figures *f) {
    char load[256] = "", saving[256] = "";
    if (m->devices == 1 || f->selections == 0) {
        snprintf(load, sizeof load, "%s.",
                 m->devices == 1 ? "All experts are on one device, nothing is sent"
                                 : "No token has an expert");
    } else {
        write_load(load, m);
        write_saving(saving, c, m, f);
    }
    fprintf(s->out, "\n%s", moe_screen_paint(s, MOE_BOLD));
    moe_screen_wrapped(s, 0, "", "%s %s", load, saving);
    fputs(moe_screen_paint(s, MOE_PLAIN), s->out);
}
