/* terminal_volume.c: what was sent, beside what it would have been without deduplication and
 * without the device limit. */
#include <math.h>

#include "exchange/payload.h"
#include "measure/imbalance.h"
#include "output/terminal_internal.h"

/* A narrow terminal does without the column beside the rows, then without the last one. */
static const moe_table volume_table = {79, {{44, 8}, {63, 11}}};

static int32_t nodes_of(const moe_config *c) {
    return c->cluster.devices / c->cluster.devices_per_node;
}

/* remote_bytes < 0 stands for "not known". */
static void print_row(const moe_screen *s,
                      const char *what,
                      double rows,
                      double tokens,
                      double bytes,
                      int64_t remote_bytes,
                      const char *mark) {
    moe_screen_row(
        s, &volume_table, "  %-30s %11s %7s %10s %10s%s\n", what, moe_format_count(llround(rows)).s,
        moe_format_number(tokens > 0 ? rows / tokens : 0, 3).s, moe_format_bytes(llround(bytes)).s,
        remote_bytes < 0 ? "-" : moe_format_bytes(remote_bytes).s, mark);
}

static void print_direction(const moe_screen *s,
                            enum moe_direction direction,
                            const moe_volume *v,
                            double tokens) {
    char name[48];
    snprintf(name, sizeof name, "%s, sent", moe_direction_titles[direction]);
    print_row(s, name, (double)v->rows, tokens, (double)v->logical_bytes, v->remote_bytes, "");
}

static void print_backward_metadata(const moe_screen *s,
                                    const moe_step_metrics *m,
                                    const moe_figures *f) {
    moe_screen_wrapped(
        s, 2, "",
        "backward: dispatch %s, combine %s; allreduce of the replicated parameters' gradients %s",
        moe_format_glued(moe_format_bytes(f->volume[MOE_DISPATCH_BACKWARD].metadata_bytes)).s,
        moe_format_glued(moe_format_bytes(f->volume[MOE_COMBINE_BACKWARD].metadata_bytes)).s,
        moe_format_glued(moe_format_bytes(m->gradient_allreduce_bytes)).s);
}

static int64_t rows_of(const moe_traffic by_level[MOE_NUM_LEVELS]) {
    int64_t rows = 0;
    for (int i = 0; i < MOE_NUM_LEVELS; i++) {
        rows += by_level[i].rows;
    }
    return rows;
}
static int64_t bytes_of(const moe_traffic by_level[MOE_NUM_LEVELS]) {
    int64_t bytes = 0;
    for (int i = 0; i < MOE_NUM_LEVELS; i++) {
        bytes += by_level[i].bytes;
    }
    return bytes;
}
static int64_t others_of(const moe_traffic by_level[MOE_NUM_LEVELS]) {
    return bytes_of(by_level) - by_level[MOE_LEVEL_DEVICE].bytes;
}

static void print_metadata(const moe_screen *s,
                           const moe_config *c,
                           const moe_step_metrics *m,
                           const moe_figures *f) {
    const moe_volume *d = &f->volume[MOE_DISPATCH];
    moe_screen_wrapped(s, 2, "",
                       "metadata: dispatch %s, combine %s; allreduce of counts and scores %s",
                       moe_format_glued(moe_format_bytes(d->metadata_bytes)).s,
                       moe_format_glued(moe_format_bytes(f->volume[MOE_COMBINE].metadata_bytes)).s,
                       moe_format_glued(moe_format_bytes(f->allreduce_bytes)).s);
    if (c->run.mode == MOE_MODE_TRAIN) {
        print_backward_metadata(s, m, f);
    }
}

/* What each direction sent; below it what the dispatch would have sent in the other mode and
 * without the limit. */
static void print_table(const moe_screen *s,
                        const moe_config *c,
                        const moe_step_metrics *m,
                        const moe_figures *f) {
    const moe_volume *d = &f->volume[MOE_DISPATCH];
    double tokens = (double)m->num_tokens * m->num_layers;
    bool selection = c->exchange.mode == MOE_EXCHANGE_SELECTION,
         two_level = c->exchange.mode == MOE_EXCHANGE_TWO_LEVEL,
         train = c->run.mode == MOE_MODE_TRAIN;
    moe_screen_row(s, &volume_table, "  %-30s %11s %7s %10s %10s\n", "", "rows", "a token",
                   "payload", "to others");
    for (int i = 0; i < (train ? MOE_NUM_DIRECTIONS : MOE_DISPATCH_BACKWARD); i++) {
        print_direction(s, (enum moe_direction)i, &f->volume[i], tokens);
    }
    fprintf(s->out, "  dispatch would have been\n");
    print_row(s, "  one row per selection", (double)f->selections - (double)f->dropped, tokens,
              (double)d->selection_bytes, d->selection_remote_bytes, selection ? " sent" : "");
    if (two_level) {
        print_row(s, "  one row per token and device", (double)rows_of(d->token), tokens,
                  (double)bytes_of(d->token), others_of(d->token), "");
        print_row(s, "  token and node, then device", (double)d->rows, tokens,
                  (double)d->logical_bytes, d->remote_bytes, " sent");
    } else if (!selection) {
        print_row(s, "  one row per token and device", (double)d->rows, tokens,
                  (double)d->logical_bytes, d->remote_bytes, " sent");
    }
    if (selection || f->dropped > 0) {
        print_row(s,
                  f->dropped == 0          ? "  one row per token and device"
                  : selection || two_level ? "  token and device, undropped"
                                           : "  the same without dropping",
                  f->token_rows, tokens, f->token_rows * f->row_bytes, -1, "");
    }
    if (isfinite(f->mean_devices_unlimited)) {
        print_row(s, two_level ? "  token and device, unlimited" : "  the same without group limit",
                  f->mean_devices_unlimited * tokens, tokens,
                  f->mean_devices_unlimited * tokens * f->row_bytes, -1, "");
    }
    if (nodes_of(c) > 1) {
        print_row(s,
                  f->dropped == 0 ? "  one row per token and node" : "  token and node, undropped",
                  f->mean_nodes * tokens, tokens, f->mean_nodes * tokens * f->row_bytes, -1, "");
        if (isfinite(f->mean_nodes_unlimited)) {
            print_row(s, "  token and node, unlimited", f->mean_nodes_unlimited * tokens, tokens,
                      f->mean_nodes_unlimited * tokens * f->row_bytes, -1, "");
        }
    }
    if (s->full) {
        print_metadata(s, c, m, f);
    }
    if (train && c->train.accumulate > 1) {
        moe_screen_wrapped(s, 2, "", "of all %d micro-batches of the step", c->train.accumulate);
    }
    if (f->dropped > 0) {
        fprintf(s->out, "  dropped: %s of %s selections\n", moe_format_count(f->dropped).s,
                moe_format_count(f->selections).s);
    }
}

/* On one device nothing is sent, and so nothing saved. */
static void print_saving(const moe_screen *s, const moe_config *c, const moe_figures *f) {
    const moe_volume *d = &f->volume[MOE_DISPATCH];
    if (d->selection_bytes <= 0 || c->cluster.devices == 1) {
        return;
    }
    fprintf(s->out, "  sent / one row per selection: %.1f %% of the payload\n",
            100.0 * (double)d->logical_bytes / (double)d->selection_bytes);
}

static void print_levels(const moe_screen *s, const moe_figures *f, double tokens) {
    fputc('\n', s->out);
    moe_screen_row(s, &volume_table, "  %-30s %11s %7s %10s %10s\n", "dispatch, by level", "rows",
                   "share", "payload", "metadata");
    const moe_volume *d = &f->volume[MOE_DISPATCH];
    for (int i = 0; i < MOE_NUM_LEVELS; i++) {
        const moe_traffic *t = &d->by_level[i];
        char share[16];
        snprintf(share, sizeof share, "%.1f %%",
                 d->rows > 0 ? 100.0 * (double)t->rows / (double)d->rows : 0);
        moe_screen_row(s, &volume_table, "  %-30s %11s %7s %10s %10s\n", moe_level_titles[i],
                       moe_format_count(t->rows).s, share, moe_format_bytes(t->bytes).s,
                       moe_format_bytes(t->metadata_bytes).s);
    }
    if (d->by_level[MOE_LEVEL_CLUSTER].rows > 0) {
        const double rows = f->mean_remote_nodes * tokens;
        moe_screen_row(s, &volume_table, "  %-30s %11s %7s %10s\n",
                       f->dropped == 0 ? "  if one per token and node"
                                       : "  token and node, undropped",
                       moe_format_count(llround(rows)).s, "",
                       moe_format_bytes(llround(rows * f->row_bytes)).s);
    }
}

/* With two hops: rows of each hop and level, there and back, beside those of the other modes. */
static void print_hops(const moe_screen *s, const moe_config *c, const moe_figures *f) {
    static const moe_table table = {77, {{50, 12}}};
    if (moe_row_format_hops(c->exchange.mode) == 1) {
        return;
    }
    for (int i = 0; i < MOE_DISPATCH_BACKWARD; i++) {
        const moe_volume *v = &f->volume[i];
        char title[48];
        snprintf(title, sizeof title, "%s, rows by level", moe_direction_titles[i]);
        fputc('\n', s->out);
        moe_screen_row(s, &table, "  %-24s %10s %10s %12s %12s\n", title, "to nodes", "in nodes",
                       "mode token", "selection");
        for (int level = 0; level < MOE_NUM_LEVELS; level++) {
            moe_screen_row(s, &table, "  %-24s %10s %10s %12s %12s\n", moe_level_titles[level],
                           moe_format_count(v->by_hop[0][level].rows).s,
                           moe_format_count(v->by_hop[1][level].rows).s,
                           moe_format_count(v->token[level].rows).s,
                           moe_format_count(v->selection[level].rows).s);
        }
        moe_screen_row(s, &table, "  %-24s %10s %10s %12s %12s\n", "payload across nodes",
                       moe_format_bytes(v->by_hop[0][MOE_LEVEL_CLUSTER].bytes).s,
                       moe_format_bytes(v->by_hop[1][MOE_LEVEL_CLUSTER].bytes).s,
                       moe_format_bytes(v->token[MOE_LEVEL_CLUSTER].bytes).s,
                       moe_format_bytes(v->selection[MOE_LEVEL_CLUSTER].bytes).s);
    }
}

/* What the rows would cost in a real system, and what narrow payloads changed here. */
static void print_counted(const moe_screen *s,
                          const moe_config *c,
                          const moe_figures *f,
                          double tokens) {
    moe_counted counted = moe_counted_of(c, f);
    if (c->exchange.row_protocol == MOE_ROW_BARE && c->cluster.model_hidden_size == 0) {
        return;
    }
    moe_screen_wrapped(
        s, 2, "",
        "rows counted as %s with hidden %lld, fp8 out and bf16 back: %lld B and %lld B a row, %s "
        "out and %s back a token; counted only, what was sent and computed is above",
        moe_config_enum_name(MOE_KEY(exchange, row_protocol), (int)c->exchange.row_protocol),
        (long long)counted.hidden, (long long)counted.out_row, (long long)counted.back_row,
        moe_format_glued(moe_format_bytes(llround(tokens > 0 ? (double)counted.out / tokens : 0)))
            .s,
        moe_format_glued(moe_format_bytes(llround(tokens > 0 ? (double)counted.back / tokens : 0)))
            .s);
}

static void print_payload_error(const moe_screen *s,
                                const moe_config *c,
                                const moe_step_metrics *m) {
    const moe_payload_error_metrics *e = &m->payload_error;
    char training[128] = "";
    if (!e->on) {
        return;
    }
    if (c->run.mode == MOE_MODE_TRAIN) {
        snprintf(training, sizeof training, ", loss of the task %+.3g, gradient %.3g %%", e->loss,
                 100 * e->gradient);
    }
    const bool computes = c->model.compute != MOE_COMPUTE_FP32;
    const bool travels = moe_payload_rounds(moe_payload_of_dispatch(c)) ||
                         moe_payload_rounds(moe_payload_of_combine(c));
    moe_screen_wrapped(s, 2, "", "error of the %s, against this step with fp32: y %.3g %%%s",
                       !computes ? "payloads"
                       : travels ? "experts' bf16 and of the payloads"
                                 : "experts' bf16",
                       100 * e->y, training);
}

/* Prints "1: 0.2 %, 2: 4.1 %, 3: 95.7 %". */
static void print_reach(const moe_screen *s, const moe_figures *f) {
    char text[1024] = "tokens by number of devices:";
    int64_t total = 0;
    size_t length = 28;
    for (int x = 0; x < 65; x++) {
        total += f->tokens_by_reach[x];
    }
    for (int x = 0; x < 65 && total > 0; x++) {
        if (f->tokens_by_reach[x] > 0) {
            length += (size_t)snprintf(text + length, sizeof text - length, "%s %d%s:\t%.1f\t%%",
                                       length > 28 ? "," : "", x, x == 64 ? "+" : "",
                                       100.0 * (double)f->tokens_by_reach[x] / (double)total);
        }
    }
    moe_screen_wrapped(s, 2, "", "%s", text);
}

/* What a limit on nodes is about: on how many nodes a token's devices are. */
static void print_nodes(const moe_screen *s, const moe_config *c, const moe_figures *f) {
    char unlimited[64] = "";
    if (nodes_of(c) == 1) {
        return;
    }
    if (isfinite(f->mean_nodes_unlimited)) {
        snprintf(unlimited, sizeof unlimited, "; without group limit %.3f",
                 f->mean_nodes_unlimited);
    }
    moe_screen_wrapped(s, 2, "", "nodes: mean %.3f of %d, %.3f of them not the token's own%s",
                       f->mean_nodes, nodes_of(c), f->mean_remote_nodes, unlimited);
}

/* The mean number of devices beside what it would be, on one line. */
static void print_devices_shortly(const moe_screen *s, const moe_config *c, const moe_figures *f) {
    char unlimited[64] = "";
    if (isfinite(f->mean_devices_unlimited)) {
        snprintf(unlimited, sizeof unlimited, "; without group limit %.3f",
                 f->mean_devices_unlimited);
    }
    moe_screen_heading(s, "Devices per token");
    moe_screen_wrapped(s, 2, "", "mean %.3f, at most %d of %d%s", f->mean_devices, c->comm_limit,
                       c->cluster.devices, unlimited);
    print_nodes(s, c, f);
}

static void print_devices(const moe_screen *s, const moe_config *c, const moe_figures *f) {
    bool limited = c->router.group_limit != MOE_GROUP_NONE,
         groups_are_devices = moe_config_groups_are_devices(c);
    int32_t n = c->model.num_experts;
    int32_t d = c->cluster.devices;
    int32_t k = c->router.top_k;
    char limit[96] = "";
    if (limited && groups_are_devices && c->router.group_limit == MOE_GROUP_MAX) {
        snprintf(limit, sizeof limit, ", %.3f with at most %d",
                 moe_imbalance_expected_reach(n, d, k, c->router.topk_group), c->router.topk_group);
    }
    moe_screen_heading(s, "Devices per token");
    moe_screen_wrapped(s, 2, "", "mean %.4f; at most %d of %d devices%s", f->mean_devices,
                       c->comm_limit, d, limited ? "" : " (no group limit)");
    if (n % d == 0) { /* with as many experts on each device only */
        moe_screen_wrapped(s, 2, "", "uniform random routing would reach %.3f without limit%s",
                           moe_imbalance_expected_reach(n, d, k, d), limit);
    }
    if (limited && isfinite(f->mean_devices_unlimited)) {
        moe_screen_wrapped(s, 2, "", "these tokens would reach %.4f without limit",
                           f->mean_devices_unlimited);
    }
    print_nodes(s, c, f);
    print_reach(s, f);
}

void moe_terminal_volume(const moe_screen *s,
                         const moe_config *c,
                         const moe_step_metrics *m,
                         const moe_figures *f) {
    if (s->full) {
        print_devices(s, c, f);
    } else {
        print_devices_shortly(s, c, f);
    }
    moe_screen_heading(s, "Volume of step %lld%s: one row = %s", (long long)m->step,
                       moe_terminal_layers(m, "sum").s, moe_format_bytes(llround(f->row_bytes)).s);
    print_table(s, c, m, f);
    if (s->full) {
        print_saving(s, c, f);
    }
    if (s->full || f->volume[MOE_DISPATCH].by_level[MOE_LEVEL_CLUSTER].rows > 0) {
        print_levels(s, f, (double)m->num_tokens * m->num_layers);
    }
    print_hops(s, c, f);
    print_counted(s, c, f, (double)m->num_tokens * m->num_layers);
    print_payload_error(s, c, m);
}
