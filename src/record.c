/* record.c: the record of one step: one block of counts per layer, the figures beside them, and the list of self-checks.
 * Figures that nobody filled in are NaN, so that they show up as "not defined" and never as a plausible zero. */
#include "moesim/record.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "moesim/status.h"
#include "moesim/tensor.h"

const char *const moe_level_names[MOE_NUM_LEVELS] = {"same_device", "same_node", "across_nodes"};
const char *const moe_direction_names[MOE_NUM_DIRECTIONS] = {"dispatch", "combine", "dispatch_backward", "combine_backward"};
const char *const moe_phase_names[MOE_NUM_PHASES] = {"gate",    "route",  "plan",    "dispatch", "expert",
                                                     "combine", "shared", "balance", "backward"};

/* All counts of a layer stand in one block, which begins at counts_per_expert. */
static int64_t layer_words(const moe_step_record *r) {
    int64_t n = r->num_experts, d = r->devices;
    return 3 * n + 5 * d + d * d;
}

static void layer_slice(moe_layer_record *l, int64_t *block, int64_t n, int64_t d) {
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

static void layer_clear(const moe_step_record *r, moe_layer_record *l) {
    int64_t *block = l->counts_per_expert;
    moe_capacity_record room = {.dropped_per_sequence = l->capacity.dropped_per_sequence, .sequence_room = l->capacity.sequence_room};
    memset(l, 0, sizeof *l);
    l->capacity = room;
    memset(block, 0, (size_t)layer_words(r) * sizeof *block);
    layer_slice(l, block, r->num_experts, r->devices);
    l->mean_devices_unlimited = NAN;
    for (int i = 0; i < MOE_NUM_LOSSES; i++) {
        l->loss_raw[i] = l->ideal[i] = NAN;
        for (int scope = 0; scope < MOE_NUM_SCOPES; scope++)
            l->loss_by_scope[scope][i] = NAN;
    }
}

void moe_step_record_init(moe_step_record *r, int32_t num_layers, int32_t num_experts, int32_t devices) {
    memset(r, 0, sizeof *r);
    r->num_layers = num_layers;
    r->num_experts = num_experts;
    r->devices = devices;
    r->layer = moe_alloc_zero(num_layers, sizeof *r->layer, "the record of a step");
    for (int32_t i = 0; i < num_layers; i++) {
        r->layer[i].counts_per_expert = moe_alloc_zero(layer_words(r), sizeof(int64_t), "the counts of a layer");
        layer_clear(r, &r->layer[i]);
    }
}

void moe_step_record_free(moe_step_record *r) {
    for (int32_t i = 0; i < r->num_layers; i++) {
        moe_free(r->layer[i].counts_per_expert);
        moe_free(r->layer[i].capacity.dropped_per_sequence);
    }
    moe_free(r->layer);
    memset(r, 0, sizeof *r);
}

void moe_step_record_clear(moe_step_record *r) {
    r->step = r->num_tokens = 0;
    r->seconds = 0;
    r->num_checks = 0;
    r->task_loss = r->validation_loss = r->gradient_norm = r->learning_rate = NAN;
    r->gradient_allreduce_bytes = 0;
    for (int32_t i = 0; i < r->num_layers; i++)
        layer_clear(r, &r->layer[i]);
}

static moe_check *find_check(moe_step_record *r, const char *name) {
    for (int i = 0; i < r->num_checks; i++)
        if (!strcmp(r->check[i].name, name)) return &r->check[i];
    return NULL;
}

void moe_record_check(moe_step_record *r, const char *name, bool made, bool passed, const char *detail, ...) {
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
    } else if (made && (!before->made || (before->passed && !passed)))
        *before = now;
}

bool moe_record_all_passed(const moe_step_record *r) {
    for (int i = 0; i < r->num_checks; i++)
        if (r->check[i].made && !r->check[i].passed) return false;
    return true;
}

void moe_record_volume(const moe_step_record *r, enum moe_direction direction, moe_volume *sum) {
    memset(sum, 0, sizeof *sum);
    for (int32_t i = 0; i < r->num_layers; i++) {
        const moe_volume *v = &r->layer[i].volume[direction];
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
}

void moe_record_mean_losses(const moe_step_record *r, double loss[MOE_NUM_LOSSES], double raw[MOE_NUM_LOSSES], double *total) {
    *total = 0;
    for (int i = 0; i < MOE_NUM_LOSSES; i++)
        loss[i] = raw[i] = 0;
    for (int32_t l = 0; l < r->num_layers; l++) {
        for (int i = 0; i < MOE_NUM_LOSSES; i++) {
            loss[i] += r->layer[l].loss[i] / r->num_layers;
            raw[i] += r->layer[l].loss_raw[i] / r->num_layers;
        }
        *total += r->layer[l].total / r->num_layers;
    }
}
