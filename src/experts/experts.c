/* experts.c: each expert gathers its rows, runs its GEMMs in calls of MOE_GEMM_ROWS rows, and
 * writes its outputs side by side; a second pass adds up, for each row, its experts in ascending
 * order. Threads take whole experts, the one with the most rows first: which thread does what
 * changes no bit. */
#include "experts/experts.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "base/sums.h"
#include "base/vector.h"

/* --- scratch --- */

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Numbers that one thread needs for calls of c = min(MOE_GEMM_ROWS, most_rows) rows. Forward: x
 * [c,H] and h1, h3 [c,F]; backward: x, dy [c,H], and h1, h3 (computed again), h, dh, dh3 [c,F];
 * with adapters 2 [c,r] more. */
static int64_t numbers_of_thread(const moe_ffn *f, int64_t most_rows, bool backward) {
    return min64(most_rows, MOE_GEMM_ROWS) *
           ((backward ? 2 * f->hidden + 5 * f->width : f->hidden + 2 * f->width) + 2 * f->rank);
}

/* A thread's part of the scratch: its numbers, and behind them the codes of products in bf16. */
typedef struct scratch_layout {
    int64_t numbers, whole;
} scratch_layout;

static scratch_layout reserve_scratch(const moe_ffn *f,
                                      int64_t most_rows,
                                      bool backward,
                                      moe_expert_buffers *b) {
    int64_t rows = min64(most_rows, MOE_GEMM_ROWS), in_line = 64 / (int64_t)sizeof(real);
    int64_t codes = b->bf16 ? moe_ffn_codes(f, rows) * (int64_t)sizeof(uint16_t) : 0;
    scratch_layout l = {.numbers = numbers_of_thread(f, most_rows, backward)};
    l.whole = l.numbers + (codes + (int64_t)sizeof(real) - 1) / (int64_t)sizeof(real);
    l.whole = (l.whole + in_line - 1) / in_line * in_line;
    moe_reserve_varying(&b->scratch, &b->scratch_capacity, l.whole * omp_get_max_threads(),
                        sizeof(real), "expert scratch");
    return l;
}

/* The FFNs as the calling thread computes them, and its scratch. */
static moe_ffn of_thread(const moe_ffn *f,
                         const moe_expert_buffers *b,
                         scratch_layout l,
                         real **scratch) {
    moe_ffn mine = *f;
    *scratch = b->scratch + omp_get_thread_num() * l.whole;
    mine.codes = b->bf16 ? (uint16_t *)(void *)(*scratch + l.numbers) : NULL;
    return mine;
}

/* --- shared experts: one FFN over all rows --- */

void moe_experts_shared_forward(const moe_ffn *f,
                                int64_t rows,
                                const real *x,
                                moe_expert_buffers *b,
                                real *h1,
                                real *h3,
                                real *y) {
    const scratch_layout layout = reserve_scratch(f, rows, false, b);
#pragma omp parallel for schedule(dynamic)
    for (int64_t begin = 0; begin < rows; begin += MOE_GEMM_ROWS) {
        real *h;
        const moe_ffn mine = of_thread(f, b, layout, &h);
        int64_t n = min64(rows - begin, MOE_GEMM_ROWS), at = begin * f->width;
        moe_ffn_forward(&mine, 0, n, x + begin * f->hidden, h + 2 * n * f->width, h1 ? h1 + at : h,
                        h1 ? h3 + at : h + n * f->width, h, y + begin * f->hidden);
    }
}

void moe_experts_shared_backward(const moe_ffn *f,
                                 const moe_ffn_gradient *g,
                                 int64_t rows,
                                 const real *x,
                                 const real *h1,
                                 const real *h3,
                                 const real *dy,
                                 moe_expert_buffers *b,
                                 real *dx) {
    const scratch_layout layout = reserve_scratch(f, rows, true, b);
    real *scratch;
    const moe_ffn mine = of_thread(f, b, layout, &scratch);
    for (int64_t begin = 0; begin < rows; begin += MOE_GEMM_ROWS) {
        int64_t n = min64(rows - begin, MOE_GEMM_ROWS);
        int64_t at = begin * f->width;
        int64_t row = begin * f->hidden;
        real *low = scratch + 3 * n * f->width, *again = low + 2 * n * f->rank;
        if (!h1) {
            moe_ffn_pre_activations(&mine, 0, n, x + row, low, again, again + n * f->width);
        }
        moe_ffn_backward(&mine, g, 0, n, x + row, h1 ? h1 + at : again,
                         h1 ? h3 + at : again + n * f->width, dy + row, scratch, dx + row);
    }
}

/* --- grouped experts --- */

static int fuller_first(const void *a, const void *b) {
    const moe_slot_load *x = a, *y = b;
    if (x->rows != y->rows) {
        return x->rows < y->rows ? 1 : -1;
    }
    return (x->slot > y->slot) - (x->slot < y->slot);
}

/* Fills b->order. Returns the number of rows that scratch is made for: the most of any slot, or
 * twice the mean where that is more, so that an ordinary change of the load needs no larger one. */
static int64_t order_slots(const moe_inbox *in, moe_expert_buffers *b) {
    int64_t slots = (int64_t)in->num_local * in->slots;
    for (int64_t s = 0; s < slots; s++) {
        b->order[s] = (moe_slot_load){in->slot_offset[s + 1] - in->slot_offset[s], s};
    }
    qsort(b->order, (size_t)slots, sizeof *b->order, fuller_first);
    int64_t usual = 2 * (in->num_pairs / slots + 1);
    return b->order[0].rows > usual ? b->order[0].rows : usual;
}

/* Everything but scratch. dg is for backward, which follows in training whatever `keep` says. */
static void reserve(const moe_ffn *f, const moe_inbox *in, moe_expert_buffers *b, bool keep) {
    int64_t kept = keep ? in->num_pairs * f->width : 0;
    const moe_block_array table[] = {
        MOE_ARRAY(b->order, (int64_t)in->num_local * in->slots),
        MOE_ARRAY(b->out, in->num_pairs * in->hidden),
        MOE_ARRAY(b->results, in->results ? 0 : in->num_rows * in->hidden),
        MOE_ARRAY(b->h1, kept),
        MOE_ARRAY(b->h3, f->w3 ? kept : 0),
        MOE_ARRAY(b->dg, in->num_pairs),
    };
    moe_block_reserve_varying(&b->block, table, MOE_ARRAYS(table), "buffers of the experts");
    if (in->results) {
        b->results = in->results;
    }
}

/* Gathers the vectors of pairs begin .. begin + n - 1, as they are grouped, into `to` [n,H]. */
static void gather(const moe_inbox *in,
                   const moe_inbox_rows *rows,
                   int64_t begin,
                   int64_t n,
                   real *to) {
    for (int64_t i = 0; i < n; i++) {
        memcpy(to + i * in->hidden, rows->row[in->pair_row[in->slot_pair[begin + i]]],
               (size_t)in->hidden * sizeof(real));
    }
}

/* Runs one expert over all its rows. */
static void forward_slot(const moe_ffn *f,
                         const moe_inbox *in,
                         int64_t slot,
                         moe_expert_buffers *b,
                         bool keep,
                         real *scratch) {
    int64_t end = in->slot_offset[slot + 1];
    for (int64_t begin = in->slot_offset[slot]; begin < end; begin += MOE_GEMM_ROWS) {
        int64_t n = min64(end - begin, MOE_GEMM_ROWS), at = begin * f->width;
        real *h = scratch + n * f->hidden;
        gather(in, &in->x, begin, n, scratch);
        moe_ffn_forward(f, slot, n, scratch, h + 2 * n * f->width, keep ? b->h1 + at : h,
                        keep && f->w3 ? b->h3 + at : h + n * f->width, h,
                        b->out + begin * f->hidden);
    }
}

MOE_CLONES static void scale(real *x, real by, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        x[i] *= by;
    }
}

/* One expert backward: dg = <dy, out>, then weight * dy through the FFN; dx overwrites out. The
 * first call writes the gradients where they are to be replaced, the next ones add. */
static void backward_slot(const moe_ffn *f,
                          const moe_ffn_gradient *g,
                          const moe_inbox *in,
                          int64_t slot,
                          moe_expert_buffers *b,
                          bool kept,
                          real *scratch) {
    int64_t end = in->slot_offset[slot + 1], hidden = f->hidden;
    moe_ffn_gradient into = *g;
    if (g->replace && in->slot_offset[slot] == end) {
        moe_ffn_clear_gradient(f, g, slot);
    }
    for (int64_t begin = in->slot_offset[slot]; begin < end; begin += MOE_GEMM_ROWS) {
        int64_t n = min64(end - begin, MOE_GEMM_ROWS), at = begin * f->width;
        real *x = scratch;
        real *dy = x + n * hidden;
        real *again = dy + n * hidden;
        real *work = again + 2 * n * f->width;
        real *out = b->out + begin * hidden;
        gather(in, &in->x, begin, n, x);
        gather(in, &in->dy, begin, n, dy);
        for (int64_t i = 0; i < n; i++) {
            int64_t p = in->slot_pair[begin + i];
            b->dg[p] = (real)moe_sum_of_products(dy + i * hidden, out + i * hidden, hidden);
            scale(dy + i * hidden, in->pair_weight[p], hidden);
        }
        if (!kept) {
            moe_ffn_pre_activations(f, slot, n, x, work + 3 * n * f->width, again,
                                    again + n * f->width);
        }
        moe_ffn_backward(f, &into, slot, n, x, kept ? b->h1 + at : again,
                         kept && f->w3 ? b->h3 + at : again + n * f->width, dy, work, out);
        into.replace = false;
    }
}

/* result[i] = weight * out[i] */
MOE_CLONES static void scale_to(real *restrict result,
                                const real *restrict out,
                                real weight,
                                int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        result[i] = weight * out[i];
    }
}

/* result[i] += weight * out[i] */
MOE_CLONES static void scale_add(real *restrict result,
                                 const real *restrict out,
                                 real weight,
                                 int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        result[i] += weight * out[i];
    }
}

/* The result of row r is the sum over its pairs, which are in ascending order of experts, of weight
 * * out. Not weighted: the weight is 1, because backward has weighted dy already. */
static void sum_row(const moe_inbox *in, const moe_expert_buffers *b, int64_t r, bool weighted) {
    real *result = b->results + r * in->hidden;
    int64_t p = in->row_pair[r];
    scale_to(result, b->out + in->pair_position[p] * in->hidden, weighted ? in->pair_weight[p] : 1,
             in->hidden);
    for (p++; p < in->row_pair[r + 1]; p++) {
        scale_add(result, b->out + in->pair_position[p] * in->hidden,
                  weighted ? in->pair_weight[p] : 1, in->hidden);
    }
}

static void sum_rows(const moe_inbox *in, const moe_expert_buffers *b, bool weighted) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < in->num_rows; r++) {
        sum_row(in, b, r, weighted);
    }
}

void moe_experts_forward(const moe_ffn *f, const moe_inbox *in, moe_expert_buffers *b, bool keep) {
    int64_t slots = (int64_t)in->num_local * in->slots;
    reserve(f, in, b, keep);
    const scratch_layout layout = reserve_scratch(f, order_slots(in, b), false, b);
#pragma omp parallel for schedule(dynamic)
    for (int64_t s = 0; s < slots; s++) {
        real *scratch;
        const moe_ffn mine = of_thread(f, b, layout, &scratch);
        forward_slot(&mine, in, b->order[s].slot, b, keep, scratch);
    }
    sum_rows(in, b, true);
}

void moe_experts_backward(const moe_ffn *f,
                          const moe_ffn_gradient *g,
                          const moe_inbox *in,
                          moe_expert_buffers *b,
                          bool kept) {
    int64_t slots = (int64_t)in->num_local * in->slots;
    const scratch_layout layout = reserve_scratch(f, order_slots(in, b), true, b);
#pragma omp parallel for schedule(dynamic)
    for (int64_t s = 0; s < slots; s++) {
        real *scratch;
        const moe_ffn mine = of_thread(f, b, layout, &scratch);
        backward_slot(&mine, g, in, b->order[s].slot, b, kept, scratch);
    }
    sum_rows(in, b, false);
}

void moe_expert_buffers_free(moe_expert_buffers *b) {
    moe_block_free(&b->block);
    moe_free(b->scratch);
    *b = (moe_expert_buffers){0};
}
