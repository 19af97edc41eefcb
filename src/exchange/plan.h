/* plan.h: which row goes from which device to which: the exchange as data, before a byte moves. The
 * plan can be printed, and tested without MPI.
 *
 * A pair is one (token, expert) selection. A row is one hidden vector on its way to a device: in
 * mode `token` one row for each (token, device), with the experts that it is for listed beside it;
 * in mode `selection` one for each (token, expert) (row_format.h). Every row has one or more pairs,
 * in ascending order of experts. Rows are ordered by (destination rank, source device, destination
 * device, token, expert): the block for a rank, and within it the block of a device pair, are
 * contiguous, and a receiver that goes through its rows in order meets source devices, then tokens,
 * in ascending order. Backward walks the same plan the other way. */
#ifndef MOESIM_EXCHANGE_PLAN_H
#define MOESIM_EXCHANGE_PLAN_H

#include <stdint.h>

#include "base/block.h"
#include "config/config.h"
#include "data/batch.h"
#include "placement/placement.h"
#include "router/routing.h"

/* The rows from one device of this rank to one device: those of the plan that begin with first_row.
 */
typedef struct moe_plan_cell {
    int32_t from, to; /* global ids */
    int64_t rows, pairs, first_row, first_pair;
} moe_plan_cell;

typedef struct moe_plan {
    enum moe_exchange_mode mode;
    int32_t devices;                 /* D */
    int32_t first_device, num_local; /* this rank's source devices are first_device ..
                                        first_device + num_local - 1 */
    int32_t ranks;                   /* every rank hosts num_local devices */
    int64_t num_tokens_global, num_tokens, num_rows, num_pairs;

    int64_t *device_cell;          /* [num_local + 1] first cell of a source device */
    int64_t *rank_row, *rank_pair; /* [ranks + 1] first row, first pair of the block for a rank */
    int64_t *token_row_offset;     /* [num_tokens + 1] into token_row */
    int64_t *count;                /* scratch [2][D] of one source device: counts, then cursors */
    uint64_t *reached;             /* scratch: a bit for each device */
    int64_t *next_cell;            /* scratch [num_local] */
    moe_block fixed;               /* memory of these seven */

    moe_plan_cell *cell; /* device pairs that have rows, ascending by (from, to) */
    moe_block cells;     /* its memory */

    int32_t *row_token;  /* [num_rows] local token id */
    int32_t *row_device; /* [num_rows] destination device */
    int64_t *row_pair;   /* [num_rows + 1] first pair of a row */
    int64_t *token_row;  /* [num_rows] rows of a token in ascending (device, expert): the order of
                            summation */
    moe_block rows;      /* memory of these four */

    int32_t *pair_expert;    /* [num_pairs] */
    real *pair_weight;       /* [num_pairs] */
    int64_t *pair_selection; /* [num_pairs] index into routing->expert: where dg goes back to */
    int64_t *key;            /* scratch [num_pairs] */
    moe_block pairs;         /* memory of these four */
} moe_plan;

/* Local. Builds the plan of this rank from its routing. *plan is zeroed before the first call; its
 * memory is used again from call to call. The caller owns it: moe_plan_free. */
void moe_plan_build(moe_plan *plan,
                    enum moe_exchange_mode mode,
                    const moe_batch *batch,
                    const moe_placement *placement,
                    int32_t ranks,
                    const moe_routing *routing);
void moe_plan_free(moe_plan *plan);

/* Local. Checks the plan from scratch against the routing that it was built from: every selection
 * is in exactly one pair, of a row to its expert's device; rows are distinct and ordered; counts
 * add up. Returns NULL, or a static sentence that says what is wrong. */
const char *moe_plan_check(const moe_plan *plan,
                           const moe_placement *placement,
                           const moe_routing *routing);

#endif
