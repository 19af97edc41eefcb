/* router.c: the loop over the tokens of a rank: logits -> scores -> experts and weights, and the counts and score sums beside them.
 *
 * Threads take windows of 128 tokens. Within a window the tokens of a segment are counted in a private cell (in L1), which is then added to
 * the segment's; a segment that lies inside the window is counted in place. All sums are integers: the order of threads changes nothing. */
#include "moesim/router.h"

#include <math.h>
#include <string.h>

#include "moesim/exact.h"
#include "moesim/status.h"
#include "scores.h"
#include "select.h"

enum { WINDOW = 128 };

void moe_router_init(moe_router *r, const moe_config *c, const double *bias) {
    *r = (moe_router){.num_experts = c->model.num_experts,
                      .top_k = c->router.top_k,
                      .num_groups = c->router.num_groups,
                      .topk_group = c->router.topk_group,
                      .score_func = (enum moe_score_func)c->router.score_func,
                      .group_limit = (enum moe_group_limit)c->router.group_limit,
                      .norm_topk_prob = c->router.norm_topk_prob,
                      .norm_single = c->router.norm_single,
                      .scale_normalized = c->router.scale_normalized,
                      .routed_scaling_factor = c->router.routed_scaling_factor,
                      .bias = bias,
                      .aux_selection = (enum moe_aux_selection)c->balance.aux_selection,
                      .alpha_z = c->balance.z_loss,
                      .comm_count_local = c->balance.comm_count_local};
}

/* What all tokens share. */
typedef struct job {
    const moe_router *router;
    moe_router plain; /* the router of aux_selection = unlimited: no bias, no groups */
    bool count_plain; /* the stats count plain's selection */
    const moe_batch *batch;
    const moe_placement *placement;
    moe_logits logits;
    moe_routing *routing;
    moe_stats *stats;
} job;

/* What one thread works with. */
typedef struct worker {
    moe_select actual, plain;
    double *z, *s, *weight; /* [N], [N], [top_k] */
    int32_t *plain_expert;  /* [top_k] */
    int64_t *last_token;    /* [D] last token counted on device d */
    int64_t *cell;          /* private cell */
    int64_t bad;            /* smallest bad token, or INT64_MAX */
} worker;

static void worker_reserve(worker *w, const job *j) {
    const moe_router *r = j->router;
    const char *what = "router's working memory";
    *w = (worker){.bad = INT64_MAX};
    moe_select_reserve(&w->actual, r);
    if (j->count_plain) moe_select_reserve(&w->plain, &j->plain);
    w->z = moe_alloc(2 * (int64_t)r->num_experts + r->top_k, sizeof(double), what);
    w->s = w->z + r->num_experts;
    w->weight = w->s + r->num_experts;
    w->plain_expert = moe_alloc(r->top_k, sizeof(int32_t), what);
    w->last_token = moe_alloc(j->stats->devices + j->stats->words, sizeof(int64_t), what);
    w->cell = w->last_token + j->stats->devices;
    for (int32_t d = 0; d < j->stats->devices; d++)
        w->last_token[d] = -1;
}

static void worker_free(worker *w) {
    moe_select_free(&w->actual);
    moe_select_free(&w->plain);
    moe_free(w->z);
    moe_free(w->plain_expert);
    moe_free(w->last_token);
}

static bool is_counted(const moe_batch *b, int64_t t) {
    return !b->counted || b->counted[t];
}

/* c_i, and the number of distinct devices that token t is sent to (method.md 2, numerators of f and f''). */
static void count_selection(const job *j, int64_t *last_token, int64_t t, int32_t home, const int32_t *expert, int32_t count,
                            int64_t *cell) {
    int64_t *counts = moe_stats_counts(j->stats, cell), *device_tokens = moe_stats_device_tokens(j->stats, cell);
    for (int32_t k = 0; k < count; k++) {
        int32_t d = j->placement->device[expert[k]];
        counts[expert[k]]++;
        device_tokens[d] += last_token[d] != t && (d != home || j->router->comm_count_local);
        last_token[d] = t;
    }
}

static void count_token(const job *j, worker *w, int64_t t, int32_t home, int32_t chosen, double lse, int may_be_disabled, int64_t *cell) {
    const int32_t *expert = j->routing->expert + t * j->router->top_k;
    cell[MOE_STAT_TOKENS]++;
    if (lse > -INFINITY) moe_exact_add(cell + MOE_STAT_Z, lse * lse);
    if (j->count_plain) {
        chosen = moe_select_experts(&w->plain, &j->plain, w->z, w->s, may_be_disabled, w->plain_expert, NULL);
        expert = w->plain_expert;
    }
    count_selection(j, w->last_token, t, home, expert, chosen, cell);
    moe_router_normalized(j->router, w->s, w->s);
    moe_exact_add01(moe_stats_score_hi(j->stats, cell), moe_stats_score_lo(j->stats, cell), w->s, j->router->num_experts);
}

/* Leaves the number of experts in row_offset[t+1] and the experts at t*top_k. */
static void route_token(const job *j, worker *w, int64_t t, int32_t home, int64_t *cell) {
    const moe_router *r = j->router;
    double lse;
    int flags = moe_scores_load(j->logits, t, r->num_experts, w->z);
    j->routing->row_offset[t + 1] = 0;
    if (!(flags & MOE_ROW_BAD)) moe_router_scores(r, w->z, w->s, &lse);
    if (flags & MOE_ROW_BAD || (lse > -INFINITY && fabs(lse) >= MOE_ROUTER_MAX_LOGIT)) {
        w->bad = t < w->bad ? t : w->bad;
        return;
    }
    int32_t chosen = moe_select_experts(&w->actual, r, w->z, w->s, flags, j->routing->expert + t * r->top_k, w->weight);
    for (int32_t k = 0; k < chosen; k++) {
        j->routing->weight[t * r->top_k + k] = (real)w->weight[k];
        j->routing->score[t * r->top_k + k] = w->s[j->routing->expert[t * r->top_k + k]];
    }
    j->routing->row_offset[t + 1] = chosen;
    if (is_counted(j->batch, t)) count_token(j, w, t, home, chosen, lse, flags, cell);
}

/* The segment that holds token t. */
static int64_t find_segment(const moe_batch *b, int64_t t) {
    int64_t low = 0, high = b->num_segments - 1;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (b->segment[middle].end <= t)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void route_window(const job *j, worker *w, int64_t begin, int64_t end) {
    const moe_batch *b = j->batch;
    for (int64_t i = find_segment(b, begin); i < b->num_segments && b->segment[i].begin < end; i++) {
        const moe_segment *s = &b->segment[i];
        bool inside = s->begin >= begin && s->end <= end;
        int64_t *cell = inside ? moe_stats_cell(j->stats, i) : w->cell;
        if (!inside) memset(w->cell, 0, (size_t)j->stats->words * sizeof *w->cell);
        for (int64_t t = s->begin > begin ? s->begin : begin; t < s->end && t < end; t++)
            route_token(j, w, t, s->device, cell);
        if (!inside) {
#pragma omp critical(moe_route_merge)
            moe_stats_add(j->stats, moe_stats_cell(j->stats, i), w->cell);
        }
    }
}

/* Turns counts in row_offset[1..] into offsets and moves the selections together where a token has fewer than `stride`. */
static void close_gaps(moe_routing *r, int32_t stride) {
    int64_t total = 0;
    r->row_offset[0] = 0;
    for (int64_t t = 0; t < r->num_tokens; t++) {
        int64_t count = r->row_offset[t + 1], from = t * stride;
        if (from != total) {
            memmove(r->expert + total, r->expert + from, (size_t)count * sizeof *r->expert);
            memmove(r->weight + total, r->weight + from, (size_t)count * sizeof *r->weight);
            memmove(r->score + total, r->score + from, (size_t)count * sizeof *r->score);
        }
        total += count;
        r->row_offset[t + 1] = total;
    }
    r->num_selections = total;
}

void moe_route(const moe_router *r, const moe_batch *batch, const moe_placement *placement, moe_logits logits, moe_routing *routing,
               moe_stats *stats, int64_t *first_bad_token) {
    job j = {.router = r, .plain = *r, .batch = batch, .placement = placement, .logits = logits, .routing = routing, .stats = stats};
    int64_t bad = INT64_MAX, windows = (batch->num_tokens + WINDOW - 1) / WINDOW;
    MOE_ASSERT(stats->num_cells == batch->num_segments && stats->num_experts == r->num_experts);
    j.plain.group_limit = MOE_GROUP_NONE;
    j.plain.bias = NULL;
    j.count_plain = r->aux_selection == MOE_AUX_UNLIMITED && (r->bias || r->group_limit != MOE_GROUP_NONE);
    moe_routing_reserve(routing, batch->num_tokens, r->top_k);
#pragma omp parallel reduction(min : bad)
    {
        worker w;
        worker_reserve(&w, &j);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < windows; i++)
            route_window(&j, &w, i * WINDOW, (i + 1) * WINDOW < batch->num_tokens ? (i + 1) * WINDOW : batch->num_tokens);
        bad = w.bad;
        worker_free(&w);
    }
    close_gaps(routing, r->top_k);
    *first_bad_token = bad == INT64_MAX ? -1 : bad;
}

/* One token of a recorded routing: its experts (-1 left out) by falling key, then index. */
static int32_t order_recorded(const int32_t *idx, const double *key, int32_t k, int32_t *expert, int32_t *from) {
    int32_t count = 0;
    for (int32_t i = 0; i < k; i++) {
        int32_t place = 0;
        if (idx[i] < 0) continue;
        for (int32_t j = 0; j < k; j++)
            place += idx[j] >= 0 && (key[j] > key[i] || (key[j] == key[i] && idx[j] < idx[i]));
        expert[place] = idx[i];
        from[place] = i;
        count++;
    }
    return count;
}

static int32_t record_token(const job *j, int64_t t, const int32_t *idx, int32_t k, const real *weights, const double *scores, double *key,
                            int32_t *from) {
    int32_t *expert = j->routing->expert + t * k;
    real *weight = j->routing->weight + t * k;
    for (int32_t i = 0; i < k; i++)
        key[i] = idx[i] < 0 ? 0 : scores ? scores[idx[i]] : weights ? (double)weights[i] : 0;
    int32_t count = order_recorded(idx, key, k, expert, from);
    for (int32_t i = 0; i < count; i++)
        j->routing->score[t * k + i] = key[from[i]];
    for (int32_t i = 0; i < count; i++)
        weight[i] = weights ? weights[from[i]] : scores ? (real)key[from[i]] : (real)(1.0 / count);
    return count;
}

void moe_route_recorded(const moe_router *r, const moe_batch *batch, const moe_placement *placement, const int32_t *idx, int32_t k,
                        const real *weights, const double *scores, moe_routing *routing, moe_stats *stats) {
    job j = {.router = r, .batch = batch, .placement = placement, .routing = routing, .stats = stats};
    worker w;
    MOE_ASSERT(stats->num_cells == batch->num_segments && stats->num_experts == r->num_experts);
    moe_routing_reserve(routing, batch->num_tokens, k);
    worker_reserve(&w, &j);
    double *key = moe_alloc(k, sizeof *key, "router's working memory");
    int32_t *from = moe_alloc(k, sizeof *from, "router's working memory");
    for (int64_t i = 0; i < batch->num_segments; i++)
        for (int64_t t = batch->segment[i].begin; t < batch->segment[i].end; t++) {
            const double *s = scores ? scores + t * r->num_experts : NULL;
            int64_t *cell = moe_stats_cell(stats, i);
            int32_t count = record_token(&j, t, idx + t * k, k, weights ? weights + t * k : NULL, s, key, from);
            routing->row_offset[t + 1] = count;
            if (!is_counted(batch, t)) continue;
            cell[MOE_STAT_TOKENS]++;
            count_selection(&j, w.last_token, t, batch->segment[i].device, routing->expert + t * k, count, cell);
            if (!s) continue;
            moe_router_normalized(r, s, w.s);
            moe_exact_add01(moe_stats_score_hi(stats, cell), moe_stats_score_lo(stats, cell), w.s, r->num_experts);
        }
    moe_free(key);
    moe_free(from);
    worker_free(&w);
    close_gaps(routing, k);
}
