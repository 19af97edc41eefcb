/* combine.c: the way back: results travel along the plan's rows to their tokens, where they are
 * added up in one order in every mode: experts of a device, devices of a node, nodes. */
#include <omp.h>
#include <string.h>

#include "base/status.h"
#include "base/vector.h"
#include "exchange/internal.h"

/* --- sums --- */

/* Where the results of the plan's rows stand: those from other ranks without gaps, those of the own
 * rank where the experts have put them. */
typedef struct returned_rows {
    const real *back, *own;
    int64_t own_begin, own_end, hidden;
} returned_rows;

static const real *returned_row(const returned_rows *b, int64_t r) {
    if (r >= b->own_begin && r < b->own_end) {
        return b->own + (r - b->own_begin) * b->hidden;
    }
    return b->back + (r < b->own_begin ? r : r - (b->own_end - b->own_begin)) * b->hidden;
}

/* to = a + b; `to` may be a. */
MOE_CLONES static void sum_of(real *to, const real *a, const real *b, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        to[i] = a[i] + b[i];
    }
}

/* What one device returns for a token, whose rows from this device begin at *i: its only row where
 * it stands, or the sum of its rows, in ascending order of experts, in scratch. *i becomes the row
 * behind them. */
static const real *device_sum(const moe_plan *plan,
                              const returned_rows *b,
                              int64_t *i,
                              int64_t end,
                              real *scratch) {
    const int64_t *row = plan->token_row;
    int32_t device = plan->row_device[row[*i]];
    const real *sum = returned_row(b, row[*i]);
    for (++*i; *i < end && plan->row_device[row[*i]] == device; ++*i) {
        sum_of(scratch, sum, returned_row(b, row[*i]), b->hidden);
        sum = scratch;
    }
    return sum;
}

/* y of one token. scratch [2,H] is for the sum of a node and the sum of a device. */
static void sum_token(const moe_plan *plan,
                      const returned_rows *b,
                      int64_t t,
                      int32_t devices_per_node,
                      real *scratch,
                      real *y) {
    int64_t begin = plan->token_row_offset[t];
    int64_t end = plan->token_row_offset[t + 1];
    int64_t i = begin;
    int64_t h = b->hidden;
    if (i == end) {
        memset(y, 0, (size_t)h * sizeof(real));
    }
    while (i < end) {
        bool first_node = i == begin;
        int32_t node = plan->row_device[plan->token_row[i]] / devices_per_node;
        real *to = first_node ? y : scratch;
        const real *sum = device_sum(plan, b, &i, end, to);
        while (i < end && plan->row_device[plan->token_row[i]] / devices_per_node == node) {
            sum_of(to, sum, device_sum(plan, b, &i, end, scratch + h), h);
            sum = to;
        }
        if (!first_node) {
            sum_of(y, y, sum, h);
        } else if (sum != y) {
            memcpy(y, sum, (size_t)h * sizeof(real));
        }
    }
}

/* --- bringing the rows back --- */

/* Results stand in the order of the inbox, with the own block among them: they are sent from
 * there, and those of the own rank are read there. */
static returned_rows bring_whole(moe_exchange *e, const moe_plan *plan, const real *results) {
    const moe_inbox *in = &e->inbox;
    int rank = e->comm->rank;
    moe_exchange_layout l = moe_exchange_layout_vectors(e, plan);
    moe_comm_alltoallv(e->comm,
                       (moe_blocks){(void *)(uintptr_t)results, l.recv_count, in->rank_row},
                       (moe_blocks){e->outgoing, l.send_count, l.send_offset},
                       moe_payload_bytes(e->combined, in->hidden), e->most_rows);
    return (returned_rows){e->outgoing, results + in->own_begin * in->hidden, plan->rank_row[rank],
                           plan->rank_row[rank + 1], in->hidden};
}

/* The same in a narrow payload: all results become bytes, and bytes numbers again, those of the own
 * rank too. */
static returned_rows bring_rounded(moe_exchange *e, const moe_plan *plan, const real *results) {
    const moe_inbox *in = &e->inbox;
    moe_payload_format f = e->combined;
    int64_t h = in->hidden, bytes = moe_payload_bytes(f, h);
    int64_t begin = plan->rank_row[e->comm->rank], end = plan->rank_row[e->comm->rank + 1];
    int64_t others = plan->num_rows - (end - begin);
    moe_reserve_varying(&e->coded, &e->coded_capacity, in->num_rows * bytes, 1, "rows to return");
    moe_reserve_varying(&e->arriving, &e->arriving_capacity, others * bytes, 1, "returned rows");
    moe_reserve_varying(&e->outgoing, &e->outgoing_capacity, plan->num_rows * h, sizeof(real),
                        "returned rows");
    moe_payload_encode_all(f, results, in->num_rows, h, e->coded);
    moe_exchange_layout l = moe_exchange_layout_vectors(e, plan);
    moe_comm_alltoallv(e->comm, (moe_blocks){e->coded, l.recv_count, in->rank_row},
                       (moe_blocks){e->arriving, l.send_count, l.send_offset}, bytes, e->most_rows);
    moe_payload_decode_all(f, e->arriving, begin, h, e->outgoing);
    moe_payload_decode_all(f, e->coded + in->own_begin * bytes, end - begin, h,
                           e->outgoing + begin * h);
    moe_payload_decode_all(f, e->arriving + begin * bytes, others - begin, h,
                           e->outgoing + end * h);
    return (returned_rows){.back = e->outgoing, .hidden = h};
}

static returned_rows bring(moe_exchange *e, const moe_plan *plan, const real *results) {
    return moe_payload_rounds(e->combined) ? bring_rounded(e, plan, results)
                                           : bring_whole(e, plan, results);
}

static void sum_tokens(const moe_exchange *e,
                       const moe_plan *plan,
                       const returned_rows *b,
                       int32_t devices_per_node,
                       real *y) {
    int64_t hidden = e->inbox.hidden;
    MOE_ASSERT(omp_get_max_threads() <= e->threads);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < plan->num_tokens; t++) {
        sum_token(plan, b, t, devices_per_node, e->sums + omp_get_thread_num() * 2 * hidden,
                  y + t * hidden);
    }
}

void moe_exchange_combine(moe_exchange *e,
                          const moe_plan *plan,
                          const real *results,
                          int32_t devices_per_node,
                          real *y) {
    returned_rows b = bring(e, plan, results);
    sum_tokens(e, plan, &b, devices_per_node, y);
}

/* --- a number of each pair beside the rows --- */

static int64_t inbox_pairs(const moe_inbox *in, int q) {
    return in->row_pair[in->rank_row[q + 1]] - in->row_pair[in->rank_row[q]];
}

static int64_t plan_pairs(const moe_plan *plan, int q) {
    return plan->rank_pair[q + 1] - plan->rank_pair[q];
}

/* Numbers of the own rank's pairs are copied. */
static void keep_own_pairs(const moe_exchange *e,
                           const moe_plan *plan,
                           const real *values,
                           real *returned) {
    const int own = e->comm->rank;
    const int64_t n = inbox_pairs(&e->inbox, own);
    if (n) {
        memcpy(returned + plan->rank_pair[own], values + e->inbox.row_pair[e->inbox.rank_row[own]],
               (size_t)n * sizeof(real));
    }
}

static void return_pairs(moe_exchange *e,
                         const moe_plan *plan,
                         const real *values,
                         real *returned) {
    const moe_inbox *in = &e->inbox;
    moe_exchange_layout l = moe_exchange_layout_of(e);
    for (int q = 0; q < plan->ranks; q++) {
        const bool own = q == e->comm->rank;
        l.send_offset[q] = in->row_pair[in->rank_row[q]];
        l.send_count[q] = own ? 0 : inbox_pairs(in, q);
        l.recv_count[q] = own ? 0 : plan_pairs(plan, q);
    }
    moe_comm_alltoallv(
        e->comm, (moe_blocks){(void *)(uintptr_t)values, l.send_count, l.send_offset},
        (moe_blocks){returned, l.recv_count, plan->rank_pair}, sizeof(real), e->most_rows);
}

/* Messages whose rows are worth a copy for the sake of one message less: short ones. */
static bool pairs_go_along(const moe_exchange *e) {
    enum { MOST_BYTES = 1 << 18 };
    return !moe_payload_rounds(e->combined) && e->block_words > 0 &&
           e->block_words * e->inbox.hidden * (int64_t)sizeof(real) <= MOST_BYTES;
}

/* Numbers for and from each other rank: its rows, then those of its pairs. */
static moe_exchange_layout layout_with_pairs(const moe_exchange *e, const moe_plan *plan) {
    const moe_inbox *in = &e->inbox;
    moe_exchange_layout l = moe_exchange_layout_of(e);
    for (int q = 0; q < plan->ranks; q++) {
        const bool own = q == e->comm->rank;
        const int64_t rows = plan->rank_row[q + 1] - plan->rank_row[q];
        const int64_t arrived = in->rank_row[q + 1] - in->rank_row[q];
        l.send_count[q] = own ? 0 : arrived * in->hidden + inbox_pairs(in, q);
        l.recv_count[q] = own ? 0 : rows * in->hidden + plan_pairs(plan, q);
    }
    moe_exchange_layout_set_offsets(&l, plan->ranks);
    return l;
}

/* The rows for each other rank and behind them its numbers, one block after the other. */
static void pack_with_pairs(const moe_inbox *in,
                            const moe_exchange_layout *l,
                            int ranks,
                            const real *results,
                            const real *values,
                            real *to) {
    for (int q = 0; q < ranks; q++) {
        const int64_t n = inbox_pairs(in, q), numbers = l->send_count[q] - n;
        if (l->send_count[q] > 0) {
            memcpy(to, results + in->rank_row[q] * in->hidden, (size_t)numbers * sizeof *to);
            memcpy(to + numbers, values + in->row_pair[in->rank_row[q]], (size_t)n * sizeof *to);
            to += l->send_count[q];
        }
    }
}

static void unpack_with_pairs(const moe_plan *plan,
                              const moe_exchange_layout *l,
                              const real *from,
                              real *rows,
                              real *returned) {
    for (int q = 0; q < plan->ranks; q++) {
        const int64_t n = plan_pairs(plan, q), numbers = l->recv_count[q] - n;
        if (l->recv_count[q] > 0) {
            memcpy(rows, from, (size_t)numbers * sizeof *rows);
            memcpy(returned + plan->rank_pair[q], from + numbers, (size_t)n * sizeof *rows);
            rows += numbers;
            from += l->recv_count[q];
        }
    }
}

static returned_rows bring_with_pairs(moe_exchange *e,
                                      const moe_plan *plan,
                                      const real *results,
                                      const real *values,
                                      real *returned) {
    const moe_inbox *in = &e->inbox;
    const int64_t h = in->hidden, own = in->own_end - in->own_begin;
    const int64_t out = (in->num_rows - own) * h + in->num_pairs;
    const int64_t back = (plan->num_rows - own) * h + plan->num_pairs;
    moe_reserve_varying(&e->coded, &e->coded_capacity, out * (int64_t)sizeof(real), 1,
                        "rows to return");
    moe_reserve_varying(&e->arriving, &e->arriving_capacity, back * (int64_t)sizeof(real), 1,
                        "returned rows");
    const moe_exchange_layout l = layout_with_pairs(e, plan);
    pack_with_pairs(in, &l, plan->ranks, results, values, (real *)(void *)e->coded);
    moe_comm_alltoallv(e->comm, (moe_blocks){e->coded, l.send_count, l.send_offset},
                       (moe_blocks){e->arriving, l.recv_count, l.recv_offset}, sizeof(real),
                       e->most_rows * (h + 1));
    unpack_with_pairs(plan, &l, (const real *)(const void *)e->arriving, e->outgoing, returned);
    return (returned_rows){e->outgoing, results + in->own_begin * h, plan->rank_row[e->comm->rank],
                           plan->rank_row[e->comm->rank + 1], h};
}

void moe_exchange_combine_gradient(moe_exchange *e,
                                   const moe_plan *plan,
                                   const real *results,
                                   const real *values,
                                   int32_t devices_per_node,
                                   real *dx,
                                   real *returned) {
    returned_rows b;
    keep_own_pairs(e, plan, values, returned);
    if (pairs_go_along(e)) {
        b = bring_with_pairs(e, plan, results, values, returned);
    } else {
        b = bring(e, plan, results);
        return_pairs(e, plan, values, returned);
    }
    sum_tokens(e, plan, &b, devices_per_node, dx);
}
