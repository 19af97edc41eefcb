/* cost.h: how long one phase takes on one device of a cluster that is described by a few numbers.
 * Each formula stands here once; prediction.c puts the phases of a step together.
 *
 * Every formula is monotone: more bytes, rows or latency never make a phase faster, and a better
 * cluster never makes it slower. Units are SI: seconds, bytes a second, FLOP a second. */
#ifndef MOESIM_PREDICT_COST_H
#define MOESIM_PREDICT_COST_H

#include <stdbool.h>
#include <stdint.h>

#include "attention/shape.h"
#include "config/config.h"

/* A cluster as the formulas see it: bandwidths and speeds are those that are reached. */
typedef struct moe_cluster {
    int32_t devices, devices_per_node;
    double intra_rate, inter_rate; /* bytes a second of one device and direction */
    double intra_latency;          /* s for each doubling of the devices of a node */
    double inter_latency;          /* s once, and for each doubling of the nodes */
    double exchange_seconds;       /* fixed cost of an exchange */
    double flop_rate;              /* of large matrix products */
    double half_rows;              /* rows with which a product reaches half of it */
    double memory_rate;
    double launch_seconds; /* least time of the experts of a layer */
    double router_seconds; /* of the router for each token and expert */
    double device_price;   /* of a device for a second; 0: unknown */
} moe_cluster;

/* Local. The cluster of a resolved configuration. */
moe_cluster moe_cluster_of(const moe_config *c);

/* Local. How many levels of doubling separate the devices: with g devices in a node and n nodes
 *
 *     latency = intra_latency log2 g + [n > 1] inter_latency (1 + log2 n)
 *
 * A barrier or an all-to-all spreads along a tree, which costs a message for each doubling. */
double moe_cost_latency(const moe_cluster *cluster);

/* Rows or bytes of one device in one exchange that leave it. */
typedef struct moe_cost_traffic {
    double intra_sent, intra_received, inter_sent, inter_received;
} moe_cost_traffic;

/* Local. An exchange of rows of `row_bytes` in `parts` pieces:
 *
 *     t = parts (exchange_seconds + latency) + max over links of (bytes / rate)
 *
 * with the four links of a device: out and in, to its node and to other nodes, which work at the
 * same time. One constant and one bandwidth a direction describe DeepEP's exchanges to a few
 * percent (moesim --verify predict). 0 for a single device. */
double moe_cost_exchange(const moe_cluster *cluster,
                         const moe_cost_traffic *rows,
                         double row_bytes,
                         int32_t parts);

/* Local. An allreduce of `bytes` of each of D devices along a ring (Thakur et al. 2005), there and
 * back through the tree of latencies:
 *
 *     t = exchange_seconds + 2 latency + 2 (D-1)/D bytes / rate
 *
 * where rate is that of the slowest link on the ring. 0 without bytes and for a single device. */
double moe_cost_allreduce(const moe_cluster *cluster, double bytes);

/* Local. A product of m rows with matrices of `weights` numbers of `weight_bytes`:
 *
 *     t = max(2 weights (m + half_rows) / flop_rate, weights weight_bytes / memory_rate)
 *
 * The first term is the small-m curve rate(m) = flop_rate m / (m + half_rows): tiles of rows that
 * are not full, and filling the pipeline. The second is reading the weights, which binds where m is
 * small (roofline, Williams et al. 2009). 0 for m <= 0. */
double moe_cost_product(const moe_cluster *cluster, double m, double weights, double weight_bytes);

/* The experts' network, and the formats it computes in. */
typedef struct moe_cost_expert {
    double hidden, intermediate; /* H, F */
    double matrices;             /* of [H,F] each */
    double in_bytes, out_bytes;  /* of a number of a dispatched vector and of weights; of results */
} moe_cost_expert;

/* Local. The bytes that pass through a device's memory beside the products: each row that arrived
 * is read and its result written, and for each selection a vector is laid out for the product,
 * hidden vectors are written, read and activated, and the result is written and read:
 *
 *     arrived (H in + H out) + selections (H in + 2 (matrices-1) F out + F in + 2 H out) */
double moe_cost_expert_pass(const moe_cost_expert *e, double arrived, double selections);

/* Local. The experts of one device and layer from the sum of their products and the pass:
 *
 *     work = products + pass / memory_rate          t = (launch^3 + work^3)^(1/3)
 *
 * a maximum of launching and working with a soft corner, since some kernels wait and others do
 * not. 0 where there is neither launch nor work. */
double moe_cost_experts(const moe_cluster *cluster, double products, double pass_bytes);

/* Causal attention of one device in one layer. */
typedef struct moe_cost_attention {
    moe_attention_shape shape;
    double wider;          /* all widths are so many times those of the shape */
    double tokens, length; /* of the device, in sequences of so many */
    double number_bytes;   /* of a weight and of a number of a vector */
} moe_cost_attention;

/* Local. Its forward pass: products with the matrices of its shape, scores and sums with all tokens
 * up to one's own, which never leave the chip (FlashAttention, Dao 2023, arXiv 2307.08691), and its
 * norm. With n heads, n_k of keys, key and value of k and v numbers, T tokens, sequences of L:
 *
 *     t = sum over matrices product(T, weights)
 *         + max(2 n (k + v) T (L + 1) / 2 / flop_rate, (n + n_k) (k + v) T bytes / memory_rate)
 *         + 2 H T bytes / memory_rate
 *
 * Backward has two products for each of forward, and 5 for 2 between tokens, as the scores are
 * computed again (section 3.1.2 there); with `recompute` it does forward once more. */
double moe_cost_attention_forward(const moe_cluster *cluster, const moe_cost_attention *a);
double moe_cost_attention_backward(const moe_cluster *cluster,
                                   const moe_cost_attention *a,
                                   bool recompute);

#endif
