/* keyed.c: vectors as pure functions of global ids. */
#include "data/keyed.h"

void moe_keyed_vectors(int64_t seed, int64_t hidden, const moe_batch *b, int64_t step, real *x) {
    moe_rng rng = {(uint64_t)seed, MOE_RNG_TOKEN_VECTOR};
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < b->num_tokens; t++) {
        moe_rng_normal(rng, (uint64_t)step, (uint64_t)(b->first_token + t), 1, x + t * hidden,
                       hidden);
    }
}

moe_keyed_table moe_keyed_table_begin(moe_scratch *scratch,
                                      int32_t num_rows,
                                      int64_t most,
                                      int64_t width) {
    moe_keyed_table t = {.num_rows = num_rows,
                         .most = most < num_rows ? most : num_rows,
                         .width = width,
                         .scratch = scratch};
    t.place = moe_scratch_take(scratch, num_rows, sizeof *t.place, "table of vectors");
    for (int32_t i = 0; i < num_rows; i++) {
        t.place[i] = -1;
    }
    return t;
}

void moe_keyed_table_need(moe_keyed_table *t, int32_t i) {
    if (t->place[i] < 0) {
        t->place[i] = t->needed++;
    }
}

void moe_keyed_table_fill(moe_keyed_table *t, moe_rng rng, int32_t columns, double scale) {
    t->row = moe_scratch_take(t->scratch, t->most * t->width, sizeof *t->row, "table of vectors");
#pragma omp parallel for schedule(dynamic)
    for (int32_t i = 0; i < t->num_rows; i++) {
        if (t->place[i] >= 0) {
            moe_rng_normal(rng, (uint64_t)(i / columns), (uint64_t)(i % columns), scale,
                           t->row + t->place[i] * t->width, t->width);
        }
    }
}

void moe_keyed_table_end(moe_keyed_table *t) {
    moe_scratch_give(t->scratch, t->place);
    moe_scratch_give(t->scratch, t->row);
}
