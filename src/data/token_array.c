/* token_array.c: rank 0 reads a .npy file block by block, and each rank gets its own rows of each
 * block through one Alltoallv. No rank ever holds more than its share and one block. */
#include "data/token_array.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "base/alloc.h"
#include "data/batch.h"
#include "world/topology.h"

enum { BLOCK_BYTES = 8 << 20 };

int moe_token_array_fail(const moe_token_array *a, moe_status *st, const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return moe_fail(st, MOE_USER, "%s = %s: %s", a->key, a->path, text);
}

static int open_file(const moe_comm *comm, moe_token_array *a, moe_status *st) {
    moe_status inner = {0};
    a->file = NULL;
    if (comm->rank == 0 && !(a->file = moe_npy_open(a->path, &a->header, &inner))) {
        moe_fail(st, inner.code, "%s = %s", a->key, inner.message);
    }
    if (moe_comm_agree(comm, st)) {
        return st->code;
    }
    moe_comm_bcast(comm, &a->header, sizeof a->header, 0);
    return MOE_OK;
}

/* Writes a shape as "[4, 8]". */
static const char *shape_text(const moe_npy_header *h, char *out, size_t capacity) {
    int length = snprintf(out, capacity, "[");
    for (int d = 0; d < h->num_dims; d++) {
        length += snprintf(out + length, capacity - (size_t)length, d ? ", %lld" : "%lld",
                           (long long)h->shape[d]);
    }
    snprintf(out + length, capacity - (size_t)length, "]");
    return out;
}

static int check_kind(const moe_token_array *a, moe_status *st) {
    bool is_float = moe_dtype_is_float(a->header.dtype);
    if (is_float == (a->kind == MOE_KIND_FLOAT)) {
        return MOE_OK;
    }
    return moe_token_array_fail(a, st, "its dtype is %s; allowed are %s",
                                moe_dtype_name(a->header.dtype),
                                is_float ? "integers and bool" : "float16, float32 and float64");
}

/* How many of the steps that the file has are read. */
static void settle_steps(moe_token_array *a, int64_t file_steps) {
    a->file_steps = file_steps;
    a->steps = a->steps > 0 && a->steps < file_steps ? a->steps : file_steps;
}

/* A flat array has the shape [T] or [B,S], the same for all steps, or [steps,T]. */
static int check_flat(moe_token_array *a, moe_status *st) {
    const moe_npy_header *h = &a->header;
    char shape[128], in_steps[64] = "";
    if ((h->num_dims == 1 || h->num_dims == 2) && h->count == a->tokens) {
        settle_steps(a, 1);
        return MOE_OK;
    }
    if (h->num_dims == 2 && h->shape[0] == a->file_steps && h->shape[1] == a->tokens) {
        settle_steps(a, a->file_steps);
        return MOE_OK;
    }
    if (a->file_steps > 1) {
        snprintf(in_steps, sizeof in_steps, ", or [%lld, T] for the steps",
                 (long long)a->file_steps);
    }
    return moe_token_array_fail(
        a, st, "its shape is %s; allowed is [T] or [B, S] with T = B S = %lld tokens%s",
        shape_text(h, shape, sizeof shape), (long long)a->tokens, in_steps);
}

/* What the shape of a file of rows says; 0 where it is none of those that are allowed. */
typedef struct row_shape {
    int64_t steps, tokens, columns;
} row_shape;

/* Rows have the shape [T,columns], or [layers,T,columns], or the latter in two dimensions, or
 * [steps,layers,T,columns]. */
static row_shape read_shape(const moe_token_array *a) {
    const moe_npy_header *h = &a->header;
    const int64_t columns = h->num_dims > 0 ? h->shape[h->num_dims - 1] : 0;
    if (h->num_dims == 4 && h->shape[1] == a->layers) {
        return (row_shape){h->shape[0], h->shape[2], columns};
    }
    if (h->num_dims == 3 && h->shape[0] == a->layers) {
        return (row_shape){1, h->shape[1], columns};
    }
    if (h->num_dims == 2 && h->shape[0] % a->layers == 0) {
        return (row_shape){1, h->shape[0] / a->layers, columns};
    }
    return (row_shape){0};
}

/* A number that is demanded, or the letter of one that is free. */
typedef struct extent {
    char s[24];
} extent;

static extent extent_of(int64_t demanded, const char *letter) {
    extent e;
    if (demanded > 0) {
        snprintf(e.s, sizeof e.s, "%lld", (long long)demanded);
    } else {
        snprintf(e.s, sizeof e.s, "%s", letter);
    }
    return e;
}

static int refuse_rows(const moe_token_array *a, int64_t found_columns, moe_status *st) {
    const extent steps = extent_of(a->file_steps, "steps"), tokens = extent_of(a->tokens, "T"),
                 columns = extent_of(a->columns, "K");
    const char *any = a->tokens ? "" : " with T >= 1 tokens";
    char shape[128], in_steps[128] = "";
    shape_text(&a->header, shape, sizeof shape);
    if (a->columns == 0 && found_columns > a->most_columns) {
        return moe_token_array_fail(a, st,
                                    "its shape is %s: %lld columns are more than the %lld experts",
                                    shape, (long long)found_columns, (long long)a->most_columns);
    }
    if (a->file_steps != 1) {
        snprintf(in_steps, sizeof in_steps, "%s[%s, %d, %s, %s]", a->file_steps ? "" : " or ",
                 steps.s, a->layers, tokens.s, columns.s);
    }
    if (a->file_steps > 1) {
        return moe_token_array_fail(a, st, "its shape is %s; allowed is %s", shape, in_steps);
    }
    if (a->layers == 1) {
        return moe_token_array_fail(a, st, "its shape is %s; allowed is [%s, %s]%s%s", shape,
                                    tokens.s, columns.s, in_steps, any);
    }
    return moe_token_array_fail(
        a, st,
        "its shape is %s; allowed is [%d, %s, %s] (layers, tokens, columns) or [%d x %s, %s]%s%s",
        shape, a->layers, tokens.s, columns.s, a->layers, tokens.s, columns.s, in_steps, any);
}

static bool fits(int64_t found, int64_t demanded) {
    return found > 0 && (demanded == 0 || demanded == found);
}

static int check_rows(moe_token_array *a, moe_status *st) {
    const row_shape found = read_shape(a);
    const bool columns_fit =
        fits(found.columns, a->columns) && (a->columns > 0 || found.columns <= a->most_columns);
    if (fits(found.steps, a->file_steps) && fits(found.tokens, a->tokens) && columns_fit) {
        a->tokens = found.tokens;
        a->columns = found.columns;
        settle_steps(a, found.steps);
        return MOE_OK;
    }
    return refuse_rows(a, found.columns, st);
}

/* Refuses what does not fit into memory before taking it. The file has as many bytes, so that no
 * product here overflows. */
static int check_memory(const moe_comm *comm, const moe_token_array *a, moe_status *st) {
    int64_t row_bytes = a->columns * (int64_t)moe_dtype_size(a->header.dtype),
            available = moe_memory_available();
    int64_t share = moe_token_array_planes(a) * a->count * row_bytes;
    if (a->header.dtype == MOE_F16) {
        share *= 3; /* the float32 beside it */
    }
    if (available < 0 || share <= available / comm->local_size) {
        return MOE_OK;
    }
    return moe_token_array_fail(
        a, st,
        "its share of %.1f MiB for each of %d ranks does not fit in the %.1f MiB of free memory",
        (double)share / 0x1p20, comm->local_size, (double)available / 0x1p20);
}

/* The block that is under way: some rows of one layer and step. */
typedef struct block {
    char *bytes;  /* rank 0 */
    int64_t rows; /* for which there is memory */
    int64_t row_bytes;
    int64_t *first;  /* [size + 1] first token of each rank */
    int64_t *counts; /* [4][size] */
} block;

/* How many of the rows begin .. end - 1 belong to rank q; *from receives the first of them. */
static int64_t overlap(const block *b, int q, int64_t begin, int64_t end, int64_t *from) {
    *from = b->first[q] > begin ? b->first[q] : begin;
    int64_t to = b->first[q + 1] < end ? b->first[q + 1] : end;
    return to > *from ? to - *from : 0;
}

static void deal_block(const moe_comm *comm,
                       const block *b,
                       int64_t begin,
                       int64_t end,
                       char *mine) {
    int n = comm->size;
    int64_t *send_count = b->counts;
    int64_t *send_offset = b->counts + n;
    int64_t *recv_count = b->counts + 2 * n;
    int64_t *recv_offset = b->counts + 3 * n;
    int64_t from;
    memset(b->counts, 0, 4 * (size_t)n * sizeof *b->counts);
    for (int q = 0; q < n && comm->rank == 0; q++) {
        send_count[q] = overlap(b, q, begin, end, &from);
        send_offset[q] = send_count[q] ? from - begin : 0;
    }
    recv_count[0] = overlap(b, comm->rank, begin, end, &from);
    char *at = recv_count[0] ? mine + (from - b->first[comm->rank]) * b->row_bytes : mine;
    moe_comm_alltoallv(comm, (moe_blocks){b->bytes, send_count, send_offset},
                       (moe_blocks){at, recv_count, recv_offset}, b->row_bytes, b->rows);
}

/* A read that fails is noted and the dealing goes on, so that no rank is left waiting. */
static void deal(const moe_comm *comm, const moe_token_array *a, const block *b, moe_status *st) {
    for (int64_t plane = 0; plane < moe_token_array_planes(a); plane++) {
        char *mine = a->count ? (char *)a->data + plane * a->count * b->row_bytes : NULL;
        for (int64_t begin = 0; begin < a->tokens; begin += b->rows) {
            int64_t end = begin + b->rows < a->tokens ? begin + b->rows : a->tokens;
            size_t rows = (size_t)(end - begin);
            if (comm->rank == 0 && fread(b->bytes, (size_t)b->row_bytes, rows, a->file) != rows) {
                moe_token_array_fail(a, st, "it cannot be read: %s",
                                     ferror(a->file) ? strerror(errno)
                                                     : "it became shorter meanwhile");
            }
            deal_block(comm, b, begin, end, mine);
        }
    }
}

static int read_share(const moe_comm *comm, int32_t devices, moe_token_array *a, moe_status *st) {
    block b = {.row_bytes = a->columns * (int64_t)moe_dtype_size(a->header.dtype)};
    b.rows = b.row_bytes < BLOCK_BYTES ? BLOCK_BYTES / b.row_bytes : 1;
    if (b.rows > a->tokens) {
        b.rows = a->tokens;
    }
    b.first = moe_alloc(comm->size + 1, sizeof *b.first, "input");
    b.counts = moe_alloc(4 * comm->size, sizeof *b.counts, "input");
    for (int q = 0; q <= comm->size; q++) {
        b.first[q] = moe_batch_token_begin(a->tokens, devices, devices / comm->size * q);
    }
    a->first = b.first[comm->rank];
    a->count = b.first[comm->rank + 1] - a->first;
    check_memory(comm, a, st);
    if (moe_comm_agree(comm, st) == MOE_OK) {
        b.bytes = comm->rank == 0 ? moe_alloc_zero(b.rows, (size_t)b.row_bytes, "input") : NULL;
        a->data = moe_alloc(moe_token_array_planes(a) * a->count, (size_t)b.row_bytes, "input");
        deal(comm, a, &b, st);
        moe_comm_agree(comm, st);
    }
    moe_free(b.bytes);
    moe_free(b.first);
    moe_free(b.counts);
    return st->code;
}

/* Makes float32 of float16, which is exact: nobody behind this knows float16. */
static void widen(moe_token_array *a) {
    int64_t num = moe_token_array_planes(a) * a->count * a->columns;
    float *wide = moe_alloc(num, sizeof *wide, "input");
    for (int64_t i = 0; i < num; i++) {
        wide[i] = (float)moe_npy_f64(&a->header, a->data, i);
    }
    moe_free(a->data);
    a->data = wide;
    a->header.dtype = MOE_F32;
}

int moe_token_array_read(const moe_comm *comm,
                         int32_t devices,
                         moe_token_array *a,
                         moe_status *st) {
    a->data = NULL;
    if (open_file(comm, a, st)) {
        return st->code;
    }
    if (a->flat) {
        a->columns = a->layers = 1;
    }
    if (check_kind(a, st) == MOE_OK &&
        (a->flat ? check_flat(a, st) : check_rows(a, st)) == MOE_OK) {
        read_share(comm, devices, a, st);
    }
    if (st->code == MOE_OK && a->header.dtype == MOE_F16) {
        widen(a);
    }
    if (a->file) {
        fclose(a->file);
    }
    a->file = NULL;
    if (st->code != MOE_OK) {
        moe_free(a->data);
        a->data = NULL;
    }
    return st->code;
}
