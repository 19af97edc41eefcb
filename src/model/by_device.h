/* by_device.h: gate, router and balance losses of a layer device by device.
 *
 * Logits take tokens x experts, and the cells of sequences and devices devices x experts. Where a
 * rank hosts thousands of devices and nobody looks at either once the losses are known, a thread
 * makes them for one device, counts them and forgets them, so that memory grows with the tokens,
 * the experts and the threads only. What is chosen and counted is the same, bit for bit. */
#ifndef MOESIM_MODEL_BY_DEVICE_H
#define MOESIM_MODEL_BY_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "balance/scopes.h"
#include "base/block.h"
#include "base/sparse.h"
#include "data/batch.h"
#include "router/routing.h"
#include "router/settings.h"
#include "router/stats.h"

typedef struct moe_reached { /* distinct devices and nodes, of a token or summed over tokens */
    int64_t devices, nodes;
    int64_t remote_nodes; /* without the token's own node */
} moe_reached;

typedef struct moe_group_evidence { /* of the theorem on distinct groups (group_theorem.h) */
    int64_t tokens, bad;
} moe_group_evidence;

typedef struct moe_device_worker { /* what one thread works with */
    moe_scratch scratch;
    moe_router router; /* the layer's, with this scratch */
    moe_device_batch device;
    moe_block block;
    real *logits;       /* [tokens of a device, N], in block */
    moe_stats segments; /* cells of the device's segments */
    moe_routing routing;
    moe_scopes_part part;
    moe_reached unlimited; /* what this thread's share adds to those of moe_by_device */
    moe_group_evidence theorem;
    double seconds[3]; /* in the gate, the router and the losses */
} moe_device_worker;

typedef struct moe_by_device {
    bool on; /* this pass went device by device: there are neither logits nor cells */
    moe_device_worker *worker;
    int num_workers;
    moe_sparse_cell *distinct; /* of the tokens from device_offset[j] on, the first num_distinct[j]
                                  of top_k cells for each: (device, target, distinct tokens) of
                                  local device j, as the router counted them for f'' */
    int64_t *num_distinct;     /* [local devices] */
    moe_block block;           /* memory of these two */
    moe_reached unlimited;     /* what the tally asks of the logits, while they are there */
    moe_group_evidence theorem;
} moe_by_device;

struct moe_layer;
struct moe_context;
struct moe_activations;

/* Local. Fills a->routing and a->first_bad_token, and counts the losses in a->scopes, from x, u and
 * jittered vectors that are there already. shares [3], which sum to 1: the parts that gate, router
 * and losses had of the time. */
void moe_by_device_route(const struct moe_layer *layer,
                         const struct moe_context *context,
                         const moe_draw *draw,
                         struct moe_activations *a,
                         double shares[3]);

void moe_by_device_free(moe_by_device *d);

#endif
