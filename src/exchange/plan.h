/* plan.h: who sends which row to whom: the exchange as data, before a byte moves. Layer 2 (decide):
 * pure; printable; testable without MPI.
 *
 * A row is one hidden vector on its way to a device: in mode `token` one per (token, device) with
 * the experts it is for listed beside it, in mode `selection` one per (token, expert). A pair is
 * one (token, expert) selection. Every row has 1 or more pairs, in ascending expert id. Rows are
 * ordered by (destination rank, source device, destination device, token, expert), so each block
 * for a rank, and within it each block for a device pair, is contiguous, and a receiver that goes
 * through its rows in order meets source devices, then tokens, in ascending order. Backward walks
 * the same plan the other way. */
#ifndef MOESIM_EXCHANGE_PLAN_H
#define MOESIM_EXCHANGE_PLAN_H

#include <stdint.h>

#include "config/config.h"
#include "data/batch.h"
#include "placement/placement.h"
#include "router/routing.h"

typedef struct moe_plan {
    enum moe_exchange_mode mode;
    int32_t devices, first_device, num_local; /* D; local source devices first_device ..
                                                 first_device + num_local - 1 */
    int32_t ranks;                            /* every rank hosts num_local devices */
    int64_t num_tokens, num_rows, num_pairs;
    int64_t *rows_to, *pairs_to;   /* [num_local][D] */
    int64_t *rank_row, *rank_pair; /* [ranks + 1] first row / pair of the block for a rank */
    int32_t *row_token;            /* [num_rows] local token id */
    int32_t *row_device;           /* [num_rows] destination device */
    int64_t *row_pair;             /* [num_rows + 1] first pair of a row */
    int32_t *pair_expert;          /* [num_pairs] */
    real *pair_weight;             /* [num_pairs] */
    int64_t *pair_selection;   /* [num_pairs] index into routing->expert: where dg goes back to */
    int64_t *token_row_offset; /* [num_tokens + 1] */
    int64_t *token_row; /* [num_rows] rows of a token in ascending (device, expert): the order of
                           summation */
    int64_t token_room, row_room, pair_room, block_room; /* capacities of the arrays */
    int64_t *cursor;                                     /* scratch [2 * num_local * D] */
    int64_t *key;                                        /* scratch [num_pairs] */
    int64_t cursor_room, key_room;
} moe_plan;

/* Local. (Re)builds the plan of this rank from its routing; arrays are reused from call to call.
 * *plan must be zeroed before the first call. */
void moe_plan_build(moe_plan *plan,
                    enum moe_exchange_mode mode,
                    const moe_batch *batch,
                    const moe_placement *placement,
                    int32_t ranks,
                    const moe_routing *routing);
void moe_plan_free(moe_plan *plan);

/* Local. Checks the plan against the routing it was built from, from scratch: every selection is in
 * exactly one pair of a row to its expert's device, rows are distinct and ordered, counts add up.
 * Returns NULL or a static sentence saying what is wrong. */
const char *moe_plan_check(const moe_plan *plan,
                           const moe_placement *placement,
                           const moe_routing *routing);

#endif
