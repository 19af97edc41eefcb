/* relay.c: what stands between the two hops of mode `two_level`. Rows that arrived at this rank's
 * devices go on inside their node, and what the node's devices return for them goes back, added up
 * or one by one. docs/method.md section 4.
 *
 * Each hop is an exchange like that of the other modes; the second one has the arrived rows as its
 * tokens. A vector is rounded once on its way there: the relay passes bytes on. On its way back it
 * is rounded where a sum was made: at the experts' device, and with node_sum here. The advantage of
 * two plain exchanges is that nothing else knows of the second; the price is that rows which stay
 * on their rank in the first hop are copied. */
#include <string.h>

#include "base/status.h"
#include "exchange/internal.h"
#include "exchange/row_format.h"

/* --- there --- */

static void reserve(moe_relay *relay, const moe_plan *plan) {
    const moe_block_array table[] = {
        MOE_ARRAY(relay->device_offset, plan->num_local + 1),
        MOE_ARRAY(relay->order, relay->first.inbox.num_rows),
        MOE_ARRAY(relay->part_begin, 2 * ((int64_t)plan->ranks + 1)),
    };
    moe_block_reserve_varying(&relay->block, table, MOE_ARRAYS(table), "relay");
}

/* Lists the arrived rows by local device; the counting sort is stable. */
static void sort_by_device(moe_relay *relay) {
    const moe_inbox *in = &relay->first.inbox;
    int64_t *offset = relay->device_offset;
    memset(offset, 0, (size_t)(in->num_local + 1) * sizeof *offset);
    for (int64_t r = 0; r < in->num_rows; r++) {
        offset[in->row_device[r] + 1]++;
    }
    for (int32_t j = 0; j < in->num_local; j++) {
        offset[j + 1] += offset[j];
    }
    for (int64_t r = 0; r < in->num_rows; r++) {
        relay->order[offset[in->row_device[r]]++] = r;
    }
    for (int32_t j = in->num_local; j > 0; j--) { /* each is the end of its device now */
        offset[j] = offset[j - 1];
    }
    offset[0] = 0;
}

void moe_relay_announce(moe_exchange *e,
                        const moe_comm *comm,
                        const moe_plan *plan,
                        const moe_placement *placement,
                        int64_t hidden,
                        int64_t most_pairs_global) {
    if (!e->relay) {
        e->relay = moe_alloc_zero(1, sizeof *e->relay, "relay");
    }
    moe_relay *relay = e->relay;
    const moe_inbox *in = &relay->first.inbox;
    relay->first.host = e->host;
    relay->first.dispatched = e->dispatched;
    relay->first.combined = e->combined;
    moe_exchange_announce(&relay->first, comm, plan, placement, hidden, most_pairs_global, NULL);
    reserve(relay, plan);
    sort_by_device(relay);
    moe_plan_build_second(&relay->plan, plan, placement,
                          &(moe_plan_arrived){.num_rows = in->num_rows,
                                              .num_pairs = in->num_pairs,
                                              .device_offset = relay->device_offset,
                                              .order = relay->order,
                                              .row_pair = in->row_pair,
                                              .row_number = in->row_number,
                                              .row_source = in->row_source,
                                              .pair_expert = in->pair_expert,
                                              .pair_weight = in->pair_weight});
}

/* Whether rows go on to another host. */
static bool leaves_host(const moe_exchange *e, const moe_plan *second) {
    for (int q = 0; q < second->ranks; q++) {
        if (moe_exchange_is_far(e, q) && second->rank_row[q + 1] > second->rank_row[q]) {
            return true;
        }
    }
    return false;
}

/* Rows of the own host stay where they are, unless they go on to another one. */
static char *move_by_host(moe_exchange *e, int64_t bytes, bool gradient) {
    moe_exchange *first = &e->relay->first;
    if (!moe_exchange_has_far(e)) {
        return NULL;
    }
    char *to = moe_near_landing(first, bytes, gradient ? &first->inbox.dy : &first->inbox.x);
    if (leaves_host(e, &e->relay->plan)) {
        moe_near_copy(first, bytes, gradient ? &e->inbox.dy : &e->inbox.x, to);
    }
    return to;
}

/* Rows that stay on their rank are copied to the others. */
static char *move_alone(moe_exchange *e,
                        const moe_plan *plan,
                        const char *tokens,
                        int64_t bytes,
                        bool gradient) {
    moe_inbox *in = &e->relay->first.inbox;
    const int rank = e->comm->rank;
    char *to = moe_landing_memory(gradient ? &in->dy.landing : &in->x.landing, in->num_rows * bytes,
                                  "rows on their way");
    const moe_cargo own = {.from = tokens, .index = plan->row_token, .bytes = bytes};
#pragma omp parallel
    moe_cargo_write(&own, plan->rank_row[rank], plan->rank_row[rank + 1],
                    to + in->rank_row[rank] * bytes);
    return to;
}

const char *moe_relay_move(moe_exchange *e,
                           const moe_plan *plan,
                           const char *tokens,
                           moe_payload_format f,
                           bool gradient) {
    const int64_t bytes = moe_payload_bytes(f, e->inbox.hidden);
    char *to =
        e->host ? move_by_host(e, bytes, gradient) : move_alone(e, plan, tokens, bytes, gradient);
    moe_exchange_move(&e->relay->first, plan, tokens, bytes, NULL, to);
    return to;
}

/* --- back --- */

/* Where what goes back is written: `count` vectors, that is `what` of the first hop. */
static real *room_for(moe_relay *relay, enum moe_unit unit, int64_t count, const char *name) {
    real *shown = moe_exchange_results(&relay->first, unit);
    if (shown) {
        return shown;
    }
    moe_reserve_varying(&relay->returned, &relay->returned_capacity,
                        count * relay->first.inbox.hidden, sizeof(real), name);
    return relay->returned;
}

/* What came back for each arrived row, added up. */
static moe_returned bring_sums(moe_exchange *e,
                               const moe_plan *plan,
                               const moe_returned *b,
                               int32_t devices_per_node) {
    moe_relay *relay = e->relay;
    const moe_plan *second = &relay->plan;
    const moe_sum_order order = {second->num_tokens, second->token_row_offset, second->token_row,
                                 second->row_device};
    real *sums = room_for(relay, MOE_UNIT_ROW, second->num_tokens, "sums of a node");
    moe_returned_sum(e, &order, b, devices_per_node, sums);
    return moe_exchange_bring(&relay->first, MOE_UNIT_ROW, relay->first.inbox.rank_row,
                              plan->rank_row, sums);
}

/* What came back for each arrived row, one vector behind the other: the row's parts. */
static moe_returned bring_parts(moe_exchange *e, const moe_plan *plan, const moe_returned *b) {
    moe_relay *relay = e->relay;
    const moe_plan *second = &relay->plan;
    int64_t *back = relay->part_begin, *here = back + plan->ranks + 1;
    real *parts = room_for(relay, MOE_UNIT_PART, second->num_rows, "parts of a node");
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < second->num_rows; i++) {
        real *to = parts + i * b->hidden;
        const real *part = moe_returned_row(b, second->token_row[i], to);
        if (part != to) {
            memcpy(to, part, (size_t)b->hidden * sizeof(real));
        }
    }
    for (int32_t q = 0; q <= plan->ranks; q++) {
        back[q] = second->token_row_offset[relay->first.inbox.rank_row[q]];
        here[q] = plan->row_part[plan->rank_row[q]];
    }
    return moe_exchange_bring(&relay->first, MOE_UNIT_PART, back, here, parts);
}

moe_returned moe_relay_bring(moe_exchange *e,
                             const moe_plan *plan,
                             const real *results,
                             int32_t devices_per_node,
                             moe_sum_order *order) {
    moe_returned b =
        moe_exchange_bring(e, MOE_UNIT_ROW, e->inbox.rank_row, e->relay->plan.rank_row, results);
    MOE_ASSERT(devices_per_node == plan->devices_per_node);
    if (e->node_sum) {
        return bring_sums(e, plan, &b, devices_per_node);
    }
    *order = (moe_sum_order){plan->num_tokens, plan->token_part_offset, plan->token_part,
                             plan->part_device};
    return bring_parts(e, plan, &b);
}

void moe_relay_bring_pairs(moe_exchange *e,
                           const moe_plan *plan,
                           const real *values,
                           real *returned) {
    moe_relay *relay = e->relay;
    int64_t pairs = relay->plan.num_pairs;
    moe_reserve_varying(&relay->second_pairs, &relay->second_capacity, pairs, sizeof(real),
                        "relayed numbers");
    moe_reserve_varying(&relay->first_pairs, &relay->first_capacity, pairs, sizeof(real),
                        "relayed numbers");
    moe_exchange_bring_pairs(e, &relay->plan, values, relay->second_pairs);
    for (int64_t p = 0; p < pairs; p++) {
        relay->first_pairs[relay->plan.pair_selection[p]] = relay->second_pairs[p];
    }
    moe_exchange_bring_pairs(&relay->first, plan, relay->first_pairs, returned);
}

void moe_relay_free(moe_relay *relay) {
    if (!relay) {
        return;
    }
    moe_exchange_free(&relay->first);
    moe_plan_free(&relay->plan);
    moe_block_free(&relay->block);
    moe_free(relay->returned);
    moe_free(relay->second_pairs);
    moe_free(relay->first_pairs);
    moe_free(relay);
}
