/* input.c: reads what the configuration names (recordings: recorded.c) and makes the hidden vectors
 * of a step. */
#include "data/input.h"

#include <math.h>

#include "base/alloc.h"
#include "data/keyed.h"
#include "data/recorded.h"
#include "data/synthetic.h"
#include "data/text.h"
#include "data/window.h"
#include "world/topology.h"

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
    int32_t n = c->model.num_experts, layers = moe_config_moe_layers(c);
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
    int64_t count = (int64_t)moe_config_moe_layers(c) * c->model.num_experts;
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
    (void)in;
    moe_keyed_vectors(c->run.seed, c->model.hidden_size, b, step, x);
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
    [MOE_SOURCE_LOGITS] = {moe_recorded_read_logits, keyed_vectors},
    [MOE_SOURCE_ROUTING] = {moe_recorded_read_routing, keyed_vectors},
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
    if (from->read && !moe_config_generates(c)) { /* what generates reads prompts instead */
        from->read(comm, c, in, st);
    }
    if (st->code == MOE_OK && c->data.boundaries[0]) {
        moe_input_read_boundaries(comm, c, in, st);
    }
    if (st->code == MOE_OK && c->router.bias_file[0]) {
        read_bias(comm, c, in, st);
    }
    if (st->code == MOE_OK && !c->compares_placements &&
        c->placement.policy == MOE_PLACEMENT_FILE) {
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
