/* input.c: reads what the configuration names, deals it out to the ranks, checks it and turns it
 * into the types that the simulation works with. Every rank checks its own tokens in their order
 * and ranks have tokens in their order too, so that the failure of the lowest rank, on which all
 * agree, is the one of the lowest token. */
#include "data/input.h"

#include <math.h>

#include "base/alloc.h"
#include "data/keyed.h"
#include "data/synthetic.h"
#include "data/text.h"
#include "data/token_array.h"
#include "data/window.h"
#include "world/topology.h"

/* How far the sum of shares may be from 1 when they were recorded in a narrow format. */
static const double ROUNDED_SUM = 0.02;

static moe_token_array token_rows(const moe_config *c,
                                  const char *key,
                                  const char *path,
                                  enum moe_kind kind,
                                  int64_t columns,
                                  int64_t tokens) {
    return (moe_token_array){.key = key,
                             .path = path,
                             .kind = kind,
                             .columns = columns,
                             .tokens = tokens,
                             .layers = c->model.num_layers};
}

/* Index of the first number of the row of a layer and a local token. */
static int64_t index_of_row(const moe_token_array *r, int32_t layer, int64_t t) {
    return (layer * r->count + t) * r->columns;
}

/* Says "token 3, expert 5: ...", with the layer where there are several. */
static int bad_number(const moe_token_array *r,
                      int32_t layer,
                      int64_t t,
                      int64_t column,
                      const char *what,
                      double value,
                      const char *allowed,
                      moe_status *st) {
    char in_layer[32] = "";
    if (r->layers > 1) {
        snprintf(in_layer, sizeof in_layer, " in layer %d", layer);
    }
    return moe_token_array_fail(r, st, "token %lld%s, %s %lld: %g is not allowed; allowed are %s",
                                (long long)(r->first + t), in_layer, what, (long long)column, value,
                                allowed);
}

/* --- text --- */

static int read_text(const moe_comm *comm, moe_config *c, moe_input *in, moe_status *st) {
    if (comm->rank == 0) {
        moe_status inner = {0};
        int64_t available = moe_memory_available();
        int64_t most = available < 0 ? -1 : available / comm->local_size;
        if (moe_text_read(c->data.path, most, &in->text, &in->num_domains, &in->domain_offset,
                          &inner)) {
            moe_fail(st, inner.code, "data.path: %s", inner.message);
        }
    }
    if (moe_comm_agree(comm, st)) {
        return st->code;
    }
    moe_comm_bcast(comm, &in->num_domains, sizeof in->num_domains, 0);
    if (comm->rank != 0) {
        in->domain_offset = moe_alloc(in->num_domains + 1, sizeof *in->domain_offset, "text");
    }
    moe_comm_bcast(comm, in->domain_offset,
                   (in->num_domains + 1) * (int64_t)sizeof *in->domain_offset, 0);
    in->text_length = in->domain_offset[in->num_domains];
    if (comm->rank != 0) {
        in->text = moe_alloc(in->text_length, 1, "text");
    }
    moe_comm_bcast(comm, in->text, in->text_length, 0);
    return MOE_OK;
}

/* --- mask --- */

static int read_mask(const moe_comm *comm, const moe_config *c, moe_input *in, moe_status *st) {
    if (!c->data.mask[0]) {
        return MOE_OK;
    }
    moe_token_array r = {.key = "data.mask",
                         .path = c->data.mask,
                         .kind = MOE_KIND_INTEGER,
                         .flat = true,
                         .tokens = in->num_tokens_global};
    if (moe_token_array_read(comm, c->cluster.devices, &r, st)) {
        return st->code;
    }
    in->mask = moe_alloc(r.count, 1, "mask");
    int64_t counted = 0;
    for (int64_t t = 0; t < r.count; t++) {
        counted += in->mask[t] = moe_npy_i64(&r.header, r.data, t) != 0;
    }
    moe_free(r.data);
    moe_comm_sum_i64(comm, &counted, 1);
    in->num_counted = counted;
    if (counted == 0) {
        return moe_fail(st, MOE_USER,
                        "data.mask = %s: all of it is 0, so that no token is left to count",
                        c->data.mask);
    }
    return MOE_OK;
}

/* Whether a token is padding of which nothing is looked at. */
static bool ignores(const moe_input *in, const moe_config *c, int64_t t) {
    return c->data.padding == MOE_PADDING_DROPPED && in->mask && !in->mask[t];
}

/* --- recorded logits --- */

/* What a row of logits says: its largest logit, its sum, and whether all of it lies in [0,1]. */
typedef struct logits_row {
    double largest, sum;
    bool within_one;
} logits_row;

static logits_row read_row(const moe_token_array *r, int64_t row) {
    logits_row found = {.largest = -INFINITY, .within_one = true};
    for (int64_t e = 0; e < r->columns; e++) {
        const double z = moe_npy_f64(&r->header, r->data, row + e);
        found.largest = z > found.largest ? z : found.largest;
        found.sum += z;
        found.within_one = found.within_one && z >= 0 && z <= 1;
    }
    return found;
}

/* No NaN, no +inf and nothing that is too large to be routed. -inf disables an expert. */
static int check_row(const moe_token_array *r,
                     int32_t layer,
                     int64_t t,
                     double largest,
                     moe_status *st) {
    const double most = MOE_LOGIT_LIMIT - 16; /* the logsumexp is larger by log N at most */
    for (int64_t e = 0; e < r->columns; e++) {
        const double z = moe_npy_f64(&r->header, r->data, index_of_row(r, layer, t) + e);
        if (!(z < INFINITY) || z > most) {
            return bad_number(r, layer, t, e, "expert", z,
                              "logits of up to 1048560 and -inf (a disabled expert)", st);
        }
    }
    if (largest > -INFINITY && largest < -most) {
        return bad_number(r, layer, t, 0, "expert",
                          moe_npy_f64(&r->header, r->data, index_of_row(r, layer, t)),
                          "tokens with a logit of at least -1048560", st);
    }
    return MOE_OK;
}

/* Counts the rows that are looked at, and those that look like probabilities: a softmax whose user
 * meant its logits. */
static int check_logits(const moe_token_array *r,
                        const moe_config *c,
                        const moe_input *in,
                        int64_t rows[2],
                        moe_status *st) {
    for (int64_t t = 0; t < r->count; t++) {
        if (ignores(in, c, t)) {
            continue;
        }
        for (int32_t layer = 0; layer < r->layers; layer++) {
            const logits_row row = read_row(r, index_of_row(r, layer, t));
            if (check_row(r, layer, t, row.largest, st) != MOE_OK) {
                return st->code;
            }
            rows[0]++;
            rows[1] += row.within_one && fabs(row.sum - 1) < ROUNDED_SUM;
        }
    }
    return MOE_OK;
}

static int read_logits(const moe_comm *comm, moe_config *c, moe_input *in, moe_status *st) {
    moe_token_array r =
        token_rows(c, "data.path", c->data.path, MOE_KIND_FLOAT, c->model.num_experts, 0);
    int64_t rows[2] = {0};
    if (moe_token_array_read(comm, c->cluster.devices, &r, st)) {
        return st->code;
    }
    in->num_tokens_global = r.tokens;
    in->logits_dtype = r.header.dtype;
    in->logits = r.data;
    if (read_mask(comm, c, in, st)) {
        return st->code;
    }
    check_logits(&r, c, in, rows, st);
    if (moe_comm_agree(comm, st)) {
        return st->code;
    }
    moe_comm_sum_i64(comm, rows, 2);
    in->logits_look_like_shares = r.columns > 1 && rows[1] == rows[0];
    return MOE_OK;
}

static double logit_at(const moe_input *in, int64_t i) {
    return in->logits_dtype == MOE_F64 ? ((const double *)in->logits)[i]
                                       : (double)((const float *)in->logits)[i];
}

/* A token without any enabled expert has no scores, so that it can be counted in no mean: it has to
 * be padding. */
static int check_enabled(const moe_comm *comm,
                         const moe_config *c,
                         const moe_input *in,
                         moe_status *st) {
    const int64_t n = c->model.num_experts, own = c->cluster.devices / comm->size;
    const int64_t first =
        moe_batch_token_begin(in->num_tokens_global, c->cluster.devices, comm->rank * own);
    const int64_t end =
        moe_batch_token_begin(in->num_tokens_global, c->cluster.devices, (comm->rank + 1) * own);
    for (int64_t t = 0; t < end - first && st->code == MOE_OK; t++) {
        for (int64_t l = 0; l < c->model.num_layers && (!in->mask || in->mask[t]); l++) {
            int64_t e = 0;
            while (e < n && logit_at(in, (l * (end - first) + t) * n + e) == -INFINITY) {
                e++;
            }
            if (e == n) {
                return moe_fail(st, MOE_USER,
                                "data.path = %s: token %lld in layer %lld: all of its logits are "
                                "-inf, so that no expert is left for it; data.mask may say that it "
                                "is padding",
                                c->data.path, (long long)(first + t), (long long)l);
            }
        }
    }
    return st->code;
}

/* --- recorded routing, its weights and scores --- */

/* No expert may stand twice in the choices of one token; -1, which is none, may stand anywhere. */
static int check_choices(const moe_token_array *r,
                         int32_t layer,
                         int64_t t,
                         const int32_t *idx,
                         moe_status *st) {
    for (int64_t k = 0; k < r->columns; k++) {
        for (int64_t j = 0; j < k; j++) {
            if (idx[k] >= 0 && idx[j] == idx[k]) {
                return bad_number(r, layer, t, k, "choice", idx[k],
                                  "different experts in one token", st);
            }
        }
    }
    return MOE_OK;
}

static int convert_routing(const moe_token_array *r,
                           const moe_config *c,
                           const moe_input *in,
                           int32_t *routing,
                           moe_status *st) {
    int32_t num_experts = c->model.num_experts;
    char allowed[64];
    snprintf(allowed, sizeof allowed, "-1 (none) and experts 0 to %d", num_experts - 1);
    for (int64_t t = 0; t < r->count; t++) {
        for (int32_t layer = 0; layer < r->layers; layer++) {
            int64_t row = index_of_row(r, layer, t);
            for (int64_t k = 0; k < r->columns; k++) {
                routing[row + k] = -1;
            }
            for (int64_t k = 0; k < r->columns && !ignores(in, c, t); k++) {
                int64_t expert = moe_npy_i64(&r->header, r->data, row + k);
                if (expert < -1 || expert >= num_experts) {
                    return bad_number(r, layer, t, k, "choice", (double)expert, allowed, st);
                }
                routing[row + k] = (int32_t)expert;
            }
            if (check_choices(r, layer, t, routing + row, st)) {
                return st->code;
            }
        }
    }
    return MOE_OK;
}

static int read_choices(const moe_comm *comm, moe_config *c, moe_input *in, moe_status *st) {
    moe_token_array r = token_rows(c, "data.path", c->data.path, MOE_KIND_INTEGER, 0, 0);
    r.most_columns = c->model.num_experts;
    if (moe_token_array_read(comm, c->cluster.devices, &r, st)) {
        return st->code;
    }
    in->num_tokens_global = r.tokens;
    in->routing_k = (int32_t)r.columns;
    in->routing =
        moe_alloc(r.layers * r.count * r.columns, sizeof *in->routing, "recorded routing");
    if (read_mask(comm, c, in, st) == MOE_OK) {
        convert_routing(&r, c, in, in->routing, st);
    }
    moe_free(r.data);
    if (moe_comm_agree(comm, st)) {
        return st->code;
    }
    return moe_config_recorded_top_k(c, in->routing_k, st);
}

/* Where there is no expert (-1) the weight becomes 0, whatever the file says. */
static int convert_weights(const moe_token_array *r,
                           const int32_t *routing,
                           real *weights,
                           moe_status *st) {
    for (int64_t t = 0; t < r->count; t++) {
        for (int32_t layer = 0; layer < r->layers; layer++) {
            for (int64_t k = 0; k < r->columns; k++) {
                int64_t i = index_of_row(r, layer, t) + k;
                double weight = routing[i] < 0 ? 0 : moe_npy_f64(&r->header, r->data, i);
                weights[i] = (real)weight;
                if (!(fabs(weight) <= MOE_LOGIT_LIMIT)) {
                    return bad_number(r, layer, t, k, "choice", weight,
                                      "weights from -1048576 to 1048576", st);
                }
            }
        }
    }
    return MOE_OK;
}

static int read_weights(const moe_comm *comm, const moe_config *c, moe_input *in, moe_status *st) {
    moe_token_array r = token_rows(c, "data.weights", c->data.weights, MOE_KIND_FLOAT,
                                   in->routing_k, in->num_tokens_global);
    if (moe_token_array_read(comm, c->cluster.devices, &r, st)) {
        return st->code;
    }
    in->weights =
        moe_alloc(r.layers * r.count * r.columns, sizeof *in->weights, "recorded weights");
    convert_weights(&r, in->routing, in->weights, st);
    moe_free(r.data);
    return moe_comm_agree(comm, st);
}

/* Scores that are shares (softmax) may pass 1 by as much as whoever recorded them rounded. *odd
 * counts tokens whose shares do not sum to 1, of which the first is kept in *in. */
static int convert_scores(const moe_token_array *r,
                          const moe_config *c,
                          bool shares,
                          moe_input *in,
                          int64_t *odd,
                          moe_status *st) {
    const double most = shares ? 1 + 1e-5 : MOE_LOGIT_LIMIT;
    for (int64_t t = 0; t < r->count; t++) {
        for (int32_t layer = 0; layer < r->layers; layer++) {
            double sum = 0;
            for (int64_t e = 0; e < r->columns; e++) {
                int64_t i = index_of_row(r, layer, t) + e;
                double s = ignores(in, c, t) ? 0 : moe_npy_f64(&r->header, r->data, i);
                if (!(s >= 0 && s <= most)) {
                    return bad_number(r, layer, t, e, "expert", s,
                                      shares ? "scores from 0 to 1" : "scores from 0 to 1048576",
                                      st);
                }
                in->scores[i] = shares && s > 1 ? 1 : s;
                sum += in->scores[i];
            }
            if (shares && !ignores(in, c, t) && fabs(sum - 1) > ROUNDED_SUM) {
                in->odd_scores_sum = *odd == 0 ? sum : in->odd_scores_sum;
                (*odd)++;
            }
        }
    }
    return MOE_OK;
}

static int read_scores(const moe_comm *comm, const moe_config *c, moe_input *in, moe_status *st) {
    moe_token_array r = token_rows(c, "data.scores", c->data.scores, MOE_KIND_FLOAT,
                                   c->model.num_experts, in->num_tokens_global);
    bool shares =
        c->router.score_func == MOE_SCORE_SOFTMAX || c->router.score_func == MOE_SCORE_SOFTMAX_TOPK;
    int64_t odd = 0;
    if (moe_token_array_read(comm, c->cluster.devices, &r, st)) {
        return st->code;
    }
    in->scores = moe_alloc(r.layers * r.count * r.columns, sizeof *in->scores, "recorded scores");
    convert_scores(&r, c, shares, in, &odd, st);
    moe_free(r.data);
    if (moe_comm_agree(comm, st)) {
        return st->code;
    }
    in->odd_scores = odd;
    moe_comm_sum_i64(comm, &in->odd_scores, 1);
    if (in->odd_scores > 0) {
        const int first = moe_comm_lowest_rank(comm, odd > 0);
        moe_comm_bcast(comm, &in->odd_scores_sum, sizeof in->odd_scores_sum, first);
    }
    return MOE_OK;
}

static int read_routing(const moe_comm *comm, moe_config *c, moe_input *in, moe_status *st) {
    if (read_choices(comm, c, in, st)) {
        return st->code;
    }
    if (c->data.weights[0] && read_weights(comm, c, in, st)) {
        return st->code;
    }
    if (c->data.scores[0] && read_scores(comm, c, in, st)) {
        return st->code;
    }
    return MOE_OK;
}

/* --- bias --- */

/* Called on rank 0 only. */
static void load_bias(const moe_config *c, double *bias, moe_status *st) {
    moe_npy_header h;
    void *data;
    moe_status inner = {0};
    const char *path = c->router.bias_file;
    if (moe_npy_read(path, &h, &data, &inner)) {
        moe_fail(st, inner.code, "router.bias_file = %s", inner.message);
        return;
    }
    int32_t n = c->model.num_experts, layers = c->model.num_layers;
    bool for_all = h.num_dims == 1 && h.shape[0] == n;
    bool for_each = h.num_dims == 2 && h.shape[0] == layers && h.shape[1] == n;
    if ((!for_all && !for_each) || !moe_dtype_is_float(h.dtype)) {
        moe_fail(
            st, MOE_USER,
            "router.bias_file = %s: it holds %lld numbers of type %s in %d dimensions; "
            "allowed is [%d] (one bias for all layers) or [%d, %d] (layers, experts) of float16, "
            "float32 or float64",
            path, (long long)h.count, moe_dtype_name(h.dtype), h.num_dims, n, layers, n);
    }
    for (int64_t i = 0; i < (int64_t)layers * n && st->code == MOE_OK; i++) {
        bias[i] = moe_npy_f64(&h, data, for_all ? i % n : i);
        if (!isfinite(bias[i])) {
            moe_fail(
                st, MOE_USER,
                "router.bias_file = %s: layer %lld, expert %lld: %g is not allowed; allowed are "
                "finite numbers",
                path, (long long)(i / n), (long long)(i % n), bias[i]);
        }
    }
    moe_free(data);
}

static int read_bias(const moe_comm *comm, const moe_config *c, moe_input *in, moe_status *st) {
    int64_t count = (int64_t)c->model.num_layers * c->model.num_experts;
    in->bias = moe_alloc(count, sizeof *in->bias, "bias");
    if (comm->rank == 0) {
        load_bias(c, in->bias, st);
    }
    if (moe_comm_agree(comm, st)) {
        return st->code;
    }
    moe_comm_bcast(comm, in->bias, count * (int64_t)sizeof *in->bias, 0);
    return MOE_OK;
}

/* --- hidden vectors --- */

static void synthetic_vectors(const moe_input *in,
                              const moe_config *c,
                              int64_t step,
                              moe_batch *b,
                              real *x) {
    (void)in;
    moe_synthetic_vectors(&c->data, c->run.seed, c->model.hidden_size, b, step, x, NULL);
}

static void text_vectors(const moe_input *in,
                         const moe_config *c,
                         int64_t step,
                         moe_batch *b,
                         real *x) {
    moe_window_vectors(in->text, in->text_length, c->run.seed, c->train.context,
                       c->model.hidden_size, step, b, x);
}

static void keyed_vectors(const moe_input *in,
                          const moe_config *c,
                          int64_t step,
                          moe_batch *b,
                          real *x) {
    (void)in, (void)step;
    moe_keyed_vectors(c->run.seed, c->model.hidden_size, b, x);
}

/* --- all sources --- */

typedef struct source {
    /* Collective. Reads the file of data.path; NULL: there is none. */
    int (*read)(const moe_comm *comm, moe_config *c, moe_input *in, moe_status *st);
    /* Local. Makes the hidden vectors of a step. */
    void (*vectors)(const moe_input *in, const moe_config *c, int64_t step, moe_batch *b, real *x);
} source;

static const source sources[] = {
    [MOE_SOURCE_SYNTHETIC] = {NULL, synthetic_vectors},
    [MOE_SOURCE_TEXT] = {read_text, text_vectors},
    [MOE_SOURCE_LOGITS] = {read_logits, keyed_vectors},
    [MOE_SOURCE_ROUTING] = {read_routing, keyed_vectors},
};

void moe_input_vectors(const moe_input *in,
                       const moe_config *c,
                       int64_t step,
                       moe_batch *b,
                       real *x) {
    sources[c->data.source].vectors(in, c, step, b, x);
}

int moe_input_read(const moe_comm *comm, moe_config *c, moe_input *in, moe_status *st) {
    *in = (moe_input){0};
    MOE_ASSERT(c->cluster.devices > 0 && c->cluster.devices % comm->size == 0);
    const source *from = &sources[c->data.source];
    if (from->read) {
        from->read(comm, c, in, st);
    }
    if (st->code == MOE_OK && c->data.boundaries[0]) {
        moe_input_read_boundaries(comm, c, in, st);
    }
    if (st->code == MOE_OK && c->data.source == MOE_SOURCE_LOGITS) {
        check_enabled(comm, c, in, st);
        moe_comm_agree(comm, st);
    }
    if (st->code == MOE_OK && c->router.bias_file[0]) {
        read_bias(comm, c, in, st);
    }
    if (st->code == MOE_OK && c->placement.file[0]) {
        moe_input_read_placement(comm, c, in, st);
    }
    if (st->code != MOE_OK) {
        moe_input_free(in);
    }
    return st->code;
}

void moe_input_free(moe_input *in) {
    moe_free(in->text);
    moe_free(in->domain_offset);
    moe_free(in->logits);
    moe_free(in->routing);
    moe_free(in->weights);
    moe_free(in->scores);
    moe_free(in->mask);
    moe_free(in->boundary);
    moe_free(in->bias);
    moe_free(in->expert_at);
    *in = (moe_input){0};
}
