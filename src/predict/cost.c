/* cost.c: the formulas of cost.h. */
#include "predict/cost.h"

#include <math.h>

static const double GIGA = 1e9, TERA = 1e12, MICRO = 1e-6;

moe_cluster moe_cluster_of(const moe_config *c) {
    const moe_cluster_config *k = &c->cluster;
    return (moe_cluster){.devices = k->devices,
                         .devices_per_node = k->devices_per_node,
                         .intra_rate = k->intra_gbps * GIGA * k->link_efficiency,
                         .inter_rate = k->inter_gbps * GIGA * k->link_efficiency,
                         .intra_latency = k->intra_latency_us * MICRO,
                         .inter_latency = k->inter_latency_us * MICRO,
                         .exchange_seconds = k->exchange_us * MICRO,
                         .flop_rate = k->device_tflops * TERA * k->efficiency,
                         .half_rows = k->gemm_half_rows,
                         .memory_rate = k->memory_gbps * GIGA * k->memory_efficiency,
                         .launch_seconds = k->launch_us * MICRO,
                         .router_seconds = k->router_ns * 1e-3 * MICRO,
                         .device_price = k->price_per_hour / 3600};
}

static int32_t nodes_of(const moe_cluster *k) {
    return (k->devices + k->devices_per_node - 1) / k->devices_per_node;
}

double moe_cost_latency(const moe_cluster *k) {
    const int32_t nodes = nodes_of(k),
                  inside = k->devices < k->devices_per_node ? k->devices : k->devices_per_node;
    return k->intra_latency * log2(inside) + (nodes > 1 ? k->inter_latency * (1 + log2(nodes)) : 0);
}

/* --- exchanges --- */

double moe_cost_exchange(const moe_cluster *k,
                         const moe_cost_traffic *rows,
                         double row_bytes,
                         int32_t parts) {
    if (k->devices <= 1) {
        return 0;
    }
    const double intra = fmax(rows->intra_sent, rows->intra_received) * row_bytes / k->intra_rate,
                 inter = fmax(rows->inter_sent, rows->inter_received) * row_bytes / k->inter_rate;
    return parts * (k->exchange_seconds + moe_cost_latency(k)) + fmax(intra, inter);
}

double moe_cost_allreduce(const moe_cluster *k, double bytes) {
    if (k->devices <= 1 || bytes <= 0) {
        return 0;
    }
    const double rate = nodes_of(k) > 1 ? fmin(k->inter_rate, k->intra_rate) : k->intra_rate,
                 share = (double)(k->devices - 1) / k->devices;
    return k->exchange_seconds + 2 * moe_cost_latency(k) + 2 * share * bytes / rate;
}

/* --- experts --- */

double moe_cost_product(const moe_cluster *k, double m, double weights, double weight_bytes) {
    if (m <= 0) {
        return 0;
    }
    return fmax(2 * weights * (m + k->half_rows) / k->flop_rate,
                weights * weight_bytes / k->memory_rate);
}

double moe_cost_expert_pass(const moe_cost_expert *e, double arrived, double selections) {
    const double hidden_vectors = fmax(e->matrices - 1, 0);
    const double an_arrived = e->hidden * (e->in_bytes + e->out_bytes);
    const double a_selection = e->hidden * (e->in_bytes + 2 * e->out_bytes) +
                               e->intermediate * (2 * hidden_vectors * e->out_bytes +
                                                  fmin(hidden_vectors, 1) * e->in_bytes);
    return arrived * an_arrived + selections * a_selection;
}

double moe_cost_experts(const moe_cluster *k, double products, double pass_bytes) {
    const double work = products + pass_bytes / k->memory_rate;
    return cbrt(pow(k->launch_seconds, 3) + pow(work, 3));
}
