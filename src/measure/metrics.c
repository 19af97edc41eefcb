/* metrics.c: the metrics of a step. The counts of a layer stand in one block, the figures stand
 * beside them, and the self-checks are a list. */
#include "measure/metrics.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/status.h"

const char *const moe_level_names[MOE_NUM_LEVELS] = {
#define LEVEL(id, key, title) key,
#include "measure/names.def"
};
const char *const moe_level_titles[MOE_NUM_LEVELS] = {
#define LEVEL(id, key, title) title,
#include "measure/names.def"
};
const char *const moe_direction_names[MOE_NUM_DIRECTIONS] = {
#define DIRECTION(id, key, title) key,
#include "measure/names.def"
};
const char *const moe_direction_titles[MOE_NUM_DIRECTIONS] = {
#define DIRECTION(id, key, title) title,
#include "measure/names.def"
};
const char *const moe_phase_names[MOE_NUM_PHASES] = {
#define PHASE(id, key) key,
#include "measure/names.def"
};

/* --- memory --- */

static void layer_reserve(const moe_step_metrics *m, moe_layer_metrics *l) {
    int64_t n = m->num_experts, d = m->devices;
    const moe_block_array table[] = {
        MOE_ARRAY(l->counts_per_expert, n),  MOE_ARRAY(l->kept_per_expert, n),
        MOE_ARRAY(l->counts_per_device, d),  MOE_ARRAY(l->distinct_tokens_per_device, d),
        MOE_ARRAY(l->sent_rows, d),          MOE_ARRAY(l->received_rows, d),
        MOE_ARRAY(l->dropped_per_expert, n), MOE_ARRAY(l->dropped_per_device, d),
    };
    moe_block_reserve(&l->block, table, MOE_ARRAYS(table), "the counts of a layer");
    memset(l->block.memory, 0, (size_t)l->block.capacity);
}

static void layer_clear(const moe_step_metrics *m, moe_layer_metrics *l) {
    *l = (moe_layer_metrics){
        .block = l->block, .matrix = l->matrix, .capacity.block = l->capacity.block};
    l->matrix.num_cells = 0;
    layer_reserve(m, l);
    l->mean_devices_unlimited = NAN;
    l->mean_nodes_unlimited = NAN;
    for (int i = 0; i < MOE_NUM_LOSSES; i++) {
        l->loss_raw[i] = l->ideal[i] = NAN;
        for (int scope = 0; scope < MOE_NUM_SCOPES; scope++) {
            l->loss_by_scope[scope][i] = NAN;
        }
    }
}

void moe_capacity_metrics_reserve(moe_capacity_metrics *c, int64_t num_sequences) {
    const moe_block_array table[] = {MOE_ARRAY(c->dropped_per_sequence, num_sequences)};
    moe_block_reserve(&c->block, table, MOE_ARRAYS(table), "the metrics of a step");
}

void moe_step_metrics_init(moe_step_metrics *m,
                           int32_t num_layers,
                           int32_t num_experts,
                           int32_t devices) {
    *m = (moe_step_metrics){0};
    m->num_layers = num_layers;
    m->num_experts = num_experts;
    m->devices = devices;
    m->layer = moe_alloc_zero(num_layers, sizeof *m->layer, "the metrics of a step");
    for (int32_t i = 0; i < num_layers; i++) {
        layer_clear(m, &m->layer[i]);
    }
}

void moe_step_metrics_free(moe_step_metrics *m) {
    for (int32_t i = 0; i < m->num_layers; i++) {
        moe_block_free(&m->layer[i].block);
        moe_sparse_free(&m->layer[i].matrix);
        moe_block_free(&m->layer[i].capacity.block);
    }
    moe_free(m->layer);
    *m = (moe_step_metrics){0};
}

void moe_step_metrics_clear(moe_step_metrics *m) {
    m->step = m->num_tokens = 0;
    m->seconds = 0;
    m->num_checks = 0;
    m->task_loss = m->validation_loss = m->gradient_norm = m->learning_rate = NAN;
    m->payload_error = (moe_payload_error_metrics){.loss = NAN, .gradient = NAN};
    m->gradient_allreduce_bytes = m->replica_gradient_bytes = 0;
    m->rebalance = m->rebalance_sum = (moe_rebalance_metrics){0};
    m->rebalance_detail = NULL;
    m->all_layers = (moe_all_layers_metrics){0};
    for (int32_t i = 0; i < m->num_layers; i++) {
        layer_clear(m, &m->layer[i]);
    }
}

/* --- self-checks --- */

static moe_check *find_check(moe_step_metrics *m, const char *name) {
    for (int i = 0; i < m->num_checks; i++) {
        if (!strcmp(m->check[i].name, name)) {
            return &m->check[i];
        }
    }
    return NULL;
}

void moe_step_metrics_check(moe_step_metrics *m,
                            const char *name,
                            bool made,
                            bool passed,
                            const char *detail,
                            ...) {
    moe_check now = {.made = made, .passed = passed};
    MOE_ASSERT(strlen(name) < sizeof now.name);
    memcpy(now.name, name, strlen(name));
    va_list arguments;
    va_start(arguments, detail);
    vsnprintf(now.detail, sizeof now.detail, detail, arguments);
    va_end(arguments);

    moe_check *before = find_check(m, name);
    if (!before) {
        MOE_ASSERT(m->num_checks < MOE_MAX_CHECKS);
        m->check[m->num_checks++] = now;
    } else if (made && (!before->made || (before->passed && !passed))) {
        *before = now;
    }
}

bool moe_step_metrics_all_passed(const moe_step_metrics *m) {
    for (int i = 0; i < m->num_checks; i++) {
        if (m->check[i].made && !m->check[i].passed) {
            return false;
        }
    }
    return true;
}

/* --- sums --- */

static void add_traffic(moe_traffic *sum, const moe_traffic *t) {
    sum->rows += t->rows;
    sum->bytes += t->bytes;
    sum->metadata_bytes += t->metadata_bytes;
}

void moe_volume_add(moe_volume *sum, const moe_volume *v) {
    sum->rows += v->rows;
    sum->logical_bytes += v->logical_bytes;
    sum->remote_bytes += v->remote_bytes;
    sum->selection_bytes += v->selection_bytes;
    sum->selection_remote_bytes += v->selection_remote_bytes;
    sum->metadata_bytes += v->metadata_bytes;
    for (int level = 0; level < MOE_NUM_LEVELS; level++) {
        add_traffic(&sum->by_level[level], &v->by_level[level]);
        add_traffic(&sum->selection[level], &v->selection[level]);
        add_traffic(&sum->token[level], &v->token[level]);
        for (int hop = 0; hop < MOE_MOST_HOPS; hop++) {
            add_traffic(&sum->by_hop[hop][level], &v->by_hop[hop][level]);
        }
    }
}

void moe_volume_add_rows(moe_volume *v,
                         int hop,
                         enum moe_level level,
                         int64_t rows,
                         int64_t row_bytes,
                         int64_t metadata_bytes) {
    const moe_traffic sent = {rows, rows * row_bytes, metadata_bytes};
    v->rows += sent.rows;
    v->logical_bytes += sent.bytes;
    v->remote_bytes += level == MOE_LEVEL_DEVICE ? 0 : sent.bytes;
    v->metadata_bytes += sent.metadata_bytes;
    add_traffic(&v->by_level[level], &sent);
    add_traffic(&v->by_hop[hop][level], &sent);
}

void moe_volume_compare(moe_volume *v,
                        enum moe_level level,
                        int64_t selection_rows,
                        int64_t token_rows,
                        int64_t row_bytes) {
    const int64_t bytes = selection_rows * row_bytes;
    v->selection[level] = (moe_traffic){.rows = selection_rows, .bytes = bytes};
    v->token[level] = (moe_traffic){.rows = token_rows, .bytes = token_rows * row_bytes};
    v->selection_bytes += bytes;
    v->selection_remote_bytes += level == MOE_LEVEL_DEVICE ? 0 : bytes;
}

void moe_capacity_metrics_add(moe_capacity_metrics *sum, const moe_capacity_metrics *c) {
    sum->on = c->on;
    sum->capacity = c->capacity;
    sum->reassigned += c->reassigned;
    sum->dropped_tokens += c->dropped_tokens;
    sum->fully_dropped_tokens += c->fully_dropped_tokens;
    sum->exempt_overflow += c->exempt_overflow;
    sum->rows_saved += c->rows_saved;
    sum->bytes_saved += c->bytes_saved;
    sum->padding_rows += c->padding_rows;
    sum->padding_bytes += c->padding_bytes;
    sum->dropped_sequences += c->dropped_sequences;
}

/* --- micro-batches --- */

static void join_losses(moe_layer_metrics *to,
                        const moe_layer_metrics *from,
                        bool first,
                        int32_t of) {
    for (int i = 0; i < MOE_NUM_LOSSES; i++) {
        to->loss_raw[i] = (first ? 0 : to->loss_raw[i]) + from->loss_raw[i] / of;
        to->ideal[i] = (first ? 0 : to->ideal[i]) + from->ideal[i] / of;
        to->loss[i] += from->loss[i] / of;
        for (int scope = 0; scope < MOE_NUM_SCOPES; scope++) {
            to->loss_by_scope[scope][i] =
                (first ? 0 : to->loss_by_scope[scope][i]) + from->loss_by_scope[scope][i] / of;
        }
    }
    to->total += from->total / of;
}

/* The sequences are listed as long as those of all micro-batches fit into the list. */
static void join_sequences(moe_capacity_metrics *to,
                           const moe_capacity_metrics *from,
                           bool first,
                           int32_t of) {
    if (from->num_sequences == 0 || from->num_sequences > MOE_MAX_LISTED_SEQUENCES / of) {
        return;
    }
    if (first) {
        moe_capacity_metrics_reserve(to, of * from->num_sequences);
    }
    memcpy(to->dropped_per_sequence + to->num_sequences, from->dropped_per_sequence,
           (size_t)from->num_sequences * sizeof(int64_t));
    to->num_sequences += from->num_sequences;
}

/* The blocks of two layers of equal shape have equal counts at equal places. */
static void join_counts(moe_block *to, const moe_block *from) {
    int64_t *sum = (int64_t *)(void *)to->memory;
    const int64_t *more = (const int64_t *)(const void *)from->memory;
    MOE_ASSERT(to->capacity == from->capacity);
    for (int64_t i = 0; i < to->capacity / (int64_t)sizeof *sum; i++) {
        sum[i] += more[i];
    }
}

static void join_all_layers(moe_all_layers_metrics *to,
                            const moe_all_layers_metrics *from,
                            bool first,
                            int32_t of) {
    if (first) {
        *to = (moe_all_layers_metrics){.on = from->on, .form = from->form};
    }
    to->raw += from->raw / of;
    to->ideal += from->ideal / of;
    to->loss += from->loss / of;
    for (int scope = 0; scope < MOE_NUM_SCOPES; scope++) {
        to->by_scope[scope] += from->by_scope[scope] / of;
    }
}

static void join_layer(moe_layer_metrics *to,
                       const moe_layer_metrics *from,
                       bool first,
                       int32_t of) {
    join_losses(to, from, first, of);
    moe_capacity_metrics_add(&to->capacity, &from->capacity);
    moe_fetch_metrics_add(&to->fetch, &from->fetch);
    join_sequences(&to->capacity, &from->capacity, first, of);
    join_counts(&to->block, &from->block);
    moe_sparse_add(&to->matrix, &from->matrix);
    to->dropped += from->dropped;
    to->selections += from->selections;
    for (int x = 0; x < 65; x++) {
        to->tokens_by_reach[x] += from->tokens_by_reach[x];
    }
    to->mean_devices += from->mean_devices / of;
    to->mean_devices_unlimited =
        (first ? 0 : to->mean_devices_unlimited) + from->mean_devices_unlimited / of;
    to->mean_nodes += from->mean_nodes / of;
    to->mean_remote_nodes += from->mean_remote_nodes / of;
    to->mean_nodes_unlimited =
        (first ? 0 : to->mean_nodes_unlimited) + from->mean_nodes_unlimited / of;
    for (int i = 0; i < MOE_NUM_DIRECTIONS; i++) {
        moe_volume_add(&to->volume[i], &from->volume[i]);
    }
    for (int level = 0; level < MOE_NUM_LEVELS; level++) {
        for (int hop = 0; hop < MOE_MOST_HOPS; hop++) {
            to->pairs[hop][level] += from->pairs[hop][level];
        }
    }
    to->allreduce_bytes += from->allreduce_bytes;
    to->metadata_block_bytes = from->metadata_block_bytes;
    to->output_rms =
        sqrt(to->output_rms * to->output_rms + from->output_rms * from->output_rms / of);
    for (int i = 0; i < MOE_NUM_PHASES; i++) {
        to->phase_seconds[i] += from->phase_seconds[i];
    }
    to->overlap.in_flight += from->overlap.in_flight;
    to->overlap.waited += from->overlap.waited;
}

void moe_fetch_metrics_add(moe_fetch_metrics *sum, const moe_fetch_metrics *one) {
    sum->on = sum->on || one->on;
    sum->copies += one->copies;
    sum->bytes += one->bytes;
    sum->cross_node_bytes += one->cross_node_bytes;
    sum->decide_seconds += one->decide_seconds;
    sum->fetch_seconds += one->fetch_seconds;
}

void moe_rebalance_metrics_add(moe_rebalance_metrics *sum, const moe_rebalance_metrics *one) {
    moe_rebalance_metrics all = *one;
    all.decisions += sum->decisions;
    all.moved += sum->moved;
    all.bytes += sum->bytes;
    all.cross_node_bytes += sum->cross_node_bytes;
    all.decide_seconds += sum->decide_seconds;
    all.move_seconds += sum->move_seconds;
    *sum = all;
}

void moe_step_metrics_join(moe_step_metrics *step,
                           const moe_step_metrics *micro,
                           int32_t number,
                           int32_t of) {
    bool first = number == 0;
    if (first) {
        step->num_checks = 0;
    }
    join_all_layers(&step->all_layers, &micro->all_layers, first, of);
    for (int i = 0; i < micro->num_checks; i++) {
        moe_step_metrics_check(step, micro->check[i].name, micro->check[i].made,
                               micro->check[i].passed, "%s", micro->check[i].detail);
    }
    for (int32_t l = 0; l < step->num_layers; l++) {
        if (first) {
            layer_clear(step, &step->layer[l]);
        }
        join_layer(&step->layer[l], &micro->layer[l], first, of);
    }
}
