/* exchange.h: the dispatch and the combine: executes a plan with MPI_Alltoallv. Layer 3 (act).
 * method.md section 4.
 *
 * Sizes go first (MPI_Alltoall: rows and pairs of every device pair), then metadata (token,
 * experts, weights), then the hidden vectors. Rows whose source and destination are on the same
 * rank stay where they are: they are read from x and their results are read in place. They count in
 * every figure that is per device. Combine walks the plan backwards. Two things of equal shape meet
 * here: rows that this rank sends (the plan's) and rows that it receives (the inbox's). */
#ifndef MOESIM_EXCHANGE_EXCHANGE_H
#define MOESIM_EXCHANGE_EXCHANGE_H

#include <stdint.h>

#include "base/alloc.h"
#include "exchange/plan.h"
#include "world/comm.h"

/* One vector for each row of the inbox: rows from other ranks stand in `remote`, rows of the own
 * rank are read from its own tokens. */
typedef struct moe_inbox_rows {
    const real *local; /* [T,H] */
    real *remote;      /* [num_rows - own rows, H] */
    int64_t room;
} moe_inbox_rows;

/* What arrived at the devices of this rank. Rows are ordered by (source rank, source device,
 * destination device, token, expert). */
typedef struct moe_inbox {
    int32_t devices, num_local, slots; /* D, local devices, expert slots per device */
    int64_t num_rows, num_pairs;
    int64_t *rows_from, *pairs_from; /* [D][num_local]: from device d to local device j */
    int64_t *rank_row;               /* [ranks + 1] first row from a rank */
    int32_t *row_device;             /* [num_rows] local device it is for */
    int32_t *row_token;              /* [num_rows] token id on the source rank */
    int64_t *row_pair;               /* [num_rows + 1] */
    int32_t *pair_expert;            /* [num_pairs] ascending within a row */
    real *pair_weight;               /* [num_pairs] */
    int64_t *pair_row;               /* [num_pairs] */
    int64_t *slot_offset;   /* [num_local * slots + 1] pairs grouped by (local device, slot): the
                               GEMM's rows */
    int64_t *slot_pair;     /* [num_pairs] pair ids in that order; within a slot in (source device,
                               token) order */
    int64_t *pair_position; /* [num_pairs] its inverse */
    const int32_t *local_token; /* [own rows] local token ids of the rows from the own rank */
    int64_t own_begin, own_end; /* rows from the own rank */
    int64_t hidden;
    moe_inbox_rows x;  /* hidden vectors (forward) */
    moe_inbox_rows dy; /* gradients of what combine added up (backward) */
    int64_t device_room, row_room, pair_room, slot_room;
} moe_inbox;

typedef struct moe_exchange {
    const moe_comm *comm;
    moe_inbox inbox;
    real *outgoing; /* [rows for other ranks, H]: packed for dispatch, later what combine brought
                       back */
    int32_t *words_out, *words_in; /* metadata */
    int64_t *sizes;                /* scratch for the sizes */
    int64_t *layout;               /* scratch for counts and offsets by rank */
    real *scratch;                 /* per thread [2, H]: sums of combine */
    int64_t outgoing_room, words_out_room, words_in_room, sizes_room, layout_room, scratch_room;
    int64_t most_rows; /* T_global * K: no rank holds more rows, known to all */
} moe_exchange;

/* Local. Bytes of metadata that a row and a pair cost on the wire in this mode: token: id and count
 * per row; selection: id per row. */
int64_t moe_exchange_row_metadata_bytes(enum moe_exchange_mode mode);
int64_t moe_exchange_pair_metadata_bytes(void);

/* Collective. Sends sizes, metadata and rows of x [T,H]; fills the inbox, grouped by expert. x must
 * stay unchanged until combine is done. most_pairs_global: T_global * K, the same on all ranks. */
void moe_exchange_dispatch(moe_exchange *e,
                           const moe_comm *comm,
                           const moe_plan *plan,
                           const moe_placement *placement,
                           const real *x,
                           int64_t hidden,
                           int64_t most_pairs_global);

/* Local. Vector of row r of the inbox. */
static inline const real *moe_inbox_vector(const moe_inbox *in,
                                           const moe_inbox_rows *rows,
                                           int64_t r) {
    if (r >= in->own_begin && r < in->own_end) {
        return rows->local + in->local_token[r - in->own_begin] * in->hidden;
    }
    return rows->remote + (r < in->own_begin ? r : r - (in->own_end - in->own_begin)) * in->hidden;
}
static inline const real *moe_inbox_row(const moe_inbox *in, int64_t r) {
    return moe_inbox_vector(in, &in->x, r);
}

/* Collective. results [inbox rows, H]: what the experts return for each row, already weighted and
 * summed inside the device. y [T,H] = the sum over nodes of the sum over a node's devices of the
 * sum over a device's experts, each in ascending order. */
void moe_exchange_combine(
    moe_exchange *e, const moe_plan *plan, const real *results, int32_t devices_per_node, real *y);

/* Collective, backward of combine: sends dy [T,H] along the rows of the dispatch that filled the
 * inbox; it arrives in inbox.dy. */
void moe_exchange_dispatch_gradient(moe_exchange *e, const moe_plan *plan, const real *dy);

/* Collective: one number per pair from where the expert is back to the token: values [inbox pairs]
 * -> returned [plan pairs]. */
void moe_exchange_return_pairs(moe_exchange *e,
                               const moe_plan *plan,
                               const real *values,
                               real *returned);

void moe_exchange_free(moe_exchange *e);

#endif
