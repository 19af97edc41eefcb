/* tally.c: the global counts, matrices and volumes of one layer.
 *
 * Every rank counts its own tokens and devices into one vector of integers, which one MPI_Allreduce
 * sums over the ranks; the layer's metrics are filled in from the sums. The self-checks (checks.c)
 * and the balance losses of the layer have their places in the same vector. */
#include "tally/tally.h"

#include <math.h>
#include <string.h>

#include "router/groups.h"
#include "router/scores.h"
#include "router/select.h"
#include "tally/internal.h"

/* further_words: room behind the counts, for what is summed in the same message. */
static moe_tally tally_new(const moe_context *context, int64_t further_words) {
    int64_t n = context->router.num_experts, d = context->batch->devices;
    int64_t drop_words = moe_tally_drop_words(context);
    moe_tally t = {.count = n + 4 * d + 2 * MOE_NUM_LEVELS + 65 + MOE_EXACT_WORDS +
                            MOE_TALLY_NUM_SCALARS + moe_tally_matrix_words(context) + drop_words};
    t.words = moe_scratch_take_zero(context->batch->scratch, t.count + further_words,
                                    sizeof *t.words, "tally");
    t.counts = t.words;
    t.by_device = t.counts + n;
    t.sent_rows = t.by_device + d;
    t.received_rows = t.sent_rows + d;
    t.device_pairs = t.received_rows + d;
    t.level_rows = t.device_pairs + d;
    t.level_pairs = t.level_rows + MOE_NUM_LEVELS;
    t.reach = t.level_pairs + MOE_NUM_LEVELS;
    t.output = t.reach + 65;
    t.scalar = t.output + MOE_EXACT_WORDS;
    t.drop = t.scalar + MOE_TALLY_NUM_SCALARS;
    moe_tally_matrix_place(&t, context, t.drop + drop_words);
    return t;
}

/* --- the share of this rank --- */

/* The number of distinct devices that serve k experts of a local token. stamp [D] remembers for
 * each device the last token; each call is for another one. by_device [D], unless it is NULL, grows
 * by what each device serves. */
static int64_t distinct_devices(const moe_layer *layer,
                                const moe_context *context,
                                int64_t token,
                                const int32_t *expert,
                                int64_t k,
                                int64_t *stamp,
                                int64_t *by_device) {
    int64_t distinct = 0;
    for (int64_t i = 0; i < k; i++) {
        int32_t device = moe_tally_device(layer, context, expert[i], token);
        distinct += stamp[device] != token + 1;
        stamp[device] = token + 1;
        if (by_device) {
            by_device[device]++;
        }
    }
    return distinct;
}

static void count_blocks(moe_tally *t,
                         const moe_context *context,
                         const moe_plan *plan,
                         const moe_inbox *in) {
    for (int64_t i = 0; i < plan->device_cell[plan->num_local]; i++) {
        const moe_plan_cell *cell = &plan->cell[i];
        enum moe_level level =
            moe_level_of(cell->from, cell->to, context->config->cluster.devices_per_node);
        t->sent_rows[cell->from] += cell->rows;
        t->level_rows[level] += cell->rows;
        t->level_pairs[level] += cell->pairs;
        t->device_pairs[cell->to] += cell->pairs;
    }
    for (int64_t i = 0; i < in->num_cells; i++) {
        t->received_rows[in->cell[i].column] += in->cell[i].count;
    }
    moe_tally_matrix_count(t, plan, in);
    t->scalar[MOE_TALLY_PLANNED_ROWS] = plan->num_rows;
    t->scalar[MOE_TALLY_OWN_ROWS] = in->own_end - in->own_begin;
    t->scalar[MOE_TALLY_WIRE_ROWS] = plan->num_rows - t->scalar[MOE_TALLY_OWN_ROWS];
    t->scalar[MOE_TALLY_RECEIVED_ROWS] = in->num_rows;
    t->scalar[MOE_TALLY_RECEIVED_PAIRS] = in->num_pairs;
}

static bool measures_unlimited(const moe_context *context) {
    return context->router.group_limit != MOE_GROUP_NONE && !moe_config_recorded(context->config);
}

/* Counts the distinct devices of each token from the routing alone. */
static void count_reach(moe_tally *t,
                        const moe_layer *layer,
                        const moe_context *context,
                        const moe_routing *routing) {
    const moe_router *r = &context->router;
    int32_t d = context->batch->devices;
    int32_t reachable = moe_config_group_span(context->config);
    bool limited = r->group_limit != MOE_GROUP_NONE;
    int64_t *stamp = moe_scratch_take_zero(context->batch->scratch, d, sizeof *stamp, "tally");
    const uint8_t *routed = moe_batch_routed(context->batch);
    for (int64_t token = 0; token < routing->num_tokens; token++) {
        if (routed && !routed[token]) {
            continue;
        }
        int64_t begin = routing->row_offset[token], k = routing->row_offset[token + 1] - begin;
        int64_t reach = distinct_devices(layer, context, token, routing->expert + begin, k, stamp,
                                         t->by_device);
        for (int64_t i = 0; i < k; i++) {
            t->counts[routing->expert[begin + i]]++;
        }
        t->reach[reach < 64 ? reach : 64]++;
        t->scalar[MOE_TALLY_SELECTIONS] += k;
        t->scalar[MOE_TALLY_REACHED] += reach;
        t->scalar[MOE_TALLY_ALL_ROWS] +=
            context->config->exchange.mode == MOE_EXCHANGE_TOKEN ? reach : k;
        t->scalar[MOE_TALLY_BAD_DEVICES] +=
            reach > k || reach > d ||
            (limited && moe_config_in_blocks(context->config) && reach > reachable);
        t->scalar[MOE_TALLY_BAD_GROUPS] +=
            limited && moe_groups_distinct(r, routing->expert + begin, (int32_t)k) >
                           (k < r->topk_group ? k : r->topk_group);
    }
    moe_scratch_give(context->batch->scratch, stamp);
}

/* Counts the rows that the routing after dropping asks for. */
static void count_rows(moe_tally *t,
                       const moe_layer *layer,
                       const moe_context *context,
                       const moe_routing *sent) {
    int64_t *stamp = moe_scratch_take_zero(context->batch->scratch, context->batch->devices,
                                           sizeof *stamp, "tally");
    for (int64_t token = 0; token < sent->num_tokens; token++) {
        int64_t begin = sent->row_offset[token], k = sent->row_offset[token + 1] - begin;
        int64_t reach =
            distinct_devices(layer, context, token, sent->expert + begin, k, stamp, NULL);
        t->scalar[MOE_TALLY_EXPECTED_ROWS] +=
            context->config->exchange.mode == MOE_EXCHANGE_TOKEN ? reach : k;
    }
    moe_scratch_give(context->batch->scratch, stamp);
}

/* Counts the devices that tokens would reach without the group limit, which shows what it saves. */
static void count_unlimited(moe_tally *t,
                            const moe_layer *layer,
                            const moe_context *context,
                            const moe_activations *a) {
    moe_router greedy = layer->router;
    moe_draw draw = {.seed = (uint64_t)context->config->run.seed};
    int32_t n = greedy.num_experts;
    int64_t reached = 0;
    const uint8_t *routed = moe_batch_routed(context->batch);
    if (!measures_unlimited(context)) {
        return;
    }
    greedy.group_limit = MOE_GROUP_NONE;
#pragma omp parallel reduction(+ : reached)
    {
        moe_select select;
        moe_select_reserve(&select, &greedy, &draw);
        double *z = moe_scratch_take(context->batch->scratch, 2 * (int64_t)n, sizeof *z, "tally"),
               *s = z + n;
        int32_t *expert =
            moe_scratch_take(context->batch->scratch, greedy.top_k, sizeof *expert, "tally");
        int64_t *stamp = moe_scratch_take_zero(context->batch->scratch, context->batch->devices,
                                               sizeof *stamp, "tally");
#pragma omp for schedule(static)
        for (int64_t token = 0; token < context->batch->num_tokens; token++) {
            if ((routed && !routed[token]) ||
                moe_scores_read_logits(a->logits, token, n, z) & MOE_ROW_BAD) {
                continue;
            }
            moe_scores_fill(&greedy, z, s, NULL);
            int32_t k = moe_select_experts(&select, &greedy, z, s, 1, expert, NULL);
            reached += distinct_devices(layer, context, token, expert, k, stamp, NULL);
        }
        moe_select_free(&select);
        moe_scratch_give(context->batch->scratch, z);
        moe_scratch_give(context->batch->scratch, expert);
        moe_scratch_give(context->batch->scratch, stamp);
    }
    t->scalar[MOE_TALLY_UNLIMITED] = reached;
}

/* --- the sums over all ranks --- */

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

static void fill_volume(const moe_tally *t, const moe_config *c, moe_layer_metrics *out) {
    int64_t there = moe_payload_bytes(moe_payload_of_dispatch(c), c->model.hidden_size);
    int64_t back = moe_payload_bytes(moe_payload_of_combine(c), c->model.hidden_size);
    int64_t head = moe_exchange_row_metadata_bytes(c->exchange.mode),
            pair = moe_exchange_pair_metadata_bytes();
    memset(out->volume, 0, sizeof out->volume);
    for (int level = 0; level < MOE_NUM_LEVELS; level++) {
        int64_t rows = t->level_rows[level], pairs = t->level_pairs[level];
        out->pairs_by_level[level] = pairs;
        add_volume(&out->volume[MOE_DISPATCH], (enum moe_level)level, rows, pairs, there,
                   rows * head + pairs * pair);
        add_volume(&out->volume[MOE_COMBINE], (enum moe_level)level, rows, pairs, back, 0);
    }
}

static void fill_counts(const moe_tally *t, const moe_context *context, moe_layer_metrics *out) {
    int64_t n = context->router.num_experts;
    int64_t d = context->batch->devices;
    int64_t tokens = context->batch->num_routed;
    memcpy(out->counts_per_expert, t->counts, (size_t)n * sizeof(int64_t));
    memcpy(out->counts_per_device, t->by_device, (size_t)d * sizeof(int64_t));
    memcpy(out->sent_rows, t->sent_rows, (size_t)d * sizeof(int64_t));
    memcpy(out->received_rows, t->received_rows, (size_t)d * sizeof(int64_t));
    memcpy(out->tokens_by_reach, t->reach, sizeof out->tokens_by_reach);
    out->mean_devices = tokens ? (double)t->scalar[MOE_TALLY_REACHED] / (double)tokens : 0;
    out->mean_devices_unlimited = tokens && measures_unlimited(context)
                                      ? (double)t->scalar[MOE_TALLY_UNLIMITED] / (double)tokens
                                      : NAN;
    out->selections = t->scalar[MOE_TALLY_SELECTIONS];
    out->output_rms = tokens ? sqrt(moe_exact_value(t->output) / (double)tokens) : 0;
}

/* The loss over all layers is known after the forward of the last one. */
static void fill_all_layers(const moe_context *context, moe_step_metrics *metrics) {
    const moe_scopes *all = context->all_layers;
    moe_all_layers_metrics *out = &metrics->all_layers;
    out->on = all != NULL;
    if (!all) {
        return;
    }
    out->form = context->balance.form;
    out->raw = all->loss[context->config->balance.scope][out->form];
    out->ideal = all->ideal[out->form];
    out->loss =
        context->balance.alpha_all_layers > 0 ? context->balance.alpha_all_layers * out->raw : 0;
    for (int scope = 0; scope < MOE_NUM_SCOPES; scope++) {
        out->by_scope[scope] = all->loss[scope][out->form];
    }
}

/* Collective. Sums the tally and the vector of the balance losses, `num` words, which is copied
 * behind it for that: one message for both. */
static void sum_with_losses(moe_tally *t, const moe_comm *comm, int64_t *losses, int64_t num) {
    memcpy(t->words + t->count, losses, (size_t)num * sizeof *losses);
    moe_comm_sum_i64(comm, t->words, t->count + num);
    memcpy(losses, t->words + t->count, (size_t)num * sizeof *losses);
}

void moe_tally_layer(const moe_layer *layer,
                     const moe_context *context,
                     moe_activations *a,
                     const real *y,
                     moe_step_metrics *metrics) {
    moe_layer_metrics *out = &metrics->layer[layer->index];
    int64_t *losses, num_losses = moe_scopes_vector(&a->scopes, &losses);
    moe_tally t = tally_new(context, num_losses);
    count_blocks(&t, context, &a->plan, &a->exchange.inbox);
    count_reach(&t, layer, context, &a->routing);
    count_rows(&t, layer, context, moe_activations_sent(a));
    count_unlimited(&t, layer, context, a);
    moe_tally_drop_count(layer, context, a, t.drop);
    moe_tally_checks_count(&t, layer, context, a, y);
    int64_t not_finite_here = t.scalar[MOE_TALLY_NOT_FINITE];
    sum_with_losses(&t, context->comm, losses, num_losses);
    moe_layer_losses_complete(layer, context, a, out);
    fill_counts(&t, context, out);
    moe_tally_matrix(&t, context, a, &out->matrix);
    moe_tally_drop_fill(context, a, t.drop,
                        t.scalar[MOE_TALLY_ALL_ROWS] - t.scalar[MOE_TALLY_EXPECTED_ROWS], out);
    fill_volume(&t, context->config, out);
    moe_tally_checks_make(&t, layer, context, not_finite_here, metrics);
    if (layer->index + 1 == metrics->num_layers) {
        fill_all_layers(context, metrics);
    }
    moe_scratch_give(context->batch->scratch, t.words);
}

int moe_tally_after_layer(void *self,
                          const moe_stack *s,
                          int32_t l,
                          moe_step_metrics *metrics,
                          moe_status *st) {
    double start = moe_comm_time();
    (void)self, (void)st;
    moe_tally_layer(&s->layer[l], s->context, moe_stack_activations(s, l), s->y, metrics);
    moe_timeline_add(s->context->timeline, MOE_SPAN_TALLY, l, start, moe_comm_time(), NULL);
    return MOE_OK;
}
