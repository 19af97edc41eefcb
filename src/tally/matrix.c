/* matrix.c: the matrix of rows from device to device, put together from what the ranks know.
 *
 * Each rank knows the rows that its devices sent and those that arrived at them. Of few devices
 * both are plain arrays [D,D] in the vector that is summed anyway, which costs no message of its
 * own. Of many devices the lists of pairs that have rows are gathered: that takes one more message,
 * and time and memory that grow with the tokens and not with D^2. Either way every rank compares
 * the two ends. */
#include <string.h>

#include "tally/internal.h"

enum { MOST_ARRAY_CELLS = 64 * 64 };

static int64_t array_cells(const moe_context *context) {
    int64_t d = context->batch->devices;
    return d * d <= MOST_ARRAY_CELLS ? d * d : 0;
}

int64_t moe_tally_matrix_words(const moe_context *context) {
    int64_t cells = array_cells(context);
    return cells > 0 ? 2 * cells : 2 * (int64_t)context->comm->size;
}

void moe_tally_matrix_place(moe_tally *t, const moe_context *context, int64_t *words) {
    int64_t cells = array_cells(context);
    t->sent = cells > 0 ? words : NULL;
    t->received = cells > 0 ? words + cells : NULL;
    t->num_cells = cells > 0 ? NULL : words;
}

void moe_tally_matrix_count(moe_tally *t, const moe_plan *plan, const moe_inbox *in) {
    int64_t d = plan->devices, cells = plan->device_cell[plan->num_local];
    int32_t rank = plan->first_device / plan->num_local;
    if (!t->sent) {
        t->num_cells[rank] = cells;
        t->num_cells[plan->ranks + rank] = in->num_cells;
        return;
    }
    for (int64_t i = 0; i < cells; i++) {
        t->sent[plan->cell[i].from * d + plan->cell[i].to] = plan->cell[i].rows;
    }
    for (int64_t i = 0; i < in->num_cells; i++) {
        t->received[in->cell[i].row * d + in->cell[i].column] = in->cell[i].count;
    }
}

/* --- few devices --- */

static void compare_arrays(moe_tally *t, int32_t devices, moe_sparse *matrix) {
    for (int64_t i = 0; i < (int64_t)devices * devices; i++) {
        t->different += t->sent[i] != t->received[i];
    }
    moe_sparse_from_array(matrix, t->sent, devices, devices);
}

/* --- many devices --- */

/* Collective. Gives every rank the `cells` of all ranks, num_cells [ranks], in the order of ranks.
 */
static void gather(const moe_context *context,
                   const moe_sparse_cell *cells,
                   const int64_t *num_cells,
                   moe_sparse_cell *all) {
    int ranks = context->comm->size;
    moe_scratch *scratch = context->batch->scratch;
    int64_t *bytes = moe_scratch_take(scratch, ranks, sizeof *bytes, "tally");
    for (int q = 0; q < ranks; q++) {
        bytes[q] = num_cells[q] * (int64_t)sizeof *cells;
    }
    moe_comm_allgatherv(context->comm, cells, all, bytes);
    moe_scratch_give(scratch, bytes);
}

static int64_t sum_of(const int64_t *x, int n) {
    int64_t sum = 0;
    for (int i = 0; i < n; i++) {
        sum += x[i];
    }
    return sum;
}

/* The pairs whose count differs, one that is listed at one end only among them. */
static int64_t differences(const moe_sparse *sent, const moe_sparse_cell *received, int64_t n) {
    int64_t in_both = 0, different = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t rows = moe_sparse_at(sent, received[i].row, received[i].column);
        in_both += rows > 0;
        different += rows != received[i].count;
    }
    return different + sent->num_cells - in_both;
}

/* Collective. The sources of rank q stand before those of rank q + 1, so the lists that were sent
 * are one sorted list behind each other. */
static void compare_lists(moe_tally *t,
                          const moe_context *context,
                          const moe_activations *a,
                          moe_sparse *matrix) {
    moe_scratch *scratch = context->batch->scratch;
    int ranks = context->comm->size;
    const moe_plan *plan = &a->plan;
    int64_t own = plan->device_cell[plan->num_local],
            num_received = sum_of(t->num_cells + ranks, ranks);
    moe_sparse_cell *sent = moe_scratch_take(scratch, own, sizeof *sent, "tally"),
                    *received = moe_scratch_take(scratch, num_received, sizeof *received, "tally");
    for (int64_t i = 0; i < own; i++) {
        const moe_plan_cell *cell = &plan->cell[i];
        sent[i] = (moe_sparse_cell){cell->from, cell->to, cell->rows};
    }
    matrix->num_cells = 0;
    moe_sparse_reserve(matrix, sum_of(t->num_cells, ranks));
    gather(context, sent, t->num_cells, matrix->cell);
    matrix->num_cells = sum_of(t->num_cells, ranks);
    gather(context, a->exchange.inbox.cell, t->num_cells + ranks, received);
    t->different = differences(matrix, received, num_received);
    moe_scratch_give(scratch, received);
    moe_scratch_give(scratch, sent);
}

void moe_tally_matrix(moe_tally *t,
                      const moe_context *context,
                      const moe_activations *a,
                      moe_sparse *matrix) {
    if (t->sent) {
        compare_arrays(t, context->batch->devices, matrix);
    } else {
        compare_lists(t, context, a, matrix);
    }
}
