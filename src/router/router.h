/* router.h: all tokens of a rank, from logits to experts and combine weights, and the counts and
 * sums beside them that the balance losses need. docs/method.md section 1.
 *
 * Per token: z [N] -> scores s = score_func(z) -> selection score s + b -> group limit -> top K ->
 * weights g from s. Among equals the higher score comes first, then the lower index, for groups and
 * for experts. A logit of -inf disables an expert for that token: its score is 0, and it is never
 * selected. Where fewer than K experts are available, what there is, is taken. Results are the same
 * bits at any vector width and any number of threads. */
#ifndef MOESIM_ROUTER_ROUTER_H
#define MOESIM_ROUTER_ROUTER_H

#include <stdint.h>

#include "config/config.h"
#include "data/batch.h"
#include "placement/placement.h"
#include "router/routing.h"
#include "router/settings.h"
#include "router/smooth_load.h"
#include "router/stats.h"

/* Local. Fills in a router from the sections of a resolved configuration. bias [N] may be NULL. */
void moe_router_init(moe_router *r,
                     const moe_router_config *c,
                     const moe_balance_config *balance,
                     int32_t num_experts,
                     int32_t devices,
                     const double *bias);

/* Local. Fills routing, whose memory it reserves, and adds every counted token to the cell of its
 * segment: stats has batch->num_segments cells, which the caller has cleared. OpenMP over tokens.
 * noisy is what a smooth load looks at in training, else NULL.
 *
 * first_bad_token = the smallest local token with NaN or +inf logits, or with |logsumexp| >=
 * MOE_LOGIT_LIMIT, or -1. A bad token selects nobody and is not counted; padding that the batch
 * drops selects nobody either, and its logits are not looked at. For
 * routing->unconverged_device see routing.h. */
void moe_router_route(const moe_router *r,
                      const moe_draw *draw,
                      const moe_batch *batch,
                      const moe_placement *placement,
                      moe_logits logits,
                      const moe_noisy *noisy,
                      moe_routing *routing,
                      moe_stats *stats,
                      int64_t *first_bad_token);

/* Local. The same for a routing that was recorded, not computed: expert ids idx [T,k] (-1 = none),
 * weights [T,k] or NULL (then g = the score, or 1/k' without scores, k' the token's number of
 * experts), scores [T,N] or NULL (then the score sums stay 0). Puts each token's experts in the
 * order of routing.h. */
void moe_router_route_recorded(const moe_router *r,
                               const moe_batch *batch,
                               const moe_placement *placement,
                               const int32_t *idx,
                               int32_t k,
                               const real *weights,
                               const double *scores,
                               moe_routing *routing,
                               moe_stats *stats);

#endif
