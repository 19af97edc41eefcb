/* unit_figures.c: sums and means over layers against the figures of the layers. */
#include <stddef.h>
#include <string.h>

#include "check.h"
#include "made_record.h"
#include "measure/figures.h"

enum { LAYERS = 3, EXPERTS = 48, DEVICES = 8, PER_NODE = 4, TOKENS = 100 };

static moe_step_metrics made(void) {
    moe_config c;
    moe_step_metrics m;
    made_config(&c, LAYERS, EXPERTS, DEVICES, PER_NODE);
    moe_step_metrics_init(&m, LAYERS, EXPERTS, DEVICES);
    made_record(&m, &c, 1, TOKENS);
    return m;
}

static void check_volume(void) {
    moe_step_metrics m = made();
    moe_figures f = moe_figures_of(&m);
    const moe_volume *v = &f.volume[MOE_COMBINE];
    CHECK(v->rows == 3 * 300 && v->logical_bytes == 900 * MADE_ROW_BYTES &&
          v->metadata_bytes == 900 * MADE_METADATA_BYTES);
    CHECK(v->selection_bytes == 1800 * MADE_ROW_BYTES &&
          v->selection_remote_bytes == 2 * v->remote_bytes);
    CHECK_EQ(v->by_level[0].rows + v->by_level[1].rows + v->by_level[2].rows, v->rows);
    CHECK_EQ(v->remote_bytes, v->by_level[1].bytes + v->by_level[2].bytes);
    CHECK(f.row_bytes == MADE_ROW_BYTES);
    CHECK_EQ(f.selections, LAYERS * TOKENS * MADE_TOP_K);
    CHECK_EQ(f.tokens_by_reach[MADE_LIMIT], LAYERS * TOKENS);
    CHECK_NEAR(f.token_rows, (double)v->rows, 1e-12);
    CHECK_EQ(f.allreduce_bytes, LAYERS * 4096);
    moe_step_metrics_free(&m);
}

static void check_losses(void) {
    moe_step_metrics m = made();
    moe_figures f = moe_figures_of(&m);
    CHECK_NEAR(f.raw[0],
               (m.layer[0].loss_raw[0] + m.layer[1].loss_raw[0] + m.layer[2].loss_raw[0]) / 3,
               1e-15);
    CHECK_NEAR(f.loss[1], 0.05 * f.raw[1], 1e-14);
    CHECK_NEAR(f.total, f.loss[0] + f.loss[1] + f.loss[2] + f.loss[3], 1e-14);
    CHECK_NEAR(f.objective, 3 * f.total, 1e-14);
    CHECK(f.ideal[MOE_LOSS_EXPERT] == 1 && isnan(f.ideal[MOE_LOSS_Z]));
    CHECK_NEAR(f.raw_by_scope[2][1], f.raw[1] + 0.02, 1e-14);
    m.layer[1].loss_raw[2] = NAN;
    m.all_layers.loss = 0.25;
    moe_figures other = moe_figures_of(&m);
    CHECK(isnan(other.raw[2]) && !isnan(other.raw[1]));
    CHECK_NEAR(other.total, f.total + 0.25, 1e-14);
    CHECK_NEAR(other.objective, f.objective + 0.25, 1e-14);
    moe_step_metrics_free(&m);
}

static void check_balance(void) {
    moe_step_metrics m = made();
    moe_figures f = moe_figures_of(&m);
    moe_imbalance mean[MOE_NUM_LOADS], layer[MOE_NUM_LOADS];
    double received = 0;
    moe_figures_balance(&m, PER_NODE, mean);
    for (int32_t l = 0; l < LAYERS; l++) {
        const int64_t *sent = m.layer[l].sent_rows;
        int64_t nodes[2] = {sent[0] + sent[1] + sent[2] + sent[3],
                            sent[4] + sent[5] + sent[6] + sent[7]};
        moe_figures_layer_balance(&m, l, PER_NODE, layer);
        CHECK(layer[MOE_LOAD_OF_NODE_SENT].gini == moe_imbalance_of(nodes, 2).gini);
        received += moe_imbalance_of(m.layer[l].received_rows, DEVICES).cv / LAYERS;
    }
    CHECK_NEAR(mean[MOE_LOAD_OF_RECEIVED].cv, received, 1e-14);
    CHECK_NEAR(mean[MOE_LOAD_OF_EXPERT].maxvio, f.expert_maxvio, 1e-14);
    CHECK_NEAR(mean[MOE_LOAD_OF_DEVICE].maxvio, f.device_maxvio, 1e-14);
    CHECK_NEAR(mean[MOE_LOAD_OF_DEVICE].max_over_mean, f.device_max_over_mean, 1e-14);
    moe_figures_layer_balance(&m, 0, 0, layer);
    CHECK(layer[MOE_LOAD_OF_NODE].max_over_mean == 1 && layer[MOE_LOAD_OF_NODE].idle == 0);
    CHECK_STR(moe_load_names[MOE_LOAD_OF_NODE_RECEIVED], "node_received");
    moe_step_metrics_free(&m);
}

static void check_sum_layers(void) {
    moe_step_metrics m = made();
    int64_t sum[EXPERTS];
    moe_figures_sum_layers(&m, offsetof(moe_layer_metrics, counts_per_expert), EXPERTS, sum);
    for (int32_t e = 0; e < EXPERTS; e++) {
        CHECK_EQ(sum[e], m.layer[0].counts_per_expert[e] + m.layer[1].counts_per_expert[e] +
                             m.layer[2].counts_per_expert[e]);
    }
    moe_step_metrics_free(&m);
}

int main(void) {
    RUN(check_volume);
    RUN(check_losses);
    RUN(check_balance);
    RUN(check_sum_layers);
    return check_verdict();
}
