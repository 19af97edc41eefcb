/* router.c: the loop over the tokens of a rank: logits -> scores -> experts and weights, and the
 * counts and score sums beside them.
 *
 * Threads take windows of 128 tokens. Within a window the tokens of a segment are counted in a
 * private cell (in L1), which is then added to the segment's; a segment that lies inside the window
 * is counted in place. All sums are integers: the order of threads changes nothing. */
#include "router/router.h"

#include <math.h>
#include <string.h>

#include "base/exact.h"
#include "base/scratch.h"
#include "base/status.h"
#include "router/devices.h"
#include "router/keyed.h"
#include "router/noise.h"
#include "router/scores.h"
#include "router/select.h"

enum { WINDOW = 128 };

void moe_router_init(moe_router *r, const moe_config *c, const double *bias) {
    *r = (moe_router){.num_experts = c->model.num_experts,
                      .top_k = c->router.top_k,
                      .num_groups = c->router.num_groups,
                      .method = c->router.method,
                      .devices = c->cluster.devices,
                      .top_p = c->router.top_p,
                      .temperature = c->router.temperature,
                      .temperature_on = c->router.temperature_on,
                      .second_choice = c->router.second_choice,
                      .sinkhorn_tolerance = c->router.sinkhorn_tolerance,
                      .sinkhorn_iterations = c->router.sinkhorn_iterations,
                      .noise = c->router.noise,
                      .noise_form = c->router.noise_form,
                      .jitter = c->router.jitter,
                      .expert_dropout = c->router.expert_dropout,
                      .load_form = c->balance.load_form,
                      .seed = (uint64_t)c->run.seed,
                      .topk_group = c->router.topk_group,
                      .score_func = c->router.score_func,
                      .group_limit = c->router.group_limit,
                      .norm_topk_prob = c->router.norm_topk_prob,
                      .norm_single = c->router.norm_single,
                      .scale_normalized = c->router.scale_normalized,
                      .routed_scaling_factor = c->router.routed_scaling_factor,
                      .bias = bias,
                      .aux_selection = c->balance.aux_selection,
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
    double *factor;  /* sinkhorn: [local devices, N]; else NULL */
    uint8_t *chosen; /* expert_choice: [T,N]; else NULL */
} job;

/* What one thread works with. */
typedef struct worker {
    moe_select actual, plain;
    double *z, *s, *weight; /* [N], [N], [most] */
    double *load;           /* [N] smooth load */
    int32_t *plain_expert;  /* [top_k] */
    int64_t *last_token;    /* [D] last token counted on device d */
    int64_t *cell;          /* private cell */
    int64_t bad;            /* smallest bad token, or INT64_MAX */
    moe_scratch *scratch;   /* the router's */
} worker;

static void worker_reserve(worker *w, const job *j) {
    const moe_router *r = j->router;
    const char *what = "router's working memory";
    *w = (worker){.bad = INT64_MAX, .scratch = r->scratch};
    moe_select_reserve(&w->actual, r);
    if (j->count_plain) {
        moe_select_reserve(&w->plain, &j->plain);
    }
    w->z = moe_scratch_take(r->scratch, 3 * (int64_t)r->num_experts + moe_router_most(r),
                            sizeof(double), what);
    w->s = w->z + r->num_experts;
    w->load = w->s + r->num_experts;
    w->weight = w->load + r->num_experts;
    w->plain_expert = moe_scratch_take(r->scratch, r->top_k, sizeof(int32_t), what);
    w->last_token =
        moe_scratch_take(r->scratch, j->stats->devices + j->stats->words, sizeof(int64_t), what);
    w->cell = w->last_token + j->stats->devices;
    for (int32_t d = 0; d < j->stats->devices; d++) {
        w->last_token[d] = -1;
    }
}

static void worker_free(worker *w) {
    moe_select_free(&w->actual);
    moe_select_free(&w->plain);
    moe_scratch_give(w->scratch, w->z);
    moe_scratch_give(w->scratch, w->plain_expert);
    moe_scratch_give(w->scratch, w->last_token);
}

static bool is_counted(const moe_batch *b, int64_t t) {
    return !b->counted || b->counted[t];
}

/* c_i, first choices, and the number of distinct devices that token t is sent to (method.md 2,
 * numerators of f and f''). */
static void count_selection(const job *j,
                            int64_t *last_token,
                            int64_t t,
                            int32_t home,
                            const int32_t *expert,
                            int32_t count,
                            int64_t *cell) {
    int64_t *counts = moe_stats_counts(j->stats, cell),
            *device_tokens = moe_stats_device_tokens(j->stats, cell);
    int64_t *first = moe_stats_first(j->stats, cell);
    for (int32_t k = 0; k < count; k++) {
        int32_t d = j->placement->device[expert[k]];
        counts[expert[k]]++;
        first[expert[k]] += k == 0;
        device_tokens[d] += last_token[d] != t && (d != home || j->router->comm_count_local);
        last_token[d] = t;
    }
}

/* Sums of the combine weights before their factor (importance does not depend on it), and who was
 * first. */
static void count_weights(const job *j,
                          const int32_t *expert,
                          const double *weight,
                          int32_t count,
                          double factor,
                          int64_t *cell) {
    int64_t *hi = moe_stats_weight_hi(j->stats, cell), *lo = moe_stats_weight_lo(j->stats, cell);
    for (int32_t k = 0; k < count && factor != 0; k++) {
        double g = weight[k] / factor;
        if (fabs(g) <= MOE_ROUTER_MAX_LOGIT) {
            moe_exact_add01(hi + expert[k], lo + expert[k], &g, 1);
        }
    }
}

/* Load_i += Phi((s_i - z_(K)) / noise), z_(K) the logit of the last choice: Tutel's smooth load,
 * which compares a score with a logit (tutel/impls/losses.py, load_loss; its gate_noise is noise x
 * N). */
static void count_smooth_load(const job *j, worker *w, int32_t last_choice, int64_t *cell) {
    for (int32_t i = 0; i < j->router->num_experts; i++) {
        w->load[i] = 0.5 * erfc((w->z[last_choice] - w->s[i]) / j->router->noise * M_SQRT1_2);
    }
    moe_exact_add01(moe_stats_load_hi(j->stats, cell), moe_stats_load_lo(j->stats, cell), w->load,
                    j->router->num_experts);
}

static void count_noisy_load(
    const job *j, worker *w, int64_t t, const int32_t *expert, int32_t chosen, int64_t *cell) {
    moe_noisy_load(j->router, t, w->z, expert, chosen, w->load);
    moe_exact_add01(moe_stats_load_hi(j->stats, cell), moe_stats_load_lo(j->stats, cell), w->load,
                    j->router->num_experts);
}

static double entropy(const moe_router *r, const worker *w) {
    if (moe_scores_sum_to_one(r) && moe_router_logit_divisor(r) == 1) {
        return moe_scores_softmax_entropy(w->z, w->s, r->num_experts);
    }
    return moe_scores_entropy(w->s, r->num_experts);
}

static void count_token(const job *j,
                        worker *w,
                        int64_t t,
                        int32_t home,
                        int32_t chosen,
                        double lse,
                        int may_be_disabled,
                        int64_t *cell) {
    const moe_router *r = j->router;
    const int32_t *expert = j->routing->expert + t * moe_router_most(r);
    cell[MOE_STAT_TOKENS]++;
    if (lse > -INFINITY) {
        moe_exact_add(cell + MOE_STAT_Z, lse * lse);
    }
    count_weights(j, expert, w->weight, chosen, moe_weights_factor(r), cell);
    if (r->load_form == MOE_LOAD_TUTEL && chosen > 0) {
        count_smooth_load(j, w, expert[chosen - 1], cell);
    }
    if (r->load_form == MOE_LOAD_SHAZEER) {
        count_noisy_load(j, w, t, expert, chosen, cell);
    }
    if (j->count_plain) {
        chosen = moe_select_experts(&w->plain, &j->plain, w->z, w->s, may_be_disabled,
                                    w->plain_expert, NULL);
        expert = w->plain_expert;
    }
    count_selection(j, w->last_token, t, home, expert, chosen, cell);
    moe_router_normalized(r, w->s, w->s);
    if (lse > -INFINITY) {
        moe_exact_add(cell + MOE_STAT_ENTROPY, entropy(r, w));
    }
    moe_exact_add01(moe_stats_score_hi(j->stats, cell), moe_stats_score_lo(j->stats, cell), w->s,
                    r->num_experts);
}

/* What a token's keyed choices are keyed by. */
static int64_t token_key(const job *j, int64_t t) {
    return j->router->method == MOE_METHOD_HASH && j->batch->byte ? j->batch->byte[t]
                                                                  : j->batch->first_token + t;
}

static int32_t choose(const job *j, worker *w, int64_t t, int32_t home, int flags) {
    const moe_router *r = j->router;
    int32_t *expert = j->routing->expert + t * moe_router_most(r);
    if (j->chosen) {
        return moe_select_given(&w->actual, r, w->s, j->chosen + t * r->num_experts, expert,
                                w->weight);
    }
    w->actual.token = token_key(j, t);
    w->actual.factor =
        j->factor ? j->factor + (int64_t)(home - j->batch->first_device) * r->num_experts : NULL;
    return moe_select_experts(&w->actual, r, w->z, w->s, flags, expert, w->weight);
}

/* Leaves the number of experts in row_offset[t+1] and the experts at t*most. */
static void route_token(const job *j, worker *w, int64_t t, int32_t home, int64_t *cell) {
    const moe_router *r = j->router;
    int64_t at = t * moe_router_most(r);
    double lse;
    int flags = moe_scores_read_logits(j->logits, t, r->num_experts, w->z);
    j->routing->row_offset[t + 1] = 0;
    if (!(flags & MOE_ROW_BAD)) {
        moe_router_scores(r, w->z, w->s, &lse);
    }
    if (flags & MOE_ROW_BAD || (lse > -INFINITY && fabs(lse) >= MOE_ROUTER_MAX_LOGIT)) {
        w->bad = t < w->bad ? t : w->bad;
        return;
    }
    int32_t chosen = choose(j, w, t, home, flags);
    for (int32_t k = 0; k < chosen; k++) {
        j->routing->weight[at + k] = (real)w->weight[k];
        j->routing->score[at + k] = w->s[j->routing->expert[at + k]];
    }
    j->routing->row_offset[t + 1] = chosen;
    if (is_counted(j->batch, t)) {
        count_token(j, w, t, home, chosen, lse, flags, cell);
    }
}

/* The segment that holds token t. */
static int64_t find_segment(const moe_batch *b, int64_t t) {
    int64_t low = 0, high = b->num_segments - 1;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (b->segment[middle].end <= t) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static void route_window(const job *j, worker *w, int64_t begin, int64_t end) {
    const moe_batch *b = j->batch;
    for (int64_t i = find_segment(b, begin); i < b->num_segments && b->segment[i].begin < end;
         i++) {
        const moe_segment *s = &b->segment[i];
        bool inside = s->begin >= begin && s->end <= end;
        int64_t *cell = inside ? moe_stats_cell(j->stats, i) : w->cell;
        if (!inside) {
            memset(w->cell, 0, (size_t)j->stats->words * sizeof *w->cell);
        }
        for (int64_t t = s->begin > begin ? s->begin : begin; t < s->end && t < end; t++) {
            route_token(j, w, t, s->device, cell);
        }
        if (!inside) {
#pragma omp critical(moe_route_merge)
            moe_stats_add(j->stats, moe_stats_cell(j->stats, i), w->cell);
        }
    }
}

/* Turns counts in row_offset[1..] into offsets and moves the selections together where a token has
 * fewer than `stride`. */
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

/* The router of aux_selection = unlimited: plain top-K of s. */
static void set_plain(job *j) {
    const moe_router *r = j->router;
    bool is_plain = r->method == MOE_METHOD_TOPK || r->method == MOE_METHOD_SWITCH;
    j->plain = *r;
    j->plain.method = MOE_METHOD_TOPK;
    j->plain.group_limit = MOE_GROUP_NONE;
    j->plain.bias = NULL;
    j->count_plain = r->aux_selection == MOE_AUX_UNLIMITED &&
                     (r->bias || r->group_limit != MOE_GROUP_NONE || !is_plain);
}

/* What is decided for all tokens of a device at once. */
static void look_at_devices(job *j) {
    const moe_router *r = j->router;
    const moe_batch *b = j->batch;
    int64_t n = r->num_experts;
    bool sinkhorn = r->method == MOE_METHOD_SINKHORN && !r->evaluating;
    j->routing->unconverged_device = -1;
    if (sinkhorn) {
        j->factor =
            moe_scratch_take(r->scratch, b->num_local_devices * n, sizeof *j->factor, "sinkhorn");
    }
    if (r->method == MOE_METHOD_EXPERT_CHOICE) {
        j->chosen =
            moe_scratch_take(r->scratch, b->num_tokens * n, sizeof *j->chosen, "expert choice");
    }
    for (int32_t d = b->num_local_devices - 1; d >= 0; d--) {
        int64_t begin = b->device_offset[d], end = b->device_offset[d + 1];
        if (sinkhorn && !moe_sinkhorn_factors(r, j->logits, begin, end, j->factor + d * n)) {
            j->routing->unconverged_device = b->first_device + d;
        }
        if (j->chosen) {
            moe_expert_choice(r, j->logits, begin, end, j->chosen + begin * n);
        }
    }
}

void moe_router_route(const moe_router *r,
                      const moe_batch *batch,
                      const moe_placement *placement,
                      moe_logits logits,
                      moe_routing *routing,
                      moe_stats *stats,
                      int64_t *first_bad_token) {
    job j = {.router = r,
             .batch = batch,
             .placement = placement,
             .logits = logits,
             .routing = routing,
             .stats = stats};
    int64_t bad = INT64_MAX, windows = (batch->num_tokens + WINDOW - 1) / WINDOW;
    MOE_ASSERT(stats->num_cells == batch->num_segments && stats->num_experts == r->num_experts);
    set_plain(&j);
    moe_routing_reserve(routing, batch->num_tokens, moe_router_most(r));
    look_at_devices(&j);
#pragma omp parallel reduction(min : bad)
    {
        worker w;
        worker_reserve(&w, &j);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < windows; i++) {
            route_window(&j, &w, i * WINDOW,
                         (i + 1) * WINDOW < batch->num_tokens ? (i + 1) * WINDOW
                                                              : batch->num_tokens);
        }
        bad = w.bad;
        worker_free(&w);
    }
    close_gaps(routing, moe_router_most(r));
    moe_scratch_give(r->scratch, j.factor);
    moe_scratch_give(r->scratch, j.chosen);
    *first_bad_token = bad == INT64_MAX ? -1 : bad;
}

/* One token of a recorded routing: its experts (-1 left out) by falling key, then index. */
static int32_t order_recorded(
    const int32_t *idx, const double *key, int32_t k, int32_t *expert, int32_t *from) {
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

static int32_t record_token(const job *j,
                            worker *w,
                            int64_t t,
                            const int32_t *idx,
                            int32_t k,
                            const real *weights,
                            const double *scores,
                            double *key,
                            int32_t *from) {
    for (int32_t i = 0; i < k; i++) {
        key[i] = idx[i] < 0 ? 0 : scores ? scores[idx[i]] : weights ? (double)weights[i] : 0;
    }
    int32_t count = order_recorded(idx, key, k, j->routing->expert + t * k, from);
    for (int32_t i = 0; i < count; i++) {
        w->weight[i] = weights ? (double)weights[from[i]] : scores ? key[from[i]] : 1.0 / count;
        j->routing->score[t * k + i] = key[from[i]];
        j->routing->weight[t * k + i] = (real)w->weight[i];
    }
    return count;
}

/* s [N] scores of the token, or NULL. */
static void count_recorded(const job *j,
                           worker *w,
                           int64_t t,
                           int32_t home,
                           int32_t k,
                           int32_t count,
                           const double *s,
                           int64_t *cell) {
    const int32_t *expert = j->routing->expert + t * k;
    cell[MOE_STAT_TOKENS]++;
    count_selection(j, w->last_token, t, home, expert, count, cell);
    count_weights(j, expert, w->weight, count, 1, cell);
    if (!s) {
        return;
    }
    moe_router_normalized(j->router, s, w->s);
    moe_exact_add(cell + MOE_STAT_ENTROPY, moe_scores_entropy(w->s, j->router->num_experts));
    moe_exact_add01(moe_stats_score_hi(j->stats, cell), moe_stats_score_lo(j->stats, cell), w->s,
                    j->router->num_experts);
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
    moe_router plain = *r;
    plain.method = MOE_METHOD_TOPK;
    plain.top_k = k;
    job j = {.router = &plain,
             .batch = batch,
             .placement = placement,
             .routing = routing,
             .stats = stats};
    worker w;
    MOE_ASSERT(stats->num_cells == batch->num_segments && stats->num_experts == r->num_experts);
    moe_routing_reserve(routing, batch->num_tokens, k);
    routing->unconverged_device = -1;
    worker_reserve(&w, &j);
    double *key = moe_scratch_take(r->scratch, k, sizeof *key, "router's working memory");
    int32_t *from = moe_scratch_take(r->scratch, k, sizeof *from, "router's working memory");
    for (int64_t i = 0; i < batch->num_segments; i++) {
        for (int64_t t = batch->segment[i].begin; t < batch->segment[i].end; t++) {
            const double *s = scores ? scores + t * r->num_experts : NULL;
            int32_t count = record_token(&j, &w, t, idx + t * k, k,
                                         weights ? weights + t * k : NULL, s, key, from);
            routing->row_offset[t + 1] = count;
            if (is_counted(batch, t)) {
                count_recorded(&j, &w, t, batch->segment[i].device, k, count, s,
                               moe_stats_cell(stats, i));
            }
        }
    }
    moe_scratch_give(r->scratch, key);
    moe_scratch_give(r->scratch, from);
    worker_free(&w);
    close_gaps(routing, k);
}
