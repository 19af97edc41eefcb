/* keyed.h: random vectors that are keyed by what they stand for: by a token's place in the batch,
 * or by the row of a table that tokens share (the centre of a topic, the embedding of a byte). A
 * rank makes its own tokens' vectors only, and they have the same bits whatever the ranks. */
#ifndef MOESIM_DATA_KEYED_H
#define MOESIM_DATA_KEYED_H

#include <stdint.h>

#include "base/rng.h"
#include "data/batch.h"

/* Local. x [T,H] of a step: standard normal, keyed by the step and the token's place in the batch.
 * They stand in for the hidden states where the source of the data (recorded logits, recorded
 * routing) has none. */
void moe_keyed_vectors(int64_t seed, int64_t hidden, const moe_batch *b, int64_t step, real *x);

/* A table of random rows, of which only those are made that some token needs, each once. */
typedef struct moe_keyed_table {
    int32_t *place; /* [num_rows] where row i stands among those that were made; -1 = not needed */
    real *row;      /* [needed, width] */
    int32_t num_rows, needed;
    int64_t most; /* no more rows than this can be needed */
    int64_t width;
    moe_scratch *scratch; /* may be NULL */
} moe_keyed_table;

/* Local. Begin with a table of num_rows rows of width, of which at most `most` will be needed; name
 * each row that is needed, any number of times; fill the table; read rows; end. */
moe_keyed_table moe_keyed_table_begin(moe_scratch *scratch,
                                      int32_t num_rows,
                                      int64_t most,
                                      int64_t width);
void moe_keyed_table_need(moe_keyed_table *t, int32_t i);
/* Local. Row i becomes scale times the standard normal vector (i / columns, i % columns) of rng. */
void moe_keyed_table_fill(moe_keyed_table *t, moe_rng rng, int32_t columns, double scale);
static inline const real *moe_keyed_table_row(const moe_keyed_table *t, int32_t i) {
    return t->row + t->place[i] * t->width;
}
void moe_keyed_table_end(moe_keyed_table *t);

#endif
