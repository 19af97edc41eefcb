/* exchange.c: dispatch over MPI_Alltoallv; combine.c is the way back.
 *
 * Metadata are one stream of int32 words per destination (row_format.h). One Alltoallv carries
 * them, one more the vectors. The advantage is that a row's vector stays contiguous and aligned,
 * and that the receiver can group rows by expert before the vectors arrive; the price is one more
 * message per pair of ranks than in a fused format. Rows of the own rank never enter a buffer: on
 * one rank nothing is packed at all. */
#include "exchange/exchange.h"

#include <omp.h>
#include <string.h>

#include "base/status.h"
#include "exchange/internal.h"
#include "exchange/row_format.h"

int64_t moe_exchange_row_metadata_bytes(enum moe_exchange_mode mode, int hop) {
    return moe_row_format_of(mode, hop)->head_words * (int64_t)sizeof(int32_t);
}

int64_t moe_exchange_pair_metadata_bytes(void) {
    return MOE_PAIR_WORDS * (int64_t)sizeof(int32_t);
}

/* --- memory --- */

/* Arrays whose sizes depend on the ranks, devices, experts and threads only. */
static void reserve_fixed(moe_exchange *e, const moe_plan *plan) {
    moe_inbox *in = &e->inbox;
    const moe_block_array table[] = {
        MOE_ARRAY(in->rank_row, plan->ranks + 1),
        MOE_ARRAY(in->slot_offset, (int64_t)in->num_local * in->slots + 2),
        MOE_ARRAY(in->source_count, plan->hop > 0 ? plan->devices + 1 : 0),
        MOE_ARRAY(e->sizes, 4 * (int64_t)plan->ranks),
        MOE_ARRAY(e->layout, 4 * (int64_t)plan->ranks),
        MOE_ARRAY(e->sums, e->threads * 2 * in->hidden),
    };
    moe_block_reserve(&e->fixed, table, MOE_ARRAYS(table), "exchange");
}

/* Arrays whose sizes depend on what is sent and what arrives. */
static void reserve_arrived(moe_exchange *e, const moe_plan *plan) {
    moe_inbox *in = &e->inbox;
    const moe_row_format *format = plan->format;
    const int hops = moe_row_format_hops(plan->mode);
    int64_t rows = in->num_rows, pairs = in->num_pairs, grouped = plan->hop + 1 == hops ? pairs : 0,
            all_cells = (int64_t)plan->devices * plan->num_local;
    const moe_block_array table[] = {
        MOE_ARRAY(in->row_device, rows),
        MOE_ARRAY(in->row_token, rows),
        MOE_ARRAY(in->row_pair, rows + 1),
        MOE_ARRAY(in->row_source, hops > 1 ? rows : 0),
        MOE_ARRAY(in->row_number, hops > 1 ? rows : 0),
        MOE_ARRAY(in->source_row, plan->hop > 0 ? rows : 0),
        MOE_ARRAY(in->pair_expert, pairs),
        MOE_ARRAY(in->pair_weight, pairs),
        MOE_ARRAY(in->pair_row, pairs),
        MOE_ARRAY(in->slot_pair, grouped),
        MOE_ARRAY(in->pair_position, grouped),
        MOE_ARRAY(in->cell, rows < all_cells ? rows : all_cells),
        MOE_ARRAY(e->words_out, moe_row_format_words(format, plan->num_rows, plan->num_pairs)),
        MOE_ARRAY(e->words_in, moe_row_format_words(format, rows, pairs)),
    };
    moe_block_reserve_varying(&e->arrived, table, MOE_ARRAYS(table), "inbox");
}

/* --- layouts --- */

moe_exchange_layout moe_exchange_layout_of(const moe_exchange *e) {
    int64_t ranks = e->comm->size;
    return (moe_exchange_layout){e->layout, e->layout + ranks, e->layout + 2 * ranks,
                                 e->layout + 3 * ranks};
}

void moe_exchange_layout_set_offsets(const moe_exchange_layout *l, int ranks) {
    int64_t out = 0, arriving = 0;
    for (int q = 0; q < ranks; q++) {
        l->send_offset[q] = out;
        l->recv_offset[q] = arriving;
        out += l->send_count[q];
        arriving += l->recv_count[q];
    }
}

moe_exchange_layout moe_exchange_layout_vectors(const moe_exchange *e,
                                                const int64_t *send,
                                                const int64_t *recv) {
    moe_exchange_layout l = moe_exchange_layout_of(e);
    for (int q = 0; q < e->comm->size; q++) {
        bool own = q == e->comm->rank;
        l.send_count[q] = own ? 0 : send[q + 1] - send[q];
        l.recv_count[q] = own ? 0 : recv[q + 1] - recv[q];
    }
    moe_exchange_layout_set_offsets(&l, e->comm->size);
    return l;
}

/* --- sizes --- */

/* Every rank tells every other how many rows and pairs it has for it. Which devices they are from
 * and for is known from the metadata: a row names its token and its experts. */
static void exchange_sizes(moe_exchange *e, const moe_plan *plan) {
    moe_inbox *in = &e->inbox;
    int64_t *arriving = e->sizes + 2 * (int64_t)plan->ranks;
    for (int32_t q = 0; q < plan->ranks; q++) {
        e->sizes[2 * q] = plan->rank_row[q + 1] - plan->rank_row[q];
        e->sizes[2 * q + 1] = plan->rank_pair[q + 1] - plan->rank_pair[q];
    }
    moe_comm_alltoall(e->comm, e->sizes, arriving, 2 * (int64_t)sizeof(int64_t));
    in->num_rows = in->num_pairs = 0;
    for (int32_t q = 0; q < plan->ranks; q++) {
        in->rank_row[q] = in->num_rows;
        in->num_rows += arriving[2 * q];
        in->num_pairs += arriving[2 * q + 1];
    }
    in->rank_row[plan->ranks] = in->num_rows;
}

/* --- metadata --- */

/* All rows of the plan, which are in the order of ranks already. before: the inbox whose rows are
 * the plan's tokens, or NULL. Returns the end of the words. */
static const int32_t *write_words(const moe_plan *plan, const moe_inbox *before, int32_t *word) {
    for (int64_t r = 0; r < plan->num_rows; r++) {
        int32_t t = plan->row_token[r];
        *word++ = before ? before->row_token[t] : t;
        if (plan->format->several_pairs) {
            *word++ = (int32_t)(plan->row_pair[r + 1] - plan->row_pair[r]);
        }
        if (plan->format->names_source) {
            *word++ = before->row_source[t];
        }
        for (int64_t p = plan->row_pair[r]; p < plan->row_pair[r + 1]; p++) {
            *word++ = plan->pair_expert[p];
            memcpy(word, &plan->pair_weight[p], sizeof(real));
            word += MOE_PAIR_WORDS - 1;
        }
    }
    return word;
}

static void exchange_metadata(moe_exchange *e,
                              const moe_plan *plan,
                              const moe_placement *placement,
                              const moe_inbox *before) {
    const moe_inbox *in = &e->inbox;
    const moe_row_format *format = plan->format;
    const int64_t *arriving = e->sizes + 2 * (int64_t)plan->ranks;
    moe_exchange_layout l = moe_exchange_layout_of(e);
    for (int q = 0; q < plan->ranks; q++) {
        l.send_count[q] = moe_row_format_words(format, plan->rank_row[q + 1] - plan->rank_row[q],
                                               plan->rank_pair[q + 1] - plan->rank_pair[q]);
        l.recv_count[q] = moe_row_format_words(format, arriving[2 * q], arriving[2 * q + 1]);
    }
    moe_exchange_layout_set_offsets(&l, plan->ranks);
    const int32_t *end = write_words(plan, before, e->words_out);
    MOE_ASSERT(end == e->words_out + moe_row_format_words(format, plan->num_rows, plan->num_pairs));
    moe_comm_alltoallv(e->comm, (moe_blocks){e->words_out, l.send_count, l.send_offset},
                       (moe_blocks){e->words_in, l.recv_count, l.recv_offset}, sizeof(int32_t),
                       moe_row_format_words(format, e->most_rows, e->most_rows));
    moe_inbox_read(e, plan, placement, moe_row_format_words(format, in->num_rows, in->num_pairs));
}

void moe_exchange_announce(moe_exchange *e,
                           const moe_comm *comm,
                           const moe_plan *plan,
                           const moe_placement *placement,
                           int64_t hidden,
                           int64_t most_pairs_global,
                           const moe_inbox *before) {
    moe_inbox *in = &e->inbox;
    e->comm = comm;
    e->most_rows = most_pairs_global;
    in->devices = plan->devices;
    in->num_local = plan->num_local;
    in->slots = placement->slots_per_device;
    in->hidden = hidden;
    e->threads = omp_get_max_threads();
    reserve_fixed(e, plan);
    exchange_sizes(e, plan);
    reserve_arrived(e, plan);
    exchange_metadata(e, plan, placement, before);
}

/* --- vectors --- */

/* Copies the vectors of the rows for other ranks, `bytes` long, from `tokens` into `outgoing`. */
static void pack(const moe_exchange *e, const moe_plan *plan, const char *tokens, int64_t bytes) {
    int64_t own_begin = plan->rank_row[e->comm->rank];
    int64_t own_end = plan->rank_row[e->comm->rank + 1];
    int64_t own = own_end - own_begin;
    char *to = (char *)e->outgoing;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < plan->num_rows - own; i++) {
        int64_t r = i < own_begin ? i : i + own;
        memcpy(to + i * bytes, tokens + plan->row_token[r] * bytes, (size_t)bytes);
    }
}

/* Copies the vectors of the rows of the own rank to their places among all rows of the inbox. */
static void keep_own(const moe_exchange *e,
                     const moe_plan *plan,
                     const char *tokens,
                     int64_t bytes,
                     char *to) {
    int64_t begin = plan->rank_row[e->comm->rank], end = plan->rank_row[e->comm->rank + 1];
    char *own = to + e->inbox.rank_row[e->comm->rank] * bytes;
#pragma omp parallel for schedule(static)
    for (int64_t r = begin; r < end; r++) {
        memcpy(own + (r - begin) * bytes, tokens + plan->row_token[r] * bytes, (size_t)bytes);
    }
}

void moe_exchange_move(moe_exchange *e,
                       const moe_plan *plan,
                       const char *tokens,
                       int64_t bytes,
                       char *to,
                       bool whole) {
    const moe_inbox *in = &e->inbox;
    int64_t own = plan->rank_row[e->comm->rank + 1] - plan->rank_row[e->comm->rank];
    moe_reserve_varying(&e->outgoing, &e->outgoing_capacity, (plan->num_rows - own) * in->hidden,
                        sizeof(real), "rows to send");
    pack(e, plan, tokens, bytes);
    if (whole) {
        keep_own(e, plan, tokens, bytes, to);
    }
    moe_exchange_layout l = moe_exchange_layout_vectors(e, plan->rank_row, in->rank_row);
    moe_comm_alltoallv(e->comm, (moe_blocks){e->outgoing, l.send_count, l.send_offset},
                       (moe_blocks){to, l.recv_count, whole ? in->rank_row : l.recv_offset}, bytes,
                       e->most_rows);
}

/* x [T,H] in the format of the wire: itself, or encoded in e->coded. */
static const char *encode(moe_exchange *e, moe_payload_format f, const real *x, int64_t tokens) {
    int64_t h = e->inbox.hidden;
    if (!moe_payload_rounds(f)) {
        return (const char *)x;
    }
    moe_reserve_varying(&e->coded, &e->coded_capacity, tokens * moe_payload_bytes(f, h), 1,
                        "rows to send");
    moe_payload_encode_all(f, x, tokens, h, e->coded);
    return e->coded;
}

const real *moe_inbox_rows_decoded(moe_inbox_rows *rows,
                                   moe_payload_format f,
                                   const char *coded,
                                   int64_t count,
                                   int64_t hidden,
                                   bool varies) {
    if (!moe_payload_rounds(f)) {
        return (const real *)(const void *)coded;
    }
    (varies ? moe_reserve_varying : moe_reserve)(&rows->rounded, &rows->rounded_capacity,
                                                 count * hidden, sizeof(real), "rounded tokens");
    moe_payload_decode_all(f, coded, count, hidden, rows->rounded);
    return rows->rounded;
}

/* Sends x [T,H] along the plan's rows into `rows` of the inbox. */
static void send_rows(moe_exchange *e,
                      const moe_plan *plan,
                      moe_payload_format f,
                      const real *x,
                      bool gradient) {
    moe_inbox *in = &e->inbox;
    moe_inbox_rows *rows = gradient ? &in->dy : &in->x;
    int64_t arriving = in->num_rows - (in->own_end - in->own_begin);
    int64_t bytes = moe_payload_bytes(f, in->hidden);
    const char *tokens = encode(e, f, x, plan->num_tokens);
    if (moe_row_format_hops(plan->mode) > 1) {
        tokens = moe_relay_move(e, plan, tokens, f, gradient, rows);
        plan = &e->relay->plan;
    } else {
        rows->local = moe_inbox_rows_decoded(rows, f, tokens, plan->num_tokens, in->hidden, false);
    }
    moe_reserve_varying(&rows->remote, &rows->capacity, arriving * in->hidden, sizeof(real),
                        "received rows");
    if (!moe_payload_rounds(f)) {
        moe_exchange_move(e, plan, tokens, bytes, (char *)rows->remote, false);
        return;
    }
    moe_reserve_varying(&e->arriving, &e->arriving_capacity, arriving * bytes, 1, "received rows");
    moe_exchange_move(e, plan, tokens, bytes, e->arriving, false);
    moe_payload_decode_all(f, e->arriving, arriving, in->hidden, rows->remote);
}

void moe_exchange_dispatch(moe_exchange *e,
                           const moe_comm *comm,
                           const moe_plan *plan,
                           const moe_placement *placement,
                           const real *x,
                           int64_t hidden,
                           int64_t most_pairs_global) {
    moe_inbox *in = &e->inbox;
    const moe_plan *last = plan;
    if (moe_row_format_hops(plan->mode) > 1) {
        moe_relay_announce(e, comm, plan, placement, hidden, most_pairs_global);
        last = &e->relay->plan;
    }
    moe_exchange_announce(e, comm, last, placement, hidden, most_pairs_global,
                          last == plan ? NULL : &e->relay->first.inbox);
    moe_inbox_group(in, placement, plan->first_device);
    in->local_token = last->row_token + last->rank_row[comm->rank];
    in->own_begin = in->rank_row[comm->rank];
    in->own_end = in->rank_row[comm->rank + 1];
    MOE_ASSERT(in->own_end - in->own_begin ==
               last->rank_row[comm->rank + 1] - last->rank_row[comm->rank]);
    send_rows(e, plan, e->dispatched, x, false);
}

void moe_exchange_dispatch_gradient(moe_exchange *e, const moe_plan *plan, const real *dy) {
    send_rows(e, plan, e->combined, dy, true);
}

/* --- numbers of pairs --- */

void moe_exchange_bring_pairs(moe_exchange *e,
                              const moe_plan *plan,
                              const real *values,
                              real *returned) {
    const moe_comm *comm = e->comm;
    const moe_inbox *in = &e->inbox;
    moe_exchange_layout l = moe_exchange_layout_of(e);
    for (int q = 0; q < comm->size; q++) {
        l.send_offset[q] = in->row_pair[in->rank_row[q]];
        l.send_count[q] = in->row_pair[in->rank_row[q + 1]] - l.send_offset[q];
        l.recv_count[q] = plan->rank_pair[q + 1] - plan->rank_pair[q];
    }
    int64_t own = l.send_count[comm->rank];
    if (own) {
        memcpy(returned + plan->rank_pair[comm->rank], values + l.send_offset[comm->rank],
               (size_t)own * sizeof(real));
    }
    l.send_count[comm->rank] = l.recv_count[comm->rank] = 0;
    moe_comm_alltoallv(comm, (moe_blocks){(void *)(uintptr_t)values, l.send_count, l.send_offset},
                       (moe_blocks){returned, l.recv_count, plan->rank_pair}, sizeof(real),
                       e->most_rows);
}

void moe_exchange_return_pairs(moe_exchange *e,
                               const moe_plan *plan,
                               const real *values,
                               real *returned) {
    if (moe_row_format_hops(plan->mode) > 1) {
        moe_relay_bring_pairs(e, plan, values, returned);
    } else {
        moe_exchange_bring_pairs(e, plan, values, returned);
    }
}

void moe_exchange_free(moe_exchange *e) {
    moe_relay_free(e->relay);
    moe_block_free(&e->fixed);
    moe_block_free(&e->arrived);
    moe_free(e->outgoing);
    moe_free(e->coded);
    moe_free(e->arriving);
    moe_free(e->inbox.x.remote);
    moe_free(e->inbox.x.rounded);
    moe_free(e->inbox.dy.remote);
    moe_free(e->inbox.dy.rounded);
    *e = (moe_exchange){0};
}
