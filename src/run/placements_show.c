/* placements_show.c: the table of --placements, placements.json and placements/POLICY.npy. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/file.h"
#include "base/npy.h"
#include "config/table.h"
#include "output/format.h"
#include "output/json.h"
#include "output/screen.h"
#include "run/placements_internal.h"

/* --- figures --- */

static bool ran(const moe_candidate *candidate) {
    return candidate->reason[0] == '\0';
}

/* Steps times layers, over which ratios are averaged. */
static double num_judged(const moe_comparison *x) {
    return (double)x->score * x->source.layers;
}

static double device_max(const moe_comparison *x, const moe_candidate *candidate) {
    double sum = 0;
    for (int32_t l = 0; l < x->source.layers; l++) {
        sum += candidate->layer_max[l];
    }
    return sum / num_judged(x);
}

/* Of weights that stay: moved once. Of weights that are fetched: in a step, on average. Of fixed
 * ones every step counted the same copies. */
static double moved(const moe_comparison *x, const moe_candidate *candidate) {
    return (double)candidate->moved / (double)x->score;
}

/* Seconds of a step on the cluster of [cluster], without moving weights. */
static double predicted(const moe_comparison *x, const moe_candidate *candidate) {
    return candidate->cost.seconds / num_judged(x);
}

static const char *const timing_names[] =
    {[MOE_BALANCER_FIXED] = "once", [MOE_BALANCER_SPLITS] = "split", [MOE_BALANCER_PLANS] = "plan"};

/* --- the screen --- */

/* On a narrow terminal cross-device rows go first, then what was moved and the worst step. */
static const moe_table table = {79, {{43, 9}, {56, 6}, {20, 7}}};

static void print_head(const moe_screen *s) {
    moe_screen_row(s, &table, "  %-11s%7s%7s%7s%9s%9s%4s%6s%8s%9s\n", "", "device", "worst", "recv",
                   "x-node", "x-device", "dup", "moved", "seconds", "step");
}

static void print_row(const moe_screen *s, const moe_comparison *x, const moe_candidate *c) {
    const bool tokens = x->source.has_tokens;
    char cross_node[24] = "-", cross_device[24] = "-", step[40] = "-";
    if (tokens) {
        snprintf(step, sizeof step, "%s", moe_format_seconds(predicted(x, c)).s);
        snprintf(cross_node, sizeof cross_node, "%lld", (long long)c->rows.cross_node_rows);
        snprintf(cross_device, sizeof cross_device, "%lld", (long long)c->rows.cross_device_rows);
    }
    moe_screen_row(s, &table, "  %-11s%7s%7s%7s%9s%9s%4lld%6s%8.4f%9s\n", c->balancer->name,
                   moe_format_number(device_max(x, c), 3).s, moe_format_number(c->worst, 3).s,
                   moe_format_number(tokens ? c->receiver_max / num_judged(x) : NAN, 3).s,
                   cross_node, cross_device, (long long)c->wasted,
                   moe_format_number(moved(x, c), 0).s, c->decide_seconds, step);
}

static double mean_drift(const moe_comparison *x) {
    double sum = 0;
    for (int64_t i = 0; i < x->score; i++) {
        sum += x->drift[i];
    }
    return sum / (double)x->score;
}

static void print_windows(const moe_screen *s, const moe_comparison *x) {
    if (x->source.halves) {
        moe_screen_wrapped(s, 0, "",
                           "Decided by the first half of every device's tokens, compared on the "
                           "other half.\n");
    } else {
        moe_screen_wrapped(s, 0, "",
                           "Decided by the first %lld of %lld steps, compared on the last "
                           "%lld%s.\n",
                           (long long)x->fit, (long long)x->source.steps, (long long)x->score,
                           moe_comparison_own_window(x)
                               ? ": ON ITS OWN WINDOW, which flatters what looks at loads"
                               : "");
    }
    moe_screen_wrapped(s, 0, "",
                       "Between the loads that were decided by and those of the compared steps %s "
                       "of the load (drift) went to other experts.\n",
                       moe_format_number(mean_drift(x), 3).s);
}

void moe_comparison_print(const moe_comparison *x, const char *folder) {
    const moe_screen s = moe_screen_of(stdout, false);
    const moe_balancer_answer *blocks = &x->blocks;
    moe_screen_heading(&s, "Placements of %d experts in %d slots on %d devices, %d layer%s",
                       x->config->model.num_experts, blocks->slots, x->config->cluster.devices,
                       x->source.layers, x->source.layers == 1 ? "" : "s");
    print_windows(&s, x);
    print_head(&s);
    for (int i = 0; i < x->num_candidates; i++) {
        if (ran(&x->candidate[i])) {
            print_row(&s, x, &x->candidate[i]);
        }
    }
    moe_screen_wrapped(
        &s, 0, "",
        "device, recv: selections of the busiest device and rows of the busiest "
        "receiver over the mean, averaged over steps and layers; worst: the largest "
        "of them; x-node, x-device: rows to another node and device; dup: replicas "
        "beside another one of the same expert; moved: experts to be copied from "
        "where blocks have them (llep and moonep: in every step); step: predicted on "
        "the cluster of [cluster], without moving them.\n");
    for (int i = 0; i < x->num_candidates; i++) {
        if (!ran(&x->candidate[i])) {
            moe_screen_wrapped(&s, 2, "", "left out: %s\n", x->candidate[i].reason);
        }
    }
    printf("%s/placements.json\n", folder);
}

/* --- placements.json --- */

static json_t *needs_json(unsigned needs) {
    static const char *const names[] = {"loads", "pairs", "nodes", "groups"};
    json_t *list = json_array();
    for (int i = 0; i < 4; i++) {
        if (needs & 1u << i) {
            json_array_append_new(list, json_string(names[i]));
        }
    }
    return list;
}

static void put_rows(const moe_comparison *x, const moe_candidate *c, json_t *object) {
    const struct {
        const char *name;
        int64_t count;
    } counts[] = {{"selections", c->rows.selections},
                  {"rows", c->rows.rows},
                  {"cross_device_rows", c->rows.cross_device_rows},
                  {"cross_node_rows", c->rows.cross_node_rows},
                  {"cross_node_tokens", c->rows.cross_node_tokens}};
    const bool tokens = x->source.has_tokens;
    moe_json_put(object, "receiver_max_over_mean",
                 moe_json_number(tokens ? c->receiver_max / num_judged(x) : NAN));
    moe_json_put(object, "receiver_max_over_mean_worst",
                 moe_json_number(tokens ? c->receiver_worst : NAN));
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        moe_json_put(object, counts[i].name, tokens ? json_integer(counts[i].count) : json_null());
    }
}

/* What a step costs on the cluster of [cluster]; null where there are loads alone. */
static void put_cost(const moe_comparison *x, const moe_candidate *c, json_t *object) {
    const bool tokens = x->source.has_tokens;
    double *by_step = moe_alloc(x->score, sizeof *by_step, "placements");
    for (int64_t i = 0; i < x->score; i++) {
        by_step[i] = 1e6 * c->step_predicted[i] / x->source.layers;
    }
    moe_json_put(object, "predicted_step_us",
                 moe_json_number(tokens ? 1e6 * predicted(x, c) : NAN));
    moe_json_put(object, "predicted_step_us_by_step",
                 tokens ? moe_json_numbers(by_step, x->score) : json_null());
    moe_json_put(object, "balanced_step_us",
                 moe_json_number(tokens ? 1e6 * c->cost.balanced / num_judged(x) : NAN));
    moe_json_put(object, "remote_bytes",
                 moe_json_number(tokens ? c->cost.bytes / num_judged(x) : NAN));
    moe_free(by_step);
}

static json_t *candidate_json(const moe_comparison *x, const moe_candidate *c) {
    json_t *object = json_object();
    char file[64];
    moe_json_put(object, "source", moe_json_text(c->balancer->source));
    moe_json_put(object, "needs", needs_json(c->balancer->needs));
    moe_json_put(object, "decides", json_string(timing_names[c->balancer->timing]));
    moe_json_put(object, "left_out", ran(c) ? json_null() : moe_json_text(c->reason));
    if (!ran(c)) {
        return object;
    }
    double *by_layer = moe_alloc(x->source.layers, sizeof *by_layer, "placements");
    double *by_step = moe_alloc(x->score, sizeof *by_step, "placements");
    for (int32_t l = 0; l < x->source.layers; l++) {
        by_layer[l] = c->layer_max[l] / (double)x->score;
    }
    for (int64_t i = 0; i < x->score; i++) {
        by_step[i] = c->step_max[i] / x->source.layers;
    }
    snprintf(file, sizeof file, "placements/%s.npy", c->balancer->name);
    moe_json_put(object, "device_max_over_mean", moe_json_number(device_max(x, c)));
    moe_json_put(object, "device_max_over_mean_worst", moe_json_number(c->worst));
    moe_json_put(object, "device_max_over_mean_by_layer",
                 moe_json_numbers(by_layer, x->source.layers));
    moe_json_put(object, "device_max_over_mean_by_step", moe_json_numbers(by_step, x->score));
    moe_json_put(object, "worst_step", json_integer(c->worst_step));
    moe_json_put(object, "worst_layer", json_integer(c->worst_layer));
    put_rows(x, c, object);
    moe_json_put(object, "replicas_wasted", json_integer(c->wasted));
    moe_json_put(object, "weights_moved", moe_json_number(moved(x, c)));
    put_cost(x, c, object);
    moe_json_put(object, "seconds_to_decide", moe_json_number(c->decide_seconds));
    moe_json_put(object, "seconds_per_step", moe_json_number(c->step_seconds / (double)x->score));
    moe_json_put(object, "file", moe_json_text(file));
    moe_free(by_layer);
    moe_free(by_step);
    return object;
}

static json_t *window_json(int64_t first, int64_t steps) {
    json_t *object = json_object();
    moe_json_put(object, "first_step", json_integer(first));
    moe_json_put(object, "steps", json_integer(steps));
    return object;
}

static json_t *comparison_json(const moe_comparison *x) {
    const moe_config *c = x->config;
    json_t *object = json_object(), *policies = json_object();
    moe_json_put(object, "version", moe_json_text(MOESIM_VERSION));
    moe_json_put(object, "steps_from",
                 moe_json_text(x->source.has_tokens
                                   ? moe_table_enum_name(MOE_KEY(data, source), c->data.source)
                                   : c->placement.load));
    moe_json_put(object, "layers", json_integer(x->source.layers));
    moe_json_put(object, "num_experts", json_integer(c->model.num_experts));
    moe_json_put(object, "slots", json_integer(x->blocks.slots));
    moe_json_put(object, "devices", json_integer(c->cluster.devices));
    moe_json_put(object, "devices_per_node", json_integer(c->cluster.devices_per_node));
    moe_json_put(object, "num_groups", json_integer(c->router.num_groups));
    moe_json_put(object, "steps", json_integer(x->source.steps));
    moe_json_put(object, "fit", window_json(0, x->fit));
    moe_json_put(object, "score", window_json(x->source.steps - x->score, x->score));
    moe_json_put(object, "steps_are_halves", json_boolean(x->source.halves));
    moe_json_put(object, "drift_by_step", moe_json_numbers(x->drift, x->score));
    moe_json_put(object, "own_window", json_boolean(moe_comparison_own_window(x)));
    for (int i = 0; i < x->num_candidates; i++) {
        moe_json_put(policies, x->candidate[i].balancer->name, candidate_json(x, &x->candidate[i]));
    }
    moe_json_put(object, "policies", policies);
    return object;
}

/* --- placements/POLICY.npy --- */

/* int32 [layers, slots]. Where layers need different numbers of slots, -1 stands in the others. */
static int write_array(const moe_comparison *x,
                       const moe_candidate *c,
                       const char *path,
                       moe_status *st) {
    const int32_t devices = x->config->cluster.devices, layers = x->source.layers;
    char header[256], beside[MOE_PATH_MAX + 128];
    int32_t size = 0;
    for (int32_t l = 0; l < layers; l++) {
        const int32_t mine = c->answer[l].slots_per_device;
        size = mine > size ? mine : size;
    }
    const int64_t shape[] = {layers, (int64_t)size * devices};
    const size_t length = moe_npy_format(MOE_I32, 2, shape, header, sizeof header);
    snprintf(beside, sizeof beside, "%s.tmp", path);
    FILE *file = fopen(beside, "wb");
    if (!file) {
        return moe_fail(st, MOE_ERROR, "cannot write '%s': %s", path, strerror(errno));
    }
    fwrite(header, 1, length, file);
    for (int64_t i = 0; i < shape[0] * shape[1]; i++) {
        const moe_balancer_answer *a = &c->answer[i / shape[1]];
        const int64_t device = i % shape[1] / size, place = i % size;
        const int32_t expert =
            place < a->slots_per_device ? a->expert[device * a->slots_per_device + place] : -1;
        fwrite(&expert, sizeof expert, 1, file);
    }
    return moe_file_replace(path, beside, file, st);
}

int moe_comparison_write(const moe_comparison *x, const char *folder, moe_status *st) {
    char path[MOE_PATH_MAX + 64];
    for (int i = 0; i < x->num_candidates && st->code == MOE_OK; i++) {
        snprintf(path, sizeof path, "%s/placements/%s.npy", folder, x->candidate[i].balancer->name);
        if (ran(&x->candidate[i])) {
            write_array(x, &x->candidate[i], path, st);
        }
    }
    if (st->code == MOE_OK) {
        json_t *object = comparison_json(x);
        char *text = moe_json_indented(object);
        snprintf(path, sizeof path, "%s/placements.json", folder);
        moe_file_write(path, text, st);
        free(text);
        json_decref(object);
    }
    return st->code;
}
