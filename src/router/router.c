/* router.c: the loop over the tokens of a rank.
 *
 * Threads take windows of 128 tokens. Within a window the tokens of a segment are counted in a
 * private cell, which stays in the L1 cache and is then added to the segment's; a segment that lies
 * inside the window is counted in place. All sums are integers, so the order of threads changes
 * nothing. */
#include "router/router.h"

#include <math.h>
#include <string.h>

#include "base/exact.h"
#include "base/scratch.h"
#include "base/status.h"
#include "router/count.h"
#include "router/methods.h"
#include "router/noise.h"
#include "router/scores.h"
#include "router/select.h"
#include "router/weights.h"

enum { WINDOW = 128 };

void moe_router_init(moe_router *r,
                     const moe_router_config *c,
                     const moe_balance_config *balance,
                     int32_t num_experts,
                     int32_t devices,
                     const double *bias) {
    *r = (moe_router){.num_experts = num_experts,
                      .top_k = c->top_k,
                      .devices = devices,
                      .method = c->method,
                      .score_func = c->score_func,
                      .bias = bias,
                      .group_limit = c->group_limit,
                      .num_groups = c->num_groups,
                      .topk_group = c->topk_group,
                      .norm_topk_prob = c->norm_topk_prob,
                      .norm_single = c->norm_single,
                      .scale_normalized = c->scale_normalized,
                      .routed_scaling_factor = c->routed_scaling_factor,
                      .top_p = c->top_p,
                      .temperature = c->temperature,
                      .temperature_on = c->temperature_on,
                      .second_choice = c->second_choice,
                      .sinkhorn_tolerance = c->sinkhorn_tolerance,
                      .sinkhorn_iterations = c->sinkhorn_iterations,
                      .noise = c->noise,
                      .noise_form = c->noise_form,
                      .jitter = c->jitter,
                      .expert_dropout = c->expert_dropout,
                      .importance_of = balance->importance_of,
                      .load_form = balance->load_form,
                      .aux_selection = balance->aux_selection,
                      .comm_count_local = balance->comm_count_local};
}

/* What all tokens share. */
typedef struct job {
    const moe_router *router;
    const moe_draw *draw;
    const moe_method *method;
    moe_router plain; /* the router of aux_selection = unlimited: no bias, no groups */
    bool softmax;     /* the scores are a softmax without temperature */
    bool count_plain; /* the statistics count plain's selection */
    const moe_batch *batch;
    const uint8_t *routed; /* moe_batch_routed */
    const moe_placement *placement;
    moe_logits logits;
    const moe_noisy *noisy;
    moe_routing *routing;
    moe_stats *stats;
    double *factor;  /* [local devices, N] what a device adds to the logits, or NULL */
    uint8_t *chosen; /* [T,N] the choice, where it was made for all tokens at once, or NULL */
} job;

/* What one thread works with. */
typedef struct worker {
    moe_select actual, plain;
    moe_count count;
    double *z, *s, *weight; /* [N] */
    double *quiet, *clean;  /* [N] scores and logits without noise */
    double *load;           /* [N] smooth load */
    moe_softmax_sums sums;  /* of the scores, where they are a softmax */
    int32_t *plain_expert;  /* [top_k] */
    int64_t *cell;          /* private cell */
    int64_t bad;            /* smallest bad token, or INT64_MAX */
    moe_scratch *scratch;   /* the router's */
} worker;

static void worker_reserve(worker *w, const job *j) {
    const moe_router *r = j->router;
    const char *what = "router's working memory";
    int64_t n = r->num_experts;
    *w = (worker){.bad = INT64_MAX, .scratch = r->scratch};
    moe_select_reserve(&w->actual, r, j->draw);
    if (j->count_plain) {
        moe_select_reserve(&w->plain, &j->plain, j->draw);
    }
    moe_count_reserve(&w->count, r, j->placement, j->batch->first_token, j->stats);
    w->z = moe_scratch_take(r->scratch, 6 * n, sizeof *w->z, what);
    w->s = w->z + n;
    w->load = w->s + n;
    w->weight = w->load + n;
    w->quiet = w->weight + n;
    w->clean = w->quiet + n;
    w->plain_expert = moe_scratch_take(r->scratch, r->top_k, sizeof(int32_t), what);
    w->cell = moe_scratch_take(r->scratch, j->stats->words, sizeof(int64_t), what);
}

static void worker_free(worker *w, const job *j) {
    moe_select_free(&w->actual);
    if (j->count_plain) {
        moe_select_free(&w->plain);
    }
    moe_count_free(&w->count);
    moe_scratch_give(w->scratch, w->z);
    moe_scratch_give(w->scratch, w->plain_expert);
    moe_scratch_give(w->scratch, w->cell);
}

/* --- one token --- */

/* Fills w->s; returns the logarithm of the sum of exponentials. */
static double fill_scores(const job *j, worker *w, int64_t t) {
    const int32_t n = j->router->num_experts;
    double lse;
    if (j->softmax) {
        w->sums = moe_scores_softmax(w->z, moe_scores_largest_logit(j->logits, t, n), w->s, n);
        return w->sums.most + log(w->sums.sum);
    }
    moe_scores_fill(j->router, w->z, w->s, &lse);
    return lse;
}

/* Adds the normalised scores w->s to the sums of the cell, and their entropy, where they have one.
 */
static void count_scores(const job *j, const worker *w, bool has_entropy, int64_t *cell) {
    const int32_t n = j->router->num_experts;
    double entropy = 0;
    if (has_entropy && j->softmax) {
        entropy =
            moe_scores_softmax_entropy(w->z, w->s, n, w->sums, moe_stats_score_hi(j->stats, cell),
                                       moe_stats_score_lo(j->stats, cell));
    } else {
        entropy = has_entropy ? moe_scores_entropy(w->s, n) : 0;
        moe_count_scores(&w->count, w->s, cell);
    }
    moe_exact_add(cell + MOE_STAT_ENTROPY, entropy);
}

/* Tutel takes importance and load of the scores without noise, and only the threshold with it. */
static double *quiet_scores(const job *j, worker *w, int64_t t) {
    if (!j->noisy || !moe_noise_has_quiet(j->router)) {
        return w->s;
    }
    moe_noise_quiet_scores(j->router, j->noisy->clean + t * j->router->num_experts, w->z, w->clean,
                           w->quiet);
    return w->quiet;
}

static void count_load(const job *j,
                       worker *w,
                       int64_t t,
                       const double *quiet,
                       const int32_t *expert,
                       int32_t chosen,
                       int64_t *cell) {
    const moe_router *r = j->router;
    if (r->load_form == MOE_LOAD_TUTEL && chosen > 0) {
        moe_smooth_load_tutel(r, w->z, quiet, expert[chosen - 1], w->load);
        moe_count_load(&w->count, w->load, cell);
    }
    if (r->load_form == MOE_LOAD_SHAZEER) {
        moe_smooth_load_token(r, j->noisy, t, w->z, expert, chosen, w->load);
        moe_count_load(&w->count, w->load, cell);
    }
}

/* Adds a token to its cell; w->s holds its normalised scores afterwards. */
static void count_token(const job *j,
                        worker *w,
                        int64_t t,
                        int32_t home,
                        int32_t chosen,
                        double lse,
                        int may_be_disabled,
                        int64_t *cell) {
    const moe_router *r = j->router;
    const int32_t *expert = j->routing->expert + t * moe_method_most(r);
    cell[MOE_STAT_TOKENS]++;
    if (lse > -INFINITY) {
        moe_exact_add(cell + MOE_STAT_Z, lse * lse);
    }
    double *quiet = quiet_scores(j, w, t);
    if (r->importance_of == MOE_IMPORTANCE_WEIGHTS) {
        moe_count_weights(&w->count, expert, w->weight, chosen, moe_weights_factor(r), cell);
    }
    count_load(j, w, t, quiet, expert, chosen, cell);
    if (j->count_plain) {
        chosen = moe_select_experts(&w->plain, &j->plain, w->z, w->s, may_be_disabled,
                                    w->plain_expert, NULL);
        expert = w->plain_expert;
    }
    moe_count_choices(&w->count, t, home, expert, chosen, cell);
    moe_scores_normalize(r, w->s, w->s);
    count_scores(j, w, lse > -INFINITY, cell);
    if (r->importance_of == MOE_IMPORTANCE_SCORES) {
        if (quiet != w->s) {
            moe_scores_normalize(r, quiet, quiet);
        }
        moe_count_importance(&w->count, quiet, cell);
    }
}

static int32_t choose(const job *j, worker *w, int64_t t, int32_t home, int flags) {
    const moe_router *r = j->router;
    const moe_batch *b = j->batch;
    int32_t *expert = j->routing->expert + t * moe_method_most(r);
    if (j->chosen) {
        return moe_select_given(&w->actual, r, w->s, j->chosen + t * r->num_experts, expert,
                                w->weight);
    }
    w->actual.choice.token = j->method->by_byte && b->byte ? b->byte[t] : b->first_token + t;
    w->actual.choice.factor =
        j->factor ? j->factor + (int64_t)(home - b->first_device) * r->num_experts : NULL;
    return moe_select_experts(&w->actual, r, w->z, w->s, flags, expert, w->weight);
}

/* Leaves the number of experts in row_offset[t+1], and the experts at place t * most. */
static void route_token(const job *j, worker *w, int64_t t, int32_t home, int64_t *cell) {
    const moe_router *r = j->router;
    int64_t at = t * moe_method_most(r);
    double lse = 0;
    j->routing->row_offset[t + 1] = 0;
    if (j->routed && !j->routed[t]) {
        return;
    }
    int flags = moe_scores_read_logits(j->logits, t, r->num_experts, w->z);
    if (t + 1 < j->batch->num_tokens) {
        moe_scores_prefetch_logits(j->logits, t + 1, r->num_experts);
    }
    if (!(flags & MOE_ROW_BAD)) {
        lse = fill_scores(j, w, t);
    }
    if (flags & MOE_ROW_BAD || (lse > -INFINITY && fabs(lse) >= MOE_LOGIT_LIMIT)) {
        w->bad = t < w->bad ? t : w->bad;
        return;
    }
    int32_t chosen = choose(j, w, t, home, flags);
    for (int32_t k = 0; k < chosen; k++) {
        j->routing->weight[at + k] = (real)w->weight[k];
        j->routing->score[at + k] = w->s[j->routing->expert[at + k]];
    }
    j->routing->row_offset[t + 1] = chosen;
    if (!j->batch->counted || j->batch->counted[t]) {
        count_token(j, w, t, home, chosen, lse, flags, cell);
    }
}

/* --- all tokens --- */

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

/* The router of aux_selection = unlimited: plain top-K of s. */
static void set_plain(job *j) {
    const moe_router *r = j->router;
    j->plain = *r;
    j->plain.method = MOE_METHOD_TOPK;
    j->plain.group_limit = MOE_GROUP_NONE;
    j->plain.bias = NULL;
    j->count_plain = r->aux_selection == MOE_AUX_UNLIMITED &&
                     (r->bias || r->group_limit != MOE_GROUP_NONE || !j->method->chooses_best);
}

/* What is decided for all tokens of a device at once. While a model is validated no factors are
 * added (moe_draw). */
static void look_at_devices(job *j) {
    const moe_router *r = j->router;
    const moe_batch *b = j->batch;
    int64_t n = r->num_experts;
    j->routing->unconverged_device = -1;
    if (j->method->factors && !j->draw->evaluating) {
        j->factor = moe_scratch_take(r->scratch, b->num_local_devices * n, sizeof *j->factor,
                                     j->method->name);
    }
    if (j->method->takes) {
        j->chosen =
            moe_scratch_take(r->scratch, b->num_tokens * n, sizeof *j->chosen, j->method->name);
    }
    for (int32_t d = b->num_local_devices - 1; d >= 0; d--) {
        int64_t begin = b->device_offset[d], end = b->device_offset[d + 1];
        if (j->factor &&
            !j->method->factors(r, j->logits, j->routed, begin, end, j->factor + d * n)) {
            j->routing->unconverged_device = b->first_device + d;
        }
        if (j->chosen) {
            j->method->takes(r, j->logits, j->routed, begin, end, j->chosen + begin * n);
        }
    }
}

void moe_router_route(const moe_router *r,
                      const moe_draw *draw,
                      const moe_batch *batch,
                      const moe_placement *placement,
                      moe_logits logits,
                      const moe_noisy *noisy,
                      moe_routing *routing,
                      moe_stats *stats,
                      int64_t *first_bad_token) {
    job j = {.router = r,
             .draw = draw,
             .method = moe_method_of(r),
             .softmax = moe_score_function_of(r)->sums_to_one && moe_router_logit_divisor(r) == 1,
             .batch = batch,
             .routed = moe_batch_routed(batch),
             .placement = placement,
             .logits = logits,
             .noisy = noisy,
             .routing = routing,
             .stats = stats};
    int64_t bad = INT64_MAX, windows = (batch->num_tokens + WINDOW - 1) / WINDOW;
    MOE_ASSERT(stats->num_cells == batch->num_segments && stats->num_experts == r->num_experts);
    set_plain(&j);
    moe_routing_reserve(routing, batch->num_tokens, moe_method_most(r));
    look_at_devices(&j);
#pragma omp parallel reduction(min : bad)
    {
        worker w;
        worker_reserve(&w, &j);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < windows; i++) {
            int64_t end = (i + 1) * WINDOW;
            route_window(&j, &w, i * WINDOW, end < batch->num_tokens ? end : batch->num_tokens);
        }
        bad = w.bad;
        worker_free(&w, &j);
    }
    moe_routing_close_gaps(routing, moe_method_most(r));
    moe_scratch_give(r->scratch, j.factor);
    moe_scratch_give(r->scratch, j.chosen);
    *first_bad_token = bad == INT64_MAX ? -1 : bad;
}
