/* record.c: the record of one step: one block of counts per layer, the figures beside them, and the
 * list of self-checks. Figures that nobody filled in are NaN, so that they show up as "not defined"
 * and never as a plausible zero. */
#include "measure/metrics.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/status.h"

const char *const moe_level_names[MOE_NUM_LEVELS] = {"same_device", "same_node", "across_nodes"};
const char *const moe_direction_names[MOE_NUM_DIRECTIONS] = {
    "dispatch", "combine", "dispatch_backward", "combine_backward"};
const char *const moe_phase_names[MOE_NUM_PHASES] = {
    "gate", "route", "plan", "dispatch", "expert", "combine", "shared", "balance", "backward"};

/* All counts of a layer stand in one block, which begins at counts_per_expert. */
static int64_t layer_words(const moe_step_metrics *r) {
    int64_t n = r->num_experts, d = r->devices;
    return 3 * n + 5 * d + d * d;
}

static void layer_slice(moe_layer_metrics *l, int64_t *block, int64_t n, int64_t d) {
    l->counts_per_expert = block;
    l->kept_per_expert = block + n;
    l->counts_per_device = block + 2 * n;
    l->distinct_tokens_per_device = l->counts_per_device + d;
    l->sent_rows = l->distinct_tokens_per_device + d;
    l->received_rows = l->sent_rows + d;
    l->dropped_per_expert = l->received_rows + d;
    l->dropped_per_device = l->dropped_per_expert + n;
    l->matrix = l->dropped_per_device + d;
}

static void layer_clear(const moe_step_metrics *r, moe_layer_metrics *l) {
    int64_t *block = l->counts_per_expert;
    moe_capacity_metrics room = {.dropped_per_sequence = l->capacity.dropped_per_sequence,
                                 .sequence_room = l->capacity.sequence_room};
    memset(l, 0, sizeof *l);
    l->capacity = room;
    memset(block, 0, (size_t)layer_words(r) * sizeof *block);
    layer_slice(l, block, r->num_experts, r->devices);
    l->mean_devices_unlimited = NAN;
    for (int i = 0; i < MOE_NUM_LOSSES; i++) {
        l->loss_raw[i] = l->ideal[i] = NAN;
        for (int scope = 0; scope < MOE_NUM_SCOPES; scope++) {
            l->loss_by_scope[scope][i] = NAN;
        }
    }
}

void moe_step_metrics_init(moe_step_metrics *r,
                           int32_t num_layers,
                           int32_t num_experts,
                           int32_t devices) {
    memset(r, 0, sizeof *r);
    r->num_layers = num_layers;
    r->num_experts = num_experts;
    r->devices = devices;
    r->layer = moe_alloc_zero(num_layers, sizeof *r->layer, "the record of a step");
    for (int32_t i = 0; i < num_layers; i++) {
        r->layer[i].counts_per_expert =
            moe_alloc_zero(layer_words(r), sizeof(int64_t), "the counts of a layer");
        layer_clear(r, &r->layer[i]);
    }
}

void moe_step_metrics_free(moe_step_metrics *r) {
    for (int32_t i = 0; i < r->num_layers; i++) {
        moe_free(r->layer[i].counts_per_expert);
        moe_free(r->layer[i].capacity.dropped_per_sequence);
    }
    moe_free(r->layer);
    memset(r, 0, sizeof *r);
}

void moe_step_metrics_clear(moe_step_metrics *r) {
    r->step = r->num_tokens = 0;
    r->seconds = 0;
    r->num_checks = 0;
    r->task_loss = r->validation_loss = r->gradient_norm = r->learning_rate = NAN;
    r->gradient_allreduce_bytes = 0;
    r->all_layers = (moe_all_layers_metrics){0};
    for (int32_t i = 0; i < r->num_layers; i++) {
        layer_clear(r, &r->layer[i]);
    }
}

static moe_check *find_check(moe_step_metrics *r, const char *name) {
    for (int i = 0; i < r->num_checks; i++) {
        if (!strcmp(r->check[i].name, name)) {
            return &r->check[i];
        }
    }
    return NULL;
}

void moe_step_metrics_check(
    moe_step_metrics *r, const char *name, bool made, bool passed, const char *detail, ...) {
    moe_check now = {.made = made, .passed = passed};
    MOE_ASSERT(strlen(name) < sizeof now.name);
    memcpy(now.name, name, strlen(name));
    va_list arguments;
    va_start(arguments, detail);
    vsnprintf(now.detail, sizeof now.detail, detail, arguments);
    va_end(arguments);

    moe_check *before = find_check(r, name);
    if (!before) {
        MOE_ASSERT(r->num_checks < MOE_MAX_CHECKS);
        r->check[r->num_checks++] = now;
    } else if (made && (!before->made || (before->passed && !passed))) {
        *before = now;
    }
}

bool moe_step_metrics_all_passed(const moe_step_metrics *r) {
    for (int i = 0; i < r->num_checks; i++) {
        if (r->check[i].made && !r->check[i].passed) {
            return false;
        }
    }
    return true;
}

static void add_volume(moe_volume *sum, const moe_volume *v) {
    sum->rows += v->rows;
    sum->logical_bytes += v->logical_bytes;
    sum->remote_bytes += v->remote_bytes;
    sum->selection_bytes += v->selection_bytes;
    sum->selection_remote_bytes += v->selection_remote_bytes;
    sum->metadata_bytes += v->metadata_bytes;
    for (int level = 0; level < MOE_NUM_LEVELS; level++) {
        sum->by_level[level].rows += v->by_level[level].rows;
        sum->by_level[level].bytes += v->by_level[level].bytes;
        sum->by_level[level].metadata_bytes += v->by_level[level].metadata_bytes;
    }
}

void moe_step_metrics_volume(const moe_step_metrics *r,
                             enum moe_direction direction,
                             moe_volume *sum) {
    memset(sum, 0, sizeof *sum);
    for (int32_t i = 0; i < r->num_layers; i++) {
        add_volume(sum, &r->layer[i].volume[direction]);
    }
}

void moe_step_metrics_mean_losses(const moe_step_metrics *r,
                                  double loss[MOE_NUM_LOSSES],
                                  double raw[MOE_NUM_LOSSES],
                                  double *total) {
    *total = r->all_layers.loss;
    for (int i = 0; i < MOE_NUM_LOSSES; i++) {
        loss[i] = raw[i] = 0;
    }
    for (int32_t l = 0; l < r->num_layers; l++) {
        for (int i = 0; i < MOE_NUM_LOSSES; i++) {
            loss[i] += r->layer[l].loss[i] / r->num_layers;
            raw[i] += r->layer[l].loss_raw[i] / r->num_layers;
        }
        *total += r->layer[l].total / r->num_layers;
    }
}

double moe_step_metrics_objective(const moe_step_metrics *r) {
    double sum = r->all_layers.loss;
    for (int32_t l = 0; l < r->num_layers; l++) {
        sum += r->layer[l].total;
    }
    return sum;
}

/* --- micro-batches
 * -------------------------------------------------------------------------------------------------------------------------
 */

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

/* Sequences are listed as long as those of all micro-batches fit. */
static void join_sequences(moe_capacity_metrics *to,
                           const moe_capacity_metrics *from,
                           bool first,
                           int32_t of) {
    to->dropped_sequences += from->dropped_sequences;
    if (from->num_sequences == 0 || from->num_sequences > MOE_MAX_LISTED_SEQUENCES / of) {
        return;
    }
    if (first) {
        moe_reserve(&to->dropped_per_sequence, &to->sequence_room, of * from->num_sequences,
                    sizeof(int64_t), "the record of a step");
    }
    memcpy(to->dropped_per_sequence + to->num_sequences, from->dropped_per_sequence,
           (size_t)from->num_sequences * sizeof(int64_t));
    to->num_sequences += from->num_sequences;
}

static void join_capacity(moe_capacity_metrics *to,
                          const moe_capacity_metrics *from,
                          bool first,
                          int32_t of) {
    to->on = from->on;
    to->capacity = from->capacity;
    to->reassigned += from->reassigned;
    to->dropped_tokens += from->dropped_tokens;
    to->fully_dropped_tokens += from->fully_dropped_tokens;
    to->exempt_overflow += from->exempt_overflow;
    to->rows_saved += from->rows_saved;
    to->bytes_saved += from->bytes_saved;
    to->padding_rows += from->padding_rows;
    to->padding_bytes += from->padding_bytes;
    join_sequences(to, from, first, of);
}

static void join_all_layers(moe_all_layers_metrics *to,
                            const moe_all_layers_metrics *from,
                            bool first,
                            int32_t of) {
    if (first) {
        *to = (moe_all_layers_metrics){.on = from->on};
    }
    to->raw += from->raw / of;
    to->ideal += from->ideal / of;
    to->loss += from->loss / of;
    for (int scope = 0; scope < MOE_NUM_SCOPES; scope++) {
        to->by_scope[scope] += from->by_scope[scope] / of;
    }
}

static void join_layer(
    moe_layer_metrics *to, const moe_layer_metrics *from, int64_t words, bool first, int32_t of) {
    join_losses(to, from, first, of);
    join_capacity(&to->capacity, &from->capacity, first, of);
    for (int64_t i = 0; i < words; i++) {
        to->counts_per_expert[i] += from->counts_per_expert[i]; /* all counts: see layer_words */
    }
    to->dropped += from->dropped;
    to->selections += from->selections;
    for (int x = 0; x < 65; x++) {
        to->tokens_by_reach[x] += from->tokens_by_reach[x];
    }
    to->mean_devices += from->mean_devices / of;
    to->mean_devices_unlimited =
        (first ? 0 : to->mean_devices_unlimited) + from->mean_devices_unlimited / of;
    for (int i = 0; i < MOE_NUM_DIRECTIONS; i++) {
        add_volume(&to->volume[i], &from->volume[i]);
    }
    for (int level = 0; level < MOE_NUM_LEVELS; level++) {
        to->pairs_by_level[level] += from->pairs_by_level[level];
    }
    to->allreduce_bytes += from->allreduce_bytes;
    to->output_rms =
        sqrt(to->output_rms * to->output_rms + from->output_rms * from->output_rms / of);
    for (int i = 0; i < MOE_NUM_PHASES; i++) {
        to->phase_seconds[i] += from->phase_seconds[i];
    }
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
        join_layer(&step->layer[l], &micro->layer[l], layer_words(step), first, of);
    }
}
