/* plan.h: which row goes from which device to which: the exchange as data, before a byte moves. The
 * plan can be printed, and tested without MPI.
 *
 * A pair is one (token, expert) selection. A row is one hidden vector on its way to a device: in
 * mode `token` one row for each (token, device), with the experts that it is for listed beside it;
 * in mode `selection` one for each (token, expert) (row_format.h). Every row has one or more pairs,
 * in ascending order of (device, expert). Rows are ordered by (destination rank, source device,
 * destination device, token, expert): the block for a rank, and within it the block of a device
 * pair, are contiguous, and a receiver that goes through its rows in order meets source devices,
 * then tokens, in ascending order. Backward walks the same plan the other way.
 *
 * In mode `two_level` a row moves twice, and each hop has a plan. The first one has a row for each
 * (token, node), which stops at the device of that node with the place that the token's device has
 * in its own; the second one, made there, has as its tokens the rows that arrived, and a row for
 * each of their devices. The parts of a row of the first hop are its devices: what comes back of it
 * where the node does not add them up. */
#ifndef MOESIM_EXCHANGE_PLAN_H
#define MOESIM_EXCHANGE_PLAN_H

#include <stdint.h>

#include "base/block.h"
#include "config/config.h"
#include "data/batch.h"
#include "exchange/row_format.h"
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
    int hop;                      /* 0 is the first */
    const moe_row_format *format; /* of the hop's rows */
    int32_t devices;              /* D */
    int32_t devices_per_node;
    int32_t first_device, num_local; /* this rank's source devices are first_device ..
                                        first_device + num_local - 1 */
    int32_t ranks;                   /* every rank hosts num_local devices */
    int64_t num_tokens_global, num_tokens, num_rows, num_pairs;
    int64_t num_parts; /* 0 but in the first of two hops */

    int64_t *device_cell;          /* [num_local + 1] first cell of a source device */
    int64_t *rank_row, *rank_pair; /* [ranks + 1] first row, first pair of the block for a rank */
    int64_t *token_row_offset;     /* [num_tokens + 1] into token_row */
    int64_t *token_part_offset;    /* [num_tokens + 1] into token_part; NULL without parts */
    int64_t *count;                /* scratch [2][D] of one source device: counts, then cursors */
    uint64_t *reached;             /* scratch: a bit for each device */
    int64_t *next_cell;            /* scratch [num_local] */
    moe_block fixed;               /* memory of these eight */

    moe_plan_cell *cell; /* device pairs that have rows, ascending by (from, to) */
    moe_block cells;     /* its memory */

    int32_t *row_token;  /* [num_rows] local token id */
    int32_t *row_device; /* [num_rows] the device where it stops */
    int64_t *row_pair;   /* [num_rows + 1] first pair of a row */
    int64_t *token_row;  /* [num_rows] rows of a token in ascending (device, expert): the order of
                            summation */
    int64_t *row_part;   /* [num_rows + 1] first part of a row; NULL without parts */
    moe_block rows;      /* memory of these five */

    int32_t *part_device; /* [num_parts] */
    int64_t *token_part;  /* [num_parts] parts of a token in ascending order of devices */
    moe_block parts;      /* memory of these two */

    int32_t *pair_expert;    /* [num_pairs] */
    real *pair_weight;       /* [num_pairs] */
    int64_t *pair_selection; /* [num_pairs] index into routing->expert: where dg goes back to */
    int64_t *key;            /* scratch [num_pairs] */
    moe_block pairs;         /* memory of these four */
} moe_plan;

/* Local. Builds the plan of this rank, of the first hop, from its routing. *plan is zeroed before
 * the first call; its memory is used again from call to call. The caller owns it: moe_plan_free. */
void moe_plan_build(moe_plan *plan,
                    enum moe_exchange_mode mode,
                    const moe_batch *batch,
                    const moe_placement *placement,
                    int32_t ranks,
                    const moe_routing *routing);

/* The rows that arrived at this rank's devices and go on in the second hop, as tokens whose
 * selections are the rows' pairs. Arrays belong to whoever received them. */
typedef struct moe_plan_arrived {
    int64_t num_rows, num_pairs;
    const int64_t *device_offset; /* [num_local + 1] into `order`: the rows at a local device */
    const int64_t *order;         /* [num_rows] */
    const int64_t *row_pair;      /* [num_rows + 1] first pair */
    const int64_t *row_number;    /* [num_rows] the token, in the line of all tokens, */
    const int32_t *row_source;    /* [num_rows] and its device */
    const int32_t *pair_expert;   /* [num_pairs] */
    const real *pair_weight;      /* [num_pairs] */
} moe_plan_arrived;

/* Local. Builds the plan of the second hop; pair_selection are pairs of `arrived`. */
void moe_plan_build_second(moe_plan *plan,
                           const moe_plan *first,
                           const moe_placement *placement,
                           const moe_plan_arrived *arrived);
void moe_plan_free(moe_plan *plan);

/* Local. The device where a pair for `device`, of a token of device `source`, stops at the end of
 * the plan's hop. */
static inline int32_t moe_plan_stop(const moe_plan *plan, int32_t device, int32_t source) {
    if (!plan->format->several_devices) {
        return device;
    }
    return device - device % plan->devices_per_node + source % plan->devices_per_node;
}

/* Local. Checks the plan from scratch against the routing that it was built from: every selection
 * is in exactly one pair, of a row to its expert's device; rows are distinct and ordered; counts
 * add up. Returns NULL, or a static sentence that says what is wrong. */
const char *moe_plan_check(const moe_plan *plan,
                           const moe_placement *placement,
                           const moe_routing *routing);

#endif
