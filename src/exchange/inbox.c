/* inbox.c: from the words that arrived to rows and pairs, and these grouped by expert. */
#include <string.h>

#include "base/status.h"
#include "exchange/internal.h"
#include "exchange/row_format.h"

/* --- reading --- */

/* How far the words that arrived have been read into the inbox. */
typedef struct reading {
    const moe_plan *plan;
    const moe_placement *placement;
    const int32_t *word, *end;
    int64_t row, pair;
    int64_t first_token; /* in the line of all tokens: of the source device's rank */
    int32_t source;      /* the source device of the row under way */
    int64_t source_end;  /* the first token, in that line, behind those of the source device */
} reading;

static int64_t token_begin(const reading *at, int32_t device) {
    return moe_batch_token_begin(at->plan->num_tokens_global, at->plan->devices, device);
}

/* Goes to source device d. */
static void read_source(reading *at, int32_t d) {
    at->source = d;
    at->source_end = token_begin(at, d + 1);
}

/* Goes to the first device of rank q. */
static void begin_rank(reading *at, int32_t q) {
    read_source(at, q * at->plan->num_local);
    at->first_token = token_begin(at, at->source);
}

/* Goes on to the source device of a token, which is the one under way or a later one of its rank.
 */
static void find_source(reading *at, int32_t token) {
    while (at->first_token + token >= at->source_end) {
        MOE_ASSERT((at->source + 1) % at->plan->num_local != 0);
        read_source(at, at->source + 1);
    }
}

/* A row that names its source device, where rows of all ranks can come from any. */
static void go_to_source(reading *at, int32_t source) {
    MOE_ASSERT(source >= 0 && source < at->plan->devices);
    if (source != at->source) {
        begin_rank(at, source / at->plan->num_local);
        read_source(at, source);
    }
}

/* One pair of the row under way, for local device j. What arrives must be for an expert that lives
 * here, or in the first of two hops in this node. */
static void read_pair(moe_inbox *in, reading *at, int32_t j) {
    const moe_plan *plan = at->plan;
    int32_t expert = *at->word++, stop = plan->first_device + j;
    MOE_ASSERT(expert >= 0 && expert < at->placement->num_experts);
    MOE_ASSERT(plan->format->several_devices
                   ? moe_placement_device(at->placement, expert,
                                          at->first_token + in->row_token[at->row], at->source) /
                             plan->devices_per_node ==
                         stop / plan->devices_per_node
                   : moe_placement_slot_on(at->placement, expert, stop) >= 0);
    in->pair_expert[at->pair] = expert;
    in->pair_row[at->pair] = at->row;
    memcpy(&in->pair_weight[at->pair], at->word, sizeof(real));
    at->word += MOE_PAIR_WORDS - 1;
    at->pair++;
}

/* Counts a row from device `from` to device `to`. Rows come in the order of sending devices, and
 * within one in that of destination devices, so the pair is the last one or new. */
static void count_arrival(moe_inbox *in, int32_t from, int32_t to) {
    moe_sparse_cell *last = in->num_cells > 0 ? &in->cell[in->num_cells - 1] : NULL;
    if (last && last->row == from && last->column == to) {
        last->count++;
        return;
    }
    MOE_ASSERT(!last || last->row < from || (last->row == from && last->column < to));
    in->cell[in->num_cells++] = (moe_sparse_cell){from, to, 1};
}

/* The device that sent a row of this hop which goes on, or stays, at `to`. In a second hop it is
 * the one of the same node with the place of the source device. */
static int32_t sender_of(const reading *at, int32_t to) {
    int32_t per_node = at->plan->devices_per_node;
    return at->plan->hop == 0 ? at->source : to - to % per_node + at->source % per_node;
}

/* Where the row under way has arrived: at the device that serves its first expert, or in the first
 * of two hops at one of its node. */
static int32_t arrived_at(const reading *at, int32_t token, int32_t expert) {
    MOE_ASSERT(expert >= 0 && expert < at->placement->num_experts);
    int32_t device =
        moe_placement_device(at->placement, expert, at->first_token + token, at->source);
    int32_t stop = moe_plan_stop(at->plan, device, at->source);
    MOE_ASSERT(stop / at->plan->num_local == at->plan->first_device / at->plan->num_local);
    return stop;
}

static void read_row(moe_inbox *in, reading *at) {
    const moe_row_format *format = at->plan->format;
    MOE_ASSERT(format->head_words + MOE_PAIR_WORDS <= at->end - at->word);
    int32_t token = *at->word++;
    int32_t count = format->several_pairs ? *at->word++ : 1;
    MOE_ASSERT(token >= 0);
    if (format->names_source) {
        go_to_source(at, *at->word++);
    } else {
        find_source(at, token);
    }
    MOE_ASSERT(at->first_token + token < at->source_end && count >= 1 &&
               count <= in->num_pairs - at->pair &&
               (int64_t)count * MOE_PAIR_WORDS <= at->end - at->word);
    int32_t stop = arrived_at(at, token, *at->word), j = stop - at->plan->first_device;
    count_arrival(in, sender_of(at, stop), stop);
    in->row_token[at->row] = token;
    in->row_device[at->row] = j;
    in->row_pair[at->row] = at->pair;
    if (in->row_source) {
        in->row_source[at->row] = at->source;
        in->row_number[at->row] = at->first_token + token;
    }
    for (int32_t c = 0; c < count; c++) {
        read_pair(in, at, j);
    }
    at->row++;
}

void moe_inbox_read(moe_exchange *e, const moe_plan *plan, const moe_placement *placement) {
    moe_inbox *in = &e->inbox;
    reading at = {.plan = plan, .placement = placement};
    in->num_cells = 0;
    for (int32_t q = 0; q < plan->ranks; q++) {
        begin_rank(&at, q);
        at.word = e->word_from[q];
        at.end = at.word + (e->word_arriving[q + 1] - e->word_arriving[q]);
        while (at.row < in->rank_row[q + 1]) {
            read_row(in, &at);
        }
        MOE_ASSERT(at.word == at.end);
    }
    in->row_pair[at.row] = at.pair;
    MOE_ASSERT(at.row == in->num_rows && at.pair == in->num_pairs);
}

/* --- grouping --- */

/* The slot, counted from this rank's first, that serves pair p of the inbox. */
static int64_t local_slot(const moe_inbox *in,
                          const moe_placement *placement,
                          int32_t first_device,
                          int64_t p) {
    int32_t device = first_device + in->row_device[in->pair_row[p]];
    return moe_placement_slot_on(placement, in->pair_expert[p], device) -
           (int64_t)first_device * in->slots;
}

/* Lists the rows by (source device, token). Those of one source device and one destination come in
 * the order of tokens; the counting sort is stable. cursor [D + 1] is scratch. */
static void sort_by_source(moe_inbox *in, int64_t *cursor) {
    memset(cursor, 0, (size_t)(in->devices + 1) * sizeof *cursor);
    for (int64_t r = 0; r < in->num_rows; r++) {
        cursor[in->row_source[r] + 1]++;
    }
    for (int32_t d = 0; d < in->devices; d++) {
        cursor[d + 1] += cursor[d];
    }
    for (int64_t r = 0; r < in->num_rows; r++) {
        in->source_row[cursor[in->row_source[r]]++] = r;
    }
}

/* Counts the pairs of each slot in count[slot + 1]. */
static void count_slots(const moe_inbox *in,
                        const moe_placement *placement,
                        int32_t first_device,
                        int64_t *count) {
    for (int64_t p = 0; p < in->num_pairs; p++) {
        count[local_slot(in, placement, first_device, p) + 1]++;
    }
}

/* The counting sort is stable, so that the rows of a slot stay in the order of (source device,
 * token). */
void moe_inbox_group(moe_inbox *in, const moe_placement *placement, int32_t first_device) {
    int64_t slots = (int64_t)in->num_local * in->slots;
    memset(in->slot_offset, 0, (size_t)(slots + 2) * sizeof(int64_t));
    if (in->source_row) {
        sort_by_source(in, in->source_count);
    }
    /* cursor[s + 1] counts the pairs of slot s; then cursor[s] is the next free place of s, and in
     * the end the end of s, which is slot_offset[s + 1] */
    int64_t *cursor = in->slot_offset + 1;
    count_slots(in, placement, first_device, cursor);
    for (int64_t s = 0; s < slots; s++) {
        cursor[s + 1] += cursor[s];
    }
    for (int64_t i = 0; i < in->num_rows; i++) {
        int64_t r = in->source_row ? in->source_row[i] : i;
        for (int64_t p = in->row_pair[r]; p < in->row_pair[r + 1]; p++) {
            int64_t at = cursor[local_slot(in, placement, first_device, p)]++;
            in->slot_pair[at] = p;
            in->pair_position[p] = at;
        }
    }
}
