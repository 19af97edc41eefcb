/* model_files.c: rank 0 reads a layer from .npy files, and every rank takes its own experts; the
 * gradients go back into files. */
#include "run/model_files.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* "[4, 8]"; -1 is shown as T. */
static const char *shape_text(int num_dims, const int64_t *shape, char text[128]) {
    int at = snprintf(text, 128, "[");
    for (int i = 0; i < num_dims; i++) {
        if (shape[i] < 0) {
            at += snprintf(text + at, 128 - (size_t)at, "%sT", i ? ", " : "");
        } else {
            at +=
                snprintf(text + at, 128 - (size_t)at, "%s%lld", i ? ", " : "", (long long)shape[i]);
        }
    }
    snprintf(text + at, 128 - (size_t)at, "]");
    return text;
}

/* Rank 0: the values of folder/name.npy as real; the shape must be `shape` (shape[0] = -1: any, and
 * told there). */
static real *read_array(
    const moe_config *c, const char *name, int num_dims, int64_t *shape, moe_status *st) {
    char path[MOE_PATH_MAX + 32];
    moe_npy_header h;
    void *data = NULL;
    snprintf(path, sizeof path, "%s/%s.npy", c->model.load, name);
    if (moe_npy_read(path, &h, &data, st)) {
        return NULL;
    }
    bool right = h.num_dims == num_dims && (h.dtype == MOE_F32 || h.dtype == MOE_F64);
    for (int i = 0; i < num_dims && right; i++) {
        right = h.shape[i] == shape[i] || (i == 0 && shape[0] < 0 && h.shape[0] > 0);
    }
    if (!right) {
        char found[128], needed[128];
        moe_fail(st, MOE_USER, "%s is %s of %s, and float32 or float64 of %s is needed", path,
                 shape_text(h.num_dims, h.shape, found), moe_dtype_name(h.dtype),
                 shape_text(num_dims, shape, needed));
        moe_free(data);
        return NULL;
    }
    shape[0] = h.shape[0];
    real *values = moe_alloc(h.count, sizeof(real), "loaded tensor");
    for (int64_t i = 0; i < h.count; i++) {
        values[i] = (real)moe_npy_f64(&h, data, i);
        if (!isfinite(values[i])) {
            moe_fail(st, MOE_USER, "%s holds NaN or Inf at element %lld", path, (long long)i);
        }
    }
    moe_free(data);
    return values;
}

/* Collective. The whole array on every rank (moe_free), or NULL after a failure. */
static real *read_everywhere(const moe_comm *comm,
                             const moe_config *c,
                             const char *name,
                             int num_dims,
                             int64_t *shape,
                             moe_status *st) {
    real *values = NULL;
    int64_t count = 1;
    if (comm->rank == 0) {
        values = read_array(c, name, num_dims, shape, st);
    }
    if (moe_comm_agree(comm, st)) {
        moe_free(values);
        return NULL;
    }
    moe_comm_bcast(comm, shape, num_dims * (int64_t)sizeof *shape, 0);
    for (int i = 0; i < num_dims; i++) {
        count *= shape[i];
    }
    if (comm->rank != 0) {
        values = moe_alloc(count, sizeof(real), "loaded tensor");
    }
    moe_comm_bcast(comm, values, count * (int64_t)sizeof(real), 0);
    return values;
}

static bool file_exists(const moe_comm *comm, const moe_config *c, const char *name) {
    char path[MOE_PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/%s.npy", c->model.load, name);
    int64_t exists = comm->rank == 0 && access(path, F_OK) == 0;
    moe_comm_max_i64(comm, &exists, 1);
    return exists != 0;
}

int moe_model_files_read(const moe_comm *comm,
                         const moe_config *c,
                         moe_model_files *in,
                         moe_status *st) {
    int64_t shape[2] = {-1, c->model.hidden_size};
    in->x = read_everywhere(comm, c, "x", 2, shape, st);
    in->num_tokens = shape[0];
    if (in->x && file_exists(comm, c, "dy")) {
        in->dy = read_everywhere(comm, c, "dy", 2, shape, st);
    }
    return st->code;
}

void moe_model_files_free(moe_model_files *in) {
    moe_free(in->x);
    moe_free(in->dy);
    *in = (moe_model_files){0};
}

/* Local blocks of an array [N, size], by expert id. */
static void take_experts(const moe_context *context, const real *all, int64_t size, real *local) {
    const moe_placement *p = &context->placement;
    const int32_t *id = p->expert_at + (int64_t)context->batch->first_device * p->slots_per_device;
    for (int64_t i = 0; i < (int64_t)context->batch->num_local_devices * p->slots_per_device; i++) {
        memcpy(local + i * size, all + id[i] * size, (size_t)size * sizeof(real));
    }
}

static int load_experts(const moe_context *context,
                        const char *name,
                        int64_t rows,
                        int64_t columns,
                        real *local,
                        moe_status *st) {
    int64_t shape[3] = {context->placement.num_experts, rows, columns};
    if (!local || st->code) {
        return st->code;
    }
    real *all = read_everywhere(context->comm, context->config, name, 3, shape, st);
    if (all) {
        take_experts(context, all, rows * columns, local);
    }
    moe_free(all);
    return st->code;
}

static int load_replicated(const moe_context *context,
                           const char *name,
                           int64_t rows,
                           int64_t columns,
                           real *local,
                           moe_status *st) {
    int64_t shape[2] = {rows, columns};
    if (!local || st->code) {
        return st->code;
    }
    real *all = read_everywhere(context->comm, context->config, name, 2, shape, st);
    if (all) {
        memcpy(local, all, (size_t)(rows * columns) * sizeof(real));
    }
    moe_free(all);
    return st->code;
}

int moe_model_files_weights(const moe_context *context, moe_layer *layer, moe_status *st) {
    const moe_ffn *e = &layer->experts, *s = &layer->shared;
    load_replicated(context, "wgate", context->placement.num_experts, e->hidden, layer->gate, st);
    load_experts(context, "w1", e->width, e->hidden, e->w1, st);
    load_experts(context, "w2", e->hidden, e->width, e->w2, st);
    load_experts(context, "w3", e->width, e->hidden, e->w3, st);
    load_replicated(context, "sw1", s->width, s->hidden, s->w1, st);
    load_replicated(context, "sw2", s->hidden, s->width, s->w2, st);
    return load_replicated(context, "sw3", s->width, s->hidden, s->w3, st);
}

/* --- gradients --- */

static int write_parameter(const moe_context *context,
                           const moe_results *results,
                           const moe_parameter *p,
                           const char *name,
                           int num_dims,
                           const int64_t *shape,
                           moe_status *st) {
    char path[MOE_PATH_MAX + 32];
    moe_npy_piece *pieces = moe_alloc(p->count, sizeof *pieces, "pieces of a file");
    int64_t num = p->expert ? p->count : context->comm->rank == 0;
    for (int64_t i = 0; i < num; i++) {
        pieces[i] = (moe_npy_piece){p->gradient + i * p->size, (p->expert ? p->id[i] : 0) * p->size,
                                    p->size};
    }
    snprintf(path, sizeof path, "%s/%s.npy", results->folder, name);
    moe_comm_write_npy(context->comm, path, sizeof(real) == sizeof(float) ? MOE_F32 : MOE_F64,
                       num_dims, shape, pieces, num, st);
    moe_free(pieces);
    return st->code;
}

static int write_gradients(const moe_context *context,
                           const moe_layer *layer,
                           const moe_layer_slots *slots,
                           const moe_parameters *all,
                           const moe_results *results,
                           moe_status *st) {
    const moe_ffn *e = &layer->experts, *s = &layer->shared;
    int64_t n = context->placement.num_experts;
    const struct {
        int slot;
        const char *name;
        int num_dims;
        int64_t shape[3];
    } files[] = {
        {slots->gate, "dwgate", 2, {n, e->hidden, 0}},
        {slots->w1, "dw1", 3, {n, e->width, e->hidden}},
        {slots->w2, "dw2", 3, {n, e->hidden, e->width}},
        {slots->w3, "dw3", 3, {n, e->width, e->hidden}},
        {slots->shared_w1, "dsw1", 2, {s->width, s->hidden, 0}},
        {slots->shared_w2, "dsw2", 2, {s->hidden, s->width, 0}},
        {slots->shared_w3, "dsw3", 2, {s->width, s->hidden, 0}},
    };
    for (size_t i = 0; i < sizeof files / sizeof files[0] && st->code == MOE_OK; i++) {
        if (files[i].slot >= 0) {
            write_parameter(context, results, &all->p[files[i].slot], files[i].name,
                            files[i].num_dims, files[i].shape, st);
        }
    }
    return st->code;
}

int moe_model_files_backward(const moe_context *context,
                             const moe_layer *layer,
                             const moe_model_files *in,
                             moe_activations *a,
                             const moe_results *results,
                             moe_layer_metrics *metrics,
                             moe_status *st) {
    const moe_batch *b = context->batch;
    int64_t h = context->config->model.hidden_size;
    int64_t bytes = 0;
    int64_t n = (int64_t)layer->router.num_experts;
    moe_parameters all;
    moe_backward work = {0};
    moe_parameters_init(&all, b->devices, b->num_local_devices);
    moe_layer_slots slots = moe_layer_register(layer, context, &all);
    real *dx = moe_alloc(b->num_tokens * h, sizeof(real), "gradient of x");
    moe_parameters_clear_gradients(&all);
    moe_layer_backward(layer, &slots, context, a, &all, in->dy + b->first_token * h, &work, dx,
                       metrics);
    moe_parameters_reduce(&all, context->comm, 1, &bytes);
    if (moe_results_tensor(context->comm, results, "dx", b, dx, h, sizeof(real), st) == MOE_OK &&
        moe_results_tensor(context->comm, results, "dlogits", b, work.dlogits, n, sizeof(double),
                           st) == MOE_OK) {
        write_gradients(context, layer, &slots, &all, results, st);
    }
    moe_free(dx);
    moe_backward_free(&work);
    moe_parameters_free(&all);
    return st->code;
}
