/* matrix.c: the matrix of rows from device to device, put together from what the ranks know. With
 * two hops it has the rows of both.
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
    const int hops = moe_row_format_hops(context->config->exchange.mode);
    return cells > 0 ? 2 * cells : 2 * hops * (int64_t)context->comm->size;
}

void moe_tally_matrix_place(moe_tally *t, const moe_context *context, int64_t *words) {
    int64_t cells = array_cells(context);
    t->sent = cells > 0 ? words : NULL;
    t->received = cells > 0 ? words + cells : NULL;
    t->num_cells = cells > 0 ? NULL : words;
}

/* The cells of a hop as its senders and its receivers saw them: ascending lists. */
typedef struct hop_cells {
    int64_t num_sent, num_received;
    const moe_plan_cell *sent;
    const moe_sparse_cell *received;
} hop_cells;

static hop_cells cells_of(const moe_activations *a, int hop) {
    const moe_plan *plan = moe_exchange_plan_of(&a->exchange, &a->plan, hop);
    const moe_inbox *in = moe_exchange_inbox_of(&a->exchange, &a->plan, hop);
    return (hop_cells){plan->device_cell[plan->num_local], in->num_cells, plan->cell, in->cell};
}

static void count_arrays(moe_tally *t, int32_t devices, const hop_cells *c) {
    for (int64_t i = 0; i < c->num_sent; i++) {
        t->sent[(int64_t)c->sent[i].from * devices + c->sent[i].to] += c->sent[i].rows;
    }
    for (int64_t i = 0; i < c->num_received; i++) {
        const moe_sparse_cell *cell = &c->received[i];
        t->received[(int64_t)cell->row * devices + cell->column] += cell->count;
    }
}

void moe_tally_matrix_count(moe_tally *t, const moe_context *context, const moe_activations *a) {
    const int64_t ranks = context->comm->size;
    for (int hop = 0; hop < moe_row_format_hops(a->plan.mode); hop++) {
        const hop_cells c = cells_of(a, hop);
        if (t->sent) {
            count_arrays(t, context->batch->devices, &c);
        } else {
            int64_t *num_cells = t->num_cells + 2 * hop * ranks + context->comm->rank;
            num_cells[0] = c.num_sent;
            num_cells[ranks] = c.num_received;
        }
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

/* Collective. The rows of one hop. The senders of rank q stand before those of rank q + 1, so the
 * lists that were sent are one sorted list behind each other. */
static void compare_lists(moe_tally *t,
                          const moe_context *context,
                          const hop_cells *c,
                          const int64_t *num_cells,
                          moe_sparse *matrix) {
    moe_scratch *scratch = context->batch->scratch;
    const int ranks = context->comm->size;
    const int64_t num_sent = sum_of(num_cells, ranks),
                  num_received = sum_of(num_cells + ranks, ranks);
    moe_sparse_cell *own = moe_scratch_take_varying(scratch, c->num_sent, sizeof *own, "tally"),
                    *sent = moe_scratch_take_varying(scratch, num_sent, sizeof *sent, "tally"),
                    *received =
                        moe_scratch_take_varying(scratch, num_received, sizeof *received, "tally");
    for (int64_t i = 0; i < c->num_sent; i++) {
        const moe_plan_cell *cell = &c->sent[i];
        own[i] = (moe_sparse_cell){cell->from, cell->to, cell->rows};
    }
    gather(context, own, num_cells, sent);
    gather(context, c->received, num_cells + ranks, received);
    const moe_sparse all = {.num_cells = num_sent, .cell = sent, .capacity = num_sent};
    t->different += differences(&all, received, num_received);
    moe_sparse_add(matrix, &all);
    moe_scratch_give(scratch, received);
    moe_scratch_give(scratch, sent);
    moe_scratch_give(scratch, own);
}

void moe_tally_matrix(moe_tally *t,
                      const moe_context *context,
                      const moe_activations *a,
                      moe_sparse *matrix) {
    if (t->sent) {
        compare_arrays(t, context->batch->devices, matrix);
        return;
    }
    matrix->num_cells = 0;
    for (int hop = 0; hop < moe_row_format_hops(a->plan.mode); hop++) {
        const hop_cells c = cells_of(a, hop);
        compare_lists(t, context, &c, t->num_cells + 2 * hop * (int64_t)context->comm->size,
                      matrix);
    }
}
