/* recording.c: rank 0 reads a .npy file block by block; each rank gets its own rows of each block
 * through one Alltoallv. Nobody ever holds more than its share and one block. */
#include "data/token_array.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "base/alloc.h"
#include "data/data.h"
#include "world/topology.h"

enum { BLOCK_BYTES = 8 << 20 };

int moe_token_array_fail(const moe_token_array *r, moe_status *st, const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return moe_fail(st, MOE_USER, "%s = %s: %s", r->key, r->path, text);
}

static int moe_recording_open(const moe_comm *comm, moe_token_array *r, moe_status *st) {
    moe_status inner = {0};
    r->file = NULL;
    if (comm->rank == 0 && !(r->file = moe_npy_open(r->path, &r->header, &inner))) {
        moe_fail(st, inner.code, "%s = %s", r->key, inner.message);
    }
    if (moe_comm_agree(comm, st)) {
        return st->code;
    }
    moe_comm_bcast(comm, &r->header, sizeof r->header, 0);
    return MOE_OK;
}

/* "[4, 8]" */
static const char *moe_recording_shape_text(const moe_npy_header *h, char *out, size_t capacity) {
    int length = snprintf(out, capacity, "[");
    for (int d = 0; d < h->num_dims; d++) {
        length += snprintf(out + length, capacity - (size_t)length, d ? ", %lld" : "%lld",
                           (long long)h->shape[d]);
    }
    snprintf(out + length, capacity - (size_t)length, "]");
    return out;
}

static int moe_recording_check_kind(const moe_token_array *r, moe_status *st) {
    bool is_float = r->header.dtype == MOE_F32 || r->header.dtype == MOE_F64;
    if (is_float == (r->kind == MOE_KIND_FLOAT)) {
        return MOE_OK;
    }
    return moe_token_array_fail(r, st, "its dtype is %s; allowed are %s",
                                moe_dtype_name(r->header.dtype),
                                is_float ? "integers and bool" : "float32 and float64");
}

/* [T] or [B,S]. */
static int moe_recording_check_flat(const moe_token_array *r, moe_status *st) {
    char shape[128];
    if ((r->header.num_dims == 1 || r->header.num_dims == 2) && r->header.count == r->tokens) {
        return MOE_OK;
    }
    return moe_token_array_fail(
        r, st, "its shape is %s; allowed is [T] or [B, S] with T = B S = %lld tokens",
        moe_recording_shape_text(&r->header, shape, sizeof shape), (long long)r->tokens);
}

/* [T,columns], or [layers,T,columns] and the same in two dimensions. */
static int moe_recording_check_rows(moe_token_array *r, moe_status *st) {
    const moe_npy_header *h = &r->header;
    char shape[128], columns[24] = "K", tokens[24] = "T";
    bool in_layers = h->num_dims == 3 && h->shape[0] == r->layers,
         in_rows = h->num_dims == 2 && h->shape[0] % r->layers == 0;
    int64_t found_tokens = in_layers ? h->shape[1] : in_rows ? h->shape[0] / r->layers : 0;
    int64_t found_columns = in_layers || in_rows ? h->shape[h->num_dims - 1] : 0;
    bool tokens_fit = found_tokens > 0 && (r->tokens == 0 || r->tokens == found_tokens);
    bool columns_fit = r->columns ? r->columns == found_columns
                                  : found_columns > 0 && found_columns <= r->most_columns;
    if (tokens_fit && columns_fit) {
        r->tokens = found_tokens;
        r->columns = found_columns;
        return MOE_OK;
    }
    if (r->tokens) {
        snprintf(tokens, sizeof tokens, "%lld", (long long)r->tokens);
    }
    if (r->columns) {
        snprintf(columns, sizeof columns, "%lld", (long long)r->columns);
    }
    moe_recording_shape_text(h, shape, sizeof shape);
    if (r->columns == 0 && found_columns > r->most_columns) {
        return moe_token_array_fail(r, st,
                                    "its shape is %s: %lld columns are more than the %lld experts",
                                    shape, (long long)found_columns, (long long)r->most_columns);
    }
    if (r->layers == 1) {
        return moe_token_array_fail(r, st, "its shape is %s; allowed is [%s, %s]%s", shape, tokens,
                                    columns, r->tokens ? "" : " with T >= 1 tokens");
    }
    return moe_token_array_fail(
        r, st,
        "its shape is %s; allowed is [%d, %s, %s] (layers, tokens, columns) or [%d x %s, %s]%s",
        shape, r->layers, tokens, columns, r->layers, tokens, columns,
        r->tokens ? "" : " with T >= 1 tokens");
}

/* Says what does not fit before taking it. The file's size bounds every product here. */
static int moe_recording_check_memory(const moe_comm *comm,
                                      const moe_token_array *r,
                                      moe_status *st) {
    int64_t row_bytes = r->columns * (int64_t)moe_dtype_size(r->header.dtype),
            available = moe_memory_available();
    int64_t share = r->layers * r->count * row_bytes;
    if (available < 0 || share <= available / comm->local_size) {
        return MOE_OK;
    }
    return moe_token_array_fail(
        r, st,
        "its share of %.1f MiB for each of %d ranks does not fit in the %.1f MiB of free memory",
        (double)share / 0x1p20, comm->local_size, (double)available / 0x1p20);
}

/* One block under way: rows [begin, end) of a layer. */
typedef struct moe_recording_block {
    char *bytes;  /* rank 0 */
    int64_t rows; /* room */
    int64_t row_bytes;
    int64_t *first;  /* [size + 1] first token of each rank */
    int64_t *counts; /* [4][size] */
} moe_recording_block;

/* How many of rows [begin, end) belong to rank q, and the first of them. */
static int64_t moe_recording_overlap(
    const moe_recording_block *b, int q, int64_t begin, int64_t end, int64_t *from) {
    *from = b->first[q] > begin ? b->first[q] : begin;
    int64_t to = b->first[q + 1] < end ? b->first[q + 1] : end;
    return to > *from ? to - *from : 0;
}

static void moe_recording_deal_block(
    const moe_comm *comm, const moe_recording_block *b, int64_t begin, int64_t end, char *mine) {
    int n = comm->size;
    int64_t *send_count = b->counts;
    int64_t *send_offset = b->counts + n;
    int64_t *recv_count = b->counts + 2 * n;
    int64_t *recv_offset = b->counts + 3 * n;
    int64_t from;
    memset(b->counts, 0, 4 * (size_t)n * sizeof *b->counts);
    for (int q = 0; q < n && comm->rank == 0; q++) {
        send_count[q] = moe_recording_overlap(b, q, begin, end, &from);
        send_offset[q] = send_count[q] ? from - begin : 0;
    }
    recv_count[0] = moe_recording_overlap(b, comm->rank, begin, end, &from);
    char *at = recv_count[0] ? mine + (from - b->first[comm->rank]) * b->row_bytes : mine;
    moe_comm_alltoallv(comm, (moe_blocks){b->bytes, send_count, send_offset},
                       (moe_blocks){at, recv_count, recv_offset}, b->row_bytes, b->rows);
}

/* A read that fails is noted and the dealing goes on, so that no rank is left waiting. */
static void moe_recording_deal(const moe_comm *comm,
                               const moe_token_array *r,
                               const moe_recording_block *b,
                               moe_status *st) {
    for (int32_t layer = 0; layer < r->layers; layer++) {
        char *mine = r->count ? (char *)r->data + layer * r->count * b->row_bytes : NULL;
        for (int64_t begin = 0; begin < r->tokens; begin += b->rows) {
            int64_t end = begin + b->rows < r->tokens ? begin + b->rows : r->tokens;
            size_t rows = (size_t)(end - begin);
            if (comm->rank == 0 && fread(b->bytes, (size_t)b->row_bytes, rows, r->file) != rows) {
                moe_token_array_fail(r, st, "it cannot be read: %s",
                                     ferror(r->file) ? strerror(errno)
                                                     : "it became shorter meanwhile");
            }
            moe_recording_deal_block(comm, b, begin, end, mine);
        }
    }
}

static int moe_recording_share(const moe_comm *comm,
                               int32_t devices,
                               moe_token_array *r,
                               moe_status *st) {
    moe_recording_block b = {.row_bytes = r->columns * (int64_t)moe_dtype_size(r->header.dtype)};
    b.rows = b.row_bytes < BLOCK_BYTES ? BLOCK_BYTES / b.row_bytes : 1;
    if (b.rows > r->tokens) {
        b.rows = r->tokens;
    }
    b.first = moe_alloc(comm->size + 1, sizeof *b.first, "input");
    b.counts = moe_alloc(4 * comm->size, sizeof *b.counts, "input");
    for (int q = 0; q <= comm->size; q++) {
        b.first[q] = moe_batch_token_begin(r->tokens, devices, devices / comm->size * q);
    }
    r->first = b.first[comm->rank];
    r->count = b.first[comm->rank + 1] - r->first;
    moe_recording_check_memory(comm, r, st);
    if (moe_comm_agree(comm, st) == MOE_OK) {
        b.bytes = comm->rank == 0 ? moe_alloc_zero(b.rows, (size_t)b.row_bytes, "input") : NULL;
        r->data = moe_alloc(r->layers * r->count, (size_t)b.row_bytes, "input");
        moe_recording_deal(comm, r, &b, st);
        moe_comm_agree(comm, st);
    }
    moe_free(b.bytes);
    moe_free(b.first);
    moe_free(b.counts);
    return st->code;
}

int moe_token_array_read(const moe_comm *comm,
                         int32_t devices,
                         moe_token_array *r,
                         moe_status *st) {
    r->data = NULL;
    if (moe_recording_open(comm, r, st)) {
        return st->code;
    }
    if (r->flat) {
        r->columns = r->layers = 1;
    }
    if (moe_recording_check_kind(r, st) == MOE_OK &&
        (r->flat ? moe_recording_check_flat(r, st) : moe_recording_check_rows(r, st)) == MOE_OK) {
        moe_recording_share(comm, devices, r, st);
    }
    if (r->file) {
        fclose(r->file);
    }
    r->file = NULL;
    if (st->code != MOE_OK) {
        moe_free(r->data);
        r->data = NULL;
    }
    return st->code;
}
