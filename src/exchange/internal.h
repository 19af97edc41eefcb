/* internal.h: what the files of the exchange share: the counts and offsets of one Alltoallv, one
 * hop there and back, and the inbox. */
#ifndef MOESIM_EXCHANGE_INTERNAL_H
#define MOESIM_EXCHANGE_INTERNAL_H

#include "exchange/exchange.h"

/* In units of the Alltoallv's rows; each use is over before the next begins. */
typedef struct moe_exchange_layout {
    int64_t *send_count, *send_offset, *recv_count, *recv_offset; /* [ranks] */
} moe_exchange_layout;

/* Local. The arrays, which the exchange owns. */
moe_exchange_layout moe_exchange_layout_of(const moe_exchange *e);

/* Local. Puts blocks one behind the other. */
void moe_exchange_layout_set_offsets(const moe_exchange_layout *l, int ranks);

/* Local. Rows for and from each other rank, from the first ones [ranks + 1]; none for the own. Send
 * offsets and receive offsets leave out the own rank's block. */
moe_exchange_layout moe_exchange_layout_vectors(const moe_exchange *e,
                                                const int64_t *send,
                                                const int64_t *recv);

/* --- exchange.c: one hop there --- */

/* Collective. Sizes and metadata: fills the inbox but for its vectors. before: the inbox whose rows
 * are the plan's tokens, or NULL. */
void moe_exchange_announce(moe_exchange *e,
                           const moe_comm *comm,
                           const moe_plan *plan,
                           const moe_placement *placement,
                           int64_t hidden,
                           int64_t most_pairs_global,
                           const moe_inbox *before);

/* Collective. Sends the vectors of the plan's rows, `bytes` long, which are copied from `tokens`,
 * to `to`: those from other ranks without gaps, or with `whole` all rows of the inbox. */
void moe_exchange_move(moe_exchange *e,
                       const moe_plan *plan,
                       const char *tokens,
                       int64_t bytes,
                       char *to,
                       bool whole);

/* Collective. One number of each pair of the inbox becomes returned [plan pairs]. */
void moe_exchange_bring_pairs(moe_exchange *e,
                              const moe_plan *plan,
                              const real *values,
                              real *returned);

/* --- combine.c: one hop back --- */

/* Where results stand that came back: those from other ranks without gaps, those of the own rank
 * where they were. */
typedef struct moe_returned {
    const real *back, *own;
    int64_t own_begin, own_end, hidden;
} moe_returned;

/* Local. The vector of result i. */
const real *moe_returned_row(const moe_returned *b, int64_t i);

/* Collective. results go back: those for rank q, of which this rank has its share, are back[q] ..
 * back[q + 1] - 1, and those that come back from it take the places here[q] .. here[q + 1] - 1. */
moe_returned moe_exchange_bring(moe_exchange *e,
                                const int64_t *back,
                                const int64_t *here,
                                const real *results);

/* The order in which results are added up: those of token t are term[offset[t]] .., and result i
 * comes from device[i]. */
typedef struct moe_sum_order {
    int64_t num_tokens;
    const int64_t *offset, *term;
    const int32_t *device;
} moe_sum_order;

/* Local. sum [tokens,H]: experts of a device, devices of a node, nodes, each in ascending order. */
void moe_returned_sum(moe_exchange *e,
                      const moe_sum_order *order,
                      const moe_returned *b,
                      int32_t devices_per_node,
                      real *sum);

/* --- inbox.c; all local --- */

/* Reads the words that arrived into the rows and pairs of the inbox. */
void moe_inbox_read(moe_exchange *e,
                    const moe_plan *plan,
                    const moe_placement *placement,
                    int64_t num_words);
/* count rows of format f as numbers: themselves, or decoded in rows->rounded. varies: the count
 * changes from step to step. */
const real *moe_inbox_rows_decoded(moe_inbox_rows *rows,
                                   moe_payload_format f,
                                   const char *coded,
                                   int64_t count,
                                   int64_t hidden,
                                   bool varies);
/* Groups pairs by (local device, slot). */
void moe_inbox_group(moe_inbox *in, const moe_placement *placement, int32_t first_device);

/* --- relay.c: what stands between two hops --- */

/* Collective. The first hop's metadata, and the plan of the second. */
void moe_relay_announce(moe_exchange *e,
                        const moe_comm *comm,
                        const moe_plan *plan,
                        const moe_placement *placement,
                        int64_t hidden,
                        int64_t most_pairs_global);

/* Collective. Brings tokens [T], each `bytes` of format f, to the rows that arrive; returns them.
 * *local [rows,H] becomes the same as numbers. gradient: they are dy. */
const char *moe_relay_move(moe_exchange *e,
                           const moe_plan *plan,
                           const char *tokens,
                           moe_payload_format f,
                           bool gradient,
                           moe_inbox_rows *rows);

/* Collective. From what came back in the second hop to what comes back in the first, and the order
 * in which it is added up. */
moe_returned moe_relay_bring(moe_exchange *e,
                             const moe_plan *plan,
                             const real *results,
                             int32_t devices_per_node,
                             moe_sum_order *order);

void moe_relay_bring_pairs(moe_exchange *e,
                           const moe_plan *plan,
                           const real *values,
                           real *returned);
void moe_relay_free(moe_relay *relay);

#endif
