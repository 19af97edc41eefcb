/* exchange.c: dispatch over MPI_Alltoallv; combine.c is the way back.
 *
 * Metadata are one stream of int32 words per destination (row_format.h). One Alltoallv carries
 * them, one more the vectors. Where few tokens meet, so that the longest stream is known to be
 * short, sizes and metadata travel together, in one block of fixed length per destination: that
 * saves the message for the sizes, which is a good part of a small step. The advantage is that a
 * row's vector stays contiguous and aligned, and that the receiver can group rows by expert before
 * the vectors arrive; the price is one more message per pair of ranks than in a fused format. Rows
 * of the own rank never enter a buffer: on one rank nothing is packed at all. */
#include "exchange/exchange.h"

#include <omp.h>
#include <string.h>

#include "base/status.h"
#include "exchange/internal.h"
#include "exchange/row_format.h"

int64_t moe_exchange_row_metadata_bytes(enum moe_exchange_mode mode) {
    return moe_row_format_of(mode)->head_words * (int64_t)sizeof(int32_t);
}

int64_t moe_exchange_pair_metadata_bytes(void) {
    return MOE_PAIR_WORDS * (int64_t)sizeof(int32_t);
}

/* --- memory --- */

/* A block of fixed length: sizes, then metadata. Longer ones would not go at once where MPI sends
 * short messages without asking (4096 bytes in shared memory). */
enum { BLOCK_HEAD = 2, MOST_BLOCK_WORDS = 1000 };

/* Words of the longest block from one rank to another that tokens with up to most_pairs_global /
 * num_tokens_global pairs can make, known to all ranks; 0 where that is too long. */
static int64_t block_words(const moe_plan *plan, int64_t most_pairs_global) {
    int64_t tokens = plan->num_tokens_global;
    int64_t of_device = (tokens + plan->devices - 1) / plan->devices;
    int64_t pairs = tokens > 0 ? of_device * plan->num_local * (most_pairs_global / tokens) : 0;
    int64_t words = BLOCK_HEAD + moe_row_format_words(moe_row_format_of(plan->mode), pairs, pairs);
    return words <= MOST_BLOCK_WORDS ? words : 0;
}

/* Arrays whose sizes depend on the ranks, devices, experts and threads only. */
static void reserve_fixed(moe_exchange *e, const moe_plan *plan) {
    moe_inbox *in = &e->inbox;
    const moe_block_array table[] = {
        MOE_ARRAY(in->rank_row, plan->ranks + 1),
        MOE_ARRAY(in->slot_offset, (int64_t)in->num_local * in->slots + 2),
        MOE_ARRAY(e->sizes, 4 * (int64_t)plan->ranks),
        MOE_ARRAY(e->blocks, 2 * plan->ranks * e->block_words),
        MOE_ARRAY(e->layout, 4 * (int64_t)plan->ranks),
        MOE_ARRAY(e->sums, e->threads * 2 * in->hidden),
    };
    moe_block_reserve(&e->fixed, table, MOE_ARRAYS(table), "exchange");
}

/* Arrays whose sizes depend on what is sent and what arrives. */
static void reserve_arrived(moe_exchange *e, const moe_plan *plan) {
    moe_inbox *in = &e->inbox;
    const moe_row_format *format = moe_row_format_of(plan->mode);
    bool streams = e->block_words == 0;
    int64_t rows = in->num_rows, pairs = in->num_pairs,
            all_cells = (int64_t)plan->devices * plan->num_local;
    const moe_block_array table[] = {
        MOE_ARRAY(in->row_device, rows),
        MOE_ARRAY(in->row_token, rows),
        MOE_ARRAY(in->row_pair, rows + 1),
        MOE_ARRAY(in->pair_expert, pairs),
        MOE_ARRAY(in->pair_weight, pairs),
        MOE_ARRAY(in->pair_row, pairs),
        MOE_ARRAY(in->slot_pair, pairs),
        MOE_ARRAY(in->pair_position, pairs),
        MOE_ARRAY(in->cell, rows < all_cells ? rows : all_cells),
        MOE_ARRAY(e->words_out,
                  streams ? moe_row_format_words(format, plan->num_rows, plan->num_pairs) : 0),
        MOE_ARRAY(e->words_in, streams ? moe_row_format_words(format, rows, pairs) : 0),
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

moe_exchange_layout moe_exchange_layout_vectors(const moe_exchange *e, const moe_plan *plan) {
    moe_exchange_layout l = moe_exchange_layout_of(e);
    for (int q = 0; q < plan->ranks; q++) {
        bool own = q == e->comm->rank;
        l.send_count[q] = own ? 0 : plan->rank_row[q + 1] - plan->rank_row[q];
        l.recv_count[q] = own ? 0 : e->inbox.rank_row[q + 1] - e->inbox.rank_row[q];
    }
    moe_exchange_layout_set_offsets(&l, plan->ranks);
    return l;
}

/* --- sizes and metadata on their way --- */

/* The rows and pairs that arrive from every rank, which e->sizes tells, make the inbox's rows. */
static void take_sizes(moe_exchange *e, const moe_plan *plan) {
    moe_inbox *in = &e->inbox;
    const int64_t *arriving = e->sizes + 2 * (int64_t)plan->ranks;
    in->num_rows = in->num_pairs = 0;
    for (int32_t q = 0; q < plan->ranks; q++) {
        in->rank_row[q] = in->num_rows;
        in->num_rows += arriving[2 * q];
        in->num_pairs += arriving[2 * q + 1];
    }
    in->rank_row[plan->ranks] = in->num_rows;
}

/* The rows begin .. end - 1 of the plan. Returns the end of the words. */
static int32_t *write_words(const moe_plan *plan, int64_t begin, int64_t end, int32_t *word) {
    bool several = moe_row_format_of(plan->mode)->several_pairs;
    for (int64_t r = begin; r < end; r++) {
        *word++ = plan->row_token[r];
        if (several) {
            *word++ = (int32_t)(plan->row_pair[r + 1] - plan->row_pair[r]);
        }
        for (int64_t p = plan->row_pair[r]; p < plan->row_pair[r + 1]; p++) {
            *word++ = plan->pair_expert[p];
            memcpy(word, &plan->pair_weight[p], sizeof(real));
            word += MOE_PAIR_WORDS - 1;
        }
    }
    return word;
}

/* Collective. Every rank tells every other how many rows and pairs it has for it. Which devices
 * they are from and for is known from the metadata: a row names its token and its experts. */
static void exchange_sizes(moe_exchange *e, const moe_plan *plan) {
    for (int32_t q = 0; q < plan->ranks; q++) {
        e->sizes[2 * q] = plan->rank_row[q + 1] - plan->rank_row[q];
        e->sizes[2 * q + 1] = plan->rank_pair[q + 1] - plan->rank_pair[q];
    }
    moe_comm_alltoall(e->comm, e->sizes, e->sizes + 2 * (int64_t)plan->ranks, 2 * sizeof *e->sizes);
    take_sizes(e, plan);
}

/* Collective. The metadata of all rows of the plan, which are in the order of ranks already.
 * Returns the words that arrived; l says where those of each rank stand. */
static const int32_t *exchange_streams(moe_exchange *e,
                                       const moe_plan *plan,
                                       const moe_exchange_layout *l) {
    const moe_row_format *format = moe_row_format_of(plan->mode);
    for (int q = 0; q < plan->ranks; q++) {
        l->send_count[q] = moe_row_format_words(format, e->sizes[2 * q], e->sizes[2 * q + 1]);
    }
    moe_exchange_layout_set_offsets(l, plan->ranks);
    const int32_t *end = write_words(plan, 0, plan->num_rows, e->words_out);
    MOE_ASSERT(end == e->words_out + moe_row_format_words(format, plan->num_rows, plan->num_pairs));
    moe_comm_alltoallv(e->comm, (moe_blocks){e->words_out, l->send_count, l->send_offset},
                       (moe_blocks){e->words_in, l->recv_count, l->recv_offset}, sizeof(int32_t),
                       moe_row_format_words(format, e->most_rows, e->most_rows));
    return e->words_in;
}

/* Collective. Sizes and metadata in one block for each rank. */
static void exchange_blocks(moe_exchange *e, const moe_plan *plan) {
    const moe_row_format *format = moe_row_format_of(plan->mode);
    int64_t *arriving = e->sizes + 2 * (int64_t)plan->ranks;
    for (int32_t q = 0; q < plan->ranks; q++) {
        int32_t *block = e->blocks + q * e->block_words;
        int64_t rows = plan->rank_row[q + 1] - plan->rank_row[q];
        int64_t pairs = plan->rank_pair[q + 1] - plan->rank_pair[q];
        MOE_ASSERT(BLOCK_HEAD + moe_row_format_words(format, rows, pairs) <= e->block_words);
        block[0] = (int32_t)rows;
        block[1] = (int32_t)pairs;
        const int32_t *end =
            write_words(plan, plan->rank_row[q], plan->rank_row[q + 1], block + BLOCK_HEAD);
        MOE_ASSERT(end == block + BLOCK_HEAD + moe_row_format_words(format, rows, pairs));
    }
    int32_t *in = e->blocks + plan->ranks * e->block_words;
    moe_comm_alltoall(e->comm, e->blocks, in, e->block_words * (int64_t)sizeof *in);
    for (int32_t q = 0; q < plan->ranks; q++) {
        arriving[2 * q] = in[q * e->block_words];
        arriving[2 * q + 1] = in[q * e->block_words + 1];
    }
    take_sizes(e, plan);
}

/* --- metadata that arrived --- */

/* How far the words that arrived have been read into the inbox. */
typedef struct reading {
    const moe_row_format *format;
    const moe_plan *plan;
    const moe_placement *placement;
    const int32_t *word, *end;
    int64_t row, pair;
    int64_t first_token; /* in the line of all tokens: of the source rank */
    int32_t source;      /* the source device of the row under way */
    int64_t source_end;  /* the first token, in that line, behind those of the source device */
} reading;

/* One pair of the row under way, for local device j. What arrives must be for an expert that lives
 * here. */
static void read_pair(moe_inbox *in, reading *at, int32_t j) {
    int32_t expert = *at->word++;
    MOE_ASSERT(expert >= 0 && expert < at->placement->num_experts &&
               moe_placement_slot_on(at->placement, expert, at->plan->first_device + j) >= 0);
    in->pair_expert[at->pair] = expert;
    in->pair_row[at->pair] = at->row;
    memcpy(&in->pair_weight[at->pair], at->word, sizeof(real));
    at->word += MOE_PAIR_WORDS - 1;
    at->pair++;
}

/* Goes to source device d. */
static void read_source(reading *at, int32_t d) {
    at->source = d;
    at->source_end = moe_batch_token_begin(at->plan->num_tokens_global, at->plan->devices, d + 1);
}

/* Goes on to the source device of a token, which is the one under way or a later one of its rank.
 */
static void find_source(reading *at, int32_t token) {
    while (at->first_token + token >= at->source_end) {
        MOE_ASSERT((at->source + 1) % at->plan->num_local != 0);
        read_source(at, at->source + 1);
    }
}

/* Counts a row for local device j in the cell of its device pair. Rows come in the order of source
 * devices, and within one in that of destination devices, so the pair is the last one or new. */
static void count_arrival(moe_inbox *in, const reading *at, int32_t j) {
    int32_t to = at->plan->first_device + j;
    moe_sparse_cell *last = in->num_cells > 0 ? &in->cell[in->num_cells - 1] : NULL;
    if (last && last->row == at->source && last->column == to) {
        last->count++;
        return;
    }
    MOE_ASSERT(!last || last->row < at->source || (last->row == at->source && last->column < to));
    in->cell[in->num_cells++] = (moe_sparse_cell){at->source, to, 1};
}

/* The next row. The device that serves its first expert is the one that it is for. */
static void read_row(moe_inbox *in, reading *at) {
    MOE_ASSERT(at->format->head_words + MOE_PAIR_WORDS <= at->end - at->word);
    int32_t token = *at->word++;
    int32_t count = at->format->several_pairs ? *at->word++ : 1;
    int32_t expert = *at->word;
    MOE_ASSERT(token >= 0 && count >= 1 && count <= in->num_pairs - at->pair &&
               (int64_t)count * MOE_PAIR_WORDS <= at->end - at->word && expert >= 0 &&
               expert < at->placement->num_experts);
    find_source(at, token);
    int32_t j = moe_placement_device(at->placement, expert, at->first_token + token, at->source) -
                at->plan->first_device;
    count_arrival(in, at, j);
    in->row_token[at->row] = token;
    in->row_device[at->row] = j;
    in->row_pair[at->row] = at->pair;
    for (int32_t c = 0; c < count; c++) {
        read_pair(in, at, j);
    }
    at->row++;
}

/* The words of rank q are l->recv_count[q] from word + l->recv_offset[q] on. */
static void read_inbox(moe_exchange *e,
                       const moe_plan *plan,
                       const moe_placement *placement,
                       const int32_t *word,
                       const moe_exchange_layout *l) {
    moe_inbox *in = &e->inbox;
    reading at = {.format = moe_row_format_of(plan->mode), .plan = plan, .placement = placement};
    in->num_cells = 0;
    for (int32_t q = 0; q < plan->ranks; q++) {
        at.word = word + l->recv_offset[q];
        at.end = at.word + l->recv_count[q];
        read_source(&at, q * plan->num_local);
        at.first_token = moe_batch_token_begin(plan->num_tokens_global, plan->devices, at.source);
        while (at.row < in->rank_row[q + 1]) {
            read_row(in, &at);
        }
        MOE_ASSERT(at.word == at.end);
    }
    in->row_pair[at.row] = at.pair;
    MOE_ASSERT(at.row == in->num_rows && at.pair == in->num_pairs);
}

/* Collective, unless the words came with the sizes. */
static void take_metadata(moe_exchange *e, const moe_plan *plan, const moe_placement *placement) {
    const moe_row_format *format = moe_row_format_of(plan->mode);
    const int64_t *arriving = e->sizes + 2 * (int64_t)plan->ranks;
    moe_exchange_layout l = moe_exchange_layout_of(e);
    const int32_t *word = e->blocks;
    for (int q = 0; q < plan->ranks; q++) {
        l.recv_count[q] = moe_row_format_words(format, arriving[2 * q], arriving[2 * q + 1]);
        l.recv_offset[q] = (plan->ranks + q) * e->block_words + BLOCK_HEAD;
    }
    if (e->block_words == 0) {
        word = exchange_streams(e, plan, &l);
    }
    read_inbox(e, plan, placement, word, &l);
}

/* The slot, counted from this rank's first, that serves pair p of the inbox. */
static int64_t local_slot(const moe_inbox *in,
                          const moe_placement *placement,
                          int32_t first_device,
                          int64_t p) {
    int32_t device = first_device + in->row_device[in->pair_row[p]];
    return moe_placement_slot_on(placement, in->pair_expert[p], device) -
           (int64_t)first_device * in->slots;
}

/* Groups pairs by (local device, slot). The counting sort is stable, so that the rows of a slot
 * stay in the order of (source device, token). */
static void group_by_expert(moe_inbox *in, const moe_placement *placement, int32_t first_device) {
    int64_t slots = (int64_t)in->num_local * in->slots;
    memset(in->slot_offset, 0, (size_t)(slots + 2) * sizeof(int64_t));
    /* cursor[s + 1] counts the pairs of slot s; then cursor[s] is the next free place of s, and in
     * the end the end of s, which is slot_offset[s + 1] */
    int64_t *cursor = in->slot_offset + 1;
    for (int64_t p = 0; p < in->num_pairs; p++) {
        cursor[local_slot(in, placement, first_device, p) + 1]++;
    }
    for (int64_t s = 0; s < slots; s++) {
        cursor[s + 1] += cursor[s];
    }
    for (int64_t p = 0; p < in->num_pairs; p++) {
        int64_t s = local_slot(in, placement, first_device, p), at = cursor[s]++;
        in->slot_pair[at] = p;
        in->pair_position[p] = at;
    }
}

/* --- vectors --- */

/* Copies the vectors of the rows for other ranks, `bytes` long, from `tokens` [T] into
 * `outgoing`. */
static void pack(const moe_exchange *e, const moe_plan *plan, const void *tokens, int64_t bytes) {
    int64_t own_begin = plan->rank_row[e->comm->rank];
    int64_t own_end = plan->rank_row[e->comm->rank + 1];
    int64_t own = own_end - own_begin;
    char *to = (char *)e->outgoing;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < plan->num_rows - own; i++) {
        int64_t r = i < own_begin ? i : i + own;
        memcpy(to + i * bytes, (const char *)tokens + plan->row_token[r] * bytes, (size_t)bytes);
    }
}

/* Puts x [T,H] into the format of the wire, in `coded`; rows of the own rank read what that leaves
 * of it. */
static void round_tokens(moe_exchange *e,
                         moe_payload_format format,
                         const real *x,
                         int64_t tokens,
                         moe_inbox_rows *rows) {
    int64_t h = e->inbox.hidden;
    moe_reserve_varying(&e->coded, &e->coded_capacity, tokens * moe_payload_bytes(format, h), 1,
                        "rows to send");
    moe_reserve(&rows->rounded, &rows->rounded_capacity, tokens * h, sizeof(real),
                "rounded tokens");
    moe_payload_encode_all(format, x, tokens, h, e->coded);
    moe_payload_decode_all(format, e->coded, tokens, h, rows->rounded);
    rows->local = rows->rounded;
}

/* Packs x [T,H] along the plan's rows and sends it into `rows` of the inbox. */
static void send_rows(moe_exchange *e,
                      const moe_plan *plan,
                      moe_payload_format format,
                      const real *x,
                      moe_inbox_rows *rows) {
    const moe_inbox *in = &e->inbox;
    int64_t own = in->own_end - in->own_begin, arriving = in->num_rows - own;
    int64_t bytes = moe_payload_bytes(format, in->hidden);
    bool rounds = moe_payload_rounds(format);
    void *to;
    moe_reserve_varying(&e->outgoing, &e->outgoing_capacity, (plan->num_rows - own) * in->hidden,
                        sizeof(real), "rows to send");
    moe_reserve_varying(&rows->remote, &rows->capacity, arriving * in->hidden, sizeof(real),
                        "received rows");
    if (rounds) {
        round_tokens(e, format, x, plan->num_tokens, rows);
        moe_reserve_varying(&e->arriving, &e->arriving_capacity, arriving * bytes, 1,
                            "received rows");
        pack(e, plan, e->coded, bytes);
        to = e->arriving;
    } else {
        rows->local = x;
        pack(e, plan, x, bytes);
        to = rows->remote;
    }
    moe_exchange_layout l = moe_exchange_layout_vectors(e, plan);
    moe_comm_alltoallv(e->comm, (moe_blocks){e->outgoing, l.send_count, l.send_offset},
                       (moe_blocks){to, l.recv_count, l.recv_offset}, bytes, e->most_rows);
    if (rounds) {
        moe_payload_decode_all(format, e->arriving, arriving, in->hidden, rows->remote);
    }
}

void moe_exchange_dispatch(moe_exchange *e,
                           const moe_comm *comm,
                           const moe_plan *plan,
                           const moe_placement *placement,
                           const real *x,
                           int64_t hidden,
                           int64_t most_pairs_global) {
    moe_inbox *in = &e->inbox;
    e->comm = comm;
    e->most_rows = most_pairs_global;
    in->devices = plan->devices;
    in->num_local = plan->num_local;
    in->slots = placement->slots_per_device;
    in->hidden = hidden;
    e->threads = omp_get_max_threads();
    e->block_words = block_words(plan, most_pairs_global);
    reserve_fixed(e, plan);
    if (e->block_words > 0) {
        exchange_blocks(e, plan);
    } else {
        exchange_sizes(e, plan);
    }
    reserve_arrived(e, plan);
    take_metadata(e, plan, placement);
    group_by_expert(in, placement, plan->first_device);
    in->local_token = plan->row_token + plan->rank_row[comm->rank];
    in->own_begin = in->rank_row[comm->rank];
    in->own_end = in->rank_row[comm->rank + 1];
    MOE_ASSERT(in->own_end - in->own_begin ==
               plan->rank_row[comm->rank + 1] - plan->rank_row[comm->rank]);
    send_rows(e, plan, e->dispatched, x, &in->x);
}

void moe_exchange_dispatch_gradient(moe_exchange *e, const moe_plan *plan, const real *dy) {
    send_rows(e, plan, e->combined, dy, &e->inbox.dy);
}

void moe_exchange_free(moe_exchange *e) {
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
