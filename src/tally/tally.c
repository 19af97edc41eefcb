/* tally.c: global counts, matrices and volumes of one layer, and its self-checks.
 * The checks recount from the routing what the plan, the inbox and the losses claim; they share no
 * code with them. */
#include "tally/tally.h"

#include <math.h>
#include <string.h>

#include "base/exact.h"
#include "base/status.h"
#include "router/scores.h"
#include "router/select.h"
#include "tally/internal.h"

enum scalar {
    SELECTIONS,    /* pairs chosen by the router */
    REACHED,       /* sum over tokens of distinct devices */
    EXPECTED_ROWS, /* recounted from the routing: pairs, or distinct devices per token */
    PLANNED_ROWS,
    WIRE_ROWS, /* given to MPI_Alltoallv */
    OWN_ROWS,  /* that stay inside a rank */
    RECEIVED_ROWS,
    RECEIVED_PAIRS,
    ALL_ROWS,  /* that would be sent if nothing were dropped */
    NONFINITE, /* tokens with a NaN or Inf in logits or output */
    BAD_WEIGHTS,
    BAD_GROUPS,
    BAD_DEVICES,
    UNLIMITED, /* sum over tokens of distinct devices of the greedy choice, without a group limit */
    THEOREM_TOKENS,
    THEOREM_BAD,
    COMM_BAD, /* device pairs whose rows are not the distinct tokens of f'' */
    NUM_SCALARS
};

typedef struct tally {
    int64_t *words, count;
    int64_t *counts, *sent, *received, *pairs, *reach, *output, *scalar, *drop; /* [N], [D*D] x 3,
                                                                                   [65], exact,
                                                                                   [NUM_SCALARS],
                                                                                   tally_drop.c's */
} tally;

static tally tally_new(moe_scratch *scratch, int64_t n, int64_t d, int64_t drop_words) {
    tally t = {.count = n + 3 * d * d + 65 + MOE_EXACT_WORDS + NUM_SCALARS + drop_words};
    t.words = moe_scratch_take_zero(scratch, t.count, sizeof *t.words, "tally");
    t.counts = t.words;
    t.sent = t.counts + n;
    t.received = t.sent + d * d;
    t.pairs = t.received + d * d;
    t.reach = t.pairs + d * d;
    t.output = t.reach + 65;
    t.scalar = t.output + MOE_EXACT_WORDS;
    t.drop = t.scalar + NUM_SCALARS;
    return t;
}

/* --- one rank's share --- */

static void count_blocks(tally *t, const moe_plan *plan, const moe_inbox *in) {
    int64_t d = plan->devices;
    for (int64_t j = 0; j < plan->num_local; j++) {
        memcpy(t->sent + (plan->first_device + j) * d, plan->rows_to + j * d,
               (size_t)d * sizeof(int64_t));
        memcpy(t->pairs + (plan->first_device + j) * d, plan->pairs_to + j * d,
               (size_t)d * sizeof(int64_t));
        for (int64_t source = 0; source < d; source++) {
            t->received[source * d + plan->first_device + j] =
                in->rows_from[source * plan->num_local + j];
        }
    }
    t->scalar[PLANNED_ROWS] = plan->num_rows;
    t->scalar[OWN_ROWS] = in->own_end - in->own_begin;
    t->scalar[WIRE_ROWS] = plan->num_rows - t->scalar[OWN_ROWS];
    t->scalar[RECEIVED_ROWS] = in->num_rows;
    t->scalar[RECEIVED_PAIRS] = in->num_pairs;
}

/* Distinct devices among k experts; stamp [D] remembers the last `mark` (> 0, a new one each call).
 */
static int64_t distinct_devices(
    const moe_placement *p, const int32_t *expert, int64_t k, int64_t *stamp, int64_t mark) {
    int64_t distinct = 0;
    for (int64_t i = 0; i < k; i++) {
        int32_t device = p->device[expert[i]];
        distinct += stamp[device] != mark;
        stamp[device] = mark;
    }
    return distinct;
}

static bool measures_unlimited(const moe_context *context) {
    return context->router.group_limit != MOE_GROUP_NONE && !moe_config_recorded(context->config);
}

/* Distinct devices of each token, from the routing alone. */
static void count_reach(tally *t, const moe_context *context, const moe_routing *routing) {
    const moe_router *r = &context->router;
    int32_t d = context->placement.devices;
    int64_t reachable = (int64_t)r->topk_group * (d / r->num_groups > 1 ? d / r->num_groups : 1);
    bool limited = r->group_limit != MOE_GROUP_NONE && !moe_config_recorded(context->config);
    int64_t *stamp = moe_scratch_take_zero(context->batch->scratch, d, sizeof *stamp, "tally");
    for (int64_t token = 0; token < routing->num_tokens; token++) {
        int64_t begin = routing->row_offset[token], k = routing->row_offset[token + 1] - begin;
        int64_t reach =
            distinct_devices(&context->placement, routing->expert + begin, k, stamp, token + 1);
        for (int64_t i = 0; i < k; i++) {
            t->counts[routing->expert[begin + i]]++;
        }
        t->reach[reach < 64 ? reach : 64]++;
        t->scalar[SELECTIONS] += k;
        t->scalar[REACHED] += reach;
        t->scalar[ALL_ROWS] += context->config->exchange.mode == MOE_EXCHANGE_TOKEN ? reach : k;
        t->scalar[BAD_DEVICES] += reach > k || reach > d || (limited && reach > reachable);
        t->scalar[BAD_GROUPS] +=
            limited && moe_router_distinct_groups(r, routing->expert + begin, (int32_t)k) >
                           (k < r->topk_group ? k : r->topk_group);
    }
    moe_scratch_give(context->batch->scratch, stamp);
}

/* Rows that the routing after dropping asks for. */
static void count_rows(tally *t, const moe_context *context, const moe_routing *sent) {
    int64_t *stamp = moe_scratch_take_zero(context->batch->scratch, context->placement.devices,
                                           sizeof *stamp, "tally");
    for (int64_t token = 0; token < sent->num_tokens; token++) {
        int64_t begin = sent->row_offset[token], k = sent->row_offset[token + 1] - begin;
        int64_t reach =
            distinct_devices(&context->placement, sent->expert + begin, k, stamp, token + 1);
        t->scalar[EXPECTED_ROWS] +=
            context->config->exchange.mode == MOE_EXCHANGE_TOKEN ? reach : k;
    }
    moe_scratch_give(context->batch->scratch, stamp);
}

/* What a token's weights must add up to: *exact (normalised), or at most *most. False: nothing is
 * known (recorded weights). */
static bool weight_bounds(const moe_context *context, int64_t k, double *exact, double *most) {
    const moe_router *r = &context->router;
    if (moe_config_recorded(context->config)) {
        return false;
    }
    bool normalized = (r->norm_topk_prob && (r->top_k > 1 || r->norm_single)) ||
                      r->score_func == MOE_SCORE_SOFTMAX_TOPK;
    bool second_left_out = r->method == MOE_METHOD_GSHARD &&
                           r->second_choice == MOE_SECOND_RANDOM; /* after normalising */
    double scale = normalized && !r->scale_normalized ? 1 : r->routed_scaling_factor;
    if (!normalized) {
        scale /= moe_router_probability_divisor(r);
    }
    *exact = normalized && !second_left_out ? scale : NAN;
    *most = r->score_func == MOE_SCORE_SOFTMAX   ? scale
            : r->score_func == MOE_SCORE_SIGMOID ? scale * (double)k
                                                 : INFINITY;
    return true;
}

static void check_weights(tally *t, const moe_context *context, const moe_routing *routing) {
    for (int64_t token = 0; token < routing->num_tokens; token++) {
        double sum = 0, exact, most;
        int64_t begin = routing->row_offset[token], end = routing->row_offset[token + 1];
        for (int64_t i = begin; i < end; i++) {
            sum += (double)routing->weight[i];
        }
        if (begin == end || !weight_bounds(context, end - begin, &exact, &most)) {
            continue;
        }
        bool bad = isnan(exact) ? !(sum >= 0 && sum <= most * (1 + 1e-5))
                                : !(fabs(sum - exact) <= 1e-5 * fabs(exact));
        /* all scores of the chosen may be 0 (sigmoid of -1000): then 1e-20 is what remains, and 0
         * is right */
        t->scalar[BAD_WEIGHTS] += bad && sum != 0;
    }
}

static bool finite_row(const real *row, int64_t n, double *sum_of_squares) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += (double)row[i] * row[i];
    }
    *sum_of_squares = sum;
    return isfinite(sum);
}

static void check_output(tally *t,
                         const moe_context *context,
                         const moe_activations *a,
                         const real *y) {
    int64_t h = context->config->model.hidden_size;
    for (int64_t token = 0; token < context->batch->num_tokens; token++) {
        double squares;
        if (!finite_row(y + token * h, h, &squares)) {
            t->scalar[NONFINITE]++;
        } else if (squares / (double)h < 1e9) {
            moe_exact_add(t->output, squares / (double)h);
        }
    }
    t->scalar[NONFINITE] += a->first_bad_token >= 0;
}

/* f'' of every device pair, by its definition (counted by the router), against the rows given to
 * MPI_Alltoallv and those removed by dropping. */
static void check_comm_count(tally *t, const moe_context *context, const moe_activations *a) {
    const moe_batch *b = context->batch;
    int64_t *tokens = moe_scratch_take_zero(b->scratch, (int64_t)b->num_local_devices * b->devices,
                                            sizeof *tokens, "tally");
    for (int64_t i = 0; i < b->num_segments; i++) {
        const int64_t *cell =
            moe_stats_device_tokens(&a->segments, moe_stats_cell(&a->segments, i));
        for (int32_t d = 0; d < b->devices; d++) {
            tokens[(int64_t)(b->segment[i].device - b->first_device) * b->devices + d] += cell[d];
        }
    }
    int64_t *removed = moe_scratch_take_zero(b->scratch, (int64_t)b->num_local_devices * b->devices,
                                             sizeof *removed, "tally");
    if (a->drop.on) {
        moe_capacity_removed(b, &context->placement, &a->routing, &a->drop.sent, removed);
    }
    for (int64_t i = 0; i < (int64_t)b->num_local_devices * b->devices; i++) {
        t->scalar[COMM_BAD] += tokens[i] != a->plan.rows_to[i] + removed[i];
    }
    moe_scratch_give(b->scratch, removed);
    moe_scratch_give(b->scratch, tokens);
}

/* method.md section 1; costs about as much as routing. */
static void check_theorem(tally *t,
                          const moe_layer *layer,
                          const moe_context *context,
                          const moe_activations *a) {
    const moe_router *r = &layer->router;
    if (r->group_limit != MOE_GROUP_MAX || moe_config_recorded(context->config)) {
        return;
    }
    moe_group_theorem_check(r, a->logits, &a->routing, 1, &t->scalar[THEOREM_TOKENS],
                            &t->scalar[THEOREM_BAD]);
}

/* How many devices a token would reach without the group limit: what the limit saves. */
static void count_unlimited(tally *t,
                            const moe_layer *layer,
                            const moe_context *context,
                            const moe_activations *a) {
    moe_router greedy = layer->router;
    int32_t n = greedy.num_experts;
    int64_t reached = 0;
    if (!measures_unlimited(context)) {
        return;
    }
    greedy.group_limit = MOE_GROUP_NONE;
#pragma omp parallel reduction(+ : reached)
    {
        moe_select select = {0};
        moe_select_reserve(&select, &greedy);
        double *z = moe_scratch_take(context->batch->scratch, 2 * (int64_t)n, sizeof *z, "tally"),
               *s = z + n;
        int32_t *expert =
            moe_scratch_take(context->batch->scratch, greedy.top_k, sizeof *expert, "tally");
        int64_t *stamp = moe_scratch_take_zero(context->batch->scratch, context->placement.devices,
                                               sizeof *stamp, "tally");
#pragma omp for schedule(static)
        for (int64_t token = 0; token < context->batch->num_tokens; token++) {
            if (moe_scores_read_logits(a->logits, token, n, z) & MOE_ROW_BAD) {
                continue;
            }
            moe_router_scores(&greedy, z, s, NULL);
            int32_t k = moe_select_experts(&select, &greedy, z, s, 1, expert, NULL);
            reached += distinct_devices(&context->placement, expert, k, stamp, token + 1);
        }
        moe_select_free(&select);
        moe_scratch_give(context->batch->scratch, z);
        moe_scratch_give(context->batch->scratch, expert);
        moe_scratch_give(context->batch->scratch, stamp);
    }
    t->scalar[UNLIMITED] = reached;
}

/* --- global figures --- */

static void add_volume(moe_volume *v,
                       enum moe_level level,
                       int64_t rows,
                       int64_t pairs,
                       int64_t row_bytes,
                       int64_t metadata_bytes) {
    v->rows += rows;
    v->logical_bytes += rows * row_bytes;
    v->selection_bytes += pairs * row_bytes;
    v->metadata_bytes += metadata_bytes;
    v->by_level[level].rows += rows;
    v->by_level[level].bytes += rows * row_bytes;
    v->by_level[level].metadata_bytes += metadata_bytes;
    if (level == MOE_LEVEL_DEVICE) {
        return;
    }
    v->remote_bytes += rows * row_bytes;
    v->selection_remote_bytes += pairs * row_bytes;
}

static void fill_volume(const tally *t, const moe_config *c, moe_layer_metrics *out) {
    int64_t d = c->cluster.devices, row_bytes = c->model.hidden_size * (int64_t)sizeof(real);
    int64_t head = moe_exchange_row_metadata_bytes(c->exchange.mode),
            pair = moe_exchange_pair_metadata_bytes();
    memset(out->volume, 0, sizeof out->volume);
    memset(out->pairs_by_level, 0, sizeof out->pairs_by_level);
    for (int64_t i = 0; i < d * d; i++) {
        enum moe_level level = moe_level_of(i / d, i % d, c->cluster.devices_per_node);
        out->pairs_by_level[level] += t->pairs[i];
        add_volume(&out->volume[MOE_DISPATCH], level, t->sent[i], t->pairs[i], row_bytes,
                   t->sent[i] * head + t->pairs[i] * pair);
        add_volume(&out->volume[MOE_COMBINE], level, t->sent[i], t->pairs[i], row_bytes, 0);
    }
}

static void fill_counts(const tally *t, const moe_context *context, moe_layer_metrics *out) {
    int64_t n = context->placement.num_experts;
    int64_t d = context->placement.devices;
    int64_t tokens = context->batch->num_tokens_global;
    memcpy(out->counts_per_expert, t->counts, (size_t)n * sizeof(int64_t));
    memcpy(out->matrix, t->sent, (size_t)(d * d) * sizeof(int64_t));
    memset(out->counts_per_device, 0, (size_t)d * sizeof(int64_t));
    memset(out->sent_rows, 0, (size_t)d * sizeof(int64_t));
    memset(out->received_rows, 0, (size_t)d * sizeof(int64_t));
    for (int64_t e = 0; e < n; e++) {
        out->counts_per_device[context->placement.device[e]] += t->counts[e];
    }
    for (int64_t i = 0; i < d * d; i++) {
        out->sent_rows[i / d] += t->sent[i];
        out->received_rows[i % d] += t->received[i];
    }
    memcpy(out->tokens_by_reach, t->reach, sizeof out->tokens_by_reach);
    out->mean_devices = tokens ? (double)t->scalar[REACHED] / (double)tokens : 0;
    out->mean_devices_unlimited =
        tokens && measures_unlimited(context) ? (double)t->scalar[UNLIMITED] / (double)tokens : NAN;
    out->selections = t->scalar[SELECTIONS];
    out->output_rms = tokens ? sqrt(moe_exact_value(t->output) / (double)tokens) : 0;
}

/* --- self-checks --- */

static void check_conservation(const tally *t,
                               const moe_layer_metrics *out,
                               int64_t d,
                               moe_step_metrics *metrics) {
    const int64_t *s = t->scalar;
    bool rows = s[PLANNED_ROWS] == s[EXPECTED_ROWS] && s[RECEIVED_ROWS] == s[PLANNED_ROWS];
    moe_step_metrics_check(metrics, "rows_conserved", true, rows,
                           "%lld rows expected from the routing, %lld sent, %lld received",
                           (long long)s[EXPECTED_ROWS], (long long)s[PLANNED_ROWS],
                           (long long)s[RECEIVED_ROWS]);
    moe_step_metrics_check(
        metrics, "selections_conserved", true, s[RECEIVED_PAIRS] + out->dropped == s[SELECTIONS],
        "%lld selections, %lld arrived at their experts, %lld were dropped",
        (long long)s[SELECTIONS], (long long)s[RECEIVED_PAIRS], (long long)out->dropped);
    int64_t by_source = 0;
    int64_t by_destination = 0;
    int64_t same = 0;
    for (int64_t i = 0; i < d; i++) {
        by_source += out->sent_rows[i];
        by_destination += out->received_rows[i];
    }
    for (int64_t i = 0; i < d * d; i++) {
        same += t->sent[i] == t->received[i];
    }
    int64_t mpi = s[WIRE_ROWS] + s[OWN_ROWS];
    moe_step_metrics_check(
        metrics, "matrix_sums", true, by_source == mpi && by_destination == mpi && same == d * d,
        "row sums %lld, column sums %lld, rows given to MPI plus rows inside a rank "
        "%lld; both ends agree on %lld of %lld device pairs",
        (long long)by_source, (long long)by_destination, (long long)mpi, (long long)same,
        (long long)(d * d));
}

static void check_limits(const tally *t, const moe_context *context, moe_step_metrics *metrics) {
    const int64_t *s = t->scalar;
    const moe_router *r = &context->router;
    moe_step_metrics_check(metrics, "ceilings", true, s[BAD_DEVICES] == 0 && s[BAD_GROUPS] == 0,
                           "%lld tokens reach more devices, %lld more groups than K, D and M allow",
                           (long long)s[BAD_DEVICES], (long long)s[BAD_GROUPS]);
    if (moe_config_recorded(context->config)) {
        moe_step_metrics_check(metrics, "group_theorem", false, true,
                               "the routing was recorded, not computed");
    } else if (r->group_limit != MOE_GROUP_MAX) {
        moe_step_metrics_check(metrics, "group_theorem", false, true,
                               "it holds for group_limit = max only");
    } else if (s[THEOREM_TOKENS] == 0) {
        moe_step_metrics_check(metrics, "group_theorem", false, true,
                               "every token has ties, disabled experts or too few experts");
    } else {
        moe_step_metrics_check(
            metrics, "group_theorem", true, s[THEOREM_BAD] == 0,
            "distinct groups = min(M, distinct groups of the greedy choice): %lld "
            "tokens looked at, %lld differ",
            (long long)s[THEOREM_TOKENS], (long long)s[THEOREM_BAD]);
    }
    bool known = !moe_config_recorded(context->config);
    moe_step_metrics_check(metrics, "weight_sums", known, s[BAD_WEIGHTS] == 0,
                           known ? "%lld tokens whose combine weights have a wrong sum"
                                 : "weights were recorded (%lld)",
                           (long long)s[BAD_WEIGHTS]);
}

static void check_comm_loss(const tally *t, const moe_context *context, moe_step_metrics *metrics) {
    const char *why = moe_rows_not_tokens(context);
    moe_step_metrics_check(metrics, "comm_loss_from_bytes", why == NULL, t->scalar[COMM_BAD] == 0,
                           why ? "%s"
                               : "f'' equals the rows given to MPI_Alltoallv and those removed by "
                                 "dropping, for every device pair%s",
                           why ? why : "");
}

/* Collective. A failure names the layer and the first rank that holds a NaN or Inf. */
static void check_finite(const tally *t,
                         const moe_layer *layer,
                         const moe_context *context,
                         int64_t not_finite_here,
                         const moe_layer_metrics *out,
                         moe_step_metrics *metrics) {
    int64_t minus_rank = not_finite_here ? -context->comm->rank : INT64_MIN;
    bool total = isfinite(out->total) || !context->balance.has_scores;
    if (t->scalar[NONFINITE] == 0) {
        moe_step_metrics_check(metrics, "finite", true, isfinite(out->output_rms) && total,
                               "layer %d: output rms %g, balance losses x alpha %g", layer->index,
                               out->output_rms, out->total);
        return;
    }
    moe_comm_max_i64(context->comm, &minus_rank, 1);
    moe_step_metrics_check(metrics, "finite", true, false,
                           "layer %d: NaN, Inf or huge values in the logits or the output of %lld "
                           "tokens, first on rank %lld",
                           layer->index, (long long)t->scalar[NONFINITE], (long long)-minus_rank);
}

/* Of the last layer, whose forward finished it. */
static void fill_all_layers(const moe_context *context, moe_step_metrics *metrics) {
    const moe_scopes *all = context->all_layers;
    moe_all_layers_metrics *out = &metrics->all_layers;
    out->on = all != NULL;
    if (!all) {
        return;
    }
    out->raw = all->loss[context->config->balance.scope][MOE_LOSS_MIXTRAL];
    out->ideal = all->ideal[MOE_LOSS_MIXTRAL];
    out->loss =
        context->balance.alpha_all_layers > 0 ? context->balance.alpha_all_layers * out->raw : 0;
    for (int scope = 0; scope < MOE_NUM_SCOPES; scope++) {
        out->by_scope[scope] = all->loss[scope][MOE_LOSS_MIXTRAL];
    }
}

void moe_tally_layer(const moe_layer *layer,
                     const moe_context *context,
                     const moe_activations *a,
                     const real *y,
                     moe_step_metrics *metrics) {
    int64_t d = context->placement.devices;
    moe_layer_metrics *out = &metrics->layer[layer->index];
    tally t = tally_new(context->batch->scratch, context->placement.num_experts, d,
                        moe_tally_drop_words(context));
    count_blocks(&t, &a->plan, &a->exchange.inbox);
    count_reach(&t, context, &a->routing);
    count_rows(&t, context, moe_sent_routing(a));
    moe_tally_drop_count(context, a, t.drop);
    check_weights(&t, context, &a->routing);
    check_output(&t, context, a, y);
    if (!moe_rows_not_tokens(context)) {
        check_comm_count(&t, context, a);
    }
    check_theorem(&t, layer, context, a);
    count_unlimited(&t, layer, context, a);
    int64_t not_finite_here = t.scalar[NONFINITE];
    moe_comm_sum_i64(context->comm, t.words, t.count);
    fill_counts(&t, context, out);
    moe_tally_drop_fill(context, a, t.drop, t.scalar[ALL_ROWS] - t.scalar[EXPECTED_ROWS], out);
    fill_volume(&t, context->config, out);
    check_conservation(&t, out, d, metrics);
    check_limits(&t, context, metrics);
    check_comm_loss(&t, context, metrics);
    moe_tally_drop_check(context, out, metrics);
    check_finite(&t, layer, context, not_finite_here, out, metrics);
    if (layer->index + 1 == metrics->num_layers) {
        fill_all_layers(context, metrics);
    }
    moe_scratch_give(context->batch->scratch, t.words);
}

int moe_tally_after_layer(
    void *self, const moe_stack *s, int32_t l, moe_step_metrics *metrics, moe_status *st) {
    double start = moe_comm_time();
    (void)self, (void)st;
    moe_tally_layer(&s->layer[l], s->context, moe_stack_activations(s, l), s->y, metrics);
    moe_timeline_add(s->context->timeline, MOE_SPAN_TALLY, l, start, moe_comm_time(), NULL);
    return MOE_OK;
}
