/* reach.h: the devices and nodes that tokens reach, from the routing alone. */
#ifndef MOESIM_MODEL_REACH_H
#define MOESIM_MODEL_REACH_H

#include "model/layer.h"

/* Local. The device that serves an expert's pair of token `token` of a batch, which is the rank's
 * or one of a device. */
static inline int32_t moe_reach_device(const moe_layer *layer,
                                       const moe_batch *batch,
                                       int32_t expert,
                                       int64_t token) {
    const moe_placement *p = layer->placement;
    const int64_t number = batch->first_token + token;
    return moe_placement_device(p, expert, number,
                                p->replicated ? moe_batch_device_of(batch, number) : 0);
}

/* Local. How many distinct devices serve the k experts of such a token, and on how many nodes.
 * stamp [2 D], cleared at first, remembers the last token for each device, and behind them for each
 * node; each call is for another token. by_device [D], unless it is NULL, grows by what each device
 * serves. */
moe_reached moe_reach_of(const moe_layer *layer,
                         const moe_context *context,
                         const moe_batch *batch,
                         int64_t token,
                         const int32_t *expert,
                         int64_t k,
                         int64_t *stamp,
                         int64_t *by_device);

/* Local. Whether there is a group limit on a routing that is computed here. */
bool moe_reach_has_limit(const moe_context *context);

/* Local. Summed over the tokens of the batch, what they would reach without the group limit; 0
 * where there is none. OpenMP over tokens. */
moe_reached moe_reach_unlimited(const moe_layer *layer,
                                const moe_context *context,
                                const moe_batch *batch,
                                moe_logits logits);

#endif
