/* summary.c: metrics as JSON. A key is written whether or not its value is defined (null), so that
 * readers never have to guess. The keys stand in the order of the calls. */
#include "output/summary.h"

#include <math.h>
#include <string.h>

#include "config/kv_cache.h"
#include "measure/figures.h"
#include "output/matrix_history.h"
#include "output/summary_internal.h"
#include "predict/prediction.h"

/* --- balance --- */

static json_t *imbalance_object(const moe_imbalance *m) {
    json_t *o = json_object();
#define IMBALANCE(name, formula) moe_json_put(o, #name, moe_json_number(m->name));
#include "measure/names.def"
    return o;
}

/* In one layer the number of idle targets is whole. */
static json_t *layer_balance(const moe_config *c, const moe_step_metrics *m, int32_t layer) {
    moe_imbalance balance[MOE_NUM_LOADS];
    moe_figures_layer_balance(m, layer, c->cluster.devices_per_node, balance);
    json_t *o = json_object();
    for (int load = 0; load < MOE_NUM_LOADS; load++) {
        json_t *one = imbalance_object(&balance[load]);
        moe_json_put(one, "idle", json_integer((json_int_t)balance[load].idle));
        moe_json_put(o, moe_load_names[load], one);
    }
    return o;
}

static json_t *mean_balance(const moe_config *c, const moe_step_metrics *m) {
    moe_imbalance mean[MOE_NUM_LOADS];
    moe_figures_balance(m, c->cluster.devices_per_node, mean);
    json_t *o = json_object();
    for (int load = 0; load < MOE_NUM_LOADS; load++) {
        moe_json_put(o, moe_load_names[load], imbalance_object(&mean[load]));
    }
    return o;
}

/* --- volume --- */

static json_t *traffic_object(const moe_traffic *t) {
    json_t *o = json_object();
    moe_json_put(o, "rows", json_integer(t->rows));
    moe_json_put(o, "bytes", json_integer(t->bytes));
    moe_json_put(o, "metadata_bytes", json_integer(t->metadata_bytes));
    return o;
}

/* With two hops: what each one sent, and what the other modes would have sent. */
static void put_hops(json_t *level, const moe_volume *v, int i) {
    moe_json_put(level, "to_node", traffic_object(&v->by_hop[0][i]));
    moe_json_put(level, "in_node", traffic_object(&v->by_hop[1][i]));
    moe_json_put(level, "token_rows", json_integer(v->token[i].rows));
    moe_json_put(level, "token_bytes", json_integer(v->token[i].bytes));
    moe_json_put(level, "selection_rows", json_integer(v->selection[i].rows));
    moe_json_put(level, "selection_bytes", json_integer(v->selection[i].bytes));
}

static json_t *volume_object(const moe_config *c, const moe_volume *v) {
    json_t *o = json_object(), *levels = json_object();
    moe_json_put(o, "rows", json_integer(v->rows));
    moe_json_put(o, "logical_bytes", json_integer(v->logical_bytes));
    moe_json_put(o, "remote_bytes", json_integer(v->remote_bytes));
    moe_json_put(o, "selection_bytes", json_integer(v->selection_bytes));
    moe_json_put(o, "selection_remote_bytes", json_integer(v->selection_remote_bytes));
    moe_json_put(o, "metadata_bytes", json_integer(v->metadata_bytes));
    for (int i = 0; i < MOE_NUM_LEVELS; i++) {
        json_t *level = traffic_object(&v->by_level[i]);
        if (moe_row_format_hops(c->exchange.mode) > 1) {
            put_hops(level, v, i);
        }
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

static json_t *volumes_object(const moe_config *c, const moe_volume volume[MOE_NUM_DIRECTIONS]) {
    json_t *o = json_object();
    for (int i = 0; i < directions_of(c); i++) {
        moe_json_put(o, moe_direction_names[i], volume_object(c, &volume[i]));
    }
    return o;
}

static json_t *counted_object(const moe_config *c,
                              const moe_step_metrics *m,
                              const moe_figures *f) {
    moe_counted n = moe_counted_of(c, f);
    double tokens = (double)m->num_tokens * m->num_layers;
    json_t *o = json_object();
    moe_json_put(o, "row_protocol",
                 json_string(moe_config_enum_name(MOE_KEY(exchange, row_protocol),
                                                  (int)c->exchange.row_protocol)));
    moe_json_put(o, "hidden_size", json_integer(n.hidden));
    moe_json_put(o, "dispatch_row_bytes", json_integer(n.out_row));
    moe_json_put(o, "combine_row_bytes", json_integer(n.back_row));
    moe_json_put(o, "dispatch_bytes", json_integer(n.out));
    moe_json_put(o, "combine_bytes", json_integer(n.back));
    moe_json_put(o, "dispatch_bytes_per_token",
                 moe_json_number(tokens > 0 ? (double)n.out / tokens : NAN));
    moe_json_put(o, "combine_bytes_per_token",
                 moe_json_number(tokens > 0 ? (double)n.back / tokens : NAN));
    return o;
}

static json_t *payload_error_object(const moe_step_metrics *m) {
    json_t *o = json_object();
    moe_json_put(o, "y", moe_json_number(m->payload_error.y));
    moe_json_put(o, "loss", moe_json_number(m->payload_error.loss));
    moe_json_put(o, "gradient", moe_json_number(m->payload_error.gradient));
    return o;
}

/* --- losses --- */

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
    moe_balance_alphas(&c->balance, moe_config_moe_layers(c), alpha);
    for (int i = 0; i < MOE_NUM_LOSSES; i++) {
        if (alpha[i] != 0) {
            moe_json_put(o, moe_loss_names[i], moe_json_number(loss[i]));
        }
    }
    return o;
}

/* "mixtral_all_layers" */
static void put_of_all_layers(json_t *o, const moe_step_metrics *m, double value) {
    char name[64];
    snprintf(name, sizeof name, "%s_all_layers", moe_loss_names[m->all_layers.form]);
    moe_json_put(o, name, moe_json_number(value));
}

static json_t *raw_losses(const moe_step_metrics *m, const double raw[MOE_NUM_LOSSES]) {
    json_t *o = losses_object(raw, MOE_NUM_LOSSES);
    if (m->all_layers.on) {
        put_of_all_layers(o, m, m->all_layers.raw);
    }
    return o;
}

static const char *scope_name(int scope) {
    return moe_config_enum_name(MOE_KEY(balance, scope), scope);
}

static json_t *losses_by_scope(const moe_layer_metrics *l) {
    json_t *o = json_object();
    for (int i = 0; i < MOE_NUM_SCOPES; i++) {
        moe_json_put(o, scope_name(i), losses_object(l->loss_by_scope[i], MOE_LOSS_Z));
    }
    return o;
}

static json_t *only_all_layers(const moe_step_metrics *m, double value) {
    json_t *o = json_object();
    put_of_all_layers(o, m, value);
    return o;
}

/* What the loss over all layers would be at balance, and what it is in each scope. */
static void put_all_layers(json_t *o, const moe_step_metrics *m) {
    json_t *by_scope = json_object();
    for (int i = 0; i < MOE_NUM_SCOPES; i++) {
        moe_json_put(by_scope, scope_name(i), only_all_layers(m, m->all_layers.by_scope[i]));
    }
    moe_json_put(o, "loss_ideal", only_all_layers(m, m->all_layers.ideal));
    moe_json_put(o, "loss_by_scope", by_scope);
}

/* --- predicted times --- */

static json_t *microseconds(const double seconds[MOE_NUM_PREDICTED]) {
    json_t *o = json_object();
    char key[32];
    for (int i = 0; i < MOE_NUM_PREDICTED; i++) {
        snprintf(key, sizeof key, "%s_us", moe_predicted_names[i]);
        moe_json_put(o, key, moe_json_number(1e6 * seconds[i]));
    }
    return o;
}

/* What a simulation of the exchanges needs beside the rows (scripts/simulate). */
static json_t *exchange_costs(const moe_prediction *p) {
    json_t *o = json_object();
    moe_json_put(o, "dispatch_row_bytes", moe_json_number(p->out_bytes));
    moe_json_put(o, "combine_row_bytes", moe_json_number(p->in_bytes));
    moe_json_put(o, "fixed_us", moe_json_number(1e6 * p->exchange_seconds));
    return o;
}

static void put_prediction(json_t *time, const moe_config *c, const moe_step_metrics *last) {
    const moe_prediction p = moe_prediction_of(c, last);
    moe_json_put(time, "predicted", microseconds(p.seconds));
    moe_json_put(time, "balanced", microseconds(p.balanced));
    moe_json_put(time, "exchange", exchange_costs(&p));
    moe_json_put(time, "bottleneck", moe_json_text(p.bottleneck));
    moe_json_put(time, "price_per_million_tokens", moe_json_number(1e6 * p.price_per_token));
}

static json_t *predicted_step(const moe_config *c, const moe_step_metrics *step) {
    const moe_prediction p = moe_prediction_of(c, step);
    json_t *o = json_object();
    moe_json_put(o, "step_us", moe_json_number(1e6 * p.seconds[MOE_PREDICTED_STEP]));
    return o;
}

/* --- one step --- */

static json_t *step_time(const moe_config *c, const moe_step_metrics *m, const moe_figures *f) {
    json_t *o = json_object(), *phases = json_object();
    for (int phase = 0; phase < phases_of(c); phase++) {
        moe_json_put(phases, moe_phase_names[phase], moe_json_number(f->phase_seconds[phase]));
    }
    moe_json_put(o, "step", moe_json_number(m->seconds));
    moe_json_put(o, "phases", phases);
    moe_json_put(o, "predicted", predicted_step(c, m));
    return o;
}

/* What new placements moved. */
static json_t *rebalance_object(const moe_rebalance_metrics *r) {
    json_t *o = json_object();
    moe_json_put(o, "decisions", json_integer(r->decisions));
    moe_json_put(o, "experts_moved", json_integer(r->moved));
    moe_json_put(o, "bytes", json_integer(r->bytes));
    moe_json_put(o, "cross_node_bytes", json_integer(r->cross_node_bytes));
    moe_json_put(o, "replicas_wasted", json_integer(r->wasted));
    moe_json_put(o, "device_max_over_mean_before", moe_json_number(r->device_before));
    moe_json_put(o, "device_max_over_mean_after", moe_json_number(r->device_after));
    return o;
}

static json_t *loads_by_device(const moe_rebalance_detail *d, const double *load) {
    json_t *layers = json_array();
    for (int32_t l = 0; l < d->layers; l++) {
        json_t *one = json_array();
        for (int32_t i = 0; i < d->devices; i++) {
            json_array_append_new(one, moe_json_number(load[(int64_t)l * d->devices + i]));
        }
        json_array_append_new(layers, one);
    }
    return layers;
}

/* Enough for a reader, and no line of metrics.jsonl gets long. */
enum { MOST_MOVES = 1000 };

/* Who moved where, and what that does to the devices. */
static void put_rebalance_detail(json_t *o, const moe_rebalance_detail *d) {
    json_t *moves = json_array();
    for (int64_t i = 0; i < d->num_moves && i < MOST_MOVES; i++) {
        const moe_expert_move *m = &d->move[i];
        json_array_append_new(moves, json_pack("[iiii]", m->layer, m->expert, m->from, m->to));
    }
    moe_json_put(o, "moves", moves);
    moe_json_put(o, "device_load_before", loads_by_device(d, d->before));
    moe_json_put(o, "device_load_after", loads_by_device(d, d->after));
}

/* Seconds of the slowest rank. */
static json_t *rebalance_time(const moe_rebalance_metrics *r) {
    json_t *o = json_object();
    moe_json_put(o, "decide", moe_json_number(r->decide_seconds));
    moe_json_put(o, "move", moe_json_number(r->move_seconds));
    return o;
}

/* What was decided and copied for the batches of a step, all layers together. */
static void put_fetched(json_t *o, json_t *time, const moe_step_metrics *step) {
    moe_fetch_metrics all = {0};
    for (int32_t l = 0; l < step->num_layers; l++) {
        moe_fetch_metrics_add(&all, &step->layer[l].fetch);
    }
    if (!all.on) {
        return;
    }
    json_t *fetched = json_object(), *seconds = json_object();
    moe_json_put(fetched, "experts", json_integer(all.copies));
    moe_json_put(fetched, "bytes", json_integer(all.bytes));
    moe_json_put(fetched, "cross_node_bytes", json_integer(all.cross_node_bytes));
    moe_json_put(o, "fetched", fetched);
    moe_json_put(seconds, "decide", moe_json_number(all.decide_seconds));
    moe_json_put(seconds, "fetch", moe_json_number(all.fetch_seconds));
    moe_json_put(time, "fetched", seconds);
}

json_t *moe_summary_step(const moe_config *c, const moe_step_metrics *step) {
    moe_figures f = moe_figures_of(step);
    json_t *o = json_object(), *with_alpha = losses_object(f.loss, MOE_NUM_LOSSES);
    if (step->all_layers.on) {
        put_of_all_layers(with_alpha, step, step->all_layers.loss);
    }
    moe_json_put(with_alpha, "total", moe_json_number(f.total));
    moe_json_put(with_alpha, "objective", moe_json_number(f.objective));
    moe_json_put(o, "step", json_integer(step->step));
    moe_json_put(o, "num_tokens", json_integer(step->num_tokens));
    if (c->run.mode == MOE_MODE_TRAIN) {
        moe_summary_put_training(o, c, step);
    }
    if (moe_config_generates(c)) {
        moe_json_put(o, "generate", moe_summary_pass(c, step));
    }
    moe_json_put(o, "loss", with_alpha);
    moe_json_put(o, "loss_raw", raw_losses(step, f.raw));
    moe_json_put(o, "volume", volumes_object(c, f.volume));
    moe_json_put(o, "allreduce_bytes", json_integer(f.allreduce_bytes));
    moe_json_put(o, "balance", mean_balance(c, step));
    moe_json_put(o, "passed", json_boolean(moe_step_metrics_all_passed(step)));
    json_t *time = step_time(c, step, &f);
    if (step->rebalance.on) {
        json_t *rebalance = rebalance_object(&step->rebalance);
        if (step->rebalance_detail) {
            put_rebalance_detail(rebalance, step->rebalance_detail);
        }
        moe_json_put(o, "rebalance", rebalance);
        moe_json_put(time, "rebalance", rebalance_time(&step->rebalance));
    }
    put_fetched(o, time, step);
    moe_json_put(o, "time", time);
    return o;
}

/* --- the summary --- */

static json_t *layer_object(const moe_config *c, const moe_step_metrics *m, int32_t layer) {
    const moe_layer_metrics *l = &m->layer[layer];
    json_t *o = json_object();
    json_t *trained = trained_losses(c, l->loss);
    int64_t devices = m->devices, reach = devices < 64 ? devices : 64;
    moe_json_put(trained, "total", moe_json_number(l->total));
    moe_json_put(o, "loss", trained);
    moe_json_put(o, "loss_raw", losses_object(l->loss_raw, MOE_NUM_LOSSES));
    moe_json_put(o, "loss_ideal", losses_object(l->ideal, MOE_NUM_LOSSES));
    moe_json_put(o, "loss_by_scope", losses_by_scope(l));
    moe_json_put(o, "counts_per_expert", moe_json_integers(l->counts_per_expert, m->num_experts));
    moe_json_put(o, "kept_per_expert", moe_json_integers(l->kept_per_expert, m->num_experts));
    moe_json_put(o, "counts_per_device", moe_json_integers(l->counts_per_device, devices));
    moe_json_put(o, "distinct_tokens_per_device",
                 moe_json_integers(l->distinct_tokens_per_device, devices));
    moe_json_put(o, "sent_rows", moe_json_integers(l->sent_rows, devices));
    moe_json_put(o, "received_rows", moe_json_integers(l->received_rows, devices));
    moe_json_put(o, "selections", json_integer(l->selections));
    moe_json_put(o, "dropped", json_integer(l->dropped));
    if (l->capacity.on) {
        moe_json_put(o, "capacity", moe_summary_capacity(c, m, l));
    }
    moe_json_put(o, "mean_devices_per_token", moe_json_number(l->mean_devices));
    moe_json_put(o, "mean_devices_per_token_unlimited", moe_json_number(l->mean_devices_unlimited));
    moe_json_put(o, "mean_nodes_per_token", moe_json_number(l->mean_nodes));
    moe_json_put(o, "mean_remote_nodes_per_token", moe_json_number(l->mean_remote_nodes));
    moe_json_put(o, "mean_nodes_per_token_unlimited", moe_json_number(l->mean_nodes_unlimited));
    moe_json_put(o, "tokens_by_reach", moe_json_integers(l->tokens_by_reach, reach + 1));
    moe_json_put(o, "volume", volumes_object(c, l->volume));
    moe_json_put(o, "allreduce_bytes", json_integer(l->allreduce_bytes));
    moe_json_put(o, "output_rms", moe_json_number(l->output_rms));
    moe_json_put(o, "balance", layer_balance(c, m, layer));
    return o;
}

static void put_checks(json_t *o, const moe_step_metrics *m) {
    json_t *checks = json_object(), *details = json_object();
    for (int i = 0; i < m->num_checks; i++) {
        const moe_check *k = &m->check[i];
        moe_json_put(checks, k->name, k->made ? json_boolean(k->passed) : json_null());
        moe_json_put(details, k->name, moe_json_text(k->detail));
    }
    moe_json_put(o, "checks", checks);
    moe_json_put(o, "check_details", details);
}

static json_t *unknown_or(int32_t number) {
    return number < 0 ? json_null() : json_integer(number);
}

static json_t *gemm_array(const moe_topology *t) {
    json_t *list = json_array();
    for (int i = 0; i < t->num_gemm; i++) {
        const moe_gemm_kernels *k = &t->gemm[i];
        json_t *o = json_object();
        moe_json_put(o, "library", moe_json_text(k->library));
        moe_json_put(o, "version", moe_json_text(k->version));
        moe_json_put(o, "kernels", moe_json_text(k->kernels));
        moe_json_put(o, "slow", json_boolean(k->slow));
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *host_object(const moe_topology *t) {
    json_t *o = json_object();
    moe_json_put(o, "name", moe_json_text(t->host));
    moe_json_put(o, "processor", moe_json_text(t->processor));
    moe_json_put(o, "cores", json_integer(t->host_cores));
    moe_json_put(o, "hardware_threads", json_integer(t->host_pus));
    moe_json_put(o, "memory_bytes", json_integer(t->memory_bytes));
    moe_json_put(o, "oversubscribed", json_boolean(t->oversubscribed));
    moe_json_put(o, "synthetic", json_boolean(t->synthetic));
    moe_json_put(o, "gemm", gemm_array(t));
    return o;
}

static json_t *rank_object(const moe_topology *t, int rank, int32_t devices) {
    json_t *o = json_object();
    moe_json_put(o, "rank", json_integer(rank));
    moe_json_put(o, "host", moe_json_text(t->host));
    moe_json_put(o, "devices", json_integer(devices));
    moe_json_put(o, "threads", json_integer(t->threads));
    moe_json_put(o, "package", unknown_or(t->package));
    moe_json_put(o, "numa", unknown_or(t->numa));
    moe_json_put(o, "core", unknown_or(t->core));
    moe_json_put(o, "bound_cores", json_integer(t->bound_cores));
    moe_json_put(o, "l2_bytes", json_integer(t->l2_bytes));
    moe_json_put(o, "l3_bytes", json_integer(t->l3_bytes));
    return o;
}

static bool is_first_of_host(const moe_topology *t, int rank) {
    for (int before = 0; before < rank; before++) {
        if (!strcmp(t[before].host, t[rank].host)) {
            return false;
        }
    }
    return true;
}

/* Between ranks of a host, and between hosts; null where there are none. */
static json_t *transport_object(const moe_config *c, const moe_topology *t, int ranks) {
    const moe_reach reach = moe_topology_reach(t, ranks);
    const bool shared = moe_config_shares_memory(c);
    json_t *o = json_object();
    moe_json_put(o, "inside_host",
                 reach.inside ? json_string(shared ? "shared" : "alltoallv") : json_null());
    moe_json_put(o, "between_hosts", reach.between ? json_string("alltoallv") : json_null());
    return o;
}

static json_t *machine_object(const moe_config *c,
                              const moe_topology *t,
                              int ranks,
                              const moe_layer_metrics *layer) {
    json_t *o = json_object();
    json_t *hosts = json_array();
    json_t *list = json_array();
    for (int rank = 0; rank < ranks; rank++) {
        if (is_first_of_host(t, rank)) {
            json_array_append_new(hosts, host_object(&t[rank]));
        }
        json_array_append_new(list, rank_object(&t[rank], rank, c->cluster.devices / ranks));
    }
    moe_json_put(o, "hosts", hosts);
    moe_json_put(o, "ranks", list);
    moe_json_put(o, "transport", transport_object(c, t, ranks));
    moe_json_put(o, "metadata_block_bytes",
                 layer->metadata_block_bytes > 0 ? json_integer(layer->metadata_block_bytes)
                                                 : json_null());
    return o;
}

static json_t *time_object(const moe_config *c,
                           const moe_step_metrics *last,
                           const moe_run_times *times) {
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
    put_prediction(o, c, last);
    return o;
}

/* The steps whose matrices comm_matrix_steps.npy holds. */
static json_t *matrix_steps(const moe_step_metrics *last, int64_t steps) {
    int64_t step[MOE_MATRICES + 1];
    return moe_json_integers(
        step,
        steps > 0 ? moe_matrix_history_steps(last->num_layers, last->devices, steps, step) : 0);
}

/* What a decoder would remember of a token, with the model's attention and with the others. */
static json_t *kv_cache_object(const moe_config *c) {
    const moe_kv_cache k = moe_kv_cache_of(c);
    json_t *o = json_object(), *elements = json_object();
    moe_json_put(o, "kind", moe_json_text(moe_kv_cache_names[k.own]));
    moe_json_put(o, "elements_per_token", json_integer(k.elements[k.own]));
    moe_json_put(o, "bf16_bytes_per_token", json_integer(k.elements[k.own] * MOE_KV_CACHE_BF16));
    for (int kind = 0; kind < MOE_NUM_KV_CACHES; kind++) {
        moe_json_put(elements, moe_kv_cache_names[kind], json_integer(k.elements[kind]));
    }
    moe_json_put(o, "elements_by_kind", elements);
    moe_json_put(o, "gqa_groups", json_integer(k.groups));
    return o;
}

json_t *moe_summary_run(const moe_config *c,
                        const moe_step_metrics *last,
                        const moe_topology *topologies,
                        int ranks,
                        const moe_run_times *times,
                        const moe_training_history *history,
                        const moe_training_facts *facts) {
    moe_figures f = moe_figures_of(last);
    json_t *o = json_object();
    json_t *layers = json_array();
    json_t *trained = trained_losses(c, f.loss);
    moe_json_put(o, "version", moe_json_text(MOESIM_VERSION));
    moe_json_put(o, "config", moe_summary_config(c));
    moe_json_put(o, "devices", json_integer(last->devices));
    moe_json_put(o, "ranks", json_integer(ranks));
    moe_json_put(o, "steps", json_integer(times->steps));
    moe_json_put(o, "num_tokens", json_integer(last->num_tokens));
    moe_json_put(o, "comm_matrix_steps", matrix_steps(last, times->steps));
    put_checks(o, last);
    if (c->model.attention != MOE_ATTENTION_NONE) {
        moe_json_put(o, "kv_cache", kv_cache_object(c));
    }
    if (c->run.mode == MOE_MODE_TRAIN) {
        moe_json_put(o, "training", moe_summary_training(c, last, history, facts));
    }
    if (moe_balance_alpha_all_layers(&c->balance, moe_config_moe_layers(c)) > 0) {
        put_of_all_layers(trained, last, last->all_layers.loss);
    }
    moe_json_put(trained, "total", moe_json_number(f.total));
    moe_json_put(trained, "objective", moe_json_number(f.objective));
    moe_json_put(o, "loss", trained);
    moe_json_put(o, "loss_raw", raw_losses(last, f.raw));
    if (last->all_layers.on) {
        put_all_layers(o, last);
    }
    moe_json_put(o, "volume", volumes_object(c, f.volume));
    moe_json_put(o, "counted", counted_object(c, last, &f));
    if (last->payload_error.on) {
        const bool computes = c->model.compute != MOE_COMPUTE_FP32;
        moe_json_put(o, computes ? "compute_error" : "payload_error", payload_error_object(last));
    }
    moe_json_put(o, "allreduce_bytes", json_integer(f.allreduce_bytes));
    moe_json_put(o, "balance", mean_balance(c, last));
    for (int32_t l = 0; l < last->num_layers; l++) {
        json_array_append_new(layers, layer_object(c, last, l));
    }
    moe_json_put(o, "layers", layers);
    moe_json_put(o, "machine", machine_object(c, topologies, ranks, &last->layer[0]));
    json_t *time = time_object(c, last, times);
    if (last->rebalance_sum.on) {
        moe_json_put(o, "rebalance", rebalance_object(&last->rebalance_sum));
        moe_json_put(time, "rebalance", rebalance_time(&last->rebalance_sum));
    }
    put_fetched(o, time, last);
    moe_json_put(o, "time", time);
    return o;
}
