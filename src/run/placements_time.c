/* placements_time.c: how long a step would take under a placement on the cluster of [cluster]. */
#include <string.h>

#include "base/alloc.h"
#include "exchange/row_format.h"
#include "predict/prediction.h"
#include "run/placements_internal.h"

/* The rows of tokens, counted by device pair. */
typedef struct counted {
    int32_t *from, *to;           /* [rows] of all hops */
    int64_t *served;              /* [slots] selections */
    int64_t *seen, *seen_node;    /* [D] the last token of each device, and of each node */
    int64_t rows, arriving;       /* rows, and those that arrive at experts */
    int64_t to_nodes, of_devices; /* rows across nodes, and the devices behind them */
} counted;

static void add_row(counted *n, int32_t from, int32_t to) {
    n->from[n->rows] = from;
    n->to[n->rows++] = to;
}

/* A pair of a token of device `home` in mode two_level: rows to its node and on to its device,
 * where the token does not go there already. */
static void count_two_hops(counted *n,
                           const moe_config *c,
                           int64_t t,
                           int32_t home,
                           int32_t device) {
    const int32_t per_node = c->cluster.devices_per_node, node = device / per_node;
    const int32_t relay = node * per_node + home % per_node;
    const bool new_node = n->seen_node[node] != t, new_device = n->seen[device] != t;
    const bool across = home / per_node != node;
    if (new_node) {
        add_row(n, home, relay);
    }
    if (new_device) {
        add_row(n, relay, device);
        n->arriving++;
    }
    n->to_nodes += new_node && across;
    n->of_devices += new_device && across;
    n->seen_node[node] = t;
}

/* One row for each choice in mode `selection`, for each token and device that serves it in mode
 * `token`. A token's choices on one device need not stand beside each other: `seen` has the last
 * token of each device. */
static void count_token(const moe_choices *choices,
                        int64_t t,
                        const int32_t *slot,
                        int32_t per_device,
                        const moe_config *c,
                        counted *n) {
    const bool selections = c->exchange.mode == MOE_EXCHANGE_SELECTION;
    for (int64_t i = t * choices->k; i < (t + 1) * choices->k; i++) {
        const int32_t device = slot[i] < 0 ? -1 : slot[i] / per_device;
        if (device < 0) {
            continue;
        }
        n->served[slot[i]]++;
        if (c->exchange.mode == MOE_EXCHANGE_TWO_LEVEL) {
            count_two_hops(n, c, t, choices->home[t], device);
        } else if (selections || n->seen[device] != t) {
            add_row(n, choices->home[t], device);
            n->arriving++;
        }
        n->seen[device] = t;
    }
}

static double ratio(int64_t part, int64_t whole) {
    return whole > 0 ? (double)part / (double)whole : 1;
}

moe_placed_cost moe_comparison_cost(const moe_comparison *x,
                                    const moe_balancer_answer *a,
                                    const moe_choices *choices,
                                    const int32_t *slot) {
    const int32_t devices = x->config->cluster.devices;
    moe_config c = *x->config;
    c.run.mode = MOE_MODE_FORWARD;
    c.cluster.model_layers = c.cluster.model_layers > 0 ? c.cluster.model_layers : x->source.layers;
    const int64_t most = moe_row_format_hops(c.exchange.mode) * choices->num_tokens * choices->k;
    counted n = {.from = moe_alloc(2 * most, sizeof *n.from, "prediction"),
                 .served = moe_alloc_zero(a->slots, sizeof *n.served, "prediction"),
                 .seen = moe_alloc(2 * (int64_t)devices, sizeof *n.seen, "prediction")};
    n.to = n.from + most;
    n.seen_node = n.seen + devices;
    memset(n.seen, 0xff, 2 * (size_t)devices * sizeof *n.seen); /* no token: -1 */
    for (int64_t t = 0; t < choices->num_tokens; t++) {
        count_token(choices, t, slot, a->slots_per_device, &c, &n);
    }
    moe_sparse sparse = {0};
    moe_sparse_count(&sparse, n.from, n.to, n.rows, devices, devices);
    const moe_layer_counts counts = {.matrix = &sparse,
                                     .slots = a->slots,
                                     .served = n.served,
                                     .arriving = ratio(n.arriving, n.rows),
                                     .across_back = c.exchange.node_sum || n.to_nodes == 0
                                                        ? 1
                                                        : ratio(n.of_devices, n.to_nodes)};
    const moe_prediction p = moe_prediction_of_counts(&c, &counts, 1, choices->num_tokens, 0);
    moe_sparse_free(&sparse);
    moe_free(n.from);
    moe_free(n.served);
    moe_free(n.seen);
    return (moe_placed_cost){.seconds = p.seconds[MOE_PREDICTED_STEP],
                             .balanced = p.balanced[MOE_PREDICTED_STEP],
                             .bytes = p.bytes};
}
