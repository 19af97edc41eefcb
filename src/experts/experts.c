/* experts.c: chunk by chunk, each expert gathers its rows, runs its GEMMs in calls of MOE_GEMM_ROWS
 * rows, and writes its outputs side by side; a second pass adds up, for each row, its experts in
 * ascending order. Threads take whole experts, the one with the most rows first: which thread does
 * what changes no bit. */
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

/* Hidden numbers of a row: an expert that gives back what it gets has none. */
static int64_t inner_of(const moe_ffn *f) {
    return f->w1 ? f->width : 0;
}

/* Numbers that one thread needs for calls of c = min(MOE_GEMM_ROWS, most_rows) rows. Forward: x
 * [c,H] and h1, h3 [c,F]; backward: x, dy [c,H], and h1, h3 (computed again), h, dh, dh3 [c,F];
 * with adapters 2 [c,r] more. */
static int64_t numbers_of_thread(const moe_ffn *f, int64_t most_rows, bool backward) {
    return min64(most_rows, MOE_GEMM_ROWS) *
           ((backward ? 2 * f->hidden + 5 * inner_of(f) : f->hidden + 2 * inner_of(f)) +
            2 * f->rank);
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
    const int64_t width = inner_of(f);
#pragma omp parallel for schedule(dynamic)
    for (int64_t begin = 0; begin < rows; begin += MOE_GEMM_ROWS) {
        real *h;
        const moe_ffn mine = of_thread(f, b, layout, &h);
        int64_t n = min64(rows - begin, MOE_GEMM_ROWS), at = begin * width;
        moe_ffn_forward(&mine, 0, n, x + begin * f->hidden, h + 2 * n * width, h1 ? h1 + at : h,
                        h1 ? h3 + at : h + n * width, h, y + begin * f->hidden);
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
    const int64_t width = inner_of(f);
    real *scratch;
    const moe_ffn mine = of_thread(f, b, layout, &scratch);
    for (int64_t begin = 0; begin < rows; begin += MOE_GEMM_ROWS) {
        int64_t n = min64(rows - begin, MOE_GEMM_ROWS);
        int64_t at = begin * width;
        int64_t row = begin * f->hidden;
        real *low = scratch + 3 * n * width, *again = low + 2 * n * f->rank;
        if (!h1) {
            moe_ffn_pre_activations(&mine, 0, n, x + row, low, again, again + n * width);
        }
        moe_ffn_backward(&mine, g, 0, n, x + row, h1 ? h1 + at : again,
                         h1 ? h3 + at : again + n * width, dy + row, scratch, dx + row);
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

/* Pairs of a slot in a chunk, as they are grouped: begin .. end - 1. */
typedef struct group {
    int64_t slot, begin, end;
    int32_t chunk;
} group;

static group group_of(const moe_inbox *in, int64_t slot, int32_t chunk) {
    const int64_t *offset = in->group_offset + slot * in->chunks + chunk;
    return (group){slot, offset[0], offset[1], chunk};
}

/* Fills b->order with the loads of a chunk. Returns the number of rows that scratch is made for:
 * the most of any slot, or twice the mean where that is more, so that an ordinary change of the
 * load needs no larger one. */
static int64_t order_slots(const moe_inbox *in, int32_t chunk, moe_expert_buffers *b) {
    int64_t slots = (int64_t)in->num_local * in->slots;
    for (int64_t s = 0; s < slots; s++) {
        const group of = group_of(in, s, chunk);
        b->order[s] = (moe_slot_load){of.end - of.begin, s};
    }
    qsort(b->order, (size_t)slots, sizeof *b->order, fuller_first);
    int64_t usual = 2 * (in->num_pairs / slots + 1);
    return b->order[0].rows > usual ? b->order[0].rows : usual;
}

/* Everything but scratch. dg is for backward, which follows in training whatever `keep` says. */
static void reserve(const moe_ffn *f, const moe_inbox *in, moe_expert_buffers *b, bool keep) {
    int64_t kept = keep ? in->num_pairs * inner_of(f) : 0;
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

/* Gathers x of pairs begin .. begin + n - 1, as they are grouped, into `to` [n,H]. */
static void gather(const moe_inbox *in, int64_t begin, int64_t n, real *to) {
    for (int64_t i = 0; i < n; i++) {
        memcpy(to + i * in->hidden, moe_inbox_row(in, in->pair_row[in->slot_pair[begin + i]]),
               (size_t)in->hidden * sizeof(real));
    }
}

/* MPI is spoken to by the first thread only. */
static void pause_between(const moe_experts_pause *pause) {
    if (pause->call && omp_get_thread_num() == 0) {
        pause->call(pause->self);
    }
}

/* Runs one expert over its rows of a chunk. */
static void forward_group(const moe_ffn *f,
                          const moe_inbox *in,
                          const group *of,
                          moe_expert_buffers *b,
                          bool keep,
                          const moe_experts_pause *pause,
                          real *scratch) {
    const int64_t width = inner_of(f);
    keep = keep && b->h1;
    for (int64_t begin = of->begin; begin < of->end; begin += MOE_GEMM_ROWS) {
        int64_t n = min64(of->end - begin, MOE_GEMM_ROWS), at = begin * width;
        real *h = scratch + n * f->hidden;
        gather(in, begin, n, scratch);
        moe_ffn_forward(f, of->slot, n, scratch, h + 2 * n * width, keep ? b->h1 + at : h,
                        keep && f->w3 ? b->h3 + at : h + n * width, h, b->out + begin * f->hidden);
        pause_between(pause);
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

/* Of pairs begin .. begin + n - 1, as they are grouped: dg = <dy, out>, and weighted [n,H] = weight
 * * dy. */
static void weigh(const moe_inbox *in,
                  int64_t begin,
                  int64_t n,
                  const real *out,
                  real *dg,
                  real *weighted) {
    for (int64_t i = 0; i < n; i++) {
        const int64_t p = in->slot_pair[begin + i], at = i * in->hidden;
        const real *dy = in->dy.row[in->pair_row[p]];
        dg[p] = (real)moe_sum_of_products(dy, out + at, in->hidden);
        scale_to(weighted + at, dy, in->pair_weight[p], in->hidden);
    }
}

/* One expert backward: dg = <dy, out>, then weight * dy through the FFN; dx overwrites out. The
 * first call that an expert makes in any chunk writes the gradients where they are to be replaced,
 * the next ones add. */
static void backward_group(const moe_ffn *f,
                           const moe_ffn_gradient *g,
                           const moe_inbox *in,
                           const group *of,
                           moe_expert_buffers *b,
                           bool kept,
                           const moe_experts_pause *pause,
                           real *scratch) {
    int64_t hidden = f->hidden, width = inner_of(f), slot = of->slot;
    moe_ffn_gradient into = *g;
    kept = kept && b->h1;
    if (g->replace && of->chunk == 0 && in->slot_offset[slot] == in->slot_offset[slot + 1]) {
        moe_ffn_clear_gradient(f, g, slot);
    }
    for (int64_t begin = of->begin; begin < of->end; begin += MOE_GEMM_ROWS) {
        int64_t n = min64(of->end - begin, MOE_GEMM_ROWS), at = begin * width;
        into.replace = g->replace && begin == in->slot_offset[slot];
        real *x = scratch;
        real *dy = x + n * hidden;
        real *again = dy + n * hidden;
        real *work = again + 2 * n * width;
        real *out = b->out + begin * hidden;
        gather(in, begin, n, x);
        weigh(in, begin, n, out, b->dg, dy);
        if (!kept) {
            moe_ffn_pre_activations(f, slot, n, x, work + 3 * n * width, again, again + n * width);
        }
        moe_ffn_backward(f, &into, slot, n, x, kept ? b->h1 + at : again,
                         kept && f->w3 ? b->h3 + at : again + n * width, dy, work, out);
        pause_between(pause);
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
static void sum_row(const moe_inbox *in,
                    const moe_expert_buffers *b,
                    int64_t r,
                    bool weighted,
                    real *result) {
    int64_t p = in->row_pair[r];
    scale_to(result, b->out + in->pair_position[p] * in->hidden, weighted ? in->pair_weight[p] : 1,
             in->hidden);
    for (p++; p < in->row_pair[r + 1]; p++) {
        scale_add(result, b->out + in->pair_position[p] * in->hidden,
                  weighted ? in->pair_weight[p] : 1, in->hidden);
    }
}

/* The results begin .. end - 1. */
static void sum_rows(const moe_inbox *in,
                     const moe_expert_buffers *b,
                     int64_t begin,
                     int64_t end,
                     bool weighted) {
#pragma omp parallel for schedule(static)
    for (int64_t i = begin; i < end; i++) {
        sum_row(in, b, in->order.row ? in->order.row[i] : i, weighted, b->results + i * in->hidden);
    }
}

/* The results of a chunk: those for other ranks, and those for the own one. */
static void sum_chunk(const moe_inbox *in,
                      const moe_expert_buffers *b,
                      int32_t chunk,
                      bool weighted) {
    const moe_chunk_order *o = &in->order;
    if (in->chunks == 1) {
        sum_rows(in, b, 0, in->num_rows, weighted);
        return;
    }
    sum_rows(in, b, moe_chunk_begin(o, chunk), moe_chunk_begin(o, chunk + 1), weighted);
    sum_rows(in, b, o->own[chunk], o->own[chunk + 1], weighted);
}

void moe_experts_forward(const moe_ffn *f,
                         const moe_inbox *in,
                         int32_t chunk,
                         moe_expert_buffers *b,
                         bool keep,
                         const moe_experts_pause *pause) {
    int64_t slots = (int64_t)in->num_local * in->slots;
    if (chunk == 0) {
        reserve(f, in, b, keep);
    }
    const scratch_layout layout = reserve_scratch(f, order_slots(in, chunk, b), false, b);
#pragma omp parallel for schedule(dynamic)
    for (int64_t s = 0; s < slots; s++) {
        real *scratch;
        const moe_ffn mine = of_thread(f, b, layout, &scratch);
        const group of = group_of(in, b->order[s].slot, chunk);
        forward_group(&mine, in, &of, b, keep, pause, scratch);
    }
    sum_chunk(in, b, chunk, true);
}

void moe_experts_backward(const moe_ffn *f,
                          const moe_ffn_gradient *g,
                          const moe_inbox *in,
                          int32_t chunk,
                          moe_expert_buffers *b,
                          bool kept,
                          const moe_experts_pause *pause) {
    int64_t slots = (int64_t)in->num_local * in->slots;
    const scratch_layout layout = reserve_scratch(f, order_slots(in, chunk, b), true, b);
#pragma omp parallel for schedule(dynamic)
    for (int64_t s = 0; s < slots; s++) {
        real *scratch;
        const moe_ffn mine = of_thread(f, b, layout, &scratch);
        const group of = group_of(in, b->order[s].slot, chunk);
        backward_group(&mine, g, in, &of, b, kept, pause, scratch);
    }
    sum_chunk(in, b, chunk, false);
}

void moe_expert_buffers_free(moe_expert_buffers *b) {
    moe_block_free(&b->block);
    moe_free(b->scratch);
    *b = (moe_expert_buffers){0};
}
