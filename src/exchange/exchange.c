/* exchange.c: dispatch; combine.c is the way back; carry.c and near.c are what carries both.
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
        MOE_ARRAY(e->counts, 2 * (int64_t)plan->ranks),
        MOE_ARRAY(e->landing, e->host ? 2 * (int64_t)e->host->size : 0),
        MOE_ARRAY(e->layout, 4 * (int64_t)plan->ranks),
        MOE_ARRAY(e->word_begin, plan->ranks + 1),
        MOE_ARRAY(e->word_arriving, plan->ranks + 1),
        MOE_ARRAY(e->word_from, plan->ranks),
        MOE_ARRAY(e->sums, e->threads * 3 * in->hidden),
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
    const int hops = moe_row_format_hops(plan->mode);
    int64_t rows = in->num_rows, pairs = in->num_pairs, last = plan->hop + 1 == hops,
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
        MOE_ARRAY(in->slot_pair, last * pairs),
        MOE_ARRAY(in->pair_position, last * pairs),
        MOE_ARRAY(in->x.row, last * rows),
        MOE_ARRAY(in->dy.row, last * rows),
        MOE_ARRAY(in->cell, rows < all_cells ? rows : all_cells),
        MOE_ARRAY(in->order.chunk, chunked),
        MOE_ARRAY(in->order.row, chunked),
        MOE_ARRAY(in->order.place, chunked),
        MOE_ARRAY(e->sent.chunk, sent),
        MOE_ARRAY(e->sent.row, sent),
        MOE_ARRAY(e->sent.place, sent),
    };
    moe_block_reserve_varying(&e->arrived, table, MOE_ARRAYS(table), "inbox");
}

/* --- sizes --- */

/* What every rank has for every other. Which devices rows are from and for is known from the
 * metadata: a row names its token and its experts. */
static void exchange_sizes(moe_exchange *e, const moe_plan *plan) {
    moe_counts *arriving = e->counts + plan->ranks;
    for (int32_t q = 0; q < plan->ranks; q++) {
        e->counts[q] = arriving[q] = (moe_counts){
            plan->rank_row[q + 1] - plan->rank_row[q], plan->rank_pair[q + 1] - plan->rank_pair[q],
            plan->row_part
                ? plan->row_part[plan->rank_row[q + 1]] - plan->row_part[plan->rank_row[q]]
                : 0};
    }
    if (moe_exchange_has_far(e)) {
        moe_comm_alltoall(e->comm, e->counts, arriving, (int64_t)sizeof *arriving);
    }
}

static void count_arriving(moe_exchange *e, const moe_plan *plan) {
    moe_inbox *in = &e->inbox;
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

void moe_exchange_write_words(const moe_plan *plan, const moe_inbox *before, int32_t *word) {
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

/* All words of this rank: on the board, or written here. */
static const int32_t *words_to_send(moe_exchange *e,
                                    const moe_plan *plan,
                                    const moe_inbox *before) {
    if (e->host) {
        return e->word_from[e->comm->rank] - e->word_begin[e->comm->rank];
    }
    int32_t *words = (int32_t *)(void *)moe_landing_memory(
        &e->words_out, e->word_begin[plan->ranks] * (int64_t)sizeof *words, "metadata to send");
    moe_exchange_write_words(plan, before, words);
    return words;
}

/* Metadata that the ranks of the host do not read where they stand. */
static void exchange_words(moe_exchange *e, const moe_plan *plan, const moe_inbox *before) {
    lay_out_words(e, plan);
    const int32_t *out = words_to_send(e, plan, before);
    const char *arrived = moe_exchange_carry(
        e,
        &(moe_cargo){.begin = e->word_begin,
                     .arriving = e->word_arriving,
                     .from = (const char *)out,
                     .bytes = sizeof(int32_t),
                     .most = moe_row_format_words(plan->format, e->most_rows, e->most_rows),
                     .what = "metadata of rows"},
        &e->words);
    const int32_t *from = (const int32_t *)(const void *)arrived;
    e->word_from[e->comm->rank] = out + e->word_begin[e->comm->rank];
    for (int q = 0; q < plan->ranks; q++) {
        if (moe_exchange_is_far(e, q)) {
            e->word_from[q] = from;
            from += e->word_arriving[q + 1] - e->word_arriving[q];
        }
    }
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
    if (e->host) {
        moe_near_announce(e, plan, before);
    }
    count_arriving(e, plan);
    reserve_arrived(e, plan);
    exchange_words(e, plan, before);
    moe_inbox_read(e, plan, placement);
}

/* --- vectors --- */

/* x [T,H] in the format of the wire: where the host reads it; else itself, or encoded in e->coded.
 */
static const char *lay_out_tokens(moe_exchange *e,
                                  const moe_plan *plan,
                                  moe_payload_format f,
                                  const real *x,
                                  moe_inbox_rows *rows) {
    int64_t h = e->inbox.hidden, tokens = plan->num_tokens, bytes = moe_payload_bytes(f, h);
    char *to = e->host ? moe_near_tokens(e, plan, bytes, rows) : NULL;
    if (!moe_payload_rounds(f)) {
        if (e->host) {
            moe_copy_rows((const char *)x, tokens, bytes, to);
        }
        return e->host ? to : (const char *)x;
    }
    if (!e->host) {
        moe_reserve_varying(&e->coded, &e->coded_capacity, tokens * bytes, 1, "rows to send");
        to = e->coded;
    }
    moe_payload_encode_all(f, x, tokens, h, to);
    return to;
}

/* Rows of the own rank are read among its tokens: `numbers`, as experts see them. */
static void find_own(const moe_inbox *in, moe_inbox_rows *rows, const real *numbers) {
    for (int64_t r = in->own_begin; r < in->own_end; r++) {
        rows->row[r] = numbers + in->local_token[r - in->own_begin] * in->hidden;
    }
}

/* Those of other hosts have landed one behind the other. */
static void find_far(const moe_exchange *e, moe_inbox_rows *rows, const char *at, int64_t bytes) {
    const moe_inbox *in = &e->inbox;
    for (int q = 0; q < e->comm->size; q++) {
        for (int64_t r = in->rank_row[q]; moe_exchange_is_far(e, q) && r < in->rank_row[q + 1];
             r++) {
            rows->row[r] = (const real *)(const void *)at;
            at += bytes;
        }
    }
}

/* Decodes rows begin .. end - 1. Rows that follow each other may stand in the same place: one token
 * for several experts. */
static void decode_rows(moe_inbox_rows *rows,
                        moe_payload_format f,
                        int64_t begin,
                        int64_t end,
                        int64_t hidden,
                        real *to) {
    const real **row = rows->row;
#pragma omp parallel for schedule(static)
    for (int64_t r = begin; r < end; r++) {
        if (r == begin || row[r] != row[r - 1]) {
            moe_payload_decode(f, row[r], hidden, to + (r - begin) * hidden);
        }
    }
    const real *coded = NULL;
    for (int64_t r = begin; r < end; r++) {
        const bool again = row[r] == coded;
        coded = row[r];
        row[r] = again ? row[r - 1] : to + (r - begin) * hidden;
    }
}

/* Rows become numbers in the landing, but those of own tokens, which were decoded with them. */
static void decode_all(moe_exchange *e, moe_payload_format f, bool own, moe_inbox_rows *rows) {
    const moe_inbox *in = &e->inbox;
    const int64_t h = in->hidden, begin = own ? in->own_begin : in->num_rows,
                  end = own ? in->own_end : in->num_rows;
    real *to = (real *)(void *)moe_landing_memory(
        &rows->landing, (in->num_rows - (end - begin)) * h * (int64_t)sizeof(real),
        "received rows");
    decode_rows(rows, f, 0, begin, h, to);
    decode_rows(rows, f, end, in->num_rows, h, to + begin * h);
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

const char *moe_exchange_move(moe_exchange *e,
                              const moe_plan *plan,
                              const char *tokens,
                              int64_t bytes,
                              moe_landing *l,
                              char *whole) {
    return moe_exchange_carry(e,
                              &(moe_cargo){.begin = plan->rank_row,
                                           .arriving = e->inbox.rank_row,
                                           .from = tokens,
                                           .index = plan->row_token,
                                           .bytes = bytes,
                                           .most = e->most_rows,
                                           .into = whole,
                                           .what = "received rows"},
                              l);
}

/* The own tokens as experts see them: the caller's, or as a narrow payload left them; of a second
 * hop the rows that arrived in the first, or NULL where the host has shown them. */
static const real *numbers_of(const moe_exchange *e,
                              const moe_plan *last,
                              moe_payload_format f,
                              const char *tokens,
                              const real *x,
                              moe_inbox_rows *rows) {
    const bool relayed = last->hop > 0;
    if (relayed ? e->host != NULL : !moe_payload_rounds(f)) {
        return relayed ? NULL : x;
    }
    return moe_inbox_rows_decoded(rows, f, tokens, last->num_tokens, e->inbox.hidden, relayed);
}

/* From tokens x, which the host sees already, to the rows of the inbox. last: the plan of the last
 * hop, whose tokens travel as `tokens`. */
static void receive_rows(moe_exchange *e,
                         const moe_plan *last,
                         moe_payload_format f,
                         const char *tokens,
                         const real *x,
                         moe_inbox_rows *rows) {
    const int64_t bytes = moe_payload_bytes(f, e->inbox.hidden);
    if (e->inbox.chunks > 1) {
        moe_chunks_dispatch(e, last, tokens, f, rows);
        find_own(&e->inbox, rows, numbers_of(e, last, f, tokens, x, rows));
        return;
    }
    const char *landed = moe_exchange_move(
        e, last, tokens, bytes, moe_payload_rounds(f) ? &e->arriving : &rows->landing, NULL);
    const real *own = numbers_of(e, last, f, tokens, x, rows);
    find_far(e, rows, landed, bytes);
    if (e->host) {
        moe_near_find(e, last, bytes, rows);
    }
    if (own) {
        find_own(&e->inbox, rows, own);
    }
    if (moe_payload_rounds(f)) {
        decode_all(e, f, own != NULL, rows);
    }
}

/* The barrier of the metadata has shown them, too. */
static void show_tokens(const moe_exchange *e, moe_inbox_rows *rows) {
    if (e->host) {
        rows->tokens.barriers = e->host->barriers;
    }
}

/* Whose rows the experts look at: a plan's, or those of its second hop. */
static void begin_inbox(moe_exchange *e, const moe_plan *last, const moe_placement *placement) {
    moe_inbox *in = &e->inbox;
    const int rank = e->comm->rank;
    if (in->chunks > 1) {
        moe_chunks_order(e, last);
    }
    moe_inbox_group(in, placement, last->first_device);
    in->local_token = last->row_token + last->rank_row[rank];
    in->own_begin = in->rank_row[rank];
    in->own_end = in->rank_row[rank + 1];
    MOE_ASSERT(in->own_end - in->own_begin == last->rank_row[rank + 1] - last->rank_row[rank]);
    in->results = moe_exchange_results(e, MOE_UNIT_ROW);
}

void moe_exchange_dispatch(moe_exchange *e,
                           const moe_comm *comm,
                           const moe_plan *plan,
                           const moe_placement *placement,
                           const real *x,
                           int64_t hidden,
                           int64_t most_pairs_global) {
    moe_inbox_rows *rows = &e->inbox.x;
    const moe_payload_format f = e->dispatched;
    e->inbox.hidden = hidden;
    e->comm = comm;
    const char *tokens = lay_out_tokens(e, plan, f, x, rows);
    const moe_plan *last = plan;
    const moe_inbox *before = NULL;
    if (moe_row_format_hops(plan->mode) > 1) {
        moe_relay_announce(e, comm, plan, placement, hidden, most_pairs_global);
        tokens = moe_relay_move(e, plan, tokens, f, false);
        last = &e->relay->plan;
        before = &e->relay->first.inbox;
    }
    moe_exchange_announce(e, comm, last, placement, hidden, most_pairs_global, before);
    show_tokens(e, rows);
    if (before) {
        show_tokens(e, &e->relay->first.inbox.x);
    }
    begin_inbox(e, last, placement);
    receive_rows(e, last, f, tokens, x, rows);
}

void moe_exchange_dispatch_gradient(moe_exchange *e, const moe_plan *plan, const real *dy) {
    moe_inbox_rows *rows = &e->inbox.dy;
    const moe_payload_format f = e->combined;
    const char *tokens = lay_out_tokens(e, plan, f, dy, rows);
    const moe_plan *last = plan;
    if (moe_row_format_hops(plan->mode) > 1) {
        if (e->host && moe_exchange_has_far(e)) {
            moe_shown_end(&rows->tokens, e->host);
        }
        tokens = moe_relay_move(e, plan, tokens, f, true);
        last = &e->relay->plan;
    }
    if (e->host) {
        moe_shown_end(&rows->tokens, e->host);
    }
    if (last != plan) {
        show_tokens(e, &e->relay->first.inbox.dy);
    }
    receive_rows(e, last, f, tokens, dy, rows);
}

/* --- end --- */

static void free_rows(moe_inbox_rows *rows) {
    moe_shown_free(&rows->tokens);
    moe_landing_free(&rows->landing);
    moe_free(rows->rounded);
}

void moe_exchange_free(moe_exchange *e) {
    moe_relay_free(e->relay);
    moe_block_free(&e->fixed);
    moe_block_free(&e->arrived);
    moe_shown *const shown[] = {&e->board, &e->results, &e->pairs};
    for (size_t i = 0; i < sizeof shown / sizeof shown[0]; i++) {
        moe_shown_free(shown[i]);
    }
    moe_landing *const landings[] = {&e->words_out, &e->words,   &e->returned,
                                     &e->arriving,  &e->sending, &e->returning};
    for (size_t i = 0; i < sizeof landings / sizeof landings[0]; i++) {
        moe_landing_free(landings[i]);
    }
    free_rows(&e->inbox.x);
    free_rows(&e->inbox.dy);
    moe_free(e->back);
    moe_free(e->coded);
    *e = (moe_exchange){0};
}
