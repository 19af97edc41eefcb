/* combine.c: the way back: results travel along the plan's rows to their tokens, where they are
 * added up in one order in every mode: experts of a device, devices of a node, nodes. */
#include <omp.h>
#include <string.h>

#include "base/status.h"
#include "base/sums.h"
#include "exchange/internal.h"
#include "exchange/row_format.h"

/* --- sums --- */

const real *moe_returned_row(const moe_returned *b, int64_t i, real *decoded) {
    if (!moe_payload_rounds(b->format)) {
        return (const real *)(const void *)b->row[i];
    }
    moe_payload_decode(b->format, b->row[i], b->hidden, decoded);
    return decoded;
}

/* What one device returns for a token, whose results from this device begin at term *i: its only
 * one where it stands, or, decoded or the sum of them in ascending order of experts, in scratch. *i
 * becomes the term behind them. */
static const real *device_sum(const moe_sum_order *order,
                              const moe_returned *b,
                              int64_t *i,
                              int64_t end,
                              real *scratch,
                              real *decoded) {
    const int64_t *term = order->term;
    int32_t device = order->device[term[*i]];
    const real *sum = moe_returned_row(b, term[*i], scratch);
    for (++*i; *i < end && order->device[term[*i]] == device; ++*i) {
        moe_sum_of_vectors(sum, moe_returned_row(b, term[*i], decoded), b->hidden, scratch);
        sum = scratch;
    }
    return sum;
}

/* y of one token. scratch [3,H] is for the sum of a node, the sum of a device and a row. */
static void sum_token(const moe_sum_order *order,
                      const moe_returned *b,
                      int64_t t,
                      int32_t devices_per_node,
                      real *scratch,
                      real *y) {
    int64_t begin = order->offset[t];
    int64_t end = order->offset[t + 1];
    int64_t i = begin;
    int64_t h = b->hidden;
    if (i == end) {
        memset(y, 0, (size_t)h * sizeof(real));
    }
    while (i < end) {
        bool first_node = i == begin;
        int32_t node = order->device[order->term[i]] / devices_per_node;
        real *to = first_node ? y : scratch;
        const real *sum = device_sum(order, b, &i, end, to, scratch + 2 * h);
        while (i < end && order->device[order->term[i]] / devices_per_node == node) {
            moe_sum_of_vectors(sum, device_sum(order, b, &i, end, scratch + h, scratch + 2 * h), h,
                               to);
            sum = to;
        }
        if (!first_node) {
            moe_sum_of_vectors(y, sum, h, y);
        } else if (sum != y) {
            memcpy(y, sum, (size_t)h * sizeof(real));
        }
    }
}

void moe_returned_sum(moe_exchange *e,
                      const moe_sum_order *order,
                      const moe_returned *b,
                      int32_t devices_per_node,
                      real *sum) {
    MOE_ASSERT(omp_get_max_threads() <= e->threads);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < order->num_tokens; t++) {
        sum_token(order, b, t, devices_per_node, e->sums + omp_get_thread_num() * 3 * b->hidden,
                  sum + t * b->hidden);
    }
}

/* --- bringing results back --- */

static int64_t bytes_of_result(const moe_exchange *e) {
    return moe_payload_bytes(e->combined, e->inbox.hidden);
}

real *moe_exchange_results(moe_exchange *e, enum moe_unit unit) {
    if (!e->host || moe_payload_rounds(e->combined)) {
        return NULL;
    }
    return (real *)(void *)moe_near_results(e, unit, bytes_of_result(e), &e->results);
}

/* Results as they travel: where the host reads them, and otherwise themselves or encoded. */
static const char *lay_out_results(moe_exchange *e,
                                   enum moe_unit unit,
                                   const real *results,
                                   int64_t count) {
    const int64_t bytes = bytes_of_result(e);
    char *to = e->host ? moe_near_results(e, unit, bytes, &e->results) : NULL;
    if (!moe_payload_rounds(e->combined)) {
        if (e->host) {
            moe_shown_write(&e->results, e->host, (const char *)results, count, bytes, to);
        }
        return e->host ? to : (const char *)results;
    }
    if (e->host) {
        moe_shown_wait(&e->results, e->host);
    } else {
        moe_reserve_varying(&e->coded, &e->coded_capacity, count * bytes, 1, "results to send");
        to = e->coded;
    }
    moe_payload_encode_all(e->combined, results, count, e->inbox.hidden, to);
    return to;
}

/* Where the results from rank q begin. */
static const char *returned_from(const moe_exchange *e,
                                 enum moe_unit unit,
                                 int q,
                                 const char *own,
                                 const char **landed,
                                 int64_t count) {
    const int64_t bytes = bytes_of_result(e);
    if (q == e->comm->rank) {
        return own;
    }
    if (!moe_exchange_is_far(e, q)) {
        return moe_near_returned(e, unit, bytes, &e->results, q);
    }
    const char *from = *landed;
    *landed += count * bytes;
    return from;
}

moe_returned moe_exchange_bring(moe_exchange *e,
                                enum moe_unit unit,
                                const int64_t *back,
                                const int64_t *here,
                                const real *results) {
    const int rank = e->comm->rank, ranks = e->comm->size;
    const int64_t bytes = bytes_of_result(e);
    const char *own = lay_out_results(e, unit, results, back[ranks]);
    if (e->host) {
        moe_shown_end(&e->results, e->host);
    }
    const char *landed = moe_exchange_carry(e,
                                            &(moe_cargo){.begin = back,
                                                         .arriving = here,
                                                         .from = own,
                                                         .bytes = bytes,
                                                         .most = e->most_rows,
                                                         .what = "returned rows"},
                                            &e->returned);
    moe_reserve_varying(&e->back, &e->back_capacity, here[ranks], sizeof *e->back, "returned rows");
    for (int q = 0; q < ranks; q++) {
        const char *from =
            returned_from(e, unit, q, own + back[rank] * bytes, &landed, here[q + 1] - here[q]);
        for (int64_t i = here[q]; i < here[q + 1]; i++) {
            e->back[i] = from + (i - here[q]) * bytes;
        }
    }
    return (moe_returned){.row = e->back, .format = e->combined, .hidden = e->inbox.hidden};
}

void moe_exchange_combine(moe_exchange *e,
                          const moe_plan *plan,
                          const real *results,
                          int32_t devices_per_node,
                          real *y) {
    moe_sum_order order = {plan->num_tokens, plan->token_row_offset, plan->token_row,
                           plan->row_device};
    moe_returned b;
    if (moe_row_format_hops(plan->mode) > 1) {
        b = moe_relay_bring(e, plan, results, devices_per_node, &order);
    } else if (e->inbox.chunks > 1) {
        b = moe_chunks_bring(e, plan, results);
    } else {
        b = moe_exchange_bring(e, MOE_UNIT_ROW, e->inbox.rank_row, plan->rank_row, results);
    }
    moe_returned_sum(e, &order, &b, devices_per_node, y);
}
