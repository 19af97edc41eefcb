/* model_files.c: rank 0 reads a layer from .npy files, and every rank takes its own experts; the
 * gradients go back into files. */
#include "run/model_files.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "model/replicas.h"

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
static real *read_array(const moe_config *c,
                        const char *name,
                        int num_dims,
                        int64_t *shape,
                        moe_status *st) {
    char path[MOE_PATH_MAX + 32];
    moe_npy_header h;
    void *data = NULL;
    snprintf(path, sizeof path, "%s/%s.npy", c->model.load, name);
    if (moe_npy_read(path, &h, &data, st)) {
        return NULL;
    }
    bool right = h.num_dims == num_dims && moe_dtype_is_float(h.dtype);
    for (int i = 0; i < num_dims && right; i++) {
        right = h.shape[i] == shape[i] || (i == 0 && shape[0] < 0 && h.shape[0] > 0);
    }
    if (!right) {
        char found[128], needed[128];
        moe_fail(st, MOE_USER, "%s is %s of %s, and float16, float32 or float64 of %s is needed",
                 path, shape_text(h.num_dims, h.shape, found), moe_dtype_name(h.dtype),
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

void moe_model_files_input(const moe_model_files *in, const moe_batch *batch, int64_t h, real *x) {
    if (batch->num_tokens > 0) {
        memcpy(x, in->x + batch->first_token * h, (size_t)(batch->num_tokens * h) * sizeof *x);
    }
}

/* --- the tensors of a layer --- */

/* One file of the folder: a matrix that every rank has, or one of each expert. */
typedef struct tensor {
    const char *name;
    bool of_experts;       /* [N,rows,columns], else [rows,columns] */
    int64_t rows, columns; /* of a matrix */
    real *value;           /* where it stands in the layer; NULL: the layer has none */
    int slot;              /* of its gradient in the table of parameters; -1 = none */
} tensor;

enum { MOST_TENSORS = 16 };

/* Every tensor of the layer with its shape, which is that of what moe_layer_init allocated. The
 * base of LoRA experts is one frozen FFN, and the adapters are the experts'. */
static int list_tensors(const moe_layer *layer,
                        const moe_layer_indices *indices,
                        int32_t num_experts,
                        tensor table[MOST_TENSORS]) {
    const moe_ffn *e = &layer->experts, *s = &layer->shared;
    int64_t h = e->hidden, f = e->width, r = e->rank;
    bool own = r == 0;
    const tensor all[] = {
        {"wgate", false, num_experts, h, layer->gate, indices->gate},
        {"w1", own, f, h, e->w1, indices->w1},
        {"w2", own, h, f, e->w2, indices->w2},
        {"w3", own, f, h, e->w3, indices->w3},
        {"a1", true, r, h, e->a1, indices->a1},
        {"a2", true, r, f, e->a2, indices->a2},
        {"a3", true, r, h, e->a3, indices->a3},
        {"b1", true, f, r, e->b1, indices->b1},
        {"b2", true, h, r, e->b2, indices->b2},
        {"b3", true, f, r, e->b3, indices->b3},
        {"sw1", false, s->width, s->hidden, s->w1, indices->shared_w1},
        {"sw2", false, s->hidden, s->width, s->w2, indices->shared_w2},
        {"sw3", false, s->width, s->hidden, s->w3, indices->shared_w3},
    };
    _Static_assert(sizeof all / sizeof all[0] <= MOST_TENSORS, "the table has room for all");
    memcpy(table, all, sizeof all);
    return (int)(sizeof all / sizeof all[0]);
}

/* [N,rows,columns] or [rows,columns]; returns the number of dimensions. */
static int shape_of(const tensor *t, int32_t num_experts, int64_t shape[3]) {
    int at = 0;
    if (t->of_experts) {
        shape[at++] = num_experts;
    }
    shape[at++] = t->rows;
    shape[at++] = t->columns;
    return at;
}

/* --- weights --- */

/* Local blocks of an array [N,size], by expert id. */
static void take_experts(const moe_context *context, const real *all, int64_t size, real *local) {
    const moe_placement *p = &context->placements[0];
    const int32_t *id = p->expert_at + (int64_t)context->batch->first_device * p->slots_per_device;
    for (int64_t i = 0; i < (int64_t)context->batch->num_local_devices * p->slots_per_device; i++) {
        memcpy(local + i * size, all + id[i] * size, (size_t)size * sizeof(real));
    }
}

static int load_tensor(const moe_context *context, const tensor *t, moe_status *st) {
    int64_t shape[3], size = t->rows * t->columns;
    int num_dims = shape_of(t, context->config->model.num_experts, shape);
    real *all = read_everywhere(context->comm, context->config, t->name, num_dims, shape, st);
    if (all && t->of_experts) {
        take_experts(context, all, size, t->value);
    } else if (all) {
        memcpy(t->value, all, (size_t)size * sizeof(real));
    }
    moe_free(all);
    return st->code;
}

int moe_model_files_gate(const moe_context *context, moe_layer *layer, moe_status *st) {
    tensor table[MOST_TENSORS];
    list_tensors(layer, &(moe_layer_indices){0}, context->config->model.num_experts, table);
    return load_tensor(context, &table[0], st);
}

/* A file that nothing reads would be ignored in silence. */
static int refuse_idle_file(const moe_config *c, const char *name, moe_status *st) {
    const char *type = moe_config_enum_name(MOE_KEY(model, expert_type), c->model.expert_type);
    return moe_fail(
        st, MOE_USER,
        "%s/%s.npy is there, but a layer with model.expert_type = %s and "
        "model.num_shared_experts = %d has no such tensor: remove the file, or set what "
        "the layer has",
        c->model.load, name, type, c->model.num_shared_experts);
}

int moe_model_files_weights(const moe_context *context, moe_layer *layer, moe_status *st) {
    tensor table[MOST_TENSORS];
    int num =
        list_tensors(layer, &(moe_layer_indices){0}, context->config->model.num_experts, table);
    for (int i = 0; i < num && st->code == MOE_OK; i++) {
        if (table[i].value) {
            load_tensor(context, &table[i], st);
        } else if (file_exists(context->comm, context->config, table[i].name)) {
            refuse_idle_file(context->config, table[i].name, st);
        }
    }
    return st->code;
}

/* --- gradients --- */

static int write_gradient(const moe_context *context,
                          const moe_results *results,
                          const moe_parameter *p,
                          const tensor *t,
                          moe_status *st) {
    char path[MOE_PATH_MAX + 32];
    int64_t shape[3], num = 0, blocks = p->expert ? p->count : context->comm->rank == 0;
    int num_dims = shape_of(t, context->config->model.num_experts, shape);
    moe_npy_piece *pieces = moe_alloc(p->count, sizeof *pieces, "pieces of a file");
    for (int64_t i = 0; i < blocks; i++) {
        if (!p->copy || !p->copy[i]) {
            pieces[num++] = (moe_npy_piece){p->gradient + i * p->size,
                                            (p->expert ? p->id[i] : 0) * p->size, p->size};
        }
    }
    snprintf(path, sizeof path, "%s/d%s.npy", results->folder, t->name);
    moe_comm_write_npy(context->comm, path, sizeof(real) == sizeof(float) ? MOE_F32 : MOE_F64,
                       num_dims, shape, pieces, num, st);
    moe_free(pieces);
    return st->code;
}

static int write_gradients(const moe_context *context,
                           const moe_layer *layer,
                           const moe_layer_indices *indices,
                           const moe_parameters *all,
                           const moe_results *results,
                           moe_status *st) {
    tensor table[MOST_TENSORS];
    int num = list_tensors(layer, indices, context->config->model.num_experts, table);
    for (int i = 0; i < num && st->code == MOE_OK; i++) {
        if (table[i].value && table[i].slot >= 0) {
            write_gradient(context, results, &all->p[table[i].slot], &table[i], st);
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
    moe_replicas replicas = {0};
    moe_parameters_init(&all, b->devices, b->num_local_devices);
    moe_layer_indices indices = moe_layer_register(layer, context, &all);
    real *dx = moe_alloc(b->num_tokens * h, sizeof(real), "gradient of x");
    moe_parameters_clear_gradients(&all);
    moe_layer_backward(layer, &indices, context, a, &all, in->dy + b->first_token * h, &work, dx,
                       metrics);
    if (layer->placement->replicated) {
        moe_replicas_plan(&replicas, context, layer);
        moe_replicas_sum(&replicas, context, layer, &indices, &all, &bytes);
        moe_replicas_free(&replicas);
    }
    moe_parameters_reduce(&all, context->comm, 1, &bytes);
    if (moe_results_tensor(context->comm, results, "dx", b, dx, h, sizeof(real), st) == MOE_OK &&
        moe_results_tensor(context->comm, results, "dlogits", b, work.dlogits, n, sizeof(double),
                           st) == MOE_OK) {
        write_gradients(context, layer, &indices, &all, results, st);
    }
    moe_free(dx);
    moe_backward_free(&work);
    moe_parameters_free(&all);
    return st->code;
}
