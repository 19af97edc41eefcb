/* generation.c: the two parts of an exchange's time. */
#include "predict/generation.h"

#include "predict/cost.h"

moe_pass_exchange moe_pass_exchange_of(const moe_config *c, const moe_pass_figures *f) {
    const moe_cluster cluster = moe_cluster_of(c);
    const double exchanges = 2.0 * moe_config_moe_layers(c) * c->cluster.devices;
    const double node = f->bytes_by_level[MOE_LEVEL_NODE] / exchanges;
    const double far = f->bytes_by_level[MOE_LEVEL_CLUSTER] / exchanges;
    const moe_cost_traffic bytes = {node, node, far, far}, none = {0};
    const double latency = moe_cost_exchange(&cluster, &none, 1, 1);
    return (moe_pass_exchange){latency, moe_cost_exchange(&cluster, &bytes, 1, 1) - latency};
}
