/* internal.h: what the files of the exchange share: how rows are carried, one hop there and back,
 * and the inbox. */
#ifndef MOESIM_EXCHANGE_INTERNAL_H
#define MOESIM_EXCHANGE_INTERNAL_H

#include "exchange/exchange.h"

/* --- carry.c --- */

/* What is carried. */
enum moe_flow {
    MOE_FLOW_WORDS,   /* metadata */
    MOE_FLOW_VECTORS, /* of the plan's rows; those for the own rank stay where they are */
    MOE_FLOW_RELAYED, /* the same, those for the own rank too */
    MOE_FLOW_RESULTS, /* one for each row, back; those for the own rank stay where they are */
    MOE_FLOW_PARTS,   /* one for each part of a row, likewise */
    MOE_FLOW_PAIRS    /* a number for each pair, back */
};

/* Rows on their way: those for rank q are begin[q] .. begin[q + 1] - 1, and those from it take the
 * places arriving[q] .. arriving[q + 1] - 1, which move up where the own rank's stay away. */
typedef struct moe_cargo {
    enum moe_flow flow;
    const int64_t *begin, *arriving; /* [ranks + 1] */
    const char *from;     /* row i is number i of these, or number index[i], `stride` bytes each */
    const int32_t *index; /* or NULL: then they stand without gaps unless they are encoded */
    int64_t stride;
    int64_t bytes; /* of a row on its way */
    bool encoded;  /* `from` are numbers [hidden], which become bytes of the format on the way */
    moe_payload_format format;
    int64_t hidden;
    int64_t most;     /* no rank has or gets more rows, which all ranks know */
    char *into;       /* where they land if not in a window; NULL: in memory of the landing */
    const char *what; /* names that memory */
} moe_cargo;

/* Collective. Returns where the rows have landed: l->rows. */
char *moe_exchange_carry(moe_exchange *e, const moe_cargo *cargo, moe_landing *l);

/* Local. Whether rank q shares memory with this one, and rows go there through it. */
bool moe_exchange_is_near(const moe_exchange *e, int q);

/* Local. Memory for this rank alone; l->rows. */
char *moe_landing_memory(moe_landing *l, int64_t bytes, const char *what);
/* Collective among the ranks of the host, where windows were used. */
void moe_landing_free(moe_landing *l);

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
 * to `l`: those from other ranks without gaps, or with `whole` all rows of the inbox. */
char *moe_exchange_move(moe_exchange *e,
                        const moe_plan *plan,
                        const char *tokens,
                        int64_t bytes,
                        moe_landing *l,
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
    const int64_t *place; /* of each result, by chunk, `others` of them from other ranks; NULL: as
                             above */
    int64_t others;
} moe_returned;

/* Local. The vector of result i. */
const real *moe_returned_row(const moe_returned *b, int64_t i);

/* Collective. results go back, or parts: those for rank q, of which this rank has its share, are
 * back[q] .. back[q + 1] - 1, and those that come back from it take the places here[q] ..
 * here[q + 1] - 1. */
moe_returned moe_exchange_bring(moe_exchange *e,
                                enum moe_flow flow,
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

/* --- chunks.c --- */

/* Local. The orders of both sides, once the metadata have arrived. */
void moe_chunks_order(moe_exchange *e, const moe_plan *plan);
/* Collective. Sends the first chunk of tokens [T] in format f off, to `rows`. */
void moe_chunks_dispatch(moe_exchange *e,
                         const moe_plan *plan,
                         const char *tokens,
                         moe_payload_format f,
                         moe_inbox_rows *rows);
/* Collective. Waits for the last chunk of the results. */
moe_returned moe_chunks_bring(moe_exchange *e, const moe_plan *plan, const real *results);

/* --- inbox.c; all local --- */

/* Reads the words that arrived into the rows and pairs of the inbox. */
void moe_inbox_read(moe_exchange *e,
                    const moe_plan *plan,
                    const moe_placement *placement,
                    const int32_t *word,
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
