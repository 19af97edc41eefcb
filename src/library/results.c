/* results.c: what a layer made of its tokens, by name. Each result is made when it is first asked
 * for. Names and meaning are those of docs/results.md where a run writes the same. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "balance/bias.h"
#include "config/table.h"
#include "exchange/payload.h"
#include "exchange/row_format.h"
#include "library/internal.h"
#include "measure/metrics.h"
#include "placement/balancer.h"
#include "predict/prediction.h"
#include "router/loss_gradient.h"

/* --- making one --- */

/* Memory, cleared, for a result; the second dimension is 0 where there is none. */
static void *result(moesim_array *a, enum moesim_type type, int64_t rows, int64_t columns) {
    const int64_t count = rows * (columns > 0 ? columns : 1);
    *a = (moesim_array){.type = type, .num_dims = columns > 0 ? 2 : 1, .shape = {rows, columns}};
    void *data = moe_alloc_zero(count, (size_t)moe_layer_type_size(type), "result");
    a->data = data;
    return data;
}

/* --- tokens --- */

/* The most selections that a token has: columns of the arrays by token. */
static int64_t columns_of(const moesim_layer *l) {
    int64_t most = l->router.top_k;
    for (int64_t t = 0; t < l->routing.num_tokens; t++) {
        const int64_t count = l->routing.row_offset[t + 1] - l->routing.row_offset[t];
        most = count > most ? count : most;
    }
    return most;
}

typedef double selection_value(const moesim_layer *l, int64_t i);

static double expert_of(const moesim_layer *l, int64_t i) {
    return l->routing.expert[i];
}
static double weight_of(const moesim_layer *l, int64_t i) {
    return (double)l->routing.weight[i];
}
static double score_of(const moesim_layer *l, int64_t i) {
    return l->routing.score[i];
}
static double server_of(const moesim_layer *l, int64_t i) {
    return l->drop.on ? l->drop.server[i] : l->routing.expert[i];
}
static double kept_of(const moesim_layer *l, int64_t i) {
    return server_of(l, i) >= 0;
}
static double slot_of(const moesim_layer *l, int64_t i) {
    return l->drop.on ? l->drop.slot[i] : -1;
}

/* [T,K] of a value of each selection; `none` where a token has fewer. */
static void by_selection(const moesim_layer *l,
                         moesim_array *a,
                         enum moesim_type type,
                         selection_value *value,
                         double none) {
    const int64_t k = columns_of(l), tokens = l->routing.num_tokens;
    void *data = result(a, type, tokens, k);
    for (int64_t t = 0; t < tokens; t++) {
        const int64_t begin = l->routing.row_offset[t],
                      count = l->routing.row_offset[t + 1] - begin;
        for (int64_t j = 0; j < k; j++) {
            const double x = j < count ? value(l, begin + j) : none;
            if (type == MOESIM_F64) {
                ((double *)data)[t * k + j] = x;
            } else if (type == MOESIM_I32) {
                ((int32_t *)data)[t * k + j] = (int32_t)x;
            } else {
                ((uint8_t *)data)[t * k + j] = x != 0;
            }
        }
    }
}

static void fill_topk_idx(const moesim_layer *l, moesim_array *a) {
    by_selection(l, a, MOESIM_I32, expert_of, -1);
}
static void fill_topk_weight(const moesim_layer *l, moesim_array *a) {
    by_selection(l, a, MOESIM_F64, weight_of, 0);
}
static void fill_topk_score(const moesim_layer *l, moesim_array *a) {
    by_selection(l, a, MOESIM_F64, score_of, 0);
}
static void fill_kept(const moesim_layer *l, moesim_array *a) {
    by_selection(l, a, MOESIM_U8, kept_of, 0);
}
static void fill_slot(const moesim_layer *l, moesim_array *a) {
    by_selection(l, a, MOESIM_I32, slot_of, -1);
}
static void fill_served_idx(const moesim_layer *l, moesim_array *a) {
    by_selection(l, a, MOESIM_I32, server_of, -1);
}

static void fill_device_of_token(const moesim_layer *l, moesim_array *a) {
    int32_t *device = result(a, MOESIM_I32, l->batch.num_tokens, 0);
    for (int64_t t = 0; t < l->batch.num_tokens; t++) {
        device[t] = moe_batch_device_of(&l->batch, t);
    }
}

static void fill_logits(const moesim_layer *l, moesim_array *a) {
    const bool f64 = l->logits.f64 != NULL;
    if (!f64 && !l->logits.f32) {
        return;
    }
    void *z = result(a, f64 ? MOESIM_F64 : MOESIM_F32, l->batch.num_tokens, l->router.num_experts);
    const size_t bytes = (size_t)(a->shape[0] * a->shape[1] * moe_layer_type_size(a->type));
    memcpy(z, f64 ? (const void *)l->logits.f64 : l->logits.f32, bytes);
}

/* --- experts and devices --- */

static void count_experts(const moe_routing *r, int64_t *count) {
    for (int64_t i = 0; i < r->num_selections; i++) {
        count[r->expert[i]]++;
    }
}

static void fill_counts_per_expert(const moesim_layer *l, moesim_array *a) {
    count_experts(&l->routing, result(a, MOESIM_I64, l->router.num_experts, 0));
}
static void fill_kept_per_expert(const moesim_layer *l, moesim_array *a) {
    count_experts(moe_layer_sent(l), result(a, MOESIM_I64, l->router.num_experts, 0));
}

static int32_t device_of(const moesim_layer *l, int32_t expert, int64_t token) {
    const moe_placement *p = &l->placement;
    return moe_placement_device(p, expert, token,
                                p->replicated ? moe_batch_device_of(&l->batch, token) : 0);
}

static void count_devices(const moesim_layer *l, const moe_routing *r, int64_t *count) {
    for (int64_t t = 0; t < r->num_tokens; t++) {
        for (int64_t i = r->row_offset[t]; i < r->row_offset[t + 1]; i++) {
            count[device_of(l, r->expert[i], t)]++;
        }
    }
}

static void fill_counts_per_device(const moesim_layer *l, moesim_array *a) {
    count_devices(l, &l->routing, result(a, MOESIM_I64, l->batch.devices, 0));
}
static void fill_kept_per_device(const moesim_layer *l, moesim_array *a) {
    count_devices(l, moe_layer_sent(l), result(a, MOESIM_I64, l->batch.devices, 0));
}

static void fill_distinct_tokens(const moesim_layer *l, moesim_array *a) {
    int64_t *tokens = result(a, MOESIM_I64, l->batch.devices, 0);
    memcpy(tokens, moe_stats_device_tokens(&l->scopes.global, l->scopes.global.cell),
           (size_t)l->batch.devices * sizeof *tokens);
}

/* tokens[x] = tokens that reach x devices. */
static void fill_tokens_by_reach(const moesim_layer *l, moesim_array *a) {
    const int32_t devices = l->batch.devices;
    const uint8_t *routed = moe_batch_routed(&l->batch);
    int64_t *tokens = result(a, MOESIM_I64, devices + 1, 0);
    int64_t *stamp = moe_alloc_zero(devices, sizeof *stamp, "result");
    for (int64_t t = 0; t < l->routing.num_tokens; t++) {
        int64_t reach = 0;
        for (int64_t i = l->routing.row_offset[t]; i < l->routing.row_offset[t + 1]; i++) {
            const int32_t d = device_of(l, l->routing.expert[i], t);
            reach += stamp[d] != t + 1;
            stamp[d] = t + 1;
        }
        tokens[reach] += !routed || routed[t];
    }
    moe_free(stamp);
}

static void fill_capacity(const moesim_layer *l, moesim_array *a) {
    if (l->drop.on) {
        *(int64_t *)result(a, MOESIM_I64, 1, 0) = l->drop.capacity;
    }
}

static void fill_expert_at(const moesim_layer *l, moesim_array *a) {
    const int32_t slots = moe_placement_slots(&l->placement);
    memcpy(result(a, MOESIM_I32, slots, 0), l->placement.expert_at,
           (size_t)slots * sizeof *l->placement.expert_at);
}

static void fill_bias_updated(const moesim_layer *l, moesim_array *a) {
    const int32_t n = l->router.num_experts;
    if (l->config.router.bias_update_rate <= 0) {
        return;
    }
    double *bias = result(a, MOESIM_F64, n, 0);
    if (l->router.bias) {
        memcpy(bias, l->router.bias, (size_t)n * sizeof *bias);
    }
    moe_bias_update(&l->config.router, n,
                    moe_stats_counts(&l->scopes.global, l->scopes.global.cell), bias);
}

/* --- losses --- */

static void fill_loss_raw(const moesim_layer *l, moesim_array *a) {
    memcpy(result(a, MOESIM_F64, MOE_NUM_LOSSES, 0), l->scopes.loss[l->config.balance.scope],
           sizeof l->scopes.loss[0]);
}

static void fill_loss(const moesim_layer *l, moesim_array *a) {
    double *loss = result(a, MOESIM_F64, MOE_NUM_LOSSES, 0);
    for (int i = 0; i < (int)MOE_NUM_LOSSES; i++) {
        loss[i] = l->balance.alpha[i] != 0
                      ? l->balance.alpha[i] * l->scopes.loss[l->config.balance.scope][i]
                      : 0;
    }
}

static void fill_loss_by_scope(const moesim_layer *l, moesim_array *a) {
    memcpy(result(a, MOESIM_F64, MOE_NUM_SCOPES, MOE_NUM_LOSSES), l->scopes.loss,
           sizeof l->scopes.loss);
}

static void fill_loss_ideal(const moesim_layer *l, moesim_array *a) {
    memcpy(result(a, MOESIM_F64, MOE_NUM_LOSSES, 0), l->scopes.ideal, sizeof l->scopes.ideal);
}

/* f_i = N c_i / (K-bar T) of the global batch */
static void fill_f(const moesim_layer *l, moesim_array *a) {
    const moe_stats *s = &l->scopes.global;
    const int64_t *count = moe_stats_counts(s, s->cell);
    double *f = result(a, MOESIM_F64, s->num_experts, 0), sum = 0;
    for (int32_t i = 0; i < s->num_experts; i++) {
        sum += (double)count[i];
    }
    for (int32_t i = 0; i < s->num_experts; i++) {
        f[i] = sum > 0 ? s->num_experts * (double)count[i] / sum : 0;
    }
}

static void fill_p(const moesim_layer *l, moesim_array *a) {
    const moe_stats *s = &l->scopes.global;
    if (!l->balance.has_scores) {
        return;
    }
    double *p = result(a, MOESIM_F64, s->num_experts, 0);
    for (int32_t i = 0; i < s->num_experts; i++) {
        p[i] = moe_balance_mean_score(s, s->cell, i);
    }
}

/* The gradient of the losses times their coefficients, as moe_layer_dlogits of the model makes it.
 */
static void fill_dlogits(const moesim_layer *l, moesim_array *a) {
    const moe_batch *b = &l->batch;
    const int32_t n = l->router.num_experts;
    if (!l->logits.f32 && !l->logits.f64) {
        return;
    }
    double *dlogits = result(a, MOESIM_F64, b->num_tokens, n);
    double *coefficient = moe_alloc(MOE_COEFFICIENTS * (int64_t)n, sizeof *coefficient, "result");
    for (int64_t i = 0; i < b->num_segments; i++) {
        double divisor;
        int64_t *cell = moe_scopes_cell(&l->scopes, l->config.balance.scope, b, i, &divisor);
        if (divisor == 0) {
            continue;
        }
        moe_balance_coefficients(&l->balance, &l->placement, &l->scopes.global, cell, coefficient);
        const moe_loss_coefficients all = {.a = coefficient,
                                           .inverse_tokens = 1 / divisor,
                                           .alpha_z = l->balance.alpha[MOE_LOSS_Z],
                                           .inverse_counted =
                                               1 / (double)l->scopes.global.cell[MOE_STAT_TOKENS]};
        moe_loss_gradient(&l->router, b, l->logits, NULL, &l->routing, b->segment[i].begin,
                          b->segment[i].end, &all, dlogits);
    }
    moe_free(coefficient);
}

/* --- rows and time --- */

static int64_t num_cells(const moe_plan *p) {
    return p->device_cell[p->num_local];
}

static void fill_comm_matrix(const moesim_layer *l, moesim_array *a) {
    const int64_t d = l->batch.devices;
    int64_t *rows = result(a, MOESIM_I64, d, d);
    for (int64_t i = 0; i < num_cells(&l->plan); i++) {
        rows[l->plan.cell[i].from * d + l->plan.cell[i].to] = l->plan.cell[i].rows;
    }
}

/* Adds rows, pairs or bytes to the levels that they cross. */
enum level_value { LEVEL_ROWS, LEVEL_PAIRS, LEVEL_BYTES, LEVEL_BYTES_BACK, LEVEL_METADATA };
static void by_level(const moesim_layer *l, moesim_array *a, enum level_value which) {
    const moe_row_format *f = moe_row_format_of(l->config.exchange.mode);
    const moe_config *of = &l->config;
    const int64_t there = moe_payload_bytes(moe_payload_of_dispatch(of), of->model.hidden_size),
                  back = moe_payload_bytes(moe_payload_of_combine(of), of->model.hidden_size);
    int64_t *sum = result(a, MOESIM_I64, MOE_NUM_LEVELS, 0);
    for (int64_t i = 0; i < num_cells(&l->plan); i++) {
        const moe_plan_cell *c = &l->plan.cell[i];
        const int64_t value[] = {c->rows, c->pairs, c->rows * there, c->rows * back,
                                 moe_row_format_words(f, c->rows, c->pairs) *
                                     (int64_t)sizeof(int32_t)};
        sum[moe_level_of(c->from, c->to, l->config.cluster.devices_per_node)] += value[which];
    }
}

static void fill_rows(const moesim_layer *l, moesim_array *a) {
    by_level(l, a, LEVEL_ROWS);
}
static void fill_pairs(const moesim_layer *l, moesim_array *a) {
    by_level(l, a, LEVEL_PAIRS);
}
static void fill_bytes(const moesim_layer *l, moesim_array *a) {
    by_level(l, a, LEVEL_BYTES);
}
static void fill_bytes_back(const moesim_layer *l, moesim_array *a) {
    by_level(l, a, LEVEL_BYTES_BACK);
}
static void fill_metadata(const moesim_layer *l, moesim_array *a) {
    by_level(l, a, LEVEL_METADATA);
}

/* Selections that each slot serves after dropping. */
static int64_t *served_by_slot(const moesim_layer *l) {
    const moe_placement *p = &l->placement;
    const moe_routing *r = moe_layer_sent(l);
    int64_t *served = moe_alloc_zero(moe_placement_slots(p), sizeof *served, "result");
    for (int64_t t = 0; t < r->num_tokens; t++) {
        for (int64_t i = r->row_offset[t]; i < r->row_offset[t + 1]; i++) {
            served[moe_placement_slot_on(p, r->expert[i], device_of(l, r->expert[i], t))]++;
        }
    }
    return served;
}

static void fill_predicted_us(const moesim_layer *l, moesim_array *a) {
    const moe_plan *plan = &l->plan;
    moe_sparse matrix = {0};
    int64_t *served = served_by_slot(l);
    double *us = result(a, MOESIM_F64, MOE_NUM_PREDICTED, 0);
    moe_sparse_reserve(&matrix, num_cells(plan));
    for (int64_t i = 0; i < num_cells(plan); i++) {
        moe_sparse_append(&matrix, plan->cell[i].from, plan->cell[i].to, plan->cell[i].rows);
    }
    const moe_layer_counts counts = {.matrix = &matrix,
                                     .slots = moe_placement_slots(&l->placement),
                                     .served = served,
                                     .allreduce_bytes = l->scopes.allreduce_bytes};
    const moe_prediction time =
        moe_prediction_of_counts(&l->config, &counts, 1, l->batch.num_routed, 0);
    for (int i = 0; i < MOE_NUM_PREDICTED; i++) {
        us[i] = 1e6 * time.seconds[i];
    }
    moe_sparse_free(&matrix);
    moe_free(served);
}

/* --- the table --- */

typedef struct result_row {
    const char *name;
    /* Leaves *a without data where this routing has no such result. */
    void (*fill)(const moesim_layer *l, moesim_array *a);
    const char *missing; /* what it would need */
} result_row;

static const result_row rows[] = {
    {"topk_idx", fill_topk_idx, NULL},
    {"topk_weight", fill_topk_weight, NULL},
    {"topk_score", fill_topk_score, NULL},
    {"kept", fill_kept, NULL},
    {"slot", fill_slot, NULL},
    {"served_idx", fill_served_idx, NULL},
    {"device_of_token", fill_device_of_token, NULL},
    {"logits", fill_logits, "logits"},
    {"counts_per_expert", fill_counts_per_expert, NULL},
    {"kept_per_expert", fill_kept_per_expert, NULL},
    {"counts_per_device", fill_counts_per_device, NULL},
    {"kept_per_device", fill_kept_per_device, NULL},
    {"distinct_tokens_per_device", fill_distinct_tokens, NULL},
    {"tokens_by_reach", fill_tokens_by_reach, NULL},
    {"capacity", fill_capacity, "a capacity.policy"},
    {"expert_at", fill_expert_at, NULL},
    {"bias_updated", fill_bias_updated, "a router.bias_update_rate above 0"},
    {"loss_raw", fill_loss_raw, NULL},
    {"loss", fill_loss, NULL},
    {"loss_by_scope", fill_loss_by_scope, NULL},
    {"loss_ideal", fill_loss_ideal, NULL},
    {"f", fill_f, NULL},
    {"p", fill_p, "logits or scores"},
    {"dlogits", fill_dlogits, "logits"},
    {"comm_matrix", fill_comm_matrix, NULL},
    {"rows_by_level", fill_rows, NULL},
    {"selections_by_level", fill_pairs, NULL},
    {"dispatch_bytes_by_level", fill_bytes, NULL},
    {"combine_bytes_by_level", fill_bytes_back, NULL},
    {"metadata_bytes_by_level", fill_metadata, NULL},
    {"predicted_us", fill_predicted_us, NULL},
};
enum { NUM_ROWS = sizeof rows / sizeof rows[0] };
_Static_assert((int)NUM_ROWS <= (int)MOE_MAX_RESULTS, "moesim_layer.result has room for every row");

int moesim_layer_get(moesim_layer *l, const char *name, moesim_array *out, char *error) {
    moe_status st = {0};
    int i = 0;
    while (i < NUM_ROWS && strcmp(rows[i].name, name ? name : "") != 0) {
        i++;
    }
    if (i == NUM_ROWS) {
        moe_fail(&st, MOE_USER, "there is no result '%.60s'", name ? name : "");
    } else if (!l->routed) {
        moe_fail(&st, MOE_USER, "%s: the layer has not been routed since it was made or changed",
                 name);
    } else if (!l->result[i].data) {
        rows[i].fill(l, &l->result[i]);
        if (!l->result[i].data) {
            moe_fail(&st, MOE_USER, "%s: it needs %s", name, rows[i].missing);
        }
    }
    if (st.code == MOE_OK) {
        *out = l->result[i];
    }
    return moe_layer_report(&st, error);
}

/* --- lists --- */

static const char *key(int32_t i) {
    return i < MOE_NUM_KEYS ? moe_keys[i].full : NULL;
}
static const char *array(int32_t i) {
    return i < MOE_NUM_LAYER_ARRAYS ? moe_layer_array_names[i] : NULL;
}
static const char *result_name(int32_t i) {
    return i < NUM_ROWS ? rows[i].name : NULL;
}
static const char *loss(int32_t i) {
    return i < MOE_NUM_LOSSES ? moe_loss_names[i] : NULL;
}
static const char *scope(int32_t i) {
    return i < MOE_NUM_SCOPES ? moe_config_enum_name(MOE_KEY(balance, scope), i) : NULL;
}
static const char *level(int32_t i) {
    return i < (int32_t)MOE_NUM_LEVELS ? moe_level_names[i] : NULL;
}
static const char *phase(int32_t i) {
    return i < (int32_t)MOE_NUM_PREDICTED ? moe_predicted_names[i] : NULL;
}

static const struct {
    const char *what;
    const char *(*word)(int32_t i);
} lists[] = {
    {"keys", key},     {"arrays", array}, {"results", result_name}, {"losses", loss},
    {"scopes", scope}, {"levels", level}, {"phases", phase},
};

const char *moesim_list(const char *what, int32_t i) {
    for (size_t j = 0; what && i >= 0 && j < sizeof lists / sizeof lists[0]; j++) {
        if (strcmp(lists[j].what, what) == 0) {
            return lists[j].word(i);
        }
    }
    return NULL;
}
