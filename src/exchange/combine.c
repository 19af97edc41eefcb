/* combine.c: the way back: results travel along the plan's rows to their tokens, where they are
 * added up in one order in every mode: experts of a device, devices of a node, nodes. */
#include <omp.h>
#include <string.h>

#include "base/status.h"
#include "base/vector.h"
#include "exchange/internal.h"
#include "exchange/row_format.h"

/* --- sums --- */

const real *moe_returned_row(const moe_returned *b, int64_t i) {
    if (b->place) {
        int64_t place = b->place[i];
        return place < b->others ? b->back + place * b->hidden
                                 : b->own + (place - b->others) * b->hidden;
    }
    if (i >= b->own_begin && i < b->own_end) {
        return b->own + (i - b->own_begin) * b->hidden;
    }
    return b->back + (i < b->own_begin ? i : i - (b->own_end - b->own_begin)) * b->hidden;
}

/* to = a + b; `to` may be a. */
MOE_CLONES static void sum_of(real *to, const real *a, const real *b, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        to[i] = a[i] + b[i];
    }
}

/* What one device returns for a token, whose results from this device begin at term *i: its only
 * one where it stands, or the sum of them, in ascending order of experts, in scratch. *i becomes
 * the term behind them. */
static const real *device_sum(const moe_sum_order *order,
                              const moe_returned *b,
                              int64_t *i,
                              int64_t end,
                              real *scratch) {
    const int64_t *term = order->term;
    int32_t device = order->device[term[*i]];
    const real *sum = moe_returned_row(b, term[*i]);
    for (++*i; *i < end && order->device[term[*i]] == device; ++*i) {
        sum_of(scratch, sum, moe_returned_row(b, term[*i]), b->hidden);
        sum = scratch;
    }
    return sum;
}

/* y of one token. scratch [2,H] is for the sum of a node and the sum of a device. */
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
        const real *sum = device_sum(order, b, &i, end, to);
        while (i < end && order->device[order->term[i]] / devices_per_node == node) {
            sum_of(to, sum, device_sum(order, b, &i, end, scratch + h), h);
            sum = to;
        }
        if (!first_node) {
            sum_of(y, y, sum, h);
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
        sum_token(order, b, t, devices_per_node, e->sums + omp_get_thread_num() * 2 * b->hidden,
                  sum + t * b->hidden);
    }
}

/* --- bringing results back --- */

/* Results for the own rank stand among the others: they are read there. */
static moe_returned bring_whole(moe_exchange *e, const moe_cargo *cargo) {
    int rank = e->comm->rank;
    const char *back = moe_exchange_carry(e, cargo, &e->returned);
    return (moe_returned){
        .back = (const real *)(const void *)back,
        .own = (const real *)(const void *)(cargo->from + cargo->begin[rank] * cargo->stride),
        .own_begin = cargo->arriving[rank],
        .own_end = cargo->arriving[rank + 1],
        .hidden = cargo->hidden};
}

/* The same in a narrow payload: all results become bytes, and bytes numbers again, those of the own
 * rank too. */
static moe_returned bring_rounded(moe_exchange *e, moe_cargo *cargo) {
    moe_payload_format f = cargo->format;
    int rank = e->comm->rank, ranks = e->comm->size;
    const int64_t *here = cargo->arriving;
    int64_t h = cargo->hidden, begin = here[rank], end = here[rank + 1];
    int64_t others = here[ranks] - (end - begin);
    cargo->encoded = true;
    cargo->bytes = moe_payload_bytes(f, h);
    const char *back = moe_exchange_carry(e, cargo, &e->arriving);
    real *numbers = (real *)(void *)moe_landing_memory(
        &e->returned, here[ranks] * h * (int64_t)sizeof(real), "returned rows");
    moe_reserve_varying(&e->coded, &e->coded_capacity, (end - begin) * cargo->bytes, 1,
                        "rows that stay");
    moe_payload_encode_all(
        f, (const real *)(const void *)(cargo->from + cargo->begin[rank] * cargo->stride),
        end - begin, h, e->coded);
    moe_payload_decode_all(f, back, begin, h, numbers);
    moe_payload_decode_all(f, e->coded, end - begin, h, numbers + begin * h);
    moe_payload_decode_all(f, back + begin * cargo->bytes, others - begin, h, numbers + end * h);
    return (moe_returned){.back = numbers, .hidden = h};
}

moe_returned moe_exchange_bring(moe_exchange *e,
                                enum moe_flow flow,
                                const int64_t *back,
                                const int64_t *here,
                                const real *results) {
    int64_t h = e->inbox.hidden, bytes = h * (int64_t)sizeof(real);
    moe_cargo cargo = {.flow = flow,
                       .begin = back,
                       .arriving = here,
                       .from = (const char *)results,
                       .stride = bytes,
                       .bytes = bytes,
                       .format = e->combined,
                       .hidden = h,
                       .most = e->most_rows,
                       .what = "returned rows"};
    return moe_payload_rounds(e->combined) ? bring_rounded(e, &cargo) : bring_whole(e, &cargo);
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
        b = moe_exchange_bring(e, MOE_FLOW_RESULTS, e->inbox.rank_row, plan->rank_row, results);
    }
    moe_returned_sum(e, &order, &b, devices_per_node, y);
}
