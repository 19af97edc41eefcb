/* summary.c: records as JSON. Small builders moe_json_put() what they are given; a key is written
 * whether or not its value is defined (null), so that readers never have to guess. The order of
 * keys is the order of the calls. */
#include "output/summary.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/status.h"
#include "measure/imbalance.h"
#include "output/matrix_history.h"
#include "output/summary_internal.h"

/* JSON is UTF-8: bytes that are not (a folder named in another encoding) become question marks. */
static json_t *text(const char *value) {
    json_t *string = json_string(value);
    if (string) {
        return string;
    }
    char *plain = strdup(value);
    for (char *p = plain; p && *p; p++) {
        if ((unsigned char)*p >= 0x80) {
            *p = '?';
        }
    }
    string = plain ? json_string(plain) : json_null();
    free(plain);
    return string;
}

static json_t *integers(const int64_t *values, int64_t n) {
    json_t *array = json_array();
    for (int64_t i = 0; i < n; i++) {
        if (json_array_append_new(array, json_integer(values[i])) != 0) {
            moe_out_of_memory("the summary", 0);
        }
    }
    return array;
}

/* Balance */

static json_t *metrics_object(const moe_imbalance *m, double idle, bool whole) {
    json_t *o = json_object();
    moe_json_put(o, "max_over_mean", moe_json_number(m->max_over_mean));
    moe_json_put(o, "maxvio", moe_json_number(m->maxvio));
    moe_json_put(o, "balancedness", moe_json_number(m->balancedness));
    moe_json_put(o, "cv", moe_json_number(m->cv));
    moe_json_put(o, "gini", moe_json_number(m->gini));
    moe_json_put(o, "entropy", moe_json_number(m->entropy));
    moe_json_put(o, "idle", whole ? json_integer((json_int_t)idle) : moe_json_number(idle));
    moe_json_put(o, "p50", moe_json_number(m->p50));
    moe_json_put(o, "p90", moe_json_number(m->p90));
    moe_json_put(o, "p99", moe_json_number(m->p99));
    return o;
}

enum { LOADS = 7 };
static const char *const load_names[LOADS] = {"expert", "device",        "received", "sent",
                                              "node",   "node_received", "node_sent"};

/* Metrics by node: sums over the devices of each node. */
static moe_imbalance node_metrics(const moe_config *c, const int64_t *by_device, int32_t devices) {
    int32_t per_node = c->cluster.devices_per_node > 0 ? c->cluster.devices_per_node : devices,
            nodes = (devices + per_node - 1) / per_node;
    int64_t *sum = moe_alloc_zero(nodes, sizeof *sum, "loads by node");
    for (int32_t d = 0; d < devices; d++) {
        sum[d / per_node] += by_device[d];
    }
    moe_imbalance m = moe_imbalance_of(sum, nodes);
    moe_free(sum);
    return m;
}

static void layer_metrics(const moe_config *c,
                          const moe_step_metrics *r,
                          const moe_layer_metrics *l,
                          moe_imbalance m[LOADS]) {
    m[0] = moe_imbalance_of(l->counts_per_expert, r->num_experts);
    m[1] = moe_imbalance_of(l->counts_per_device, r->devices);
    m[2] = moe_imbalance_of(l->received_rows, r->devices);
    m[3] = moe_imbalance_of(l->sent_rows, r->devices);
    m[4] = node_metrics(c, l->counts_per_device, r->devices);
    m[5] = node_metrics(c, l->received_rows, r->devices);
    m[6] = node_metrics(c, l->sent_rows, r->devices);
}

static json_t *layer_balance(const moe_config *c,
                             const moe_step_metrics *r,
                             const moe_layer_metrics *l) {
    moe_imbalance m[LOADS];
    layer_metrics(c, r, l, m);
    json_t *o = json_object();
    for (int i = 0; i < LOADS; i++) {
        moe_json_put(o, load_names[i], metrics_object(&m[i], (double)m[i].idle, true));
    }
    return o;
}

static void add_share(moe_imbalance *to, double *idle, const moe_imbalance *m, double share) {
    to->max_over_mean += m->max_over_mean * share;
    to->maxvio += m->maxvio * share;
    to->balancedness += m->balancedness * share;
    to->cv += m->cv * share;
    to->gini += m->gini * share;
    to->entropy += m->entropy * share;
    to->p50 += m->p50 * share;
    to->p90 += m->p90 * share;
    to->p99 += m->p99 * share;
    *idle += (double)m->idle * share;
}

/* Mean over layers. */
static json_t *mean_balance(const moe_config *c, const moe_step_metrics *r) {
    moe_imbalance mean[LOADS] = {{0}}, m[LOADS];
    double idle[LOADS] = {0};
    for (int32_t l = 0; l < r->num_layers; l++) {
        layer_metrics(c, r, &r->layer[l], m);
        for (int i = 0; i < LOADS; i++) {
            add_share(&mean[i], &idle[i], &m[i], 1.0 / r->num_layers);
        }
    }
    json_t *o = json_object();
    for (int i = 0; i < LOADS; i++) {
        moe_json_put(o, load_names[i], metrics_object(&mean[i], idle[i], false));
    }
    return o;
}

/* Volume */

static json_t *volume_object(const moe_volume *v) {
    json_t *o = json_object(), *levels = json_object();
    moe_json_put(o, "rows", json_integer(v->rows));
    moe_json_put(o, "logical_bytes", json_integer(v->logical_bytes));
    moe_json_put(o, "remote_bytes", json_integer(v->remote_bytes));
    moe_json_put(o, "selection_bytes", json_integer(v->selection_bytes));
    moe_json_put(o, "selection_remote_bytes", json_integer(v->selection_remote_bytes));
    moe_json_put(o, "metadata_bytes", json_integer(v->metadata_bytes));
    for (int i = 0; i < MOE_NUM_LEVELS; i++) {
        json_t *level = json_object();
        moe_json_put(level, "rows", json_integer(v->by_level[i].rows));
        moe_json_put(level, "bytes", json_integer(v->by_level[i].bytes));
        moe_json_put(level, "metadata_bytes", json_integer(v->by_level[i].metadata_bytes));
        moe_json_put(levels, moe_level_names[i], level);
    }
    moe_json_put(o, "by_level", levels);
    return o;
}

/* Directions and phases of the backward pass come last, and only where there is one. */
static int directions_of(const moe_config *c) {
    return c->run.mode == MOE_MODE_TRAIN ? MOE_NUM_DIRECTIONS : MOE_DISPATCH_BACKWARD;
}
static int phases_of(const moe_config *c) {
    return c->run.mode == MOE_MODE_TRAIN ? MOE_NUM_PHASES : MOE_PHASE_BACKWARD;
}

static json_t *total_volume(const moe_config *c, const moe_step_metrics *r) {
    json_t *o = json_object();
    for (int i = 0; i < directions_of(c); i++) {
        moe_volume sum;
        moe_step_metrics_volume(r, i, &sum);
        moe_json_put(o, moe_direction_names[i], volume_object(&sum));
    }
    return o;
}

static int64_t total_allreduce(const moe_step_metrics *r) {
    int64_t bytes = 0;
    for (int32_t l = 0; l < r->num_layers; l++) {
        bytes += r->layer[l].allreduce_bytes;
    }
    return bytes;
}

/* Losses */

static json_t *losses_object(const double values[MOE_NUM_LOSSES], int count) {
    json_t *o = json_object();
    for (int i = 0; i < count; i++) {
        moe_json_put(o, moe_loss_names[i], moe_json_number(values[i]));
    }
    return o;
}

static json_t *trained_losses(const moe_config *c, const double loss[MOE_NUM_LOSSES]) {
    double alpha[MOE_NUM_LOSSES];
    json_t *o = json_object();
    moe_balance_alphas(&c->balance, c->model.num_layers, alpha);
    for (int i = 0; i < MOE_NUM_LOSSES; i++) {
        if (alpha[i] != 0) {
            moe_json_put(o, moe_loss_names[i], moe_json_number(loss[i]));
        }
    }
    return o;
}

static const char *const all_layers = "mixtral_all_layers";

static json_t *raw_losses(const moe_step_metrics *r, const double raw[MOE_NUM_LOSSES]) {
    json_t *o = losses_object(raw, MOE_NUM_LOSSES);
    if (r->all_layers.on) {
        moe_json_put(o, all_layers, moe_json_number(r->all_layers.raw));
    }
    return o;
}

static const char *const scope_names[MOE_NUM_SCOPES] = {"sequence", "device", "global"};

static json_t *losses_by_scope(const moe_layer_metrics *l) {
    json_t *o = json_object();
    for (int i = 0; i < MOE_NUM_SCOPES; i++) {
        moe_json_put(o, scope_names[i], losses_object(l->loss_by_scope[i], MOE_LOSS_Z));
    }
    return o;
}

static json_t *only_all_layers(double value) {
    json_t *o = json_object();
    moe_json_put(o, all_layers, moe_json_number(value));
    return o;
}

/* What the loss over all layers would be at balance, and what it is in each scope. */
static void put_all_layers(json_t *o, const moe_step_metrics *r) {
    json_t *by_scope = json_object();
    for (int i = 0; i < MOE_NUM_SCOPES; i++) {
        moe_json_put(by_scope, scope_names[i], only_all_layers(r->all_layers.by_scope[i]));
    }
    moe_json_put(o, "loss_ideal", only_all_layers(r->all_layers.ideal));
    moe_json_put(o, "loss_by_scope", by_scope);
}

/* One step */

static json_t *step_time(const moe_config *c, const moe_step_metrics *r) {
    json_t *o = json_object(), *phases = json_object();
    for (int p = 0; p < phases_of(c); p++) {
        double seconds = 0;
        for (int32_t l = 0; l < r->num_layers; l++) {
            seconds += r->layer[l].phase_seconds[p];
        }
        moe_json_put(phases, moe_phase_names[p], moe_json_number(seconds));
    }
    moe_json_put(o, "step", moe_json_number(r->seconds));
    moe_json_put(o, "phases", phases);
    return o;
}

json_t *moe_summary_step(const moe_config *c, const moe_step_metrics *step) {
    double loss[MOE_NUM_LOSSES], raw[MOE_NUM_LOSSES], total;
    moe_step_metrics_mean_losses(step, loss, raw, &total);
    json_t *o = json_object(), *with_alpha = losses_object(loss, MOE_NUM_LOSSES);
    if (step->all_layers.on) {
        moe_json_put(with_alpha, all_layers, moe_json_number(step->all_layers.loss));
    }
    moe_json_put(with_alpha, "total", moe_json_number(total));
    moe_json_put(with_alpha, "objective", moe_json_number(moe_step_metrics_objective(step)));
    moe_json_put(o, "step", json_integer(step->step));
    moe_json_put(o, "num_tokens", json_integer(step->num_tokens));
    if (c->run.mode == MOE_MODE_TRAIN) {
        moe_summary_put_training(o, c, step);
    }
    moe_json_put(o, "loss", with_alpha);
    moe_json_put(o, "loss_raw", raw_losses(step, raw));
    moe_json_put(o, "volume", total_volume(c, step));
    moe_json_put(o, "allreduce_bytes", json_integer(total_allreduce(step)));
    moe_json_put(o, "balance", mean_balance(c, step));
    moe_json_put(o, "passed", json_boolean(moe_step_metrics_all_passed(step)));
    moe_json_put(o, "time", step_time(c, step));
    return o;
}

/* The summary */

static json_t *layer_object(const moe_config *c,
                            const moe_step_metrics *r,
                            const moe_layer_metrics *l) {
    json_t *o = json_object();
    json_t *volume = json_object();
    json_t *trained = trained_losses(c, l->loss);
    int64_t devices = r->devices, reach = devices < 64 ? devices : 64;
    moe_json_put(trained, "total", moe_json_number(l->total));
    moe_json_put(o, "loss", trained);
    moe_json_put(o, "loss_raw", losses_object(l->loss_raw, MOE_NUM_LOSSES));
    moe_json_put(o, "loss_ideal", losses_object(l->ideal, MOE_NUM_LOSSES));
    moe_json_put(o, "loss_by_scope", losses_by_scope(l));
    moe_json_put(o, "counts_per_expert", integers(l->counts_per_expert, r->num_experts));
    moe_json_put(o, "kept_per_expert", integers(l->kept_per_expert, r->num_experts));
    moe_json_put(o, "counts_per_device", integers(l->counts_per_device, devices));
    moe_json_put(o, "distinct_tokens_per_device", integers(l->distinct_tokens_per_device, devices));
    moe_json_put(o, "sent_rows", integers(l->sent_rows, devices));
    moe_json_put(o, "received_rows", integers(l->received_rows, devices));
    moe_json_put(o, "selections", json_integer(l->selections));
    moe_json_put(o, "dropped", json_integer(l->dropped));
    if (l->capacity.on) {
        moe_json_put(o, "capacity", moe_summary_capacity(c, r, l));
    }
    moe_json_put(o, "mean_devices_per_token", moe_json_number(l->mean_devices));
    moe_json_put(o, "mean_devices_per_token_unlimited", moe_json_number(l->mean_devices_unlimited));
    moe_json_put(o, "tokens_by_reach", integers(l->tokens_by_reach, reach + 1));
    for (int i = 0; i < directions_of(c); i++) {
        moe_json_put(volume, moe_direction_names[i], volume_object(&l->volume[i]));
    }
    moe_json_put(o, "volume", volume);
    moe_json_put(o, "allreduce_bytes", json_integer(l->allreduce_bytes));
    moe_json_put(o, "output_rms", moe_json_number(l->output_rms));
    moe_json_put(o, "balance", layer_balance(c, r, l));
    return o;
}

static void put_checks(json_t *o, const moe_step_metrics *r) {
    json_t *checks = json_object(), *details = json_object();
    for (int i = 0; i < r->num_checks; i++) {
        const moe_check *k = &r->check[i];
        moe_json_put(checks, k->name, k->made ? json_boolean(k->passed) : json_null());
        moe_json_put(details, k->name, text(k->detail));
    }
    moe_json_put(o, "checks", checks);
    moe_json_put(o, "check_details", details);
}

static json_t *machine_object(const moe_config *c, const moe_topology *t, int ranks) {
    json_t *o = json_object();
    json_t *hosts = json_array();
    json_t *list = json_array();
    for (int q = 0; q < ranks; q++) {
        json_t *rank = json_object(), *host = json_object();
        bool seen = false;
        for (int p = 0; p < q && !seen; p++) {
            seen = !strcmp(t[p].host, t[q].host);
        }
        moe_json_put(host, "name", text(t[q].host));
        moe_json_put(host, "processor", text(t[q].processor));
        moe_json_put(host, "cores", json_integer(t[q].host_cores));
        moe_json_put(host, "hardware_threads", json_integer(t[q].host_pus));
        moe_json_put(host, "memory_bytes", json_integer(t[q].memory_bytes));
        moe_json_put(host, "oversubscribed", json_boolean(t[q].oversubscribed));
        moe_json_put(host, "synthetic", json_boolean(t[q].synthetic));
        if (!seen) {
            json_array_append(hosts, host);
        }
        json_decref(host);
        moe_json_put(rank, "rank", json_integer(q));
        moe_json_put(rank, "host", text(t[q].host));
        moe_json_put(rank, "devices", json_integer(c->cluster.devices / ranks));
        moe_json_put(rank, "threads", json_integer(t[q].threads));
        moe_json_put(rank, "package", t[q].package < 0 ? json_null() : json_integer(t[q].package));
        moe_json_put(rank, "numa", t[q].numa < 0 ? json_null() : json_integer(t[q].numa));
        moe_json_put(rank, "core", t[q].core < 0 ? json_null() : json_integer(t[q].core));
        moe_json_put(rank, "bound_cores", json_integer(t[q].bound_cores));
        moe_json_put(rank, "l2_bytes", json_integer(t[q].l2_bytes));
        moe_json_put(rank, "l3_bytes", json_integer(t[q].l3_bytes));
        json_array_append_new(list, rank);
    }
    moe_json_put(o, "hosts", hosts);
    moe_json_put(o, "ranks", list);
    return o;
}

static json_t *time_object(const moe_config *c, const moe_run_times *times) {
    json_t *o = json_object();
    json_t *measured = json_object();
    json_t *phases = json_object();
    for (int p = 0; p < phases_of(c); p++) {
        moe_json_put(phases, moe_phase_names[p], moe_json_number(times->phase_seconds[p]));
    }
    moe_json_put(measured, "steps", moe_json_number(times->step_seconds));
    moe_json_put(
        measured, "step_mean",
        moe_json_number(times->step_seconds / (double)(times->steps > 0 ? times->steps : 1)));
    moe_json_put(measured, "phases", phases);
    moe_json_put(o, "total", moe_json_number(times->seconds));
    moe_json_put(o, "measured", measured);
    return o;
}

/* Which steps comm_matrix_steps.npy holds. */
static json_t *matrix_steps(const moe_step_metrics *last, int64_t steps) {
    int64_t step[MOE_MATRICES + 1];
    return integers(
        step,
        steps > 0 ? moe_matrix_history_steps(last->num_layers, last->devices, steps, step) : 0);
}

json_t *moe_summary_run(const moe_config *c,
                        const moe_step_metrics *last,
                        const moe_topology *topologies,
                        int ranks,
                        const moe_run_times *times,
                        const moe_training_history *history,
                        const moe_training_facts *facts) {
    double loss[MOE_NUM_LOSSES], raw[MOE_NUM_LOSSES], total;
    moe_step_metrics_mean_losses(last, loss, raw, &total);
    json_t *o = json_object();
    json_t *layers = json_array();
    json_t *trained = trained_losses(c, loss);
    moe_json_put(o, "version", text(MOESIM_VERSION));
    moe_json_put(o, "config", moe_summary_config(c));
    moe_json_put(o, "devices", json_integer(last->devices));
    moe_json_put(o, "ranks", json_integer(ranks));
    moe_json_put(o, "steps", json_integer(times->steps));
    moe_json_put(o, "num_tokens", json_integer(last->num_tokens));
    moe_json_put(o, "comm_matrix_steps", matrix_steps(last, times->steps));
    put_checks(o, last);
    if (c->run.mode == MOE_MODE_TRAIN) {
        moe_json_put(o, "training", moe_summary_training(c, last, history, facts));
    }
    if (moe_balance_alpha_all_layers(&c->balance, c->model.num_layers) > 0) {
        moe_json_put(trained, all_layers, moe_json_number(last->all_layers.loss));
    }
    moe_json_put(trained, "total", moe_json_number(total));
    moe_json_put(trained, "objective", moe_json_number(moe_step_metrics_objective(last)));
    moe_json_put(o, "loss", trained);
    moe_json_put(o, "loss_raw", raw_losses(last, raw));
    if (last->all_layers.on) {
        put_all_layers(o, last);
    }
    moe_json_put(o, "volume", total_volume(c, last));
    moe_json_put(o, "allreduce_bytes", json_integer(total_allreduce(last)));
    moe_json_put(o, "balance", mean_balance(c, last));
    for (int32_t l = 0; l < last->num_layers; l++) {
        json_array_append_new(layers, layer_object(c, last, &last->layer[l]));
    }
    moe_json_put(o, "layers", layers);
    moe_json_put(o, "machine", machine_object(c, topologies, ranks));
    moe_json_put(o, "time", time_object(c, times));
    return o;
}
