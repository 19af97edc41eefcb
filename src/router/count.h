/* count.h: what a routed token adds to the statistics of its segment: counts, and exact sums of
 * scores and weights. Both the computed and the recorded routing are counted here. */
#ifndef MOESIM_ROUTER_COUNT_H
#define MOESIM_ROUTER_COUNT_H

#include <stdint.h>

#include "data/batch.h"
#include "placement/placement.h"
#include "router/routing.h"
#include "router/settings.h"
#include "router/stats.h"

/* What counting looks at; one for each thread. */
typedef struct moe_count {
    const moe_router *router;
    const moe_placement *placement;
    const moe_stats *stats;
    int64_t first_token; /* number of local token 0 in the batch */
    int64_t *last_token; /* [D] last token counted on device d */
} moe_count;

/* Local. Takes its memory from the router's scratch; free with moe_count_free. */
void moe_count_reserve(moe_count *c,
                       const moe_router *r,
                       const moe_placement *placement,
                       int64_t first_token,
                       const moe_stats *stats);
void moe_count_free(moe_count *c);

/* Local. Selections of each expert and of each replica, first choices, and the distinct devices
 * that local token t of device `home` is sent to: the numerators of f, f' and f'' (docs/method.md
 * section 2). */
void moe_count_choices(const moe_count *c,
                       int64_t t,
                       int32_t home,
                       const int32_t *expert,
                       int32_t count,
                       int64_t *cell);

/* Local. Counts the replicas and the distinct devices of all tokens again, once it is decided who
 * serves whom in this batch: stats has one cell for each segment. */
void moe_count_devices_again(const moe_router *r,
                             const moe_placement *placement,
                             const moe_batch *batch,
                             const moe_routing *routing,
                             moe_stats *stats);

/* Local. Sums of the combine weights weight [count] before `factor`, which they were multiplied by:
 * importance does not depend on it. */
void moe_count_weights(const moe_count *c,
                       const int32_t *expert,
                       const double *weight,
                       int32_t count,
                       double factor,
                       int64_t *cell);

/* Local. The importance as sums of normalised scores [N] instead (importance_of = scores). */
void moe_count_importance(const moe_count *c, const double *normalized, int64_t *cell);

/* Local. Sums of the normalised scores [N], and of a smooth load [N]. */
void moe_count_scores(const moe_count *c, const double *normalized, int64_t *cell);
void moe_count_load(const moe_count *c, const double *load, int64_t *cell);

#endif
