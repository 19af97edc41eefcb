/* made_record.h: a record made up for tests of the report and of the results: a small keyed random
 * routing is counted in full, so that counts, matrix, reach and volume belong together; losses and
 * times are arbitrary numbers. */
#ifndef MADE_RECORD_H
#define MADE_RECORD_H

#include <math.h>
#include <string.h>

#include "measure/metrics.h"

enum { MADE_TOP_K = 6, MADE_LIMIT = 3, MADE_ROW_BYTES = 1024, MADE_METADATA_BYTES = 56 };

static inline uint64_t made_bits(uint64_t key) { /* splitmix64 */
    uint64_t z = key * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Token t of layer l picks MADE_TOP_K distinct experts on at most MADE_LIMIT neighbouring devices,
 * low devices more often. */
static inline void made_token(moe_layer_metrics *l,
                              const moe_step_metrics *r,
                              int64_t t,
                              uint64_t seed) {
    int32_t d = r->devices;
    int32_t per_device = r->num_experts / d;
    int32_t reach = 0;
    uint64_t u = made_bits(seed + (uint64_t)t * 2), v = made_bits(seed + (uint64_t)t * 2 + 1);
    int32_t first = (int32_t)(u % (uint64_t)d) * (int32_t)(v % 5) / 4 % d,
            home = (int32_t)(t * d / r->num_tokens);
    for (int32_t i = 0; i < MADE_LIMIT; i++) {
        int32_t device = (first + i) % d;
        int32_t taken = MADE_TOP_K / MADE_LIMIT;
        int32_t start = (int32_t)((u >> 32) % (uint64_t)(per_device - taken + 1));
        for (int32_t j = 0; j < taken; j++) {
            l->counts_per_expert[device * per_device + start + j]++;
        }
        l->counts_per_device[device] += taken;
        l->distinct_tokens_per_device[device]++;
        l->received_rows[device]++;
        l->sent_rows[home]++;
        moe_sparse_cell row = {home, device, 1};
        moe_sparse_add(&l->matrix, &(moe_sparse){.num_cells = 1, .cell = &row});
        reach++;
    }
    l->selections += MADE_TOP_K;
    l->tokens_by_reach[reach]++;
    l->mean_devices += (double)reach / (double)r->num_tokens;
}

static inline void made_volume(moe_layer_metrics *l,
                               const moe_step_metrics *r,
                               int32_t devices_per_node) {
    for (int direction = 0; direction < MOE_NUM_DIRECTIONS; direction++) {
        moe_volume *v = &l->volume[direction];
        for (int32_t from = 0; from < r->devices; from++) {
            for (int32_t to = 0; to < r->devices; to++) {
                int64_t rows = moe_sparse_at(&l->matrix, from, to);
                int level = from == to                                         ? MOE_LEVEL_DEVICE
                            : from / devices_per_node == to / devices_per_node ? MOE_LEVEL_NODE
                                                                               : MOE_LEVEL_CLUSTER;
                v->rows += rows;
                v->logical_bytes += rows * MADE_ROW_BYTES;
                v->remote_bytes += from == to ? 0 : rows * MADE_ROW_BYTES;
                v->metadata_bytes += rows * MADE_METADATA_BYTES;
                v->by_level[level].rows += rows;
                v->by_level[level].bytes += rows * MADE_ROW_BYTES;
                v->by_level[level].metadata_bytes += rows * MADE_METADATA_BYTES;
            }
        }
        v->selection_bytes = l->selections * MADE_ROW_BYTES;
        v->selection_remote_bytes = v->remote_bytes * (MADE_TOP_K / MADE_LIMIT);
    }
}

static inline void made_losses(moe_layer_metrics *l, uint64_t seed) {
    static const double alpha[MOE_NUM_LOSSES] = {0.003, 0.05, 0.02, 0};
    for (int i = 0; i < MOE_NUM_LOSSES; i++) {
        l->loss_raw[i] = 1 + (double)(made_bits(seed + 7 + (uint64_t)i) >> 11) * 0x1p-53;
        l->loss[i] = alpha[i] * l->loss_raw[i];
        l->ideal[i] = i == MOE_LOSS_Z ? NAN : 1;
        l->total += l->loss[i];
        for (int scope = 0; scope < MOE_NUM_SCOPES; scope++) {
            l->loss_by_scope[scope][i] = l->loss_raw[i] + 0.01 * scope;
        }
    }
}

/* A configuration that fits: nothing here depends on the number of ranks. */
static inline void made_config(moe_config *c,
                               int32_t layers,
                               int32_t experts,
                               int32_t devices,
                               int32_t devices_per_node) {
    moe_config_defaults(c);
    strcpy(c->name, "made_up");
    c->run.steps = 2;
    c->model.num_layers = layers;
    c->model.num_experts = experts;
    c->router.top_k = MADE_TOP_K;
    c->router.group_limit = MOE_GROUP_MAX;
    c->router.num_groups = devices;
    c->router.topk_group = c->comm_limit = MADE_LIMIT;
    c->balance.alpha_expert = 0.003;
    c->balance.alpha_device = 0.05;
    c->balance.alpha_comm = 0.02;
    c->exchange.mode = MOE_EXCHANGE_TOKEN;
    c->cluster.devices = devices;
    c->cluster.devices_per_node = devices_per_node;
}

/* What training adds: a loss that falls from 8 bits, a validation in every fifth step. */
static inline void made_training(moe_step_metrics *r) {
    r->task_loss = 1.5 + 4.04517744447956 * exp(-(double)r->step / 12) +
                   0x1p-60 * (double)(made_bits((uint64_t)r->step) >> 11);
    r->validation_loss = r->step % 5 == 4 ? r->task_loss + 0.125 : NAN;
    r->gradient_norm = 0.5 + 1 / (1.0 + (double)r->step);
    r->learning_rate = 0.003;
    r->gradient_allreduce_bytes = 1 << 20;
}

/* r must be initialised. */
static inline void made_record(moe_step_metrics *r,
                               const moe_config *c,
                               int64_t step,
                               int64_t num_tokens) {
    moe_step_metrics_clear(r);
    r->step = step;
    r->num_tokens = num_tokens;
    r->seconds = 0.0123 + (double)step;
    for (int32_t i = 0; i < r->num_layers; i++) {
        moe_layer_metrics *l = &r->layer[i];
        uint64_t seed = (uint64_t)(step * 1000 + i) << 32;
        for (int64_t t = 0; t < num_tokens; t++) {
            made_token(l, r, t, seed);
        }
        memcpy(l->kept_per_expert, l->counts_per_expert, (size_t)r->num_experts * sizeof(int64_t));
        made_volume(l, r, c->cluster.devices_per_node);
        made_losses(l, seed);
        l->allreduce_bytes = 4096;
        l->output_rms = 0.5;
        for (int p = 0; p < MOE_NUM_PHASES; p++) {
            l->phase_seconds[p] = 0.001 * (p + 1);
        }
    }
    if (c->run.mode == MOE_MODE_TRAIN) {
        made_training(r);
    }
    moe_step_metrics_check(r, "rows_conserved", true, true, "%lld rows sent, received and planned",
                           (long long)r->layer[0].volume[0].rows);
    moe_step_metrics_check(r, "groups_theorem", false, false, "made only for rule max");
}

#endif
