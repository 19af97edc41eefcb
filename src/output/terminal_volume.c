/* report_volume.c: what was sent, beside what it would have been without deduplication and without
 * the device limit. */
#include <math.h>

#include "measure/imbalance.h"
#include "output/terminal_internal.h"

typedef struct amounts { /* of one step, all layers */
    moe_volume direction[MOE_NUM_DIRECTIONS];
    int64_t selections, dropped, allreduce_bytes, reach[65];
    double token_rows; /* one row per token and device, before dropping */
    double mean_devices, mean_unlimited;
    double row_bytes;
} amounts;

static amounts sum_amounts(const moe_step_metrics *r) {
    amounts a = {.selections = 0};
    for (int i = 0; i < MOE_NUM_DIRECTIONS; i++) {
        moe_step_metrics_volume(r, i, &a.direction[i]);
    }
    for (int32_t l = 0; l < r->num_layers; l++) {
        const moe_layer_metrics *layer = &r->layer[l];
        a.selections += layer->selections;
        a.dropped += layer->dropped;
        a.allreduce_bytes += layer->allreduce_bytes;
        a.token_rows += layer->mean_devices * (double)r->num_tokens;
        a.mean_devices += layer->mean_devices / r->num_layers;
        a.mean_unlimited += layer->mean_devices_unlimited / r->num_layers;
        for (int x = 0; x < 65; x++) {
            a.reach[x] += layer->tokens_by_reach[x];
        }
    }
    const moe_volume *d = &a.direction[MOE_DISPATCH];
    a.row_bytes = d->rows > 0 ? (double)d->logical_bytes / (double)d->rows : 0;
    return a;
}

/* On a narrow terminal without the column beside the rows, then without the last. */
static const moe_table volume_table = {79, {{44, 8}, {63, 11}}};

/* remote_bytes < 0: not known. */
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

/* The way back: dy along the rows of the dispatch, dx and the gradient of the weights along those
 * of the combine. */
static void print_backward(const moe_screen *s, const moe_step_metrics *r, const amounts *a) {
    static const char *const names[2] = {"dispatch of dy, sent", "combine of dx, sent"};
    for (int i = 0; i < 2; i++) {
        const moe_volume *v = &a->direction[MOE_DISPATCH_BACKWARD + i];
        print_row(s, names[i], (double)v->rows, (double)r->num_tokens * r->num_layers,
                  (double)v->logical_bytes, v->remote_bytes, "");
    }
}

static void print_backward_metadata(const moe_screen *s,
                                    const moe_step_metrics *r,
                                    const amounts *a) {
    moe_screen_wrapped(
        s, 2, "",
        "backward: dispatch %s, combine %s; allreduce of the replicated parameters' gradients %s",
        moe_format_glued(moe_format_bytes(a->direction[MOE_DISPATCH_BACKWARD].metadata_bytes)).s,
        moe_format_glued(moe_format_bytes(a->direction[MOE_COMBINE_BACKWARD].metadata_bytes)).s,
        moe_format_glued(moe_format_bytes(r->gradient_allreduce_bytes)).s);
}

/* What one direction sent; the other modes and the missing limit stand below it, as what would have
 * been. */
static void print_table(const moe_screen *s,
                        const moe_config *c,
                        const moe_step_metrics *r,
                        const amounts *a) {
    const moe_volume *d = &a->direction[MOE_DISPATCH], *m = &a->direction[MOE_COMBINE];
    double tokens = (double)r->num_tokens * r->num_layers;
    bool selection = c->exchange.mode == MOE_EXCHANGE_SELECTION,
         train = c->run.mode == MOE_MODE_TRAIN;
    moe_screen_row(s, &volume_table, "  %-30s %11s %7s %10s %10s\n", "", "rows", "a token",
                   "payload", "to others");
    print_row(s, "dispatch, sent", (double)d->rows, tokens, (double)d->logical_bytes,
              d->remote_bytes, "");
    print_row(s, "combine, sent", (double)m->rows, tokens, (double)m->logical_bytes,
              m->remote_bytes, "");
    if (train) {
        print_backward(s, r, a);
    }
    fprintf(s->out, "  dispatch would have been\n");
    print_row(s, "  one row per selection", (double)a->selections - (double)a->dropped, tokens,
              (double)d->selection_bytes, d->selection_remote_bytes, selection ? " sent" : "");
    if (!selection) {
        print_row(s, "  one row per token and device", (double)d->rows, tokens,
                  (double)d->logical_bytes, d->remote_bytes, " sent");
    }
    if (selection || a->dropped > 0) {
        print_row(s,
                  a->dropped == 0 ? "  one row per token and device"
                  : selection     ? "  token and device, undropped"
                                  : "  the same without dropping",
                  a->token_rows, tokens, a->token_rows * a->row_bytes, -1, "");
    }
    if (isfinite(a->mean_unlimited)) {
        print_row(s, "  the same without group limit", a->mean_unlimited * tokens, tokens,
                  a->mean_unlimited * tokens * a->row_bytes, -1, "");
    }
    moe_screen_wrapped(s, 2, "",
                       "metadata: dispatch %s, combine %s; allreduce of counts and scores %s",
                       moe_format_glued(moe_format_bytes(d->metadata_bytes)).s,
                       moe_format_glued(moe_format_bytes(m->metadata_bytes)).s,
                       moe_format_glued(moe_format_bytes(a->allreduce_bytes)).s);
    if (train) {
        print_backward_metadata(s, r, a);
    }
    if (train && c->train.accumulate > 1) {
        moe_screen_wrapped(s, 2, "", "of all %d micro-batches of the step", c->train.accumulate);
    }
    if (a->dropped > 0) {
        fprintf(s->out, "  dropped: %s of %s selections\n", moe_format_count(a->dropped).s,
                moe_format_count(a->selections).s);
    }
}

static void print_saving(const moe_screen *s, const amounts *a) {
    const moe_volume *d = &a->direction[MOE_DISPATCH];
    if (d->selection_bytes <= 0) {
        return;
    }
    fprintf(s->out, "  sent / one row per selection: %.1f %% of the payload\n",
            100.0 * (double)d->logical_bytes / (double)d->selection_bytes);
}

static void print_levels(const moe_screen *s, const amounts *a) {
    fputc('\n', s->out);
    moe_screen_row(s, &volume_table, "  %-30s %11s %7s %10s %10s\n", "dispatch, by level", "rows",
                   "share", "payload", "metadata");
    static const char *const names[MOE_NUM_LEVELS] = {"stays on its device", "same node",
                                                      "across nodes"};
    const moe_volume *d = &a->direction[MOE_DISPATCH];
    for (int i = 0; i < MOE_NUM_LEVELS; i++) {
        const moe_traffic *t = &d->by_level[i];
        char share[16];
        snprintf(share, sizeof share, "%.1f %%",
                 d->rows > 0 ? 100.0 * (double)t->rows / (double)d->rows : 0);
        moe_screen_row(s, &volume_table, "  %-30s %11s %7s %10s %10s\n", names[i],
                       moe_format_count(t->rows).s, share, moe_format_bytes(t->bytes).s,
                       moe_format_bytes(t->metadata_bytes).s);
    }
}

/* "1: 0.2 %, 2: 4.1 %, 3: 95.7 %" */
static void print_reach(const moe_screen *s, const amounts *a) {
    char text[1024] = "tokens by number of devices:";
    int64_t total = 0;
    size_t length = 28;
    for (int x = 0; x < 65; x++) {
        total += a->reach[x];
    }
    for (int x = 0; x < 65 && total > 0; x++) {
        if (a->reach[x] > 0) {
            length += (size_t)snprintf(text + length, sizeof text - length, "%s %d%s:\t%.1f\t%%",
                                       length > 28 ? "," : "", x, x == 64 ? "+" : "",
                                       100.0 * (double)a->reach[x] / (double)total);
        }
    }
    moe_screen_wrapped(s, 2, "", "%s", text);
}

static void print_devices(const moe_screen *s, const moe_config *c, const amounts *a) {
    bool limited = c->router.group_limit != MOE_GROUP_NONE,
         groups_are_devices = c->router.num_groups == c->cluster.devices;
    int32_t n = c->model.num_experts;
    int32_t d = c->cluster.devices;
    int32_t k = c->router.top_k;
    char limit[96] = "";
    if (limited && groups_are_devices && c->router.group_limit == MOE_GROUP_MAX) {
        snprintf(limit, sizeof limit, ", %.3f with at most %d",
                 moe_imbalance_expected_reach(n, d, k, c->router.topk_group), c->router.topk_group);
    }
    moe_screen_heading(s, "Devices per token");
    moe_screen_wrapped(s, 2, "", "mean %.4f; at most M = %d of %d devices%s", a->mean_devices,
                       c->comm_limit, d, limited ? "" : " (no group limit)");
    moe_screen_wrapped(s, 2, "", "uniform random routing would reach %.3f without limit%s",
                       moe_imbalance_expected_reach(n, d, k, d), limit);
    if (limited && isfinite(a->mean_unlimited)) {
        moe_screen_wrapped(s, 2, "", "these tokens would reach %.4f without limit",
                           a->mean_unlimited);
    }
    print_reach(s, a);
}

void moe_terminal_volume(const moe_screen *s, const moe_config *c, const moe_step_metrics *r) {
    amounts a = sum_amounts(r);
    print_devices(s, c, &a);
    moe_screen_heading(s, "Volume of step %lld%s: one row = %s", (long long)r->step,
                       moe_terminal_layers(r, "sum").s, moe_format_bytes(llround(a.row_bytes)).s);
    print_table(s, c, r, &a);
    print_saving(s, &a);
    print_levels(s, &a);
}
