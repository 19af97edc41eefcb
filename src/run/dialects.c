/* dialects.c: moesim --dialects: one configuration for each dialect, each sent through
 * moe_layer_forward and moe_tally_layer as in a run, on one batch.
 *
 * A dialect is the user's configuration with the keys of router.*, balance.* and capacity.* as a
 * preset has them (or at their defaults where it says nothing), or with one key changed. The tokens
 * and the gate's weights, and therefore the logits, are those of the configuration. */
#include "run/dialects.h"

#include <string.h>

#include "base/gemm.h"
#include "config/presets.h"
#include "config/value.h"
#include "output/format.h"
#include "predict/memory.h"
#include "run/dialects_internal.h"
#include "tally/tally.h"
#include "world/topology.h"

/* Each of these is a row: the configuration with one key read in another way. */
static const moe_setting readings[] = {
    MOE_SET(router, group_limit, none),         MOE_SET(router, group_limit, max),
    MOE_SET(router, group_limit, top2_sum),     MOE_SET(router, group_limit, topk_sum),
    MOE_SET(balance, device_p, mean),           MOE_SET(balance, comm_count, selections),
    MOE_SET(balance, aux_selection, unlimited), MOE_SET(balance, aux_form, mixtral),
};
enum { NUM_READINGS = sizeof readings / sizeof readings[0] };

typedef struct dialects {
    const moe_comm *comm;
    moe_config c; /* the user's, with one layer and experts that compute nothing */
    moe_input input;
    moe_batch batch;
    real *x, *y;
    uint8_t *own; /* [T,N], 1 where the configuration's own router chose the expert */
    moe_dialect *row;
    int num_rows;
} dialects;

/* --- configurations --- */

/* Whether a preset decides on the key. The scale of the gate makes the logits, which all share. */
static bool is_routing_key(enum moe_key_id key) {
    return key != MOE_KEY(router, gate_scale) &&
           (moe_table_same_section(key, MOE_KEY(router, preset)) ||
            moe_table_same_section(key, MOE_KEY(balance, scope)) ||
            moe_table_same_section(key, MOE_KEY(capacity, policy)));
}

/* The resolved configuration as one that may be resolved again: what was derived counts as given.
 */
static moe_config reopened(const moe_config *resolved) {
    moe_config c = *resolved;
    c.ranks = 0;
    for (enum moe_key_id k = 0; k < MOE_NUM_KEYS; k++) {
        if (!is_routing_key(k)) {
            c.given[k] = 1;
        }
    }
    if (c.segmented.parts > 1) {
        c.given[MOE_KEY(router, top_k)] = 1;
    }
    c.segmented.parts = 1;
    return c;
}

/* Puts the router of a preset in place of the configuration's. */
static void take_preset(moe_config *c, const moe_preset *preset, moe_status *st) {
    for (enum moe_key_id k = 0; k < MOE_NUM_KEYS; k++) {
        if (!is_routing_key(k)) {
            continue;
        }
        moe_value_set(c, k, moe_keys[k].default_text, "default", st);
        c->given[k] = 0;
        c->place[k] = MOE_PLACE_DEFAULT;
    }
    snprintf(c->router.preset, sizeof c->router.preset, "%s", preset->name);
}

/* What every row has in common: one layer, forward only, and experts that cost nothing. */
static moe_config quick(const moe_config *resolved) {
    moe_config c = *resolved;
    c.run.mode = MOE_MODE_FORWARD;
    c.run.steps = 1;
    c.model.num_layers = 1;
    c.model.first_dense_layers = 0;
    c.model.expert_type = MOE_EXPERT_IDENTITY;
    c.model.compute = MOE_COMPUTE_FP32;
    c.model.num_shared_experts = 0;
    return c;
}

static int64_t num_tokens(const dialects *d) {
    return d->input.num_tokens_global ? d->input.num_tokens_global
                                      : d->c.cluster.devices * d->c.data.tokens_per_device;
}

static void add_row(dialects *d,
                    const char *name,
                    const moe_preset *preset,
                    const moe_setting *reading) {
    moe_dialect *row = &d->row[d->num_rows++];
    moe_status st = {0};
    snprintf(row->name, sizeof row->name, "%s", name);
    row->is_preset = preset != NULL;
    row->c = d->c;
    if (!preset && !reading) {
        return;
    }
    row->c = reopened(&d->c);
    if (preset) {
        take_preset(&row->c, preset, &st);
    }
    if (reading) {
        moe_value_override(&row->c, reading->key, reading->value, &st);
    }
    if (st.code == MOE_OK) {
        moe_config_resolve(&row->c, d->comm->size, &st);
    }
    if (st.code == MOE_OK) {
        moe_capacity_check(&row->c, moe_input_routed(&d->input, &row->c, num_tokens(d)),
                           moe_input_longest_sequence(&d->input, &row->c, num_tokens(d)), &st);
    }
    snprintf(row->reason, sizeof row->reason, "%s", st.message);
}

/* Whether the configuration itself reads the key in this way, so that the row would say nothing. */
static bool reads_alike(const moe_config *c, const moe_setting *reading) {
    char value[MOE_VALUE_TEXT_MAX];
    moe_value_format(c, reading->key, value);
    return strcmp(value, reading->value) == 0;
}

static void add_rows(dialects *d) {
    char name[MOE_NAME_MAX];
    d->row = moe_alloc_zero(1 + moe_num_presets + NUM_READINGS, sizeof *d->row, "dialects");
    add_row(d, "(configuration)", NULL, NULL);
    for (int i = 0; i < moe_num_presets; i++) {
        add_row(d, moe_presets[i].name, &moe_presets[i], NULL);
    }
    for (int i = 0; i < NUM_READINGS; i++) {
        if (!reads_alike(&d->c, &readings[i])) {
            snprintf(name, sizeof name, "%s=%s", moe_keys[readings[i].key].name, readings[i].value);
            add_row(d, name, NULL, &readings[i]);
        }
    }
}

/* --- one row --- */

static void mark_own(dialects *d, const moe_routing *r) {
    int64_t n = d->c.model.num_experts;
    d->own = moe_alloc_zero(r->num_tokens * n, 1, "chosen experts");
    for (int64_t t = 0; t < r->num_tokens; t++) {
        for (int64_t i = r->row_offset[t]; i < r->row_offset[t + 1]; i++) {
            d->own[t * n + r->expert[i]] = 1;
        }
    }
}

static void count_common(const dialects *d, const moe_routing *r, moe_dialect *row) {
    int64_t count[2] = {0, r->num_selections};
    for (int64_t t = 0; t < r->num_tokens; t++) {
        for (int64_t i = r->row_offset[t]; i < r->row_offset[t + 1]; i++) {
            count[0] += d->own[t * d->c.model.num_experts + r->expert[i]];
        }
    }
    moe_comm_sum_i64(d->comm, count, 2);
    row->common = count[0];
    row->selections = count[1];
}

static void keep_figures(moe_dialect *row, const moe_layer_metrics *layer) {
    memcpy(row->loss, layer->loss_raw, sizeof row->loss);
    memcpy(row->ideal, layer->ideal, sizeof row->ideal);
    row->dropped = layer->dropped;
    row->mean_devices = layer->mean_devices;
    row->dispatch_bytes = layer->volume[MOE_DISPATCH].logical_bytes;
}

static int check_row(const moe_dialect *row, const moe_step_metrics *metrics, moe_status *st) {
    for (int i = 0; i < metrics->num_checks; i++) {
        const moe_check *check = &metrics->check[i];
        if (check->made && !check->passed) {
            return moe_fail(st, MOE_RUN_FAILED, "%s failed its self-check %s: %s", row->name,
                            check->name, check->detail);
        }
    }
    return MOE_OK;
}

/* Collective. */
static int run_row(dialects *d, moe_dialect *row, moe_status *st) {
    const moe_config *c = &row->c;
    moe_input input = d->input;
    moe_layer layer;
    moe_activations a = {0};
    moe_step_metrics metrics;
    if (row->is_preset) {
        input.bias = NULL; /* router.bias_file is the configuration's */
    }
    moe_context context;
    moe_context_init(&context, d->comm, c, &d->batch, &input, NULL);
    moe_layer_init(&layer, &context, 0);
    moe_step_metrics_init(&metrics, 1, c->model.num_experts, c->cluster.devices);
    moe_step_metrics_clear(&metrics);
    moe_layer_forward(&layer, &context, d->x, d->y, &a, &metrics.layer[0]);
    moe_tally_layer(&layer, &context, &a, d->y, &metrics);
    if (!d->own) {
        mark_own(d, &a.routing);
    }
    count_common(d, &a.routing, row);
    keep_figures(row, &metrics.layer[0]);
    check_row(row, &metrics, st);
    moe_step_metrics_free(&metrics);
    moe_activations_free(&a);
    moe_layer_free(&layer);
    moe_context_free(&context);
    return st->code;
}

/* --- all rows --- */

static void make_x(dialects *d) {
    int64_t elements = d->batch.num_tokens * d->c.model.hidden_size;
    d->x = moe_alloc(elements, sizeof(real), "x");
    d->y = moe_alloc(elements, sizeof(real), "y");
    moe_input_vectors(&d->input, &d->c, 0, &d->batch, d->x);
}

static int refuse(const moe_config *c, moe_status *st) {
    if (moe_config_recorded(c)) {
        return moe_fail(st, MOE_USER,
                        "data.source = routing: --dialects compares routers, and a recorded "
                        "routing has none: record logits");
    }
    if (c->model.attention != MOE_ATTENTION_NONE) {
        return moe_fail(st, MOE_USER,
                        "model.attention = %s: --dialects compares routers on the tokens "
                        "themselves, without attention in front: model.attention = none",
                        moe_config_enum_name(MOE_KEY(model, attention), (int)c->model.attention));
    }
    if (c->model.first_dense_layers > 0 &&
        moe_config_given(c, MOE_KEY(model, first_dense_layers))) {
        return moe_fail(st, MOE_USER,
                        "model.first_dense_layers = %d: --dialects compares routers on the tokens "
                        "themselves, without layers in front: first_dense_layers = 0",
                        c->model.first_dense_layers);
    }
    if (c->model.load[0]) {
        return moe_fail(st, MOE_USER,
                        "model.load: --dialects works on keyed tokens and gates or on data.source "
                        "= logits, not on loaded weights");
    }
    return MOE_OK;
}

/* Rows run one after the other, so the largest one has to fit. */
static int check_memory(const dialects *d, moe_status *st) {
    int64_t available = moe_memory_available(), most = 0;
    for (int i = 0; i < d->num_rows; i++) {
        int64_t bytes = d->row[i].reason[0]
                            ? 0
                            : moe_memory_estimate(&d->row[i].c,
                                                  &(moe_memory_given){.num_tokens = num_tokens(d)})
                                  .total;
        if (bytes > most) {
            most = bytes;
        }
    }
    if (available >= 0 && most > available / d->comm->local_size) {
        moe_fail(
            st, MOE_USER,
            "--dialects needs about %s on each of %d ranks of this host, and %s are available: "
            "lower data.tokens_per_device or model.hidden_size",
            moe_format_bytes(most).s, d->comm->local_size, moe_format_bytes(available).s);
    }
    return moe_comm_agree(d->comm, st);
}

static int run_rows(dialects *d, moe_status *st) {
    moe_input_layout(&d->input, &d->c, d->comm, num_tokens(d), &d->batch);
    make_x(d);
    for (int i = 0; i < d->num_rows && st->code == MOE_OK; i++) {
        if (!d->row[i].reason[0]) {
            run_row(d, &d->row[i], st);
        }
    }
    return st->code;
}

int moe_dialects(const moe_comm *comm, const moe_config *c, moe_status *st) {
    dialects d = {.comm = comm, .c = quick(c)};
    if (refuse(c, st)) {
        return st->code;
    }
    moe_topology topology;
    moe_gemm_choose(c->run.gemm, st);
    if (moe_comm_agree(comm, st)) {
        return st->code;
    }
    moe_topology_init(comm, c->run.threads, &topology);
    moe_config whole = *c; /* recorded logits have all its layers; the first one is looked at */
    if (moe_input_read(comm, &whole, &d.input, st)) {
        return st->code;
    }
    if (moe_input_check(&d.input, c, num_tokens(&d), st)) {
        moe_input_free(&d.input);
        return st->code;
    }
    add_rows(&d);
    if (check_memory(&d, st) == MOE_OK && run_rows(&d, st) == MOE_OK && comm->rank == 0) {
        moe_dialects_show(d.row, d.num_rows, d.batch.num_tokens_global);
    }
    moe_comm_agree(comm, st);
    moe_batch_free(&d.batch);
    moe_input_free(&d.input);
    moe_free(d.x);
    moe_free(d.y);
    moe_free(d.own);
    moe_free(d.row);
    return st->code;
}
