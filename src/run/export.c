/* export.c: the tensors of a checkpoint, or of a model that was just made, as .npy files. */
#include "run/export.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "output/results.h"
#include "run/internal.h"
#include "train/checkpoint_file.h"

/* One file: shape and pieces of this rank. */
typedef struct tensor {
    char name[80];
    enum moe_dtype dtype;
    int num_dims;
    int64_t shape[MOE_NPY_MAX_DIMS];
} tensor;

/* A tensor of experts has a block for each of them; a block is a matrix or, with columns 0, a
 * vector. */
static tensor tensor_of(enum moe_dtype dtype,
                        bool expert,
                        int64_t count,
                        int64_t size,
                        int64_t columns) {
    tensor t = {.dtype = dtype};
    if (expert) {
        t.shape[t.num_dims++] = count;
    }
    if (columns > 0) {
        t.shape[t.num_dims++] = size / columns;
    }
    t.shape[t.num_dims++] = columns > 0 ? columns : size;
    return t;
}

static int write_tensor(const moe_comm *comm,
                        const char *folder,
                        const tensor *t,
                        const moe_npy_piece *pieces,
                        int64_t num,
                        moe_status *st) {
    char path[MOE_PATH_MAX + 256];
    snprintf(path, sizeof path, "%s/%s.npy", folder, t->name);
    return moe_comm_write_npy(comm, path, t->dtype, t->num_dims, t->shape, pieces, num, st);
}

/* Collective. */
static int make_folder(const moe_comm *comm, const char *folder, bool force, moe_status *st) {
    if (comm->rank == 0) {
        moe_results_make_folder("--export-parameters", folder, force, st);
    }
    return moe_comm_agree(comm, st);
}

static void say(const moe_comm *comm,
                const moe_run_options *run,
                const char *what,
                int num,
                const char *folder) {
    if (comm->rank == 0 && !run->quiet) {
        printf("%s: %d arrays in %s\n", what, num, folder);
    }
}

/* --- a checkpoint --- */

static bool ends_with(const char *name, const char *end) {
    size_t length = strlen(name), more = strlen(end);
    return length > more && strcmp(name + length - more, end) == 0;
}

/* Of the state that is kept as bytes, the biases are for other programs as well. */
static bool is_bias(const moe_section *s) {
    return s->part == MOE_PART_BLOB && ends_with(s->name, ".bias");
}

/* The name becomes that of a file: it must not lead elsewhere, whatever the checkpoint says. */
static bool is_name(const char *name) {
    return name[0] != '\0' && name[0] != '.' &&
           name[strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._")] ==
               '\0';
}

static int tensor_of_section(const moe_checkpoint_table *t,
                             const moe_section *s,
                             const char *path,
                             tensor *out,
                             moe_status *st) {
    static const char *const end[] = {
        [MOE_PART_VALUE] = "", [MOE_PART_M] = ".m", [MOE_PART_V] = ".v", [MOE_PART_BLOB] = ""};
    const int64_t size = is_bias(s) ? s->size / (int64_t)sizeof(double) : s->size;
    if (!is_name(s->name) || moe_checkpoint_table_section(t, s) != s ||
        (is_bias(s) && s->size % (int64_t)sizeof(double) != 0)) {
        return moe_fail(st, MOE_USER,
                        "the checkpoint '%s' is damaged: it holds a tensor that no run has", path);
    }
    *out = tensor_of(is_bias(s) || t->real_bytes == 8 ? MOE_F64 : MOE_F32, s->expert, s->count,
                     size, s->columns);
    snprintf(out->name, sizeof out->name, "%s%s", s->name, end[s->part]);
    return MOE_OK;
}

/* Collective. Each rank reads its share of the blocks and writes them. */
static int export_section(const moe_comm *comm,
                          const moe_checkpoint_table *t,
                          const moe_section *s,
                          const char *path,
                          const char *folder,
                          moe_status *st) {
    tensor out = {0};
    if (tensor_of_section(t, s, path, &out, st) != MOE_OK) {
        return st->code;
    }
    const int64_t most = s->num_blocks / comm->size + 1, unit = (int64_t)moe_dtype_size(out.dtype);
    const int64_t block_bytes = s->block_bytes < s->bytes ? s->block_bytes : s->bytes;
    char *data = moe_alloc(most * block_bytes, 1, "a tensor of a checkpoint");
    moe_npy_piece *pieces = moe_alloc(most, sizeof *pieces, "pieces of a tensor");
    int64_t num = 0;
    int file = moe_checkpoint_file_open(path, st);
    for (int64_t b = comm->rank; b < s->num_blocks && st->code == MOE_OK; b += comm->size) {
        int64_t bytes, offset = moe_checkpoint_table_block(s, b, &bytes) - s->offset;
        char *to = data + num * block_bytes;
        moe_checkpoint_file_read(file, path, t, s, b, to, st);
        pieces[num++] = (moe_npy_piece){to, offset / unit, bytes / unit};
    }
    if (file >= 0) {
        close(file);
    }
    if (moe_comm_agree(comm, st) == MOE_OK) {
        write_tensor(comm, folder, &out, pieces, num, st);
    }
    moe_free(pieces);
    moe_free(data);
    return st->code;
}

/* Collective. */
static int export_table(const moe_comm *comm,
                        const moe_checkpoint_table *t,
                        const char *path,
                        const char *folder,
                        int *num,
                        moe_status *st) {
    for (int i = 0; i < t->num && st->code == MOE_OK; i++) {
        const moe_section *s = &t->section[i];
        if (s->part != MOE_PART_BLOB || is_bias(s)) {
            export_section(comm, t, s, path, folder, st);
            ++*num;
        }
    }
    return st->code;
}

int moe_export_checkpoint(const moe_comm *comm,
                          const moe_export_options *o,
                          const moe_run_options *run,
                          moe_status *st) {
    moe_checkpoint found = {0};
    moe_checkpoint_table t = {0};
    char word[512] = "", what[MOE_CHECKPOINT_PATH_MAX + 64], folder[MOE_PATH_MAX + 16];
    int num = 0;
    snprintf(folder, sizeof folder, "%.*s%s", MOE_PATH_MAX - 1, o->folder ? o->folder : o->from,
             o->folder ? "" : "/parameters");
    if (moe_checkpoint_find(comm, o->from, &found, word, st) == MOE_OK &&
        moe_checkpoint_file_load(comm, found.path, &t, st) == MOE_OK &&
        make_folder(comm, folder, run->force, st) == MOE_OK) {
        export_table(comm, &t, found.path, folder, &num, st);
    }
    if (st->code == MOE_OK) {
        if (comm->rank == 0 && word[0] && !run->quiet) {
            printf("%s\n", word);
        }
        snprintf(what, sizeof what, "%s, after %lld steps", found.path, (long long)found.step);
        say(comm, run, what, num, folder);
    }
    moe_checkpoint_table_free(&t);
    moe_checkpoint_free(&found);
    return st->code;
}

/* --- a model that was just made --- */

/* Collective. Every expert is written from its first slot. */
static int export_parameter(const moe_comm *comm,
                            const moe_parameter *p,
                            const char *folder,
                            moe_status *st) {
    tensor out = tensor_of(sizeof(real) == 8 ? MOE_F64 : MOE_F32, p->expert, p->count_global,
                           p->size, p->columns);
    moe_npy_piece *pieces = moe_alloc(p->count, sizeof *pieces, "pieces of a tensor");
    int64_t num = 0;
    for (int64_t i = 0; i < p->count; i++) {
        if (p->expert ? !(p->copy && p->copy[i]) : comm->rank == 0) {
            pieces[num++] = (moe_npy_piece){p->value + i * p->size,
                                            p->expert ? p->id[i] * p->size : 0, p->size};
        }
    }
    snprintf(out.name, sizeof out.name, "%s", p->name);
    write_tensor(comm, folder, &out, pieces, num, st);
    moe_free(pieces);
    return st->code;
}

/* Collective. What a layer has beside its parameters: its bias and frozen matrices. */
static int export_state(const moe_comm *comm,
                        const moe_blob *b,
                        const char *folder,
                        moe_status *st) {
    const enum moe_dtype dtype = b->columns > 0 ? (sizeof(real) == 8 ? MOE_F64 : MOE_F32) : MOE_F64;
    const int64_t size = b->bytes / (int64_t)moe_dtype_size(dtype);
    tensor out = tensor_of(dtype, false, 1, size, b->columns);
    snprintf(out.name, sizeof out.name, "%s", b->name);
    return write_tensor(comm, folder, &out, &(moe_npy_piece){b->data, 0, size}, comm->rank == 0,
                        st);
}

/* Collective. */
static int export_model(moe_run_state *r, const char *folder, int *num, moe_status *st) {
    const int32_t layers = r->stack.num_layers;
    moe_parameters own, *all = &r->training.parameters;
    moe_parameters_init(&own, 0, 0);
    if (!moe_run_trains(r)) {
        all = &own;
        moe_stack_register(&r->stack, all);
    }
    moe_layer_state state = moe_layer_state_of(r->stack.layer, layers, r->config);
    for (int i = 0; i < all->num && st->code == MOE_OK; i++) {
        export_parameter(r->comm, &all->p[i], folder, st);
    }
    for (int i = 0; i < state.num && st->code == MOE_OK; i++) {
        export_state(r->comm, &state.blob[i], folder, st);
    }
    *num = all->num + state.num;
    moe_layer_state_free(&state);
    moe_parameters_free(&own);
    return st->code;
}

int moe_export_start(const moe_comm *comm,
                     moe_config *c,
                     const moe_export_options *o,
                     const moe_run_options *run,
                     moe_status *st) {
    moe_run_options options = *run;
    moe_run_state r = {.comm = comm, .config = c, .options = &options};
    int num = 0;
    options.model_only = true;
    if (moe_run_prepare(&r, st) == MOE_OK &&
        make_folder(comm, o->folder, run->force, st) == MOE_OK &&
        export_model(&r, o->folder, &num, st) == MOE_OK) {
        say(comm, run, "before the first step", num, o->folder);
    }
    moe_run_free(&r);
    return st->code;
}
