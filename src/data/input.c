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

/* --- recorded logits --- */

static int check_logits(const moe_token_array *r, moe_status *st) {
    for (int64_t t = 0; t < r->count; t++) {
        for (int32_t layer = 0; layer < r->layers; layer++) {
            for (int64_t e = 0; e < r->columns; e++) {
                double z = moe_npy_f64(&r->header, r->data, index_of_row(r, layer, t) + e);
                if (!(z < INFINITY)) {
                    return bad_number(r, layer, t, e, "expert", z,
                                      "finite logits and -inf (a disabled expert)", st);
                }
            }
        }
    }
    return MOE_OK;
}

static int read_logits(const moe_comm *comm, moe_config *c, moe_input *in, moe_status *st) {
    moe_token_array r =
        token_rows(c, "data.path", c->data.path, MOE_KIND_FLOAT, c->model.num_experts, 0);
    if (moe_token_array_read(comm, c->cluster.devices, &r, st)) {
        return st->code;
    }
    in->num_tokens_global = r.tokens;
    in->logits_dtype = r.header.dtype;
    in->logits = r.data;
    check_logits(&r, st);
    return moe_comm_agree(comm, st);
}

/* --- recorded routing, its weights and scores --- */

/* No expert may stand twice in the choices of one token; -1, which is none, may stand anywhere. */
static int check_choices(
    const moe_token_array *r, int32_t layer, int64_t t, const int32_t *idx, moe_status *st) {
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
                           int32_t num_experts,
                           int32_t *routing,
                           moe_status *st) {
    char allowed[64];
    snprintf(allowed, sizeof allowed, "-1 (none) and experts 0 to %d", num_experts - 1);
    for (int64_t t = 0; t < r->count; t++) {
        for (int32_t layer = 0; layer < r->layers; layer++) {
            int64_t row = index_of_row(r, layer, t);
            for (int64_t k = 0; k < r->columns; k++) {
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
    convert_routing(&r, c->model.num_experts, in->routing, st);
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
                if (!isfinite(weights[i])) {
                    return bad_number(r, layer, t, k, "choice", weight, "finite weights", st);
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

/* Scores that are shares (softmax) may pass 1 by as much as whoever recorded them rounded. */
static int convert_scores(const moe_token_array *r, bool shares, double *scores, moe_status *st) {
    const double most = 1 + 1e-5;
    for (int64_t t = 0; t < r->count; t++) {
        for (int32_t layer = 0; layer < r->layers; layer++) {
            for (int64_t e = 0; e < r->columns; e++) {
                int64_t i = index_of_row(r, layer, t) + e;
                double s = moe_npy_f64(&r->header, r->data, i);
                if (!(s >= 0 && s < INFINITY) || (shares && s > most)) {
                    return bad_number(r, layer, t, e, "expert", s,
                                      shares ? "scores from 0 to 1" : "finite scores of 0 and more",
                                      st);
                }
                scores[i] = shares && s > 1 ? 1 : s;
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
    if (moe_token_array_read(comm, c->cluster.devices, &r, st)) {
        return st->code;
    }
    in->scores = moe_alloc(r.layers * r.count * r.columns, sizeof *in->scores, "recorded scores");
    convert_scores(&r, shares, in->scores, st);
    moe_free(r.data);
    return moe_comm_agree(comm, st);
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

/* --- mask and bias --- */

static int read_mask(const moe_comm *comm, const moe_config *c, moe_input *in, moe_status *st) {
    int64_t tokens = in->num_tokens_global ? in->num_tokens_global
                                           : c->cluster.devices * c->data.tokens_per_device;
    moe_token_array r = {.key = "data.mask",
                         .path = c->data.mask,
                         .kind = MOE_KIND_INTEGER,
                         .flat = true,
                         .tokens = tokens};
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
    if (counted == 0) {
        return moe_fail(st, MOE_USER,
                        "data.mask = %s: all of it is 0, so that no token is left to count",
                        c->data.mask);
    }
    return MOE_OK;
}

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
    if (h.num_dims != 1 || h.count != c->model.num_experts || !moe_dtype_is_float(h.dtype)) {
        moe_fail(st, MOE_USER,
                 "router.bias_file = %s: it holds %lld numbers of type %s in %d dimensions; "
                 "allowed is [%d] of float16, float32 or float64",
                 path, (long long)h.count, moe_dtype_name(h.dtype), h.num_dims,
                 c->model.num_experts);
    }
    for (int64_t i = 0; i < h.count && st->code == MOE_OK; i++) {
        bias[i] = moe_npy_f64(&h, data, i);
        if (!isfinite(bias[i])) {
            moe_fail(
                st, MOE_USER,
                "router.bias_file = %s: expert %lld: %g is not allowed; allowed are finite numbers",
                path, (long long)i, bias[i]);
        }
    }
    moe_free(data);
}

static int read_bias(const moe_comm *comm, const moe_config *c, moe_input *in, moe_status *st) {
    in->bias = moe_alloc(c->model.num_experts, sizeof *in->bias, "bias");
    if (comm->rank == 0) {
        load_bias(c, in->bias, st);
    }
    if (moe_comm_agree(comm, st)) {
        return st->code;
    }
    moe_comm_bcast(comm, in->bias, c->model.num_experts * (int64_t)sizeof *in->bias, 0);
    return MOE_OK;
}

/* --- hidden vectors --- */

static void synthetic_vectors(
    const moe_input *in, const moe_config *c, int64_t step, moe_batch *b, real *x) {
    (void)in;
    moe_synthetic_vectors(&c->data, c->run.seed, c->model.hidden_size, b, step, x, NULL);
}

static void text_vectors(
    const moe_input *in, const moe_config *c, int64_t step, moe_batch *b, real *x) {
    moe_window_vectors(in->text, in->text_length, c->run.seed, c->train.context,
                       c->model.hidden_size, step, b, x);
}

static void keyed_vectors(
    const moe_input *in, const moe_config *c, int64_t step, moe_batch *b, real *x) {
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

void moe_input_vectors(
    const moe_input *in, const moe_config *c, int64_t step, moe_batch *b, real *x) {
    sources[c->data.source].vectors(in, c, step, b, x);
}

int moe_input_read(const moe_comm *comm, moe_config *c, moe_input *in, moe_status *st) {
    *in = (moe_input){0};
    MOE_ASSERT(c->cluster.devices > 0 && c->cluster.devices % comm->size == 0);
    const source *from = &sources[c->data.source];
    if (from->read) {
        from->read(comm, c, in, st);
    }
    if (st->code == MOE_OK && c->data.mask[0]) {
        read_mask(comm, c, in, st);
    }
    if (st->code == MOE_OK && c->router.bias_file[0]) {
        read_bias(comm, c, in, st);
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
    moe_free(in->bias);
    *in = (moe_input){0};
}
