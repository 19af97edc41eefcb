/* placements_time.c: how long a step would take under a placement on the cluster of [cluster]. */
#include <string.h>

#include "base/alloc.h"
#include "predict/prediction.h"
#include "run/placements_internal.h"

/* One row for each choice in mode `selection`, for each token and device that serves it in mode
 * `token`. A token's choices on one device need not stand beside each other: `seen` has the last
 * token of each device. */
static void count_token(const moe_choices *choices,
                        int64_t t,
                        const int32_t *slot,
                        int32_t per_device,
                        const moe_config *c,
                        int64_t *matrix,
                        int64_t *served,
                        int64_t *seen) {
    const bool selections = c->exchange.mode == MOE_EXCHANGE_SELECTION;
    for (int64_t i = t * choices->k; i < (t + 1) * choices->k; i++) {
        const int32_t device = slot[i] < 0 ? -1 : slot[i] / per_device;
        if (device < 0) {
            continue;
        }
        served[slot[i]]++;
        if (selections || seen[device] != t) {
            seen[device] = t;
            matrix[(int64_t)choices->home[t] * c->cluster.devices + device]++;
        }
    }
}

moe_placed_cost moe_comparison_cost(const moe_comparison *x,
                                    const moe_balancer_answer *a,
                                    const moe_choices *choices,
                                    const int32_t *slot) {
    const int32_t devices = x->config->cluster.devices;
    moe_config c = *x->config;
    c.run.mode = MOE_MODE_FORWARD;
    c.cluster.model_layers = c.cluster.model_layers > 0 ? c.cluster.model_layers : x->source.layers;
    int64_t *matrix = moe_alloc_zero((int64_t)devices * devices, sizeof *matrix, "prediction"),
            *served = moe_alloc_zero(a->slots, sizeof *served, "prediction"),
            *seen = moe_alloc(devices, sizeof *seen, "prediction");
    memset(seen, 0xff, (size_t)devices * sizeof *seen); /* no token: -1 */
    for (int64_t t = 0; t < choices->num_tokens; t++) {
        count_token(choices, t, slot, a->slots_per_device, &c, matrix, served, seen);
    }
    moe_sparse sparse = {0};
    moe_sparse_from_array(&sparse, matrix, devices, devices);
    const moe_layer_counts counts = {.matrix = &sparse, .slots = a->slots, .served = served};
    const moe_prediction p = moe_prediction_of_counts(&c, &counts, 1, choices->num_tokens, 0);
    moe_sparse_free(&sparse);
    moe_free(matrix);
    moe_free(served);
    moe_free(seen);
    return (moe_placed_cost){.seconds = p.seconds[MOE_PREDICTED_STEP],
                             .balanced = p.balanced[MOE_PREDICTED_STEP],
                             .bytes = p.bytes};
}
