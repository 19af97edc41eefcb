/* memory_statistics.c: the bytes of the cells in which a run counts its tokens, and of the metrics.
 * The symbols are those of memory.c. */
#include "balance/scopes.h"
#include "data/batch.h"
#include "predict/internal.h"
#include "predict/memory.h"
#include "router/stats.h"

/* --- segments --- */

/* Tokens begin to end - 1 lie in so many sequences. */
static int64_t sequences_between(const moe_batch *b, int64_t begin, int64_t end) {
    return begin < end ? moe_batch_sequence_of(b, end - 1) - moe_batch_sequence_of(b, begin) + 1
                       : 0;
}

moe_memory_segment_counts moe_memory_segments(const moe_sequences *sequences,
                                              int64_t tokens,
                                              int32_t devices,
                                              int32_t ranks) {
    const moe_batch b = {.num_tokens_global = tokens,
                         .num_sequences = sequences->num,
                         .sequence_length = max64(1, sequences->length),
                         .boundary = sequences->boundary,
                         .devices = devices};
    const int32_t local = max64(1, devices / ranks);
    moe_memory_segment_counts count = {.whole = true};
    int64_t of_rank = 0, first = 0, last_shared = -1;
    for (int32_t d = 0; d < devices; d++) {
        const int64_t begin = moe_batch_token_begin(tokens, devices, d),
                      end = moe_batch_token_begin(tokens, devices, d + 1),
                      segments = sequences_between(&b, begin, end);
        const bool of_next_rank = d % local == 0, cut = !moe_batch_begins_sequence(&b, begin);
        first = of_next_rank ? begin : first;
        of_rank = of_next_rank ? segments : add(of_rank, segments);
        if (cut && of_next_rank && moe_batch_sequence_of(&b, begin) != last_shared) {
            last_shared = moe_batch_sequence_of(&b, begin);
            count.shared++;
        }
        count.whole = count.whole && !cut;
        count.of_device = max64(count.of_device, segments);
        count.of_rank = max64(count.of_rank, of_rank);
        count.sequences = max64(count.sequences, sequences_between(&b, first, end));
    }
    return count;
}

/* --- cells --- */

/* The cells that threads hold where devices are counted one by one (scopes_parts.c): those of a
 * device's segments, two sums, and of a sequence on several devices the sums that parts add to. */
static int64_t cells_by_device(const moe_memory_sizes *s) {
    return mul(s->threads, add(s->segments.of_device, s->segments.whole ? 2 : 3));
}

/* The cells of a layer (scopes.c): of each segment; of each sequence where some are cut, since
 * elsewhere segments are sequences; of each local device; and of the batch. */
static int64_t cells_of_layer(const moe_memory_sizes *s) {
    const int64_t sequences = s->segments.whole ? 0 : s->segments.sequences;
    return add(add(s->segments.of_rank, sequences), s->local_devices);
}

/* Cells of the layers that are kept, with the batch's and those of the vector that is summed over
 * ranks: the batch's again, the sequences that several ranks hold, and sums of losses; once more
 * sequences, devices and the batch for all layers put together (aux_form = mixtral); and one cell
 * of each layer for the whole step (global_batch = step). */
static int64_t cells(const moe_config *c, const moe_memory_sizes *s, int64_t words) {
    const int64_t kept = s->by_device ? cells_by_device(s) : cells_of_layer(s);
    const int64_t summed = add(1 + s->segments.shared, div_up(2 * MOE_SCOPES_MEAN_WORDS, words));
    const int64_t all = moe_balance_has_all_layers(&c->balance)
                            ? add(add(s->segments.sequences, s->local_devices), 1)
                            : 0;
    const int64_t step = c->balance.global_batch == MOE_GLOBAL_STEP ? moe_config_moe_layers(c) : 0;
    return add(mul(s->copies, add(kept, add(1, summed))), add(all, step));
}

/* The words of a cell (router/stats.h). */
static int64_t words_of_cell(const moe_config *c) {
    const int64_t n = c->model.num_experts, d = c->cluster.devices;
    const int64_t redundant = c->compares_placements ? 0 : c->placement.redundant_experts;
    const int64_t slots = redundant > 0 ? add(n, redundant) : 0;
    return add(mul(MOE_STAT_PER_EXPERT, n), add(slots, d + MOE_STAT_HEAD));
}

int64_t moe_memory_matrix_cells(const moe_config *c, const moe_memory_sizes *s) {
    return min64(mul(c->cluster.devices, c->cluster.devices), mul(s->ranks, s->selections));
}

/* The metrics of a layer are three vectors [N], five [D] and two words for each cell of the matrix
 * [D,D] that is not 0. A step of several micro-batches has metrics of its own beside those of the
 * micro-batch. */
static int64_t words_of_metrics(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t n = c->model.num_experts, d = c->cluster.devices;
    const int64_t layer = add(mul(3, n), add(mul(5, d), mul(2, moe_memory_matrix_cells(c, s))));
    const int64_t steps = s->train && c->train.accumulate > 1 ? 2 : 1;
    return mul3(steps, moe_config_moe_layers(c), layer);
}

int64_t moe_memory_statistics(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t words = words_of_cell(c);
    return add(mul(s->segments.of_rank, sizeof(moe_segment)),
               mul(add(mul(cells(c, s, words), words), words_of_metrics(c, s)), WORD));
}
