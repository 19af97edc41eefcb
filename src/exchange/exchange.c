/* exchange.c: dispatch; combine.c is the way back, and carry.c carries both.
 *
 * Metadata are one stream of int32 words per destination (row_format.h). They are carried at once,
 * and then the vectors. The advantage is that a row's vector stays contiguous and aligned,
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
    const bool chunked = in->chunks > 1;
    const int64_t slots = (int64_t)in->num_local * in->slots, ranks = plan->ranks,
                  begins = chunked ? in->chunks * ranks + 1 : 0,
                  owns = chunked ? in->chunks + 1 : 0;
    const moe_block_array table[] = {
        MOE_ARRAY(in->rank_row, plan->ranks + 1),
        MOE_ARRAY(in->slot_offset, chunked ? slots + 1 : 0),
        MOE_ARRAY(in->group_offset, slots * in->chunks + 2),
        MOE_ARRAY(in->source_count, plan->hop > 0 ? plan->devices + 1 : 0),
        MOE_ARRAY(e->counts, e->host ? 0 : 2 * (int64_t)plan->ranks),
        MOE_ARRAY(e->layout, 4 * (int64_t)plan->ranks),
        MOE_ARRAY(e->word_begin, plan->ranks + 1),
        MOE_ARRAY(e->word_arriving, plan->ranks + 1),
        MOE_ARRAY(e->sums, e->threads * 2 * in->hidden),
        MOE_ARRAY(in->order.begin, begins),
        MOE_ARRAY(in->order.own, owns),
        MOE_ARRAY(e->sent.begin, begins),
        MOE_ARRAY(e->sent.own, owns),
        MOE_ARRAY(e->air.flight, chunked ? MOE_NUM_WAYS * (int64_t)in->chunks : 0),
        MOE_ARRAY(e->air.counts, chunked ? MOE_NUM_WAYS * 4 * ranks : 0),
    };
    moe_block_reserve(&e->fixed, table, MOE_ARRAYS(table), "exchange");
    if (!chunked) {
        in->slot_offset = in->group_offset;
    }
}

/* Arrays whose sizes depend on what is sent and what arrives. */
static void reserve_arrived(moe_exchange *e, const moe_plan *plan) {
    moe_inbox *in = &e->inbox;
    const moe_row_format *format = plan->format;
    const int hops = moe_row_format_hops(plan->mode);
    int64_t rows = in->num_rows, pairs = in->num_pairs, grouped = plan->hop + 1 == hops ? pairs : 0,
            all_cells = (int64_t)plan->devices * plan->num_local,
            chunked = in->chunks > 1 ? rows : 0, sent = in->chunks > 1 ? plan->num_rows : 0;
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
        MOE_ARRAY(in->order.chunk, chunked),
        MOE_ARRAY(in->order.row, chunked),
        MOE_ARRAY(in->order.place, chunked),
        MOE_ARRAY(e->sent.chunk, sent),
        MOE_ARRAY(e->sent.row, sent),
        MOE_ARRAY(e->sent.place, sent),
        MOE_ARRAY(e->words_out, moe_row_format_words(format, plan->num_rows, plan->num_pairs)),
    };
    moe_block_reserve_varying(&e->arrived, table, MOE_ARRAYS(table), "inbox");
}

/* --- sizes --- */

/* Between hosts by MPI_Alltoall. The ranks of a host read what the others have published. */
static void exchange_counts(moe_exchange *e) {
    int ranks = e->comm->size;
    moe_counts *arriving = e->counts + ranks;
    moe_host *h = e->host;
    if (!h || h->size < ranks) {
        moe_comm_alltoall(e->comm, e->counts, arriving, (int64_t)sizeof *arriving);
    }
    if (!h) {
        return;
    }
    moe_window_barrier(&e->published, h);
    for (int p = 0; p < h->size; p++) {
        arriving[h->id[p]] = ((moe_counts *)(void *)e->published.piece[p])[e->comm->rank];
    }
}

/* Memory where all ranks of the host can read this one's counts. */
static void publish_counts(moe_exchange *e) {
    moe_host *h = e->host;
    for (int p = 0; p < h->size; p++) {
        h->bytes[p] = 2 * e->comm->size * (int64_t)sizeof *e->counts;
    }
    moe_window_reserve(&e->published, h, h->bytes, "counts of rows");
    e->counts = (moe_counts *)(void *)e->published.piece[h->rank];
}

/* Every rank tells every other how many rows and pairs it has for it. Which devices they are from
 * and for is known from the metadata: a row names its token and its experts. */
static void exchange_sizes(moe_exchange *e, const moe_plan *plan) {
    moe_inbox *in = &e->inbox;
    if (e->host) {
        publish_counts(e);
    }
    for (int32_t q = 0; q < plan->ranks; q++) {
        e->counts[q] = (moe_counts){plan->rank_row[q + 1] - plan->rank_row[q],
                                    plan->rank_pair[q + 1] - plan->rank_pair[q],
                                    plan->row_part ? plan->row_part[plan->rank_row[q + 1]] -
                                                         plan->row_part[plan->rank_row[q]]
                                                   : 0};
    }
    exchange_counts(e);
    const moe_counts *arriving = e->counts + plan->ranks;
    in->num_rows = in->num_pairs = 0;
    for (int32_t q = 0; q < plan->ranks; q++) {
        in->rank_row[q] = in->num_rows;
        in->num_rows += arriving[q].rows;
        in->num_pairs += arriving[q].pairs;
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

/* Where the words for and from each rank begin. */
static void lay_out_words(moe_exchange *e, const moe_plan *plan) {
    const moe_counts *out = e->counts, *arriving = out + plan->ranks;
    e->word_begin[0] = e->word_arriving[0] = 0;
    for (int q = 0; q < plan->ranks; q++) {
        e->word_begin[q + 1] =
            e->word_begin[q] + moe_row_format_words(plan->format, out[q].rows, out[q].pairs);
        e->word_arriving[q + 1] =
            e->word_arriving[q] +
            moe_row_format_words(plan->format, arriving[q].rows, arriving[q].pairs);
    }
}

static void exchange_metadata(moe_exchange *e,
                              const moe_plan *plan,
                              const moe_placement *placement,
                              const moe_inbox *before) {
    lay_out_words(e, plan);
    const int32_t *end = write_words(plan, before, e->words_out);
    MOE_ASSERT(end == e->words_out + e->word_begin[plan->ranks]);
    const char *arrived = moe_exchange_carry(
        e,
        &(moe_cargo){.flow = MOE_FLOW_WORDS,
                     .begin = e->word_begin,
                     .arriving = e->word_arriving,
                     .from = (const char *)e->words_out,
                     .stride = sizeof(int32_t),
                     .bytes = sizeof(int32_t),
                     .most = moe_row_format_words(plan->format, e->most_rows, e->most_rows),
                     .what = "metadata of rows"},
        &e->words);
    moe_inbox_read(e, plan, placement, (const int32_t *)(const void *)arrived,
                   e->word_arriving[plan->ranks]);
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
    e->format = plan->format;
    in->devices = plan->devices;
    in->num_local = plan->num_local;
    in->slots = placement->slots_per_device;
    in->hidden = hidden;
    in->chunks = e->chunks > 1 ? e->chunks : 1;
    e->threads = omp_get_max_threads();
    reserve_fixed(e, plan);
    exchange_sizes(e, plan);
    reserve_arrived(e, plan);
    exchange_metadata(e, plan, placement, before);
}

/* --- vectors --- */

char *moe_exchange_move(moe_exchange *e,
                        const moe_plan *plan,
                        const char *tokens,
                        int64_t bytes,
                        moe_landing *l,
                        bool whole) {
    return moe_exchange_carry(e,
                              &(moe_cargo){.flow = whole ? MOE_FLOW_RELAYED : MOE_FLOW_VECTORS,
                                           .begin = plan->rank_row,
                                           .arriving = e->inbox.rank_row,
                                           .from = tokens,
                                           .index = plan->row_token,
                                           .stride = bytes,
                                           .bytes = bytes,
                                           .most = e->most_rows,
                                           .what = "received rows"},
                              l);
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
    if (in->chunks > 1) {
        moe_chunks_dispatch(e, plan, tokens, f, rows);
        return;
    }
    if (!moe_payload_rounds(f)) {
        rows->remote = (const real *)(const void *)moe_exchange_move(e, plan, tokens, bytes,
                                                                     &rows->landing, false);
        return;
    }
    const char *arrived = moe_exchange_move(e, plan, tokens, bytes, &e->arriving, false);
    real *decoded = (real *)(void *)moe_landing_memory(
        &rows->landing, arriving * in->hidden * (int64_t)sizeof(real), "received rows");
    moe_payload_decode_all(f, arrived, arriving, in->hidden, decoded);
    rows->remote = decoded;
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
    if (in->chunks > 1) {
        moe_chunks_order(e, plan);
    }
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
    const moe_inbox *in = &e->inbox;
    int64_t *begin = e->word_begin; /* the metadata have arrived */
    for (int q = 0; q <= plan->ranks; q++) {
        begin[q] = in->row_pair[in->rank_row[q]];
    }
    const char *back = moe_exchange_carry(e,
                                          &(moe_cargo){.flow = MOE_FLOW_PAIRS,
                                                       .begin = begin,
                                                       .arriving = plan->rank_pair,
                                                       .from = (const char *)values,
                                                       .stride = sizeof(real),
                                                       .bytes = sizeof(real),
                                                       .most = e->most_rows,
                                                       .into = (char *)returned,
                                                       .what = "numbers of pairs"},
                                          &e->pairs);
    if (plan->num_pairs > 0 && back != (const char *)returned) {
        memcpy(returned, back, (size_t)plan->num_pairs * sizeof(real));
    }
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
    moe_landing *const landings[] = {&e->words,    &e->pairs,           &e->returned,
                                     &e->arriving, &e->inbox.x.landing, &e->inbox.dy.landing,
                                     &e->sending,  &e->returning,       &e->brought};
    for (size_t i = 0; i < sizeof landings / sizeof landings[0]; i++) {
        moe_landing_free(landings[i]);
    }
    moe_window_free(&e->published);
    moe_free(e->coded);
    moe_free(e->inbox.x.rounded);
    moe_free(e->inbox.dy.rounded);
    *e = (moe_exchange){0};
}
