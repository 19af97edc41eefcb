/* chunks.h: the exchange in chunks, so that experts compute while vectors travel.
 *
 * Token i of a device with T tokens belongs to chunk floor(i c / T) of c, and so do its rows: a
 * function of the configuration only. Plan and inbox stay as they are with one chunk, and so do
 * sizes and metadata, which travel at once; vectors stand by chunk where they travel. One chunk of
 * each way is on its way at a time, by MPI_Ialltoallv. docs/method.md section 4. */
#ifndef MOESIM_EXCHANGE_CHUNKS_H
#define MOESIM_EXCHANGE_CHUNKS_H

#include <stdbool.h>
#include <stdint.h>

#include "world/comm.h"

/* The rows that a rank sends, or those that it receives, by chunk: first those for, or from, other
 * ranks by (chunk, rank), then those of the own rank by chunk; each in their own order. With one
 * chunk all arrays are NULL. */
typedef struct moe_chunk_order {
    int32_t *chunk; /* [num_rows] of each row */
    int64_t *row;   /* [num_rows] the rows in this order */
    int64_t *place; /* [num_rows] the inverse of it */
    int64_t *begin; /* [chunks * ranks + 1] places of other ranks' rows: those of chunk j and rank q
                       are begin[j * ranks + q] .. begin[j * ranks + q + 1] - 1 */
    int64_t *own;   /* [chunks + 1] places of the own rank's rows */
    int ranks;
} moe_chunk_order;

/* Local. The first place of the rows of a chunk for, or from, other ranks; `chunk` may be the
 * number of chunks. */
static inline int64_t moe_chunk_begin(const moe_chunk_order *o, int32_t chunk) {
    return o->begin[(int64_t)chunk * o->ranks];
}

enum moe_way { MOE_WAY_THERE, MOE_WAY_BACK, MOE_NUM_WAYS }; /* to the experts; to the tokens */

/* One chunk on one way, as this rank saw it. */
typedef struct moe_flight {
    double begin, end;      /* seconds of moe_comm_time: when MPI_Ialltoallv was called, and when a
                               call had found it done */
    int64_t sent, received; /* rows for and from other ranks */
} moe_flight;

/* Seconds in which vectors were on their way, and those of them that were spent in MPI. What is
 * left was hidden behind the experts. */
typedef struct moe_overlap {
    double in_flight, waited;
} moe_overlap;

/* What is on its way. Zeroed at first. */
typedef struct moe_air {
    moe_comm_request request[MOE_NUM_WAYS];
    bool under_way[MOE_NUM_WAYS];
    int32_t chunk[MOE_NUM_WAYS]; /* the one that is on its way, or was the last */
    double since;                /* from when on anything has been under way */
    moe_overlap seconds;         /* of the pass so far */
    moe_flight *flight;          /* [2][chunks] of the pass */
    int *counts;                 /* [2][4 * ranks] what MPI reads while it works */
} moe_air;

#endif
