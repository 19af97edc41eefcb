/* scopes.h: the balance losses in all three scopes, completed over all devices. docs/method.md
 * section 2.
 *
 *   sequence  per sequence, then the plain mean over the sequences that hold a counted token; a
 *             sequence that spans devices is completed first
 *   device    per DEVICE (a rank may host several), then the plain mean over the devices that hold
 *             a counted token
 *   global    counts and score sums of all devices, then one product; of the tokens of this
 *             micro-batch, or of the whole step where these have been summed before (whole)
 *
 * Sums over ranks are integer sums and the means are exact sums, so that the results do not depend
 * on the number of ranks. */
#ifndef MOESIM_BALANCE_SCOPES_H
#define MOESIM_BALANCE_SCOPES_H

#include <stdbool.h>
#include <stdint.h>

#include "balance/balance.h"
#include "base/exact.h"
#include "data/batch.h"
#include "router/stats.h"
#include "world/comm.h"

typedef struct moe_scopes {
    double loss[MOE_NUM_SCOPES][MOE_NUM_LOSSES]; /* raw; NaN without scores */
    double ideal[MOE_NUM_LOSSES];                /* at perfect balance (global) */
    int64_t population[MOE_NUM_SCOPES];          /* sequences and devices with a counted token; 1 */
    int64_t first_sequence;                      /* of this rank */
    moe_stats sequence, device, global; /* cells: local sequences (complete), local devices, one;
                                           those of sequences are the segments' own where no
                                           sequence lies on several devices */
    moe_stats shared; /* the vector of the sum over ranks: the global cell, those of sequences that
                         several ranks hold, sums of losses */
    int64_t num_shared, *list; /* those sequences: how many, and their ids */
    int64_t list_room;
    const int64_t *whole; /* the global cell of all micro-batches of the step, which takes the place
                             of this micro-batch's; NULL: it does not. Not owned */
    int32_t micro_batches; /* of the step, where there is such a cell */
    moe_stats cut;         /* cells of the sequences that several parts of a rank hold (below), */
    int64_t *cut_list;     /* and their ids */
    int64_t cut_room;
    int64_t allreduce_bytes; /* payload given to MPI_Allreduce, as if every device were a rank,
                                summed over devices */
} moe_scopes;

/* Who counts the rows that local device j gave to MPI_Alltoallv: tokens [D] becomes the rows for
 * each device. */
typedef struct moe_sent_rows {
    void (*count)(const void *self, int32_t j, int64_t *tokens);
    const void *self;
} moe_sent_rows;

/* Local. Counts the share of this rank. segments: one cell per segment of the batch
 * (moe_router_route); they must stay as long as the scopes are read, because a sequence that
 * lies on one device has no other cell. sent_rows, if not NULL: the rows serve as the distinct
 * tokens of scopes device and global (the caller has asserted that they are equal). */
void moe_scopes_count(moe_scopes *s,
                      const moe_balance *balance,
                      const moe_placement *placement,
                      const moe_batch *batch,
                      const moe_stats *segments,
                      const moe_sent_rows *sent_rows);
/* Local. The vector that has to be summed over the ranks between the two; returns its length. */
int64_t moe_scopes_vector(const moe_scopes *s, int64_t **words);
/* Local. Makes the losses from the summed vector. */
void moe_scopes_complete(moe_scopes *s,
                         const moe_balance *balance,
                         const moe_placement *placement,
                         const moe_batch *batch);

/* The same in parts, for many devices: cells of all of them would take devices x experts. A part
 * is a run of local devices that one thread goes through. Each device hands in the cells of its
 * segments, which then may be forgotten: of its sequences only those stay that are not complete.
 * The bits are those of moe_scopes_count. Afterwards there are cells of neither sequences nor
 * devices. */
enum {
    MOE_SCOPES_MEAN_WORDS = MOE_NUM_LOSSES * MOE_EXACT_WORDS + 1 /* exact sums of the losses, and
                                                                    how many were added */
};
typedef struct moe_scopes_part {
    moe_stats sum;      /* one cell: of the part's devices */
    moe_stats sequence; /* one cell: of the sequence that is being added up, */
    int64_t open;       /* which is this one, or -1 */
    int64_t losses[2][MOE_SCOPES_MEAN_WORDS];
} moe_scopes_part;

/* Local. The first local device of part p of `parts`. */
int32_t moe_scopes_part_begin(const moe_batch *batch, int32_t parts, int32_t p);

/* Local. Begins the count of this rank. */
void moe_scopes_start(moe_scopes *s,
                      const moe_batch *batch,
                      const moe_placement *placement,
                      int32_t parts);
/* Local, each part by one thread. Begins a part; adds a device, whose segments have `cells`, which
 * are changed; and adds the part to the rest. */
void moe_scopes_part_start(const moe_scopes *s, moe_scopes_part *part);
void moe_scopes_part_add(moe_scopes *s,
                         moe_scopes_part *part,
                         const moe_balance *balance,
                         const moe_placement *placement,
                         const moe_batch *device,
                         moe_stats *cells);
void moe_scopes_part_finish(moe_scopes *s, const moe_scopes_part *part);
void moe_scopes_part_free(moe_scopes_part *part);
/* Local. When all parts are finished: then moe_scopes_vector and moe_scopes_complete follow. */
void moe_scopes_parts_done(moe_scopes *s, const moe_balance *balance, const moe_placement *p);

/* Collective. The three in one, with a sum of their own. */
void moe_scopes_reduce(moe_scopes *s,
                       const moe_comm *comm,
                       const moe_balance *balance,
                       const moe_placement *placement,
                       const moe_batch *batch,
                       const moe_stats *segments,
                       const moe_sent_rows *sent_rows);

/* Local. Adds the tokens of a layer, which moe_scopes_reduce has completed, to those of the layers
 * before it; `first` begins anew. */
void moe_scopes_add_layer(moe_scopes *sum, const moe_scopes *layer, bool first);
/* Collective. Makes the losses of all layers together, and their values at balance. Only losses
 * that look at no device are asked for. */
void moe_scopes_finish(moe_scopes *sum,
                       const moe_comm *comm,
                       const moe_balance *balance,
                       const moe_placement *placement,
                       const moe_batch *batch);

/* Collective. Adds the global cell of this micro-batch to `whole`, after moe_scopes_count in a pass
 * that makes no losses. */
void moe_scopes_add_global(const moe_scopes *s, const moe_comm *comm, int64_t *whole);

/* Local. The global cell of this micro-batch alone. */
int64_t *moe_scopes_micro_batch(const moe_scopes *s);
/* Local. Counted tokens of a micro-batch: all of a step have the same number. */
int64_t moe_scopes_tokens(const moe_scopes *s);

/* Local. The cell that holds segment i of the batch in a scope. *divisor = what its gradient is
 * divided by: the tokens of the cell times the population of the scope; of a cell of the whole
 * step the tokens of one micro-batch, since gradients are averaged over the micro-batches. */
int64_t *moe_scopes_cell(const moe_scopes *s,
                         enum moe_scope scope,
                         const moe_batch *batch,
                         int64_t i,
                         double *divisor);

/* Local. Whether this rank counts a sequence: it holds its first token. */
bool moe_scopes_owns(const moe_batch *b, int64_t sequence);

void moe_scopes_free(moe_scopes *s);

#endif
