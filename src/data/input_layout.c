/* input_layout.c: where sequences begin, and the layout of a batch that has boundaries or a mask.
 */
#include "base/alloc.h"
#include "data/input.h"

/* --- boundaries --- */

/* Called on rank 0 only. */
static int load_boundaries(const moe_config *c, moe_input *in, moe_status *st) {
    moe_npy_header h;
    void *data;
    moe_status inner = {0};
    const char *path = c->data.boundaries;
    if (moe_npy_read(path, &h, &data, &inner)) {
        return moe_fail(st, inner.code, "data.boundaries = %s", inner.message);
    }
    if (h.num_dims != 1 || h.count < 2 || (h.dtype != MOE_I32 && h.dtype != MOE_I64)) {
        moe_fail(st, MOE_USER,
                 "data.boundaries = %s: it holds %lld numbers of type %s in %d dimensions; allowed "
                 "is [sequences + 1] of int32 or int64",
                 path, (long long)h.count, moe_dtype_name(h.dtype), h.num_dims);
        moe_free(data);
        return st->code;
    }
    in->num_sequences = h.count - 1;
    in->boundary = moe_alloc(h.count, sizeof *in->boundary, "boundaries");
    for (int64_t i = 0; i < h.count && st->code == MOE_OK; i++) {
        int64_t at = in->boundary[i] = moe_npy_i64(&h, data, i);
        if (i == 0 && at != 0) {
            moe_fail(st, MOE_USER,
                     "data.boundaries = %s: it begins with %lld; the first sequence begins at "
                     "token 0",
                     path, (long long)at);
        } else if (i > 0 && at <= in->boundary[i - 1]) {
            moe_fail(st, MOE_USER,
                     "data.boundaries = %s: number %lld is %lld after %lld; allowed are rising "
                     "numbers, so that every sequence has a token",
                     path, (long long)i, (long long)at, (long long)in->boundary[i - 1]);
        }
    }
    moe_free(data);
    return st->code;
}

int moe_input_read_boundaries(const moe_comm *comm,
                              const moe_config *c,
                              moe_input *in,
                              moe_status *st) {
    if (comm->rank == 0) {
        load_boundaries(c, in, st);
    }
    if (moe_comm_agree(comm, st)) {
        return st->code;
    }
    moe_comm_bcast(comm, &in->num_sequences, sizeof in->num_sequences, 0);
    if (comm->rank != 0) {
        in->boundary = moe_alloc(in->num_sequences + 1, sizeof *in->boundary, "boundaries");
    }
    moe_comm_bcast(comm, in->boundary, (in->num_sequences + 1) * (int64_t)sizeof *in->boundary, 0);
    return MOE_OK;
}

int moe_input_check(const moe_input *in, const moe_config *c, int64_t tokens, moe_status *st) {
    if (!in->boundary || in->boundary[in->num_sequences] == tokens) {
        return MOE_OK;
    }
    return moe_fail(st, MOE_USER,
                    "data.boundaries = %s: it ends with %lld; the last sequence ends at the number "
                    "of tokens, here %lld",
                    c->data.boundaries, (long long)in->boundary[in->num_sequences],
                    (long long)tokens);
}

/* --- layout --- */

void moe_input_layout(const moe_input *in,
                      const moe_config *c,
                      const moe_comm *comm,
                      int64_t tokens,
                      moe_batch *b) {
    if (in->boundary) {
        moe_batch_layout_boundaries(b, tokens, in->boundary, in->num_sequences, c->cluster.devices,
                                    comm->rank, comm->size);
    } else {
        moe_batch_layout(b, tokens, c->data.sequence_length, c->cluster.devices, comm->rank,
                         comm->size);
    }
    b->counted = in->mask;
    if (c->data.padding == MOE_PADDING_DROPPED) {
        moe_batch_drop_padding(b, comm);
    }
}

void moe_input_begin_step(moe_input *in, const moe_comm *comm, int64_t step, moe_batch *b) {
    in->step = in->num_tokens_global > 0 ? step : 0; /* what is computed has no steps */
    if (!in->mask_has_steps) {
        return;
    }
    b->counted = in->mask + step * b->num_tokens;
    if (b->drops_padding) {
        moe_batch_drop_padding(b, comm);
    }
}

int64_t moe_input_routed(const moe_input *in, const moe_config *c, int64_t tokens) {
    return c->data.padding == MOE_PADDING_DROPPED ? in->num_counted : tokens;
}

int64_t moe_input_longest_sequence(const moe_input *in, const moe_config *c, int64_t tokens) {
    int64_t longest = c->data.sequence_length > 0 ? c->data.sequence_length : tokens;
    for (int64_t q = 0; q < in->num_sequences; q++) {
        int64_t length = in->boundary[q + 1] - in->boundary[q];
        longest = q == 0 || length > longest ? length : longest;
    }
    return longest < tokens ? longest : tokens;
}
