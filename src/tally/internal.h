/* internal.h: the vector in which a layer is counted, and the parts that count into it. */
#ifndef MOESIM_TALLY_INTERNAL_H
#define MOESIM_TALLY_INTERNAL_H

#include "base/exact.h"
#include "measure/metrics.h"
#include "model/layer.h"

enum moe_tally_scalar {
    MOE_TALLY_SELECTIONS,      /* pairs that the router chose */
    MOE_TALLY_REACHED,         /* distinct devices, summed over tokens */
    MOE_TALLY_UNLIMITED,       /* the same of the greedy choice, without a group limit */
    MOE_TALLY_NODES,           /* distinct nodes, summed over tokens */
    MOE_TALLY_REMOTE_NODES,    /* those of them that are not the token's own */
    MOE_TALLY_UNLIMITED_NODES, /* distinct nodes of the greedy choice */
    MOE_TALLY_EXPECTED_ROWS, /* recounted from the routing: pairs, or distinct devices per token */
    MOE_TALLY_ALL_ROWS,      /* rows that would be sent if nothing were dropped */
    MOE_TALLY_PLANNED_ROWS,
    MOE_TALLY_RECEIVED_ROWS,
    MOE_TALLY_EXPECTED_FIRST, /* the same four of the first of two hops: distinct nodes */
    MOE_TALLY_ALL_FIRST,
    MOE_TALLY_PLANNED_FIRST,
    MOE_TALLY_RECEIVED_FIRST,
    MOE_TALLY_WIRE_ROWS, /* rows given to MPI_Alltoallv, in all hops */
    MOE_TALLY_OWN_ROWS,  /* rows that stay inside a rank */
    MOE_TALLY_RECEIVED_PAIRS,
    MOE_TALLY_NOT_FINITE,     /* tokens with a NaN or Inf in logits or output */
    MOE_TALLY_BAD_WEIGHTS,    /* tokens whose combine weights have a wrong sum */
    MOE_TALLY_BAD_GROUPS,     /* tokens that reach too many groups */
    MOE_TALLY_BAD_DEVICES,    /* tokens that reach too many devices */
    MOE_TALLY_THEOREM_TOKENS, /* tokens for which the theorem on distinct groups was checked */
    MOE_TALLY_THEOREM_BAD,    /* tokens for which it does not hold */
    MOE_TALLY_COMM_BAD,       /* device pairs whose rows are not the distinct tokens of f'' */
    MOE_TALLY_NUM_SCALARS
};

/* What is counted by level. */
enum moe_tally_level {
    MOE_TALLY_LEVEL_ROWS, /* of the first hop and of the second, as their source saw them */
    MOE_TALLY_LEVEL_PAIRS = MOE_TALLY_LEVEL_ROWS + MOE_MOST_HOPS,  /* token-expert pairs likewise */
    MOE_TALLY_LEVEL_PARTS = MOE_TALLY_LEVEL_PAIRS + MOE_MOST_HOPS, /* devices behind the rows of the
                                                                      first of two hops */
    MOE_TALLY_LEVEL_TOKEN,     /* rows that mode `token` would send, with two hops */
    MOE_TALLY_LEVEL_SELECTION, /* and mode `selection` */
    MOE_TALLY_NUM_LEVEL_COUNTS
};

/* Arrays of counts, one after the other in one vector that is summed over the ranks. */
typedef struct moe_tally {
    int64_t *words, count;  /* the vector */
    int64_t *counts;        /* [N] selections by expert */
    int64_t *by_device;     /* [D] selections by the device that would serve them */
    int64_t *sent_rows;     /* [D] rows by source device, as their source saw them */
    int64_t *received_rows; /* [D] rows by destination device, as their destination saw them */
    int64_t *device_pairs;  /* [D] token-expert pairs by destination device */
    int64_t (*level)[MOE_NUM_LEVELS]; /* [MOE_TALLY_NUM_LEVEL_COUNTS] */
    int64_t *num_cells; /* [hops][2][ranks] device pairs with rows: as sent, as received */
    int64_t *sent;      /* [D*D] rows, source -> destination; NULL with many devices */
    int64_t *received;  /* [D*D] the same as their destination saw them */
    int64_t *reach;     /* [65] tokens by the number of devices that they reach */
    int64_t *output;    /* [MOE_EXACT_WORDS] exact sum of the mean squares of y */
    int64_t *scalar;    /* [MOE_TALLY_NUM_SCALARS] */
    int64_t *drop;      /* [moe_tally_drop_words] */
    int64_t different;  /* device pairs whose two ends saw another number of rows; filled in
                           by moe_tally_matrix */
} moe_tally;

/* --- matrix.c: the rows of every device pair, as both ends saw them --- */

/* Local. The words that device pairs need in the vector, apart from sums. */
int64_t moe_tally_matrix_words(const moe_context *context);
/* Local. Sets the pointers to them, in words [moe_tally_matrix_words]. */
void moe_tally_matrix_place(moe_tally *t, const moe_context *context, int64_t *words);
/* Local. Counts the share of this rank. */
void moe_tally_matrix_count(moe_tally *t, const moe_context *context, const moe_activations *a);
/* Collective. Once the vector is summed: fills in the matrix and t->different. */
void moe_tally_matrix(moe_tally *t,
                      const moe_context *context,
                      const moe_activations *a,
                      moe_sparse *matrix);

/* --- drop.c: what a capacity dropped; all local --- */

/* How many words dropping needs in the vector. */
int64_t moe_tally_drop_words(const moe_context *context);
/* Counts the share of this rank. */
void moe_tally_drop_count(const moe_layer *layer,
                          const moe_context *context,
                          const moe_activations *a,
                          int64_t *words);
/* Fills in kept and dropped pairs and the metrics of the capacity from the sums over the ranks.
 * rows_saved: rows of dispatch without dropping less rows sent; back_saved: those of combine. */
void moe_tally_drop_fill(const moe_context *context,
                         const moe_activations *a,
                         const int64_t *words,
                         int64_t rows_saved,
                         int64_t back_saved,
                         moe_layer_metrics *out);

/* --- checks.c: the self-checks of a layer --- */

/* Local. Counts on this rank what speaks against it. y [T,H] is the layer's output. */
void moe_tally_checks_count(moe_tally *t,
                            const moe_layer *layer,
                            const moe_context *context,
                            const moe_activations *a,
                            const real *y);
/* Collective. Makes the checks from the sums over the ranks, when the layer's metrics are filled
 * in. not_finite_here: this rank's share of MOE_TALLY_NOT_FINITE, so that the first rank can be
 * named. */
void moe_tally_checks_make(const moe_tally *t,
                           const moe_layer *layer,
                           const moe_context *context,
                           int64_t not_finite_here,
                           moe_step_metrics *metrics);

#endif
