/* exchange.h: dispatch and combine: carries out a plan with MPI_Alltoallv (carry.c), or inside a
 * host through shared memory (near.c). docs/method.md section 4.
 *
 * Sizes go first (rows and pairs of every pair of ranks), then the metadata (tokens, experts and
 * weights), or both in one block where that is small (announce.c); then the hidden vectors.
 * Combine walks the plan backwards. Rows whose source and destination are on the same rank stay
 * where they are: their vectors are read from x, their results are read in place; they count in
 * every figure that is per device. Where a payload is narrower than fp32, every vector is rounded,
 * also of rows that stay where they are: what is computed depends on the configuration and not on
 * where devices live. x is rounded once for each token, what an expert's device returns once for
 * each row; sums are made in `real`. Two things of equal shape meet here: the rows that this rank
 * sends (the plan's) and those that it receives (the inbox's).
 *
 * With several chunks (chunks.h) a pass is dispatch, and for each chunk receive, the experts and
 * return; then combine. With one, dispatch and combine do all, and the two between do nothing.
 *
 * In mode `two_level` a second exchange follows the first (relay.c): the rows that arrived at this
 * rank's devices are its tokens, and its inbox is the one that the experts look at. */
#ifndef MOESIM_EXCHANGE_EXCHANGE_H
#define MOESIM_EXCHANGE_EXCHANGE_H

#include <stdint.h>

#include "base/alloc.h"
#include "base/block.h"
#include "base/sparse.h"
#include "exchange/chunks.h"
#include "exchange/payload.h"
#include "exchange/plan.h"
#include "world/comm.h"
#include "world/window.h"

/* Where rows land that MPI_Alltoallv brings. Zeroed at first. */
typedef struct moe_landing {
    char *rows;       /* owned */
    int64_t capacity; /* in bytes */
} moe_landing;

/* What the ranks of the host read, or write, in each other's memory. Zeroed at first. */
typedef struct moe_shown {
    moe_window window; /* a piece for each rank */
    int64_t barriers;  /* of the host, when it was shown: it is read until the next one at least */
} moe_shown;

/* What a rank has for another one, or gets from it. */
typedef struct moe_counts {
    int64_t rows, pairs, parts;
} moe_counts;

/* One vector for each row of the inbox. */
typedef struct moe_inbox_rows {
    const real **row;    /* [num_rows] where its vector [H] stands: among the own tokens or those of
                            a rank of the host, or where it landed or was decoded */
    moe_shown tokens;    /* [T] of each rank of the host, as they travel; of a first hop the rows
                            that arrived */
    moe_landing landing; /* of rows that are not rounded; else memory of what was decoded */
    real *rounded;       /* [T,H] as a narrow payload left it; of a second hop [rows of the first,H]
                          */
    int64_t rounded_capacity;
} moe_inbox_rows;

/* What arrived at the devices of this rank in one hop. Rows are ordered by (sending rank, sending
 * device, destination device, source device, token, expert); the sending device is the token's
 * device, the source, but in a second hop. The memory of the arrays belongs to moe_exchange. */
typedef struct moe_inbox {
    int32_t devices, num_local, slots; /* D, local devices, expert slots per device */
    int64_t hidden;                    /* H */
    int64_t num_rows, num_pairs;
    int64_t *rank_row;      /* [ranks + 1] first row from a rank */
    int32_t *row_device;    /* [num_rows] the local device that it is for */
    int32_t *row_token;     /* [num_rows] token id on the source rank */
    int32_t *row_source;    /* [num_rows] source device; NULL with one hop */
    int64_t *row_number;    /* [num_rows] the token in the line of all tokens; likewise */
    int64_t *source_row;    /* [num_rows] rows by (source device, token); NULL but in a second hop,
                               elsewhere they stand in that order */
    int64_t *row_pair;      /* [num_rows + 1] first pair of a row */
    int32_t *pair_expert;   /* [num_pairs] ascending within a row */
    real *pair_weight;      /* [num_pairs] */
    int64_t *pair_row;      /* [num_pairs] */
    int64_t num_cells;      /* device pairs from which rows arrived */
    moe_sparse_cell *cell;  /* [num_cells] (sending device, destination device, rows), global ids */
    int64_t *source_count;  /* scratch [D + 1] of a second hop */
    int32_t chunks;         /* 1 or more */
    moe_chunk_order order;  /* of the rows by chunk, where there are several */
    int64_t *slot_offset;   /* [num_local * slots + 1] pairs grouped by (local device, slot) */
    int64_t *group_offset;  /* [num_local * slots * chunks + 1] and by chunk within a slot: the rows
                               of an expert's GEMMs. With one chunk it is slot_offset */
    int64_t *slot_pair;     /* [num_pairs] pair ids in that order; within a slot and chunk they are
                               in the order of (source device, token). NULL in the first of two
                               hops */
    int64_t *pair_position; /* [num_pairs] the inverse of slot_pair */
    const int32_t *local_token; /* [own rows] local token ids of the rows from the own rank; in a
                                   second hop the rows of the first one */
    int64_t own_begin, own_end; /* rows from the own rank */
    real *results;              /* [num_rows,H] where the experts' results are best written, as the
                                   host reads them there; NULL: anywhere */
    moe_inbox_rows x;           /* hidden vectors (forward) */
    moe_inbox_rows dy;          /* gradients of what combine added up (backward) */
} moe_inbox;

/* Zeroed before the first dispatch; its memory is used again from step to step. */
typedef struct moe_exchange {
    const moe_comm *comm;
    moe_host *host; /* the ranks to which rows go through shared memory, be it this rank alone;
                       NULL, on all ranks alike: MPI_Alltoallv carries all. Set by the caller before
                       the dispatch */
    moe_payload_format dispatched, combined; /* of x; of results, dy and dx. Set by the caller
                                                before the dispatch; zeroed, all is fp32 */
    bool node_sum;   /* likewise, of mode two_level: nodes add up what their devices return */
    int32_t chunks;  /* likewise; 0 stands for 1, which two hops and shared memory need */
    moe_inbox inbox; /* of the only hop, or of the second */
    struct moe_relay *relay; /* the first hop of two; made by the first dispatch that has one */
    int64_t most_rows;       /* T_global * K: no rank holds more rows, which all ranks know */

    moe_counts *counts;                  /* [2][ranks] for and from each rank */
    moe_counts *landing;                 /* [2][ranks of the host] what each gets from all, and
                                            from the ranks below this one */
    const moe_row_format *format;        /* of the plan's rows */
    int64_t *layout;                     /* [4][ranks] counts and offsets of one Alltoallv */
    int64_t *word_begin, *word_arriving; /* [ranks + 1] metadata for and from each rank */
    const int32_t **word_from;           /* [ranks] where those from each rank stand */
    int32_t *block;                      /* [2][ranks][block_words] sizes and metadata for and from
                                            each rank, where they travel together */
    int64_t block_words;                 /* 0: they do not */
    real *sums;                          /* [threads][3,H] sums of combine, and a row decoded */
    int threads;                         /* as many as there were at the dispatch */
    moe_block fixed; /* memory of these, and of the inbox's arrays by device, rank and slot */

    moe_block arrived;     /* memory of the inbox's arrays by row and pair */
    moe_shown board;       /* counts and metadata of each rank of the host */
    moe_shown results;     /* what the ranks of the host return, as it travels */
    moe_shown pairs;       /* numbers of pairs, likewise */
    moe_landing words_out; /* metadata, where there is no board */
    moe_landing words;     /* metadata from ranks of other hosts */
    moe_landing returned;  /* what combine brought from them, or rows on their way to them */
    moe_landing arriving;  /* narrow payloads: rows from them, as bytes */
    const char **back;     /* [rows or parts of the plan] where each that came back stands */
    int64_t back_capacity;
    char *coded;            /* narrow payloads: tokens or results as bytes, without a host */
    int64_t coded_capacity; /* in bytes */

    /* with several chunks */
    moe_chunk_order sent; /* of the plan's rows */
    moe_air air;
    const char *tokens;          /* what goes to the experts: [T] in the format of the wire, */
    moe_payload_format outgoing; /* which is this one, */
    moe_inbox_rows *going_to;    /* and where it arrives */
    moe_landing sending;   /* vectors for other ranks by chunk: [rows for other ranks], as bytes */
    moe_landing returning; /* narrow payloads: the results of the inbox's rows, as bytes */
} moe_exchange;

/* Two hops: what the second one starts from. Zeroed at first, like the exchange that owns it. */
typedef struct moe_relay {
    moe_exchange first; /* its inbox holds the rows that this rank's devices pass on, and x and dy
                           those of all ranks, the own one too, in `remote` */
    moe_plan plan;      /* of the second hop */

    int64_t *device_offset, *order; /* [num_local + 1], [rows]: the arrived rows by local device */
    int64_t *part_begin; /* [2][ranks + 1] where the parts for a rank begin, and those from it */
    moe_block block;     /* memory of these three */

    real *returned;     /* [rows,H] or [parts,H]: what goes back to the tokens' devices */
    real *second_pairs; /* [pairs] numbers in the order of the second plan, */
    real *first_pairs;  /* [pairs] and in that of the first inbox */
    int64_t returned_capacity, second_capacity, first_capacity;
} moe_relay;

/* Local. The plan and the inbox of a hop of the plan's mode: 0 is the first. */
static inline const moe_plan *moe_exchange_plan_of(const moe_exchange *e,
                                                   const moe_plan *plan,
                                                   int hop) {
    return hop == 0 ? plan : &e->relay->plan;
}
static inline const moe_inbox *moe_exchange_inbox_of(const moe_exchange *e,
                                                     const moe_plan *plan,
                                                     int hop) {
    return hop + 1 == moe_row_format_hops(plan->mode) ? &e->inbox : &e->relay->first.inbox;
}

/* Local. Bytes of metadata that a row of a hop, and each of its pairs, cost on the wire. */
int64_t moe_exchange_row_metadata_bytes(enum moe_exchange_mode mode, int hop);
int64_t moe_exchange_pair_metadata_bytes(void);

/* Local. The bytes of the block in which a rank tells each other one its sizes and metadata: room
 * for what `num_tokens_global` tokens with at most `most_pairs_global` pairs in all can need, the
 * same on all ranks. 0: they go in two calls, as in mode `two_level` and where the blocks of a rank
 * would have more than 16 KiB together. */
int64_t moe_exchange_block_bytes(enum moe_exchange_mode mode,
                                 int32_t devices,
                                 int32_t ranks,
                                 int64_t num_tokens_global,
                                 int64_t most_pairs_global);

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
static inline const real *moe_inbox_row(const moe_inbox *in, int64_t r) {
    return in->x.row[r];
}

/* Local. Where the result of row r of the inbox stands among all: by chunk, where there are
 * several. */
static inline int64_t moe_inbox_result(const moe_inbox *in, int64_t r) {
    return in->order.place ? in->order.place[r] : r;
}

/* Collective. Returns when the vectors of a chunk have arrived, and sends the next one off. */
void moe_exchange_receive(moe_exchange *e, const moe_plan *plan, int32_t chunk);
/* Collective. Sends the results of a chunk off; results is that of combine. */
void moe_exchange_return(moe_exchange *e, int32_t chunk, const real *results);
/* Local. A chunk of the last pass on one of its ways; there are several chunks. */
const moe_flight *moe_exchange_flight(const moe_exchange *e, enum moe_way way, int32_t chunk);
/* Local. Lets MPI work on what is under way, by the thread that speaks to it: between products of
 * experts. */
void moe_exchange_progress(moe_exchange *e);

/* Collective. results [inbox rows, H] is what the experts return for each row (at
 * moe_inbox_result), weighted and summed inside the device. y [T,H] becomes the sum over nodes of
 * the sum over a node's devices of the sum over a device's experts, each in ascending order. With
 * two hops devices_per_node is the placement's. */
void moe_exchange_combine(moe_exchange *e,
                          const moe_plan *plan,
                          const real *results,
                          int32_t devices_per_node,
                          real *y);

/* Collective. The backward of combine: sends dy [T,H] along the rows of the dispatch that filled
 * the inbox; they arrive in inbox.dy. */
void moe_exchange_dispatch_gradient(moe_exchange *e, const moe_plan *plan, const real *dy);

/* Collective. Brings one number of each pair back from where its expert is to where its token is:
 * values [inbox pairs] become returned [plan pairs]. */
void moe_exchange_return_pairs(moe_exchange *e,
                               const moe_plan *plan,
                               const real *values,
                               real *returned);

void moe_exchange_free(moe_exchange *e);

#endif
