/* exchange.h: dispatch and combine: carries out a plan with MPI_Alltoallv. docs/method.md
 * section 4.
 *
 * Sizes go first (rows and pairs of every pair of ranks), then the metadata (tokens, experts and
 * weights), in small steps both together, then the hidden vectors. Combine walks the plan
 * backwards. Rows whose source and destination are on the same rank stay where they are: their
 * vectors are read from x, their results are read in place; they count in every figure that is per
 * device. Where a payload is narrower than fp32, every vector is rounded, also of rows that stay
 * where they are: what is computed depends on the configuration and not on where devices live. x is
 * rounded once for each token, what an expert's device returns once for each row; sums are made in
 * `real`. Two things of equal shape meet here: the rows that this rank sends (the plan's) and those
 * that it receives (the inbox's). */
#ifndef MOESIM_EXCHANGE_EXCHANGE_H
#define MOESIM_EXCHANGE_EXCHANGE_H

#include <stdint.h>

#include "base/alloc.h"
#include "base/block.h"
#include "base/sparse.h"
#include "exchange/payload.h"
#include "exchange/plan.h"
#include "world/comm.h"

/* One vector for each row of the inbox: rows from other ranks stand in `remote`, rows of the own
 * rank are read from its own tokens. */
typedef struct moe_inbox_rows {
    const real *local; /* [T,H]: the caller's, or `rounded` */
    real *remote;      /* [num_rows - own rows, H] */
    int64_t capacity;  /* of remote, in numbers */
    real *rounded;     /* [T,H] as a narrow payload left it */
    int64_t rounded_capacity;
} moe_inbox_rows;

/* What arrived at the devices of this rank. Rows are ordered by (source rank, source device,
 * destination device, token, expert). The memory of the arrays belongs to moe_exchange. */
typedef struct moe_inbox {
    int32_t devices, num_local, slots; /* D, local devices, expert slots per device */
    int64_t hidden;                    /* H */
    int64_t num_rows, num_pairs;
    int64_t *rank_row;      /* [ranks + 1] first row from a rank */
    int32_t *row_device;    /* [num_rows] the local device that it is for */
    int32_t *row_token;     /* [num_rows] token id on the source rank */
    int64_t *row_pair;      /* [num_rows + 1] first pair of a row */
    int32_t *pair_expert;   /* [num_pairs] ascending within a row */
    real *pair_weight;      /* [num_pairs] */
    int64_t *pair_row;      /* [num_pairs] */
    int64_t num_cells;      /* device pairs from which rows arrived */
    moe_sparse_cell *cell;  /* [num_cells] (source device, destination device, rows), global ids */
    int64_t *slot_offset;   /* [num_local * slots + 1] pairs grouped by (local device, slot):
                               the rows of an expert's GEMMs */
    int64_t *slot_pair;     /* [num_pairs] pair ids in that order; within a slot they are in the
                               order of (source device, token) */
    int64_t *pair_position; /* [num_pairs] the inverse of slot_pair */
    const int32_t *local_token; /* [own rows] local token ids of the rows from the own rank */
    int64_t own_begin, own_end; /* rows from the own rank */
    moe_inbox_rows x;           /* hidden vectors (forward) */
    moe_inbox_rows dy;          /* gradients of what combine added up (backward) */
} moe_inbox;

/* Zeroed before the first dispatch; its memory is used again from step to step. */
typedef struct moe_exchange {
    const moe_comm *comm;
    moe_payload_format dispatched, combined; /* of x; of results, dy and dx. Set by the caller
                                                before the dispatch; zeroed, all is fp32 */
    moe_inbox inbox;
    int64_t most_rows; /* T_global * K: no rank holds more rows, which all ranks know */

    int64_t *sizes;      /* [2][ranks][2] rows and pairs for and from each rank */
    int64_t *layout;     /* [4][ranks] counts and offsets of one Alltoallv */
    real *sums;          /* [threads][2,H] sums of combine */
    int threads;         /* as many as there were at the dispatch */
    int64_t block_words; /* of sizes and metadata that travel together; 0 where they do not */
    int32_t *blocks;     /* [2][ranks][block_words] for and from each rank */
    moe_block fixed;     /* memory of these, and of the inbox's arrays by device, rank and slot */

    int32_t *words_out, *words_in; /* metadata that travel by themselves */
    moe_block arrived;             /* memory of these, and of the inbox's arrays by row and pair */

    real *outgoing; /* [rows for other ranks, H] packed for dispatch; later what combine brought
                       (of a narrow payload for all rows of the plan) */
    int64_t outgoing_capacity; /* in numbers */

    char *coded, *arriving; /* narrow payloads: tokens or results as bytes; rows from others */
    int64_t coded_capacity, arriving_capacity;
} moe_exchange;

/* Local. Bytes of metadata that a row, and each of its pairs, cost on the wire. */
int64_t moe_exchange_row_metadata_bytes(enum moe_exchange_mode mode);
int64_t moe_exchange_pair_metadata_bytes(void);

/* Collective. Sends sizes, metadata and the rows of x [T,H]; fills the inbox and groups it by
 * expert. x must stay unchanged until combine, or backward, is done. most_pairs_global is T_global
 * * K, the same on all ranks. */
void moe_exchange_dispatch(moe_exchange *e,
                           const moe_comm *comm,
                           const moe_plan *plan,
                           const moe_placement *placement,
                           const real *x,
                           int64_t hidden,
                           int64_t most_pairs_global);

/* Local. The vector of row r of the inbox. */
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

/* Collective. results [inbox rows, H] is what the experts return for each row, weighted and summed
 * inside the device. y [T,H] becomes the sum over nodes of the sum over a node's devices of the sum
 * over a device's experts, each in ascending order. */
void moe_exchange_combine(moe_exchange *e,
                          const moe_plan *plan,
                          const real *results,
                          int32_t devices_per_node,
                          real *y);

/* Collective. The backward of combine: sends dy [T,H] along the rows of the dispatch that filled
 * the inbox; they arrive in inbox.dy. */
void moe_exchange_dispatch_gradient(moe_exchange *e, const moe_plan *plan, const real *dy);

/* Collective. The backward of dispatch: results become dx as moe_exchange_combine makes y, and one
 * number of each pair comes back from where its expert is to where its token is: values [inbox
 * pairs] become returned [plan pairs]. In a small step both travel in one message. */
void moe_exchange_combine_gradient(moe_exchange *e,
                                   const moe_plan *plan,
                                   const real *results,
                                   const real *values,
                                   int32_t devices_per_node,
                                   real *dx,
                                   real *returned);

void moe_exchange_free(moe_exchange *e);

#endif
