/* recorded.c: a routing that was recorded elsewhere, in the form that a computed one has. */
#include <string.h>

#include "base/exact.h"
#include "base/scratch.h"
#include "base/status.h"
#include "router/count.h"
#include "router/router.h"
#include "router/scores.h"

/* Working memory for one token. */
typedef struct recorded {
    moe_count count;
    int32_t k;
    double *key, *weight; /* [k] what the experts are ordered by; weights in the new order */
    int32_t *from;        /* [k] where an expert of the new order stood */
    double *normalized;   /* [N] */
} recorded;

/* One token's experts (-1 left out) by falling key, then index; returns how many. */
static int32_t order_experts(const int32_t *idx,
                             const double *key,
                             int32_t k,
                             int32_t *expert,
                             int32_t *from) {
    int32_t count = 0;
    for (int32_t i = 0; i < k; i++) {
        int32_t place = 0;
        if (idx[i] < 0) {
            continue;
        }
        for (int32_t j = 0; j < k; j++) {
            place += idx[j] >= 0 && (key[j] > key[i] || (key[j] == key[i] && idx[j] < idx[i]));
        }
        expert[place] = idx[i];
        from[place] = i;
        count++;
    }
    return count;
}

/* Fills in the token's part of the routing, which begins at place `at`; returns how many experts
 * the token has. */
static int32_t route_token(const recorded *w,
                           const int32_t *idx,
                           const real *weights,
                           const double *scores,
                           moe_routing *routing,
                           int64_t at) {
    for (int32_t i = 0; i < w->k; i++) {
        w->key[i] = idx[i] < 0 ? 0 : scores ? scores[idx[i]] : weights ? (double)weights[i] : 0;
    }
    int32_t count = order_experts(idx, w->key, w->k, routing->expert + at, w->from);
    for (int32_t i = 0; i < count; i++) {
        double key = w->key[w->from[i]];
        w->weight[i] = weights ? (double)weights[w->from[i]] : scores ? key : 1.0 / count;
        routing->score[at + i] = key;
        routing->weight[at + i] = (real)w->weight[i];
    }
    return count;
}

/* s [N] scores of the token, or NULL. */
static void count_token(const recorded *w,
                        int64_t t,
                        int32_t home,
                        const int32_t *expert,
                        int32_t count,
                        const double *s,
                        int64_t *cell) {
    const moe_router *r = w->count.router;
    cell[MOE_STAT_TOKENS]++;
    moe_count_choices(&w->count, t, home, expert, count, cell);
    if (r->importance_of == MOE_IMPORTANCE_WEIGHTS) {
        moe_count_weights(&w->count, expert, w->weight, count, 1, cell);
    }
    if (!s) {
        return;
    }
    moe_scores_normalize(r, s, w->normalized);
    moe_exact_add(cell + MOE_STAT_ENTROPY, moe_scores_entropy(w->normalized, r->num_experts));
    moe_count_scores(&w->count, w->normalized, cell);
    if (r->importance_of == MOE_IMPORTANCE_SCORES) {
        moe_count_importance(&w->count, w->normalized, cell);
    }
}

static recorded recorded_reserve(const moe_router *r,
                                 const moe_placement *placement,
                                 const moe_batch *batch,
                                 const moe_stats *stats,
                                 int32_t k) {
    const char *what = "router's working memory";
    recorded w = {.k = k};
    moe_count_reserve(&w.count, r, placement, batch->first_token, stats);
    w.key = moe_scratch_take(r->scratch, 2 * (int64_t)k + r->num_experts, sizeof *w.key, what);
    w.weight = w.key + k;
    w.normalized = w.weight + k;
    w.from = moe_scratch_take(r->scratch, k, sizeof *w.from, what);
    return w;
}

static void recorded_free(recorded *w) {
    moe_scratch_give(w->count.router->scratch, w->key);
    moe_scratch_give(w->count.router->scratch, w->from);
    moe_count_free(&w->count);
}

void moe_router_route_recorded(const moe_router *r,
                               const moe_batch *batch,
                               const moe_placement *placement,
                               const int32_t *idx,
                               int32_t k,
                               const real *weights,
                               const double *scores,
                               moe_routing *routing,
                               moe_stats *stats) {
    MOE_ASSERT(stats->num_cells == batch->num_segments && stats->num_experts == r->num_experts);
    moe_routing_reserve(routing, batch->num_tokens, k);
    routing->unconverged_device = -1;
    recorded w = recorded_reserve(r, placement, batch, stats, k);
    const uint8_t *routed = moe_batch_routed(batch);
    for (int64_t i = 0; i < batch->num_segments; i++) {
        for (int64_t t = batch->segment[i].begin; t < batch->segment[i].end; t++) {
            const double *s = scores ? scores + t * r->num_experts : NULL;
            if (routed && !routed[t]) {
                routing->row_offset[t + 1] = 0;
                continue;
            }
            int32_t count =
                route_token(&w, idx + t * k, weights ? weights + t * k : NULL, s, routing, t * k);
            routing->row_offset[t + 1] = count;
            if (!batch->counted || batch->counted[t]) {
                count_token(&w, t, batch->segment[i].device, routing->expert + t * k, count, s,
                            moe_stats_cell(stats, i));
            }
        }
    }
    recorded_free(&w);
    moe_routing_close_gaps(routing, k);
}
