/* internal.h: what the files of the exchange share: how rows are carried, one hop there and back,
 * and the inbox. */
#ifndef MOESIM_EXCHANGE_INTERNAL_H
#define MOESIM_EXCHANGE_INTERNAL_H

#include "exchange/exchange.h"

/* --- carry.c --- */

/* Rows on their way: those for rank q are begin[q] .. begin[q + 1] - 1, and those from it are
 * arriving[q] .. arriving[q + 1] - 1 of all that arrive. */
typedef struct moe_cargo {
    const int64_t *begin, *arriving; /* [ranks + 1] */
    const char *from;     /* row i is number i of these, or number index[i], without gaps */
    const int32_t *index; /* or NULL */
    int64_t bytes;        /* of a row */
    int64_t most;         /* no rank has or gets more rows, which all ranks know */
    char *into;           /* without a landing: where all that arrive have their places */
    const char *what;     /* names that memory */
} moe_cargo;

/* Collective. Carries what goes between ranks that do not share memory. Returns where it has
 * landed: in l, one row behind the other, or where l is NULL in cargo->into. */
const char *moe_exchange_carry(moe_exchange *e, const moe_cargo *cargo, moe_landing *l);

/* Local. Whether rows to and from rank q go by MPI_Alltoallv: it is another one, and shares no
 * memory with this one. Whether there is any such rank. */
bool moe_exchange_is_far(const moe_exchange *e, int q);
bool moe_exchange_has_far(const moe_exchange *e);

/* Local. count rows; and, by all threads of the team, rows begin .. end - 1 of a cargo. */
void moe_copy_rows(const char *from, int64_t count, int64_t bytes, char *to);
void moe_cargo_write(const moe_cargo *c, int64_t begin, int64_t end, char *to);

/* Local. l->rows, made large enough. */
char *moe_landing_memory(moe_landing *l, int64_t bytes, const char *what);
void moe_landing_free(moe_landing *l);

/* --- near.c: all collective among the ranks of the host but where it says otherwise --- */

/* What is counted of what a rank has for another. */
enum moe_unit { MOE_UNIT_ROW, MOE_UNIT_PAIR, MOE_UNIT_PART };

/* From begin, which returns this rank's piece, to end it is written; from end on it is read. */
char *moe_shown_begin(moe_shown *s, moe_host *h, const int64_t *bytes, const char *what);
void moe_shown_end(moe_shown *s, moe_host *h);
/* Waits until what was shown last is read no more. */
void moe_shown_wait(moe_shown *s, moe_host *h);
/* Copies rows into the piece after that wait, unless they stand there already. */
void moe_shown_write(moe_shown *s,
                     moe_host *h,
                     const char *from,
                     int64_t count,
                     int64_t bytes,
                     char *to);
void moe_shown_free(moe_shown *s);

/* Shows this rank's e->counts and metadata, and finds those of the others: e->counts of what
 * arrives, e->word_from. before: as in moe_exchange_announce. Its barrier shows tokens, too. */
void moe_near_announce(moe_exchange *e, const moe_plan *plan, const moe_inbox *before);

/* Where this rank's tokens [T] are to be written, `bytes` each, before the next barrier. */
char *moe_near_tokens(moe_exchange *e, const moe_plan *plan, int64_t bytes, moe_inbox_rows *rows);

/* Local. Where the rows stand that come from the host, but in a first hop from this rank:
 * rows->row. */
void moe_near_find(const moe_exchange *e,
                   const moe_plan *plan,
                   int64_t bytes,
                   moe_inbox_rows *rows);

/* Where the rows of a first hop land that come from other hosts, in their places among all. */
char *moe_near_landing(moe_exchange *e, int64_t bytes, moe_inbox_rows *rows);
/* Local. Copies the rows of a first hop that come from the host to their places there. rows: whose
 * tokens they are. */
void moe_near_copy(const moe_exchange *e, int64_t bytes, const moe_inbox_rows *rows, char *to);

/* Where this rank's results for all others are to be written, in their order. */
char *moe_near_results(moe_exchange *e, enum moe_unit unit, int64_t bytes, moe_shown *s);
/* Local. Where rank q of the host has those for this one. */
const char *moe_near_returned(const moe_exchange *e,
                              enum moe_unit unit,
                              int64_t bytes,
                              const moe_shown *s,
                              int q);

/* --- announce.c, exchange.c: one hop there --- */

/* Collective. Sizes and metadata: fills the inbox but for its vectors. before: the inbox whose rows
 * are the plan's tokens, or NULL. */
void moe_exchange_announce(moe_exchange *e,
                           const moe_comm *comm,
                           const moe_plan *plan,
                           const moe_placement *placement,
                           int64_t hidden,
                           int64_t most_pairs_global,
                           const moe_inbox *before);

/* Local. The metadata of the plan's rows begin .. end - 1, in the order of ranks. before: as above.
 */
void moe_exchange_write_words(const moe_plan *plan,
                              const moe_inbox *before,
                              int64_t begin,
                              int64_t end,
                              int32_t *word);

/* Collective. Sends the vectors of the plan's rows, `bytes` long, which are copied from `tokens`,
 * to ranks that are far. They land in l, or where it is NULL in their places among all rows of
 * `whole`. */
const char *moe_exchange_move(moe_exchange *e,
                              const moe_plan *plan,
                              const char *tokens,
                              int64_t bytes,
                              moe_landing *l,
                              char *whole);

/* --- pairs.c --- */

/* Collective. One number of each pair of the inbox becomes returned [plan pairs]. */
void moe_exchange_bring_pairs(moe_exchange *e,
                              const moe_plan *plan,
                              const real *values,
                              real *returned);

/* --- combine.c: one hop back --- */

/* Where each result stands that came back, as it travelled. */
typedef struct moe_returned {
    const char **row;
    moe_payload_format format;
    int64_t hidden;
} moe_returned;

/* Local. The vector of result i: where it stands, or decoded in `decoded` [H]. */
const real *moe_returned_row(const moe_returned *b, int64_t i, real *decoded);

/* Collective. Where results are best written, of which this rank has one per `unit` for the others:
 * in the memory of the host. NULL: anywhere. */
real *moe_exchange_results(moe_exchange *e, enum moe_unit unit);

/* Collective. results go back: those for rank q are back[q] .. back[q + 1] - 1, and those that come
 * back from it take the places here[q] .. here[q + 1] - 1. */
moe_returned moe_exchange_bring(moe_exchange *e,
                                enum moe_unit unit,
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
void moe_inbox_read(moe_exchange *e, const moe_plan *plan, const moe_placement *placement);
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

/* Collective. Brings tokens [T], in format f, to the rows that arrive in the first hop, and returns
 * those; of a host, what another host needs of them, which the host sees after its next barrier.
 * gradient: they are dy. */
const char *moe_relay_move(moe_exchange *e,
                           const moe_plan *plan,
                           const char *tokens,
                           moe_payload_format f,
                           bool gradient);

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
