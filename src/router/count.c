/* count.c: statistics of one token. */
#include "router/count.h"

#include <math.h>
#include <string.h>

#include "base/exact.h"
#include "base/scratch.h"
#include "base/status.h"
#include "data/batch.h"

void moe_count_reserve(moe_count *c,
                       const moe_router *r,
                       const moe_placement *placement,
                       int64_t first_token,
                       const moe_stats *stats) {
    *c = (moe_count){
        .router = r, .placement = placement, .first_token = first_token, .stats = stats};
    MOE_ASSERT(stats->slots == (placement->replicated ? moe_placement_slots(placement) : 0));
    c->last_token =
        moe_scratch_take(r->scratch, stats->devices, sizeof(int64_t), "router's working memory");
    for (int32_t d = 0; d < stats->devices; d++) {
        c->last_token[d] = -1;
    }
}

void moe_count_free(moe_count *c) {
    moe_scratch_give(c->router->scratch, c->last_token);
    c->last_token = NULL;
}

/* One choice of local token t, by the device that serves it. */
static void count_device(const moe_count *c,
                         int64_t t,
                         int32_t home,
                         int32_t expert,
                         int64_t *cell) {
    int64_t *device_tokens = moe_stats_device_tokens(c->stats, cell);
    int32_t d = moe_placement_device(c->placement, expert, c->first_token + t, home);
    bool is_new = c->last_token[d] != t;
    if (c->placement->replicated) {
        moe_stats_served(c->stats, cell)[moe_placement_slot_on(c->placement, expert, d)]++;
    }
    device_tokens[d] += is_new && (d != home || c->router->comm_count_local);
    c->last_token[d] = t;
}

void moe_count_choices(const moe_count *c,
                       int64_t t,
                       int32_t home,
                       const int32_t *expert,
                       int32_t count,
                       int64_t *cell) {
    int64_t *counts = moe_stats_counts(c->stats, cell);
    int64_t *first = moe_stats_first(c->stats, cell);
    for (int32_t k = 0; k < count; k++) {
        counts[expert[k]]++;
        first[expert[k]] += k == 0;
        count_device(c, t, home, expert[k], cell);
    }
}

void moe_count_devices_again(const moe_router *r,
                             const moe_placement *placement,
                             const moe_batch *batch,
                             const moe_routing *routing,
                             moe_stats *stats) {
    moe_count c;
    MOE_ASSERT(stats->num_cells == batch->num_segments);
    moe_count_reserve(&c, r, placement, batch->first_token, stats);
    for (int64_t i = 0; i < batch->num_segments; i++) {
        const moe_segment *segment = &batch->segment[i];
        int64_t *cell = moe_stats_cell(stats, i);
        memset(moe_stats_device_tokens(stats, cell), 0, (size_t)stats->devices * sizeof *cell);
        memset(moe_stats_served(stats, cell), 0, (size_t)stats->slots * sizeof *cell);
        for (int64_t t = segment->begin; t < segment->end; t++) {
            const bool counts = !batch->counted || batch->counted[t];
            for (int64_t k = routing->row_offset[t]; counts && k < routing->row_offset[t + 1];
                 k++) {
                count_device(&c, t, segment->device, routing->expert[k], cell);
            }
        }
    }
    moe_count_free(&c);
}

void moe_count_weights(const moe_count *c,
                       const int32_t *expert,
                       const double *weight,
                       int32_t count,
                       double factor,
                       int64_t *cell) {
    int64_t *hi = moe_stats_weight_hi(c->stats, cell), *lo = moe_stats_weight_lo(c->stats, cell);
    for (int32_t k = 0; k < count && factor != 0; k++) {
        double g = weight[k] / factor;
        if (fabs(g) <= MOE_LOGIT_LIMIT) {
            moe_exact_add01_one(hi + expert[k], lo + expert[k], g);
        }
    }
}

void moe_count_scores(const moe_count *c, const double *normalized, int64_t *cell) {
    moe_exact_add01(moe_stats_score_hi(c->stats, cell), moe_stats_score_lo(c->stats, cell),
                    normalized, c->router->num_experts);
}

void moe_count_importance(const moe_count *c, const double *normalized, int64_t *cell) {
    moe_exact_add01(moe_stats_weight_hi(c->stats, cell), moe_stats_weight_lo(c->stats, cell),
                    normalized, c->router->num_experts);
}

void moe_count_load(const moe_count *c, const double *load, int64_t *cell) {
    moe_exact_add01(moe_stats_load_hi(c->stats, cell), moe_stats_load_lo(c->stats, cell), load,
                    c->router->num_experts);
}
