/* generation.c: the two parts of an exchange's time. */
#include "predict/generation.h"

#include "predict/cost.h"

moe_pass_exchange moe_pass_exchange_of(const moe_config *c, const moe_pass_figures *f) {
    const moe_cluster cluster = moe_cluster_of(c);
    const int32_t wide = c->cluster.model_hidden_size;
    const double wider = wide > 0 ? (double)wide / c->model.hidden_size : 1;
    const double share = wider / (2.0 * moe_config_moe_layers(c) * c->cluster.devices);
    const double node = share * f->bytes_by_level[MOE_LEVEL_NODE];
    const double far = share * f->bytes_by_level[MOE_LEVEL_CLUSTER];
    const moe_cost_traffic bytes = {node, node, far, far}, none = {0};
    const double latency = moe_cost_exchange(&cluster, &none, 1, 1);
    return (moe_pass_exchange){latency, moe_cost_exchange(&cluster, &bytes, 1, 1) - latency};
}
