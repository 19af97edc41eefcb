/* tally.c: the global counts, matrices and volumes of one layer.
 *
 * Every rank counts its own tokens and devices into one vector of integers, which one MPI_Allreduce
 * sums over the ranks; the layer's metrics are filled in from the sums. The self-checks (checks.c)
 * and the balance losses of the layer have their places in the same vector. */
#include "tally/tally.h"

#include <math.h>
#include <string.h>

#include "model/reach.h"
#include "router/groups.h"
#include "tally/internal.h"

/* further_words: room behind the counts, for what is summed in the same message. */
static moe_tally tally_new(const moe_context *context, int64_t further_words) {
    int64_t n = context->router.num_experts, d = context->batch->devices;
    int64_t drop_words = moe_tally_drop_words(context);
    moe_tally t = {.count = n + 4 * d + MOE_TALLY_NUM_LEVEL_COUNTS * MOE_NUM_LEVELS + 65 +
                            MOE_EXACT_WORDS + MOE_TALLY_NUM_SCALARS +
                            moe_tally_matrix_words(context) + drop_words};
    t.words = moe_scratch_take_zero(context->batch->scratch, t.count + further_words,
                                    sizeof *t.words, "tally");
    t.counts = t.words;
    t.by_device = t.counts + n;
    t.sent_rows = t.by_device + d;
    t.received_rows = t.sent_rows + d;
    t.device_pairs = t.received_rows + d;
    t.level = (int64_t(*)[MOE_NUM_LEVELS])(t.device_pairs + d);
    t.reach = t.level[MOE_TALLY_NUM_LEVEL_COUNTS];
    t.output = t.reach + 65;
    t.scalar = t.output + MOE_EXACT_WORDS;
    t.drop = t.scalar + MOE_TALLY_NUM_SCALARS;
    moe_tally_matrix_place(&t, context, t.drop + drop_words);
    return t;
}

/* --- the share of this rank --- */

static bool has_two_hops(const moe_context *context) {
    return moe_row_format_hops(context->config->exchange.mode) > 1;
}

static enum moe_level level_of(const moe_context *context, int32_t from, int32_t to) {
    return moe_level_of(from, to, context->config->cluster.devices_per_node);
}

/* Rows and pairs of one hop by device and level. last: it ends at the experts. */
static void count_hop(moe_tally *t,
                      const moe_context *context,
                      const moe_plan *plan,
                      const moe_inbox *in,
                      bool last) {
    for (int64_t i = 0; i < plan->device_cell[plan->num_local]; i++) {
        const moe_plan_cell *cell = &plan->cell[i];
        enum moe_level level = level_of(context, cell->from, cell->to);
        t->sent_rows[cell->from] += cell->rows;
        t->level[MOE_TALLY_LEVEL_ROWS + plan->hop][level] += cell->rows;
        t->level[MOE_TALLY_LEVEL_PAIRS + plan->hop][level] += cell->pairs;
        t->device_pairs[cell->to] += last ? cell->pairs : 0;
        if (plan->row_part) {
            t->level[MOE_TALLY_LEVEL_PARTS][level] +=
                plan->row_part[cell->first_row + cell->rows] - plan->row_part[cell->first_row];
        }
    }
    for (int64_t i = 0; i < in->num_cells; i++) {
        t->received_rows[in->cell[i].column] += in->cell[i].count;
    }
    const int64_t own =
        plan->rank_row[context->comm->rank + 1] - plan->rank_row[context->comm->rank];
    t->scalar[MOE_TALLY_OWN_ROWS] += own;
    t->scalar[MOE_TALLY_WIRE_ROWS] += plan->num_rows - own;
    t->scalar[last ? MOE_TALLY_PLANNED_ROWS : MOE_TALLY_PLANNED_FIRST] = plan->num_rows;
    t->scalar[last ? MOE_TALLY_RECEIVED_ROWS : MOE_TALLY_RECEIVED_FIRST] = in->num_rows;
}

static void count_blocks(moe_tally *t, const moe_context *context, const moe_activations *a) {
    const int hops = moe_row_format_hops(a->plan.mode);
    for (int hop = 0; hop < hops; hop++) {
        count_hop(t, context, moe_exchange_plan_of(&a->exchange, &a->plan, hop),
                  moe_exchange_inbox_of(&a->exchange, &a->plan, hop), hop + 1 == hops);
    }
    moe_tally_matrix_count(t, context, a);
    t->scalar[MOE_TALLY_RECEIVED_PAIRS] = a->exchange.inbox.num_pairs;
}

/* With two hops: what modes `token` and `selection` would have sent, from the routing alone. */
static void count_alternatives(moe_tally *t,
                               const moe_layer *layer,
                               const moe_context *context,
                               const moe_routing *sent) {
    const moe_batch *b = context->batch;
    int64_t *stamp = moe_scratch_take_zero(b->scratch, b->devices, sizeof *stamp, "tally");
    for (int32_t j = 0; j < b->num_local_devices; j++) {
        for (int64_t token = b->device_offset[j]; token < b->device_offset[j + 1]; token++) {
            for (int64_t i = sent->row_offset[token]; i < sent->row_offset[token + 1]; i++) {
                int32_t device = moe_reach_device(layer, context->batch, sent->expert[i], token);
                enum moe_level level = level_of(context, b->first_device + j, device);
                t->level[MOE_TALLY_LEVEL_SELECTION][level]++;
                t->level[MOE_TALLY_LEVEL_TOKEN][level] += stamp[device] != token + 1;
                stamp[device] = token + 1;
            }
        }
    }
    moe_scratch_give(b->scratch, stamp);
}

/* Whether a token's row goes to a device and not to an expert. */
static bool has_device_rows(const moe_context *context) {
    return context->config->exchange.mode != MOE_EXCHANGE_SELECTION;
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
    int64_t *stamp =
        moe_scratch_take_zero(context->batch->scratch, 2 * (int64_t)d, sizeof *stamp, "tally");
    const uint8_t *routed = moe_batch_routed(context->batch);
    for (int64_t token = 0; token < routing->num_tokens; token++) {
        if (routed && !routed[token]) {
            continue;
        }
        int64_t begin = routing->row_offset[token], k = routing->row_offset[token + 1] - begin;
        const moe_reached found = moe_reach_of(layer, context, context->batch, token,
                                               routing->expert + begin, k, stamp, t->by_device);
        const int64_t reach = found.devices;
        for (int64_t i = 0; i < k; i++) {
            t->counts[routing->expert[begin + i]]++;
        }
        t->reach[reach < 64 ? reach : 64]++;
        t->scalar[MOE_TALLY_SELECTIONS] += k;
        t->scalar[MOE_TALLY_REACHED] += reach;
        t->scalar[MOE_TALLY_NODES] += found.nodes;
        t->scalar[MOE_TALLY_REMOTE_NODES] += found.remote_nodes;
        t->scalar[MOE_TALLY_ALL_ROWS] += has_device_rows(context) ? reach : k;
        t->scalar[MOE_TALLY_ALL_FIRST] += has_two_hops(context) ? found.nodes : 0;
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
    int64_t *stamp = moe_scratch_take_zero(
        context->batch->scratch, 2 * (int64_t)context->batch->devices, sizeof *stamp, "tally");
    for (int64_t token = 0; token < sent->num_tokens; token++) {
        int64_t begin = sent->row_offset[token], k = sent->row_offset[token + 1] - begin;
        const moe_reached found = moe_reach_of(layer, context, context->batch, token,
                                               sent->expert + begin, k, stamp, NULL);
        t->scalar[MOE_TALLY_EXPECTED_ROWS] += has_device_rows(context) ? found.devices : k;
        t->scalar[MOE_TALLY_EXPECTED_FIRST] += has_two_hops(context) ? found.nodes : 0;
    }
    moe_scratch_give(context->batch->scratch, stamp);
    if (has_two_hops(context)) {
        count_alternatives(t, layer, context, sent);
    }
}

/* Counts the devices and nodes that tokens would reach without the group limit, which shows what it
 * saves. */
static void count_unlimited(moe_tally *t,
                            const moe_layer *layer,
                            const moe_context *context,
                            const moe_activations *a) {
    moe_reached found = a->by_device.unlimited;
    if (!a->by_device.on) {
        found = moe_reach_unlimited(layer, context, context->batch, a->logits);
    }
    t->scalar[MOE_TALLY_UNLIMITED] = found.devices;
    t->scalar[MOE_TALLY_UNLIMITED_NODES] = found.nodes;
}

/* --- the sums over all ranks --- */

static void fill_volume(const moe_tally *t, const moe_config *c, moe_layer_metrics *out) {
    const int64_t there = moe_payload_bytes(moe_payload_of_dispatch(c), c->model.hidden_size),
                  back = moe_payload_bytes(moe_payload_of_combine(c), c->model.hidden_size),
                  pair = moe_exchange_pair_metadata_bytes();
    const int hops = moe_row_format_hops(c->exchange.mode);
    moe_volume *dispatch = &out->volume[MOE_DISPATCH], *combine = &out->volume[MOE_COMBINE];
    memset(out->volume, 0, sizeof out->volume);
    for (int i = 0; i < MOE_NUM_LEVELS * hops; i++) {
        const enum moe_level level = i % MOE_NUM_LEVELS;
        const int hop = i / MOE_NUM_LEVELS;
        const int64_t rows = t->level[MOE_TALLY_LEVEL_ROWS + hop][level],
                      pairs = t->level[MOE_TALLY_LEVEL_PAIRS + hop][level],
                      head = moe_exchange_row_metadata_bytes(c->exchange.mode, hop);
        const bool parts = hop == 0 && hops > 1 && !c->exchange.node_sum;
        out->pairs[hop][level] = pairs;
        moe_volume_add_rows(dispatch, hop, level, rows, there, rows * head + pairs * pair);
        moe_volume_add_rows(combine, hop, level,
                            parts ? t->level[MOE_TALLY_LEVEL_PARTS][level] : rows, back, 0);
    }
    for (int i = 0; i < MOE_NUM_LEVELS; i++) {
        const enum moe_level level = i;
        const int64_t selections =
            t->level[hops > 1 ? MOE_TALLY_LEVEL_SELECTION : MOE_TALLY_LEVEL_PAIRS][level];
        const int64_t tokens = t->level[MOE_TALLY_LEVEL_TOKEN][level];
        moe_volume_compare(dispatch, level, selections, tokens, there);
        moe_volume_compare(combine, level, selections, tokens, back);
    }
}

/* What dropping saved. Where combine brings back each device's sum, a device saves a row of both
 * hops, and a node none. */
static void fill_drop(const moe_tally *t,
                      const moe_context *context,
                      const moe_activations *a,
                      moe_layer_metrics *out) {
    const int64_t *s = t->scalar;
    const int64_t rows = s[MOE_TALLY_ALL_ROWS] - s[MOE_TALLY_EXPECTED_ROWS],
                  first = s[MOE_TALLY_ALL_FIRST] - s[MOE_TALLY_EXPECTED_FIRST];
    const bool parts = has_two_hops(context) && !context->config->exchange.node_sum;
    moe_tally_drop_fill(context, a, t->drop, rows + first, parts ? 2 * rows : rows + first, out);
}

/* The mean over tokens of a sum over them. */
static double mean_of(const moe_tally *t, enum moe_tally_scalar sum, int64_t tokens) {
    return tokens ? (double)t->scalar[sum] / (double)tokens : 0;
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
    out->mean_devices = mean_of(t, MOE_TALLY_REACHED, tokens);
    out->mean_nodes = mean_of(t, MOE_TALLY_NODES, tokens);
    out->mean_remote_nodes = mean_of(t, MOE_TALLY_REMOTE_NODES, tokens);
    out->mean_devices_unlimited = out->mean_nodes_unlimited = NAN;
    if (tokens && moe_reach_has_limit(context)) {
        out->mean_devices_unlimited = mean_of(t, MOE_TALLY_UNLIMITED, tokens);
        out->mean_nodes_unlimited = mean_of(t, MOE_TALLY_UNLIMITED_NODES, tokens);
    }
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
    count_blocks(&t, context, a);
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
    fill_drop(&t, context, a, out);
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
    moe_timeline_add(s->context->timeline, MOE_SPAN_TALLY, s->layer[l].depth, start,
                     moe_comm_time(), NULL);
    return MOE_OK;
}
