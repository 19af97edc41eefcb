/* figures.h: the figures of a step over its layers. Sums and means over layers are computed here
 * and nowhere else; screen, JSON and training history are handed the results. */
#ifndef MOESIM_MEASURE_FIGURES_H
#define MOESIM_MEASURE_FIGURES_H

#include <stddef.h>
#include <stdint.h>

#include "measure/imbalance.h"
#include "measure/metrics.h"

/* Means are NaN where a layer's figure is not defined. */
typedef struct moe_figures {
    /* Losses: means over layers. */
    double loss[MOE_NUM_LOSSES];                         /* times alpha */
    double raw[MOE_NUM_LOSSES];                          /* alpha = 1, scope that trains */
    double ideal[MOE_NUM_LOSSES];                        /* at perfect balance, alpha = 1 */
    double raw_by_scope[MOE_NUM_SCOPES][MOE_NUM_LOSSES]; /* alpha = 1 */
    double total;     /* mean of the layers' totals, and the loss over all layers once */
    double objective; /* what training adds to the loss of the task: the sum instead of the mean */

    /* Traffic: sums over layers. */
    moe_volume volume[MOE_NUM_DIRECTIONS];
    double row_bytes; /* payload of one dispatch row; 0 without rows */
    int64_t selections, dropped, allreduce_bytes;
    int64_t tokens_by_reach[65];
    double token_rows; /* rows of mode `token` before dropping: one per token and device */
    moe_capacity_metrics capacity; /* without sequences */

    /* Devices and load: means over layers. */
    double mean_devices;           /* devices per token */
    double mean_devices_unlimited; /* the same without the group limit */
    double expert_maxvio, device_maxvio, received_maxvio;
    double device_max_over_mean;

    double phase_seconds[MOE_NUM_PHASES]; /* sums over layers */
} moe_figures;

/* Local. The figures of a step. It allocates nothing. */
moe_figures moe_figures_of(const moe_step_metrics *m);

typedef struct moe_counted { /* the rows of a step in the bytes of a real system */
    int64_t hidden;
    int64_t out_row, back_row; /* bytes of a row */
    int64_t out, back;         /* of all rows of dispatch and combine */
} moe_counted;

/* Local. exchange.row_protocol on cluster.model_hidden_size: fp8 out, bf16 back. The rows are those
 * of the run's mode. */
moe_counted moe_counted_of(const moe_config *c, const moe_figures *f);

/* The loads whose balance is measured, MOE_LOAD_OF_EXPERT and so on: see names.def. */
enum moe_load {
#define LOAD(id, key, title) MOE_LOAD_OF_##id,
#include "measure/names.def"
    MOE_NUM_LOADS
};
extern const char *const moe_load_names[MOE_NUM_LOADS]; /* keys in JSON */

/* Local. The balance of each load of one layer. A load by node is the sum over the node's devices;
 * devices_per_node = 0 stands for one node. */
void moe_figures_layer_balance(const moe_step_metrics *m,
                               int32_t layer,
                               int32_t devices_per_node,
                               moe_imbalance balance[MOE_NUM_LOADS]);

/* Local. The same as means over layers. */
void moe_figures_balance(const moe_step_metrics *m,
                         int32_t devices_per_node,
                         moe_imbalance mean[MOE_NUM_LOADS]);

/* Local. sum [n] = the sum over layers of one of the layers' arrays of n counts, which is named by
 * its place: member = offsetof(moe_layer_metrics, matrix), for example. */
void moe_figures_sum_layers(const moe_step_metrics *m, size_t member, int64_t n, int64_t *sum);

#endif
