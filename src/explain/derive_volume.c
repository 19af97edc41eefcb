/* derive_volume.c: from the number of devices that tokens reach to rows and bytes. */
#include <math.h>
#include <stdio.h>

#include "exchange/exchange.h"
#include "explain/derive_internal.h"
#include "measure/imbalance.h"
#include "output/format.h"

static double exact(int64_t n) {
    return (double)n;
}

/* sum_x x n_x; -1 where some tokens reach 64 devices or more, which is one class. */
static int64_t reached(const moe_layer_metrics *l) {
    int64_t sum = 0;
    for (int x = 0; x < 64; x++) {
        sum += x * l->tokens_by_reach[x];
    }
    return l->tokens_by_reach[64] > 0 ? -1 : sum;
}

/* Writes "2 x 21 + 3 x 4,075": devices x tokens that reach so many, in the layers begin .. end - 1.
 */
static void write_reach(const moe_step_metrics *m, int32_t begin, int32_t end, moe_pieces *p) {
    for (int x = 1; x < 64; x++) {
        int64_t tokens = 0;
        for (int32_t l = begin; l < end; l++) {
            tokens += m->layer[l].tokens_by_reach[x];
        }
        if (tokens > 0) {
            moe_pieces_add(p, "%s%d\tx\t%s", p->length ? " + " : "", x, moe_format_count(tokens).s);
        }
    }
}

/* Writes "1,535 + 1,533 + ...": the rows that devices 0, 1, ... send on a level (-1: on all
 * levels), summed over the layers. */
static void write_rows(const moe_config *c, const moe_step_metrics *m, int level, moe_pieces *p) {
    enum { SHOWN = 8 };
    int64_t rows[SHOWN] = {0};
    for (int32_t l = 0; l < m->num_layers; l++) {
        const moe_sparse *matrix = &m->layer[l].matrix;
        for (int64_t i = 0; i < matrix->num_cells && matrix->cell[i].row < SHOWN; i++) {
            const moe_sparse_cell *cell = &matrix->cell[i];
            if (level < 0 ||
                (int)moe_level_of(cell->row, cell->column, c->cluster.devices_per_node) == level) {
                rows[cell->row] += cell->count;
            }
        }
    }
    for (int32_t from = 0; from < m->devices && from < SHOWN; from++) {
        moe_pieces_add(p, "%s%s", from ? " + " : "", moe_format_count(rows[from]).s);
    }
    moe_pieces_add(p, "%s (sent by device 0, 1, ...)", m->devices > SHOWN ? " + ..." : "");
}

static void add_devices(moe_derivation *d, const moe_step_metrics *m, int32_t layer) {
    const moe_layer_metrics *l = &m->layer[layer];
    moe_pieces p = {.length = 0};
    int64_t sum = reached(l);
    if (sum < 0 || m->num_tokens == 0) {
        return;
    }
    write_reach(m, layer, layer + 1, &p);
    moe_derivation_add(d, MOE_DERIVED_DEVICES, layer, "mean devices per token",
                       (moe_derived_numbers){exact(sum) / exact(m->num_tokens), l->mean_devices},
                       "sum over tokens of X_t / T, by the number of devices", "(%s) / %s", p.text,
                       moe_format_count(m->num_tokens).s);
}

/* What routing without any preference and without a limit would reach: a device is left out when
 * all K choices fall into the N - n experts of the other devices. */
static void add_expected(moe_derivation *d, const moe_config *c) {
    int32_t n = c->model.num_experts;
    int32_t devices = c->cluster.devices;
    int32_t k = c->router.top_k;
    int32_t others = n - n / devices;
    double left_out = 1;
    if (n % devices != 0) { /* with as many experts on each device only */
        return;
    }
    for (int32_t j = 0; j < k; j++) {
        left_out *= fmax(others - j, 0) / (n - j);
    }
    moe_derivation_add(d, MOE_DERIVED_DEVICES, -1, "uniform random routing would reach",
                       (moe_derived_numbers){devices * (1 - left_out),
                                             moe_imbalance_expected_reach(n, devices, k, devices)},
                       "D (1 - C(N - N/D, K) / C(N, K))",
                       "%d x (1 - C(%d, %d) / C(%d, %d)) = %d x (1 - %.6g)", devices, others, k, n,
                       k, devices, left_out);
}

typedef struct sums { /* over layers */
    int64_t reached, saved, selections, dropped, rows, stay, by_level[MOE_NUM_LEVELS];
    bool known; /* whether `reached` is known */
} sums;

static sums add_up(const moe_config *c, const moe_step_metrics *m) {
    sums a = {.known = true};
    for (int32_t l = 0; l < m->num_layers; l++) {
        const moe_layer_metrics *layer = &m->layer[l];
        a.known = a.known && reached(layer) >= 0;
        a.reached += reached(layer);
        a.saved += layer->capacity.rows_saved;
        a.selections += layer->selections;
        a.dropped += layer->dropped;
        for (int64_t i = 0; i < layer->matrix.num_cells; i++) {
            const moe_sparse_cell *cell = &layer->matrix.cell[i];
            a.rows += cell->count;
            a.stay += cell->row == cell->column ? cell->count : 0;
            a.by_level[moe_level_of(cell->row, cell->column, c->cluster.devices_per_node)] +=
                cell->count;
        }
    }
    return a;
}

static void add_rows(moe_derivation *d,
                     const moe_config *c,
                     const moe_step_metrics *m,
                     const sums *a,
                     const moe_volume *v) {
    moe_pieces reach = {.length = 0}, sent = {.length = 0};
    write_reach(m, 0, m->num_layers, &reach);
    write_rows(c, m, -1, &sent);
    bool token = c->exchange.mode == MOE_EXCHANGE_TOKEN;
    char less[80] = "";
    if (token && a->saved) {
        snprintf(less, sizeof less, " - %s that dropping saved", moe_format_count(a->saved).s);
    }
    if (token && a->known) {
        moe_derivation_add(d, MOE_DERIVED_VOLUME, -1, "rows of dispatch",
                           (moe_derived_numbers){exact(a->reached - a->saved), exact(v->rows)},
                           "sum_t X_t: one row to each device of a token", "%s%s", reach.text,
                           less);
    }
    if (!token) {
        moe_derivation_add(d, MOE_DERIVED_VOLUME, -1, "rows of dispatch",
                           (moe_derived_numbers){exact(a->selections - a->dropped), exact(v->rows)},
                           "one row for each selection that is sent", "%s - %s dropped",
                           moe_format_count(a->selections).s, moe_format_count(a->dropped).s);
    }
    moe_derivation_add(d, MOE_DERIVED_VOLUME, -1, "the same from the device matrix",
                       (moe_derived_numbers){exact(a->rows), exact(v->rows)},
                       "sum of all its cells", "%s", sent.text);
}

static void add_bytes(moe_derivation *d,
                      const moe_config *c,
                      moe_payload_format format,
                      const sums *a,
                      const moe_volume *v,
                      const char *direction) {
    int64_t row = moe_payload_bytes(format, c->model.hidden_size);
    char name[64];
    snprintf(name, sizeof name, "payload of %s", direction);
    moe_derivation_add(d, MOE_DERIVED_VOLUME, -1, name,
                       (moe_derived_numbers){exact(a->rows * row), exact(v->logical_bytes)},
                       "rows x bytes of hidden_size numbers in their format", "%s x %lld B",
                       moe_format_count(a->rows).s, (long long)row);
    snprintf(name, sizeof name, "payload of %s to other devices", direction);
    moe_derivation_add(
        d, MOE_DERIVED_VOLUME, -1, name,
        (moe_derived_numbers){exact((a->rows - a->stay) * row), exact(v->remote_bytes)},
        "(rows - rows that stay on their device) x row", "(%s - %s) x %lld B",
        moe_format_count(a->rows).s, moe_format_count(a->stay).s, (long long)row);
}

static void add_rest(moe_derivation *d,
                     const moe_config *c,
                     const moe_step_metrics *m,
                     const sums *a,
                     const moe_volume *v) {
    static const char *const level[MOE_NUM_LEVELS] = {"rows that stay on their device",
                                                      "rows to the same node", "rows across nodes"};
    int64_t head = moe_exchange_row_metadata_bytes(c->exchange.mode),
            pair = moe_exchange_pair_metadata_bytes();
    int64_t pairs = a->selections - a->dropped;
    int64_t row = moe_payload_bytes(moe_payload_of_dispatch(c), c->model.hidden_size);
    moe_derivation_add(
        d, MOE_DERIVED_VOLUME, -1, "metadata of dispatch",
        (moe_derived_numbers){exact(a->rows * head + pairs * pair), exact(v->metadata_bytes)},
        "rows x row's head + selections x (expert id and weight)", "%s x %lld B + %s x %lld B",
        moe_format_count(a->rows).s, (long long)head, moe_format_count(pairs).s, (long long)pair);
    moe_derivation_add(d, MOE_DERIVED_VOLUME, -1, "one row per selection would be",
                       (moe_derived_numbers){exact(pairs * row), exact(v->selection_bytes)},
                       "(selections - dropped) x row", "(%s - %s) x %lld B",
                       moe_format_count(a->selections).s, moe_format_count(a->dropped).s,
                       (long long)row);
    for (int i = 0; i < MOE_NUM_LEVELS; i++) {
        moe_pieces sent = {.length = 0};
        write_rows(c, m, i, &sent);
        moe_derivation_add(d, MOE_DERIVED_VOLUME, -1, level[i],
                           (moe_derived_numbers){exact(a->by_level[i]), exact(v->by_level[i].rows)},
                           "sum of the device matrix's cells of this level", "%s", sent.text);
    }
}

void moe_derive_volume(moe_derivation *d,
                       const moe_config *c,
                       const moe_step_metrics *m,
                       const moe_figures *f) {
    sums a = add_up(c, m);
    for (int32_t l = 0; l < m->num_layers; l++) {
        add_devices(d, m, l);
    }
    add_expected(d, c);
    add_rows(d, c, m, &a, &f->volume[MOE_DISPATCH]);
    moe_payload_format back = moe_payload_of_combine(c);
    add_bytes(d, c, moe_payload_of_dispatch(c), &a, &f->volume[MOE_DISPATCH], "dispatch");
    add_bytes(d, c, back, &a, &f->volume[MOE_COMBINE], "combine");
    if (c->run.mode == MOE_MODE_TRAIN) {
        add_bytes(d, c, back, &a, &f->volume[MOE_DISPATCH_BACKWARD], "the dispatch of dy");
        add_bytes(d, c, back, &a, &f->volume[MOE_COMBINE_BACKWARD], "the combine of dx");
    }
    add_rest(d, c, m, &a, &f->volume[MOE_DISPATCH]);
}
