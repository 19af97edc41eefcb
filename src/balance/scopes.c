/* scopes.c: adds the cells of segments up to devices, sequences and the global batch, and makes the
 * losses of the three scopes from them. It costs one integer sum over the ranks per layer, of cells
 * and of exact sums of the losses, which others can share. */
#include "balance/scopes.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#include "balance/internal.h"
#include "base/exact.h"
#include "base/status.h"

/* --- sequences that several ranks hold --- */

int64_t moe_scopes_cut_sequence(const moe_batch *b, int32_t d) {
    int64_t first = moe_batch_token_begin(b->num_tokens_global, b->devices, d);
    return moe_batch_begins_sequence(b, first) ? -1 : moe_batch_sequence_of(b, first);
}

/* Number of distinct sequences that are cut at the first token of every `step`-th device. list, if
 * not NULL, takes their ids in ascending order. */
static int64_t cut_sequences(const moe_batch *b, int32_t step, int64_t *list) {
    int64_t count = 0, last = -1;
    for (int32_t d = step; d < b->devices; d += step) {
        int64_t q = moe_scopes_cut_sequence(b, d);
        if (q < 0 || q == last) {
            continue;
        }
        if (list) {
            list[count] = q;
        }
        last = q;
        count++;
    }
    return count;
}

/* --- cells --- */

enum {
    MEAN_WORDS = MOE_SCOPES_MEAN_WORDS,
    PARALLEL_WORDS = 1 << 16 /* fewer words of cells are quicker read by one thread */
};

/* Cells of the same shape. */
static void reserve_like(const moe_stats *like, moe_stats *s, int64_t cells) {
    moe_stats_reserve_slots(s, like->num_experts, like->devices, like->slots, cells);
}

/* Adds each segment to the cell that `place` gives for it, of `cells` new ones. */
static void add_segments(const moe_batch *b,
                         const moe_stats *segments,
                         int64_t (*place)(const moe_batch *b, int64_t segment),
                         int64_t cells,
                         moe_stats *sum) {
    reserve_like(segments, sum, cells);
#pragma omp parallel if (b->num_segments * segments->words > PARALLEL_WORDS)
    {
        const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
        const int64_t begin = cells * thread / threads, end = cells * (thread + 1) / threads;
        for (int64_t i = 0; i < b->num_segments; i++) {
            int64_t at = place(b, i);
            if (at >= begin && at < end) {
                moe_stats_add(sum, moe_stats_cell(sum, at), moe_stats_cell(segments, i));
            }
        }
    }
}

/* The place of a segment among the sequences of this rank, and among its devices. */
static int64_t place_by_sequence(const moe_batch *b, int64_t i) {
    return b->segment[i].sequence - b->segment[0].sequence;
}

static int64_t place_by_device(const moe_batch *b, int64_t i) {
    return b->segment[i].device - b->first_device;
}

/* Whether no sequence is cut by the end of a device, so that each segment is a sequence. */
static bool segments_are_sequences(const moe_batch *b) {
    bool same = cut_sequences(b, 1, NULL) == 0;
    for (int64_t i = 0; same && i < b->num_segments; i++) {
        same = place_by_sequence(b, i) == i;
    }
    return same;
}

/* The cells of the sequences, of the devices, and of the batch. Segments that are sequences lend
 * their cells: there can be as many as devices x experts, too many to copy without need. */
static void use_segments(moe_scopes *s, const moe_batch *b, const moe_stats *segments) {
    s->first_sequence = b->num_segments ? b->segment[0].sequence : 0;
    if (segments_are_sequences(b)) {
        moe_stats_borrow(&s->sequence, segments);
    } else {
        int64_t sequences = b->num_segments > 0 ? place_by_sequence(b, b->num_segments - 1) + 1 : 0;
        add_segments(b, segments, place_by_sequence, sequences, &s->sequence);
    }
    add_segments(b, segments, place_by_device, b->num_local_devices, &s->device);
    reserve_like(segments, &s->global, 1);
}

static void use_sent_rows(moe_scopes *s, const moe_batch *b, const moe_sent_rows *sent_rows) {
    for (int32_t j = 0; j < b->num_local_devices; j++) {
        sent_rows->count(sent_rows->self, j,
                         moe_stats_device_tokens(&s->device, moe_stats_cell(&s->device, j)));
    }
}

/* --- losses --- */

void moe_scopes_add_losses(const moe_balance *balance,
                           const moe_placement *placement,
                           const moe_stats *stats,
                           int64_t *cell,
                           int64_t *sum) {
    double loss[MOE_NUM_LOSSES];
    if (cell[MOE_STAT_TOKENS] == 0) {
        return;
    }
    sum[MEAN_WORDS - 1]++;
    moe_balance_losses(balance, placement, stats, cell, loss);
    for (int i = 0; i < MOE_NUM_LOSSES; i++) {
        if (isfinite(loss[i])) {
            moe_exact_add(sum + i * MOE_EXACT_WORDS, loss[i]);
        }
    }
}

static void mean_losses(const moe_balance *balance,
                        const int64_t *sum,
                        double *loss,
                        int64_t *population) {
    *population = sum[MEAN_WORDS - 1];
    for (int i = 0; i < MOE_NUM_LOSSES; i++) {
        bool defined = moe_balance_defined(balance, (enum moe_loss)i);
        loss[i] = !defined      ? NAN
                  : *population ? moe_exact_value(sum + i * MOE_EXACT_WORDS) / (double)*population
                                : 0;
    }
}

bool moe_scopes_owns(const moe_batch *b, int64_t sequence) {
    int64_t first = moe_batch_sequence_begin(b, sequence);
    return first >= b->first_token && first < b->first_token + b->num_tokens;
}

/* Adds the losses of cells begin to end - 1. The sums are exact, so that threads may add them in
 * any order. */
static void add_losses_of_cells(const moe_balance *balance,
                                const moe_placement *placement,
                                const moe_stats *stats,
                                int64_t begin,
                                int64_t end,
                                int64_t sum[MEAN_WORDS]) {
#pragma omp parallel if ((end - begin) * stats->words > PARALLEL_WORDS)
    {
        int64_t part[MEAN_WORDS] = {0};
#pragma omp for schedule(static) nowait
        for (int64_t i = begin; i < end; i++) {
            moe_scopes_add_losses(balance, placement, stats, moe_stats_cell(stats, i), part);
        }
#pragma omp critical
        for (int w = 0; w < MEAN_WORDS; w++) {
            sum[w] += part[w];
        }
    }
}

/* Whether another rank counts a sequence, or all do once it is complete. */
static bool counted_elsewhere(const moe_scopes *s,
                              const moe_batch *b,
                              int64_t num_shared,
                              int64_t sequence) {
    bool found = !moe_scopes_owns(b, sequence);
    for (int64_t i = 0; !found && i < num_shared; i++) {
        found = s->list[i] == sequence;
    }
    return found;
}

/* This rank's sums of the losses of its devices, and of the sequences that begin on it. Those in
 * s->list [num_shared] are left out: they are not complete yet. A sequence that other ranks hold
 * too is the first or the last one here. */
static void sum_losses(const moe_scopes *s,
                       const moe_balance *balance,
                       const moe_placement *placement,
                       const moe_batch *b,
                       int64_t num_shared,
                       int64_t sum[2][MEAN_WORDS]) {
    int64_t begin = 0, end = s->sequence.num_cells;
    while (begin < end && counted_elsewhere(s, b, num_shared, s->first_sequence + begin)) {
        begin++;
    }
    while (begin < end && counted_elsewhere(s, b, num_shared, s->first_sequence + end - 1)) {
        end--;
    }
    add_losses_of_cells(balance, placement, &s->sequence, begin, end, sum[MOE_SCOPE_SEQUENCE]);
    add_losses_of_cells(balance, placement, &s->device, 0, s->device.num_cells,
                        sum[MOE_SCOPE_DEVICE]);
}

/* --- over all ranks --- */

/* Copies the cells of sequences that several ranks hold into their places behind the global cell of
 * the vector, or back from there. */
static void copy_shared(moe_scopes *s, const int64_t *list, int64_t num_shared, bool back) {
    size_t bytes = (size_t)s->sequence.words * sizeof(int64_t);
    for (int64_t i = 0; i < num_shared; i++) {
        int64_t local = list[i] - s->first_sequence;
        if (local < 0 || local >= s->sequence.num_cells) {
            continue;
        }
        int64_t *ours = moe_stats_cell(&s->sequence, local),
                *vector = moe_stats_cell(&s->shared, i + 1);
        memcpy(back ? ours : vector, back ? vector : ours, bytes);
    }
}

int64_t *moe_scopes_loss_sums(const moe_scopes *s) {
    return moe_stats_cell(&s->shared, s->num_shared + 1);
}

int64_t moe_scopes_vector(const moe_scopes *s, int64_t **words) {
    *words = s->shared.cell;
    return (s->num_shared + 1) * s->shared.words + 2 * MEAN_WORDS;
}

/* Shared sequences are complete only after the sum; every rank then adds their losses by itself,
 * which means a few more losses to compute but saves another sum. */
static void use_sums(moe_scopes *s,
                     const moe_balance *balance,
                     const moe_placement *placement,
                     int64_t sum[2][MEAN_WORDS]) {
    memcpy(sum, moe_scopes_loss_sums(s), 2 * MEAN_WORDS * sizeof(int64_t));
    memcpy(s->global.cell, s->whole ? s->whole : moe_scopes_micro_batch(s),
           (size_t)s->global.words * sizeof(int64_t));
    copy_shared(s, s->list, s->num_shared, true);
    for (int64_t i = 0; i < s->num_shared; i++) {
        moe_scopes_add_losses(balance, placement, &s->shared, moe_stats_cell(&s->shared, i + 1),
                              sum[MOE_SCOPE_SEQUENCE]);
    }
}

/* These losses have no product in them, and are the mean over all counted tokens in every scope. */
static void use_means_over_tokens(moe_scopes *s) {
    for (int scope = 0; scope < MOE_SCOPE_GLOBAL; scope++) {
        for (int i = 0; i < MOE_NUM_LOSSES; i++) {
            if (moe_loss_rows[i].kind == MOE_LOSS_MEAN_OVER_TOKENS) {
                s->loss[scope][i] = s->loss[MOE_SCOPE_GLOBAL][i];
            }
        }
    }
}

static void make_losses(moe_scopes *s,
                        const moe_balance *balance,
                        const moe_placement *placement,
                        int64_t sum[2][MEAN_WORDS]) {
    for (int scope = 0; scope < MOE_SCOPE_GLOBAL; scope++) {
        mean_losses(balance, sum[scope], s->loss[scope], &s->population[scope]);
    }
    s->population[MOE_SCOPE_GLOBAL] = 1;
    moe_balance_losses(balance, placement, &s->global, s->global.cell, s->loss[MOE_SCOPE_GLOBAL]);
    use_means_over_tokens(s);
    moe_balance_ideal(balance, &s->global, s->global.cell, s->ideal);
}

void moe_scopes_reserve_vector(moe_scopes *s, const moe_batch *b) {
    s->num_shared = cut_sequences(b, b->num_local_devices, NULL);
    moe_reserve(&s->list, &s->list_room, s->num_shared + 1, sizeof *s->list, "shared sequences");
    cut_sequences(b, b->num_local_devices, s->list);
    const int64_t words = s->global.words, sum_cells = (2 * MEAN_WORDS + words - 1) / words;
    reserve_like(&s->global, &s->shared, s->num_shared + 1 + sum_cells);
}

void moe_scopes_count(moe_scopes *s,
                      const moe_balance *balance,
                      const moe_placement *placement,
                      const moe_batch *batch,
                      const moe_stats *segments,
                      const moe_sent_rows *sent_rows) {
    int64_t sum[2][MEAN_WORDS] = {{0}};
    use_segments(s, batch, segments);
    if (sent_rows) {
        use_sent_rows(s, batch, sent_rows);
    }
    moe_scopes_reserve_vector(s, batch);
    for (int32_t j = 0; j < batch->num_local_devices; j++) {
        moe_stats_add(&s->shared, moe_stats_cell(&s->shared, 0), moe_stats_cell(&s->device, j));
    }
    copy_shared(s, s->list, s->num_shared, false);
    sum_losses(s, balance, placement, batch, s->num_shared, sum);
    memcpy(moe_scopes_loss_sums(s), sum, sizeof sum);
}

void moe_scopes_complete(moe_scopes *s,
                         const moe_balance *balance,
                         const moe_placement *placement,
                         const moe_batch *batch) {
    int64_t sum[2][MEAN_WORDS];
    use_sums(s, balance, placement, sum);
    make_losses(s, balance, placement, sum);
    int64_t words = (1 + cut_sequences(batch, 1, NULL)) * s->global.words + 2 * MEAN_WORDS;
    s->allreduce_bytes = words * (int64_t)sizeof(int64_t) * batch->devices;
}

void moe_scopes_reduce(moe_scopes *s,
                       const moe_comm *comm,
                       const moe_balance *balance,
                       const moe_placement *placement,
                       const moe_batch *batch,
                       const moe_stats *segments,
                       const moe_sent_rows *sent_rows) {
    int64_t *words;
    moe_scopes_count(s, balance, placement, batch, segments, sent_rows);
    int64_t count = moe_scopes_vector(s, &words);
    moe_comm_sum_i64(comm, words, count);
    moe_scopes_complete(s, balance, placement, batch);
}

/* --- the whole step --- */

int64_t *moe_scopes_micro_batch(const moe_scopes *s) {
    return moe_stats_cell(&s->shared, 0);
}

void moe_scopes_add_global(const moe_scopes *s, const moe_comm *comm, int64_t *whole) {
    moe_comm_sum_i64(comm, moe_scopes_micro_batch(s), s->shared.words);
    moe_stats_add(&s->shared, whole, moe_scopes_micro_batch(s));
}

int64_t moe_scopes_tokens(const moe_scopes *s) {
    return s->global.cell[MOE_STAT_TOKENS] / (s->whole ? s->micro_batches : 1);
}

/* --- all layers --- */

static void add_cells(moe_stats *sum, const moe_stats *layer, bool first) {
    if (first) {
        reserve_like(layer, sum, layer->num_cells);
    }
    MOE_ASSERT(sum->num_cells == layer->num_cells && sum->words == layer->words);
    for (int64_t i = 0; i < layer->num_cells; i++) {
        moe_stats_add(sum, moe_stats_cell(sum, i), moe_stats_cell(layer, i));
    }
}

void moe_scopes_add_layer(moe_scopes *sum, const moe_scopes *layer, bool first) {
    sum->first_sequence = layer->first_sequence;
    sum->whole = layer->whole;
    sum->micro_batches = layer->micro_batches;
    add_cells(&sum->sequence, &layer->sequence, first);
    add_cells(&sum->device, &layer->device, first);
    add_cells(&sum->global, &layer->global, first);
}

void moe_scopes_finish(moe_scopes *s,
                       const moe_comm *comm,
                       const moe_balance *balance,
                       const moe_placement *placement,
                       const moe_batch *batch) {
    int64_t sum[2][MEAN_WORDS] = {{0}};
    sum_losses(s, balance, placement, batch, 0, sum);
    moe_comm_sum_i64(comm, sum[0], 2 * MEAN_WORDS);
    make_losses(s, balance, placement, sum);
    s->allreduce_bytes = 2 * MEAN_WORDS * (int64_t)sizeof(int64_t) * batch->devices;
}

int64_t *moe_scopes_cell(const moe_scopes *s,
                         enum moe_scope scope,
                         const moe_batch *batch,
                         int64_t i,
                         double *divisor) {
    const moe_segment *segment = &batch->segment[i];
    int64_t *cell = scope == MOE_SCOPE_SEQUENCE
                        ? moe_stats_cell(&s->sequence, segment->sequence - s->first_sequence)
                    : scope == MOE_SCOPE_DEVICE
                        ? moe_stats_cell(&s->device, segment->device - batch->first_device)
                        : s->global.cell;
    int64_t tokens = scope == MOE_SCOPE_GLOBAL ? moe_scopes_tokens(s) : cell[MOE_STAT_TOKENS];
    *divisor = (double)tokens * (double)s->population[scope];
    return cell;
}

void moe_scopes_free(moe_scopes *s) {
    moe_stats_free(&s->sequence);
    moe_stats_free(&s->device);
    moe_stats_free(&s->global);
    moe_stats_free(&s->shared);
    moe_free(s->list);
    moe_stats_free(&s->cut);
    moe_free(s->cut_list);
}
