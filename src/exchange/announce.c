/* announce.c: what comes, told before it comes: how many rows and pairs each rank has for each, and
 * the metadata of the rows, one stream of int32 words per destination (row_format.h). The vectors
 * follow by themselves. The advantage is that a row's vector stays contiguous and aligned, and that
 * the receiver can group rows by expert before the vectors arrive; the price is one more message
 * per pair of ranks than in a fused format.
 *
 * Where few tokens can have but few rows, numbers and metadata go in one block of a fixed size for
 * each rank (MPI_Alltoall). Otherwise the numbers go first, and the metadata as they say
 * (MPI_Alltoallv). Ranks that share memory read both where they stand (near.c). */
#include <omp.h>
#include <string.h>

#include "base/status.h"
#include "exchange/exchange.h"
#include "exchange/internal.h"
#include "exchange/row_format.h"

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
        MOE_ARRAY(e->block, 2 * e->block_words * plan->ranks),
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

/* What this rank has for every other one, and, as long as nobody has said something else, what they
 * have for it. Which devices rows are from and for is known from the metadata: a row names its
 * token and its experts. */
static void count_leaving(moe_exchange *e, const moe_plan *plan) {
    for (int32_t q = 0; q < plan->ranks; q++) {
        e->counts[q] = e->counts[plan->ranks + q] = (moe_counts){
            plan->rank_row[q + 1] - plan->rank_row[q], plan->rank_pair[q + 1] - plan->rank_pair[q],
            plan->row_part
                ? plan->row_part[plan->rank_row[q + 1]] - plan->row_part[plan->rank_row[q]]
                : 0};
    }
}

static void exchange_sizes(moe_exchange *e, const moe_plan *plan) {
    moe_counts *arriving = e->counts + plan->ranks;
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

void moe_exchange_write_words(const moe_plan *plan,
                              const moe_inbox *before,
                              int64_t begin,
                              int64_t end,
                              int32_t *word) {
    for (int64_t r = begin; r < end; r++) {
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
    moe_exchange_write_words(plan, before, 0, plan->num_rows, words);
    return words;
}

/* Metadata that the ranks of the host do not read where they stand. */
static void exchange_words(moe_exchange *e, const moe_plan *plan, const moe_inbox *before) {
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

/* --- sizes and metadata in one block --- */

enum {
    COUNT_WORDS = (int)(sizeof(moe_counts) / sizeof(int32_t)), /* in front of the metadata */
    MOST_BYTES = 1 << 14 /* of a rank's blocks for all ranks */
};

int64_t moe_exchange_block_bytes(enum moe_exchange_mode mode,
                                 int32_t devices,
                                 int32_t ranks,
                                 int64_t num_tokens_global,
                                 int64_t most_pairs_global) {
    const moe_row_format *format = moe_row_format_of(mode, 0);
    if (moe_row_format_hops(mode) > 1 || num_tokens_global == 0) {
        return 0;
    }
    const int64_t local = devices / ranks, of_token = most_pairs_global / num_tokens_global,
                  of_device = (num_tokens_global - 1) / devices + 1,
                  rows = format->several_pairs && local < of_token ? local : of_token,
                  words = moe_row_format_words(format, rows, of_token);
    const double bytes =
        (double)sizeof(int32_t) * (COUNT_WORDS + (double)of_device * (double)local * (double)words);
    return bytes * ranks <= MOST_BYTES ? (int64_t)bytes : 0;
}

/* Every rank writes what it has for each, and has the others write to it. */
static void exchange_block(moe_exchange *e, const moe_plan *plan) {
    const int rank = e->comm->rank;
    const int64_t words = e->block_words;
    moe_counts *arriving = e->counts + plan->ranks;
    int32_t *out = e->block, *in = e->block + words * plan->ranks;
    for (int q = 0; q < plan->ranks; q++) {
        MOE_ASSERT(COUNT_WORDS +
                       moe_row_format_words(plan->format, e->counts[q].rows, e->counts[q].pairs) <=
                   words);
        memcpy(out + q * words, &e->counts[q], sizeof e->counts[q]);
        moe_exchange_write_words(plan, NULL, plan->rank_row[q], plan->rank_row[q + 1],
                                 out + q * words + COUNT_WORDS);
    }
    moe_comm_alltoall(e->comm, out, in, words * (int64_t)sizeof *out);
    for (int q = 0; q < plan->ranks; q++) {
        memcpy(&arriving[q], in + q * words, sizeof arriving[q]);
        e->word_from[q] = (q == rank ? out : in) + q * words + COUNT_WORDS;
    }
}

/* --- announcing --- */

/* What this rank tells the others in this hop, and how. */
static void prepare(moe_exchange *e,
                    const moe_comm *comm,
                    const moe_plan *plan,
                    const moe_placement *placement,
                    int64_t hidden,
                    int64_t most_pairs_global) {
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
    const int64_t bytes =
        e->host || !moe_exchange_has_far(e)
            ? 0
            : moe_exchange_block_bytes(plan->mode, plan->devices, plan->ranks,
                                       plan->num_tokens_global, most_pairs_global);
    e->block_words = bytes * plan->ranks <= comm->max_count ? bytes / (int64_t)sizeof(int32_t) : 0;
    reserve_fixed(e, plan);
    count_leaving(e, plan);
}

void moe_exchange_announce(moe_exchange *e,
                           const moe_comm *comm,
                           const moe_plan *plan,
                           const moe_placement *placement,
                           int64_t hidden,
                           int64_t most_pairs_global,
                           const moe_inbox *before) {
    prepare(e, comm, plan, placement, hidden, most_pairs_global);
    if (e->block_words > 0) {
        exchange_block(e, plan);
    } else {
        exchange_sizes(e, plan);
    }
    if (e->host) {
        moe_near_announce(e, plan, before);
    }
    count_arriving(e, plan);
    reserve_arrived(e, plan);
    lay_out_words(e, plan);
    if (e->block_words == 0) {
        exchange_words(e, plan, before);
    }
    moe_inbox_read(e, plan, placement);
}
