/* figures.c: sums and means over the layers of a step. Each is added up in the order of the layers,
 * so that its bits are the same wherever it is shown. */
#include "measure/figures.h"

#include <string.h>

#include "base/alloc.h"
#include "exchange/row_format.h"

const char *const moe_load_names[MOE_NUM_LOADS] = {
#define LOAD(id, key, title) key,
#include "measure/names.def"
};

static void add_losses(moe_figures *f, const moe_layer_metrics *l, int32_t layers) {
    for (int i = 0; i < MOE_NUM_LOSSES; i++) {
        f->loss[i] += l->loss[i] / layers;
        f->raw[i] += l->loss_raw[i] / layers;
        f->ideal[i] += l->ideal[i] / layers;
        for (int scope = 0; scope < MOE_NUM_SCOPES; scope++) {
            f->raw_by_scope[scope][i] += l->loss_by_scope[scope][i] / layers;
        }
    }
    f->total += l->total / layers;
    f->objective += l->total;
}

static void add_traffic(moe_figures *f, const moe_layer_metrics *l, int64_t num_tokens) {
    for (int direction = 0; direction < MOE_NUM_DIRECTIONS; direction++) {
        moe_volume_add(&f->volume[direction], &l->volume[direction]);
    }
    f->selections += l->selections;
    f->dropped += l->dropped;
    f->allreduce_bytes += l->allreduce_bytes;
    for (int reach = 0; reach < 65; reach++) {
        f->tokens_by_reach[reach] += l->tokens_by_reach[reach];
    }
    f->token_rows += l->mean_devices * (double)num_tokens;
    moe_capacity_metrics_add(&f->capacity, &l->capacity);
}

static void add_load(moe_figures *f, const moe_layer_metrics *l, const moe_step_metrics *m) {
    double expert = moe_imbalance_max_over_mean(l->counts_per_expert, m->num_experts);
    double device = moe_imbalance_max_over_mean(l->counts_per_device, m->devices);
    double received = moe_imbalance_max_over_mean(l->received_rows, m->devices);
    f->mean_devices += l->mean_devices / m->num_layers;
    f->mean_devices_unlimited += l->mean_devices_unlimited / m->num_layers;
    f->expert_maxvio += (expert - 1) / m->num_layers;
    f->device_maxvio += (device - 1) / m->num_layers;
    f->received_maxvio += (received - 1) / m->num_layers;
    f->device_max_over_mean += device / m->num_layers;
}

moe_figures moe_figures_of(const moe_step_metrics *m) {
    moe_figures f = {.total = m->all_layers.loss, .objective = m->all_layers.loss};
    for (int32_t layer = 0; layer < m->num_layers; layer++) {
        const moe_layer_metrics *l = &m->layer[layer];
        add_losses(&f, l, m->num_layers);
        add_traffic(&f, l, m->num_tokens);
        add_load(&f, l, m);
        for (int phase = 0; phase < MOE_NUM_PHASES; phase++) {
            f.phase_seconds[phase] += l->phase_seconds[phase];
        }
    }
    const moe_volume *dispatch = &f.volume[MOE_DISPATCH];
    if (dispatch->rows > 0) {
        f.row_bytes = (double)dispatch->logical_bytes / (double)dispatch->rows;
    }
    return f;
}

moe_counted moe_counted_of(const moe_config *c, const moe_figures *f) {
    const enum moe_row_protocol p = c->exchange.row_protocol;
    int64_t hidden = c->cluster.model_hidden_size, k = c->router.top_k;
    if (hidden == 0) {
        hidden = c->model.hidden_size;
    }
    moe_counted n = {.hidden = hidden,
                     .out_row = moe_row_format_wire_bytes(p, MOE_PAYLOAD_FP8, hidden, k, false),
                     .back_row = moe_row_format_wire_bytes(p, MOE_PAYLOAD_BF16, hidden, k, true)};
    n.out = f->volume[MOE_DISPATCH].rows * n.out_row;
    n.back = f->volume[MOE_COMBINE].rows * n.back_row;
    return n;
}

/* --- balance --- */

/* The balance of the sums over the devices of each node. */
static moe_imbalance of_nodes(const int64_t *by_device, int32_t devices, int32_t devices_per_node) {
    int32_t per_node = devices_per_node > 0 ? devices_per_node : devices;
    int32_t nodes = (devices + per_node - 1) / per_node;
    int64_t *sum = moe_alloc_zero(nodes, sizeof *sum, "loads by node");
    for (int32_t d = 0; d < devices; d++) {
        sum[d / per_node] += by_device[d];
    }
    moe_imbalance balance = moe_imbalance_of(sum, nodes);
    moe_free(sum);
    return balance;
}

void moe_figures_layer_balance(const moe_step_metrics *m,
                               int32_t layer,
                               int32_t devices_per_node,
                               moe_imbalance balance[MOE_NUM_LOADS]) {
    const moe_layer_metrics *l = &m->layer[layer];
    const struct {
        enum moe_load device, node;
        const int64_t *load;
    } by_device[] = {{MOE_LOAD_OF_DEVICE, MOE_LOAD_OF_NODE, l->counts_per_device},
                     {MOE_LOAD_OF_RECEIVED, MOE_LOAD_OF_NODE_RECEIVED, l->received_rows},
                     {MOE_LOAD_OF_SENT, MOE_LOAD_OF_NODE_SENT, l->sent_rows}};
    balance[MOE_LOAD_OF_EXPERT] = moe_imbalance_of(l->counts_per_expert, m->num_experts);
    for (size_t i = 0; i < sizeof by_device / sizeof by_device[0]; i++) {
        balance[by_device[i].device] = moe_imbalance_of(by_device[i].load, m->devices);
        balance[by_device[i].node] = of_nodes(by_device[i].load, m->devices, devices_per_node);
    }
}

void moe_figures_balance(const moe_step_metrics *m,
                         int32_t devices_per_node,
                         moe_imbalance mean[MOE_NUM_LOADS]) {
    moe_imbalance one[MOE_NUM_LOADS];
    memset(mean, 0, MOE_NUM_LOADS * sizeof *mean);
    for (int32_t layer = 0; layer < m->num_layers; layer++) {
        moe_figures_layer_balance(m, layer, devices_per_node, one);
        for (int load = 0; load < MOE_NUM_LOADS; load++) {
            moe_imbalance_add(&mean[load], &one[load], 1.0 / m->num_layers);
        }
    }
}

void moe_figures_sum_layers(const moe_step_metrics *m, size_t member, int64_t n, int64_t *sum) {
    memset(sum, 0, (size_t)n * sizeof *sum);
    for (int32_t layer = 0; layer < m->num_layers; layer++) {
        const int64_t *counts = *(int64_t *const *)((const char *)&m->layer[layer] + member);
        for (int64_t i = 0; i < n; i++) {
            sum[i] += counts[i];
        }
    }
}
