/* expert.c: grouped expert computation.
 * Rows are grouped by expert; each expert gathers its rows, runs its GEMMs in calls of MOE_GEMM_ROWS rows, and writes its outputs side by
 * side; a second pass adds up, for each row, its experts in ascending order. Threads take whole experts, the fullest first: which thread
 * does what changes no bit. */
#include "moesim/expert.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "moesim/activation.h"
#include "moesim/gemm.h"
#include "moesim/rng.h"
#include "moesim/status.h"
#include "moesim/vector.h"

/* --- weights
 * ------------------------------------------------------------------------------------------------------------------------------ */

void moe_ffn_init(moe_ffn *f, enum moe_expert_type type, int64_t count, int64_t hidden, int64_t width, int64_t seed, int32_t layer,
                  const int32_t *id, const uint32_t stream[3]) {
    *f = (moe_ffn){.type = type, .count = count, .hidden = hidden, .width = width};
    if (type == MOE_EXPERT_IDENTITY || count == 0) return;
    int64_t size = hidden * width;
    double in_scale = 1 / sqrt((double)hidden), out_scale = 1 / sqrt((double)width);
    f->w1 = moe_alloc(count * size, sizeof(real), "expert weights");
    f->w2 = moe_alloc(count * size, sizeof(real), "expert weights");
    if (type == MOE_EXPERT_SWIGLU) f->w3 = moe_alloc(count * size, sizeof(real), "expert weights");
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) {
        moe_rng_normal((moe_rng){(uint64_t)seed, stream[0]}, (uint64_t)layer, (uint64_t)id[i], in_scale, f->w1 + i * size, size);
        moe_rng_normal((moe_rng){(uint64_t)seed, stream[1]}, (uint64_t)layer, (uint64_t)id[i], out_scale, f->w2 + i * size, size);
        if (f->w3) moe_rng_normal((moe_rng){(uint64_t)seed, stream[2]}, (uint64_t)layer, (uint64_t)id[i], in_scale, f->w3 + i * size, size);
    }
}

void moe_ffn_free(moe_ffn *f) {
    moe_free(f->w1);
    moe_free(f->w2);
    moe_free(f->w3);
    *f = (moe_ffn){0};
}

/* --- one FFN
 * ------------------------------------------------------------------------------------------------------------------------------- */

void moe_ffn_forward(const moe_ffn *f, int64_t i, int64_t rows, const real *x, real *scratch, real *y) {
    int64_t size = f->hidden * f->width, n = rows * f->width;
    if (f->type == MOE_EXPERT_IDENTITY) {
        memcpy(y, x, (size_t)(rows * f->hidden) * sizeof(real));
        return;
    }
    real *h = scratch, *h3 = scratch + n;
    moe_gemm_nt(rows, f->width, f->hidden, x, f->w1 + i * size, h);
    switch (f->type) {
    case MOE_EXPERT_SWIGLU:
        moe_gemm_nt(rows, f->width, f->hidden, x, f->w3 + i * size, h3);
        moe_swiglu(h, h3, h, n);
        break;
    case MOE_EXPERT_SILU:
        moe_silu(h, h, n);
        break;
    case MOE_EXPERT_GELU:
        moe_gelu(h, h, n);
        break;
    case MOE_EXPERT_RELU:
        moe_relu(h, h, n);
        break;
    default:
        MOE_ASSERT(!"an expert type without a forward");
    }
    moe_gemm_nt(rows, f->hidden, f->width, h, f->w2 + i * size, y);
}

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Scratch of one thread: gathered rows [c,H] and two [c,F], c = min(MOE_GEMM_ROWS, most rows). */
static int64_t scratch_of_thread(const moe_ffn *f, int64_t most_rows) {
    return min64(most_rows, MOE_GEMM_ROWS) * (f->hidden + 2 * f->width);
}

static void reserve_scratch(const moe_ffn *f, int64_t most_rows, moe_expert_buffers *b) {
    moe_reserve(&b->scratch, &b->scratch_room, scratch_of_thread(f, most_rows) * omp_get_max_threads(), sizeof(real), "expert scratch");
}

void moe_ffn_forward_all(const moe_ffn *f, int64_t rows, const real *x, moe_expert_buffers *b, real *y) {
    reserve_scratch(f, rows, b);
    int64_t per_thread = scratch_of_thread(f, rows);
#pragma omp parallel for schedule(dynamic)
    for (int64_t begin = 0; begin < rows; begin += MOE_GEMM_ROWS) {
        real *scratch = b->scratch + omp_get_thread_num() * per_thread;
        moe_ffn_forward(f, 0, min64(rows - begin, MOE_GEMM_ROWS), x + begin * f->hidden, scratch, y + begin * f->hidden);
    }
}

/* --- grouped experts
 * ------------------------------------------------------------------------------------------------------------------------- */

typedef struct slot_load {
    int64_t rows, slot;
} slot_load;

static int fuller_first(const void *a, const void *b) {
    const slot_load *x = a, *y = b;
    if (x->rows != y->rows) return x->rows < y->rows ? 1 : -1;
    return (x->slot > y->slot) - (x->slot < y->slot);
}

/* Fills b->order with pairs (rows, slot), fullest first; returns the most rows of a slot. */
static int64_t order_slots(const moe_inbox *in, moe_expert_buffers *b) {
    int64_t slots = (int64_t)in->num_local * in->slots;
    moe_reserve(&b->order, &b->order_room, 2 * slots, sizeof(int64_t), "expert order");
    slot_load *load = (slot_load *)b->order;
    for (int64_t s = 0; s < slots; s++) {
        load[s] = (slot_load){in->slot_offset[s + 1] - in->slot_offset[s], s};
    }
    qsort(load, (size_t)slots, sizeof *load, fuller_first);
    return load[0].rows;
}

/* One expert over all its rows. */
static void run_slot(const moe_ffn *f, const moe_inbox *in, int64_t slot, real *scratch, real *out) {
    int64_t end = in->slot_offset[slot + 1], h = f->hidden;
    for (int64_t begin = in->slot_offset[slot]; begin < end; begin += MOE_GEMM_ROWS) {
        int64_t rows = min64(end - begin, MOE_GEMM_ROWS);
        for (int64_t i = 0; i < rows; i++) {
            memcpy(scratch + i * h, moe_inbox_row(in, in->pair_row[in->slot_pair[begin + i]]), (size_t)h * sizeof(real));
        }
        moe_ffn_forward(f, slot, rows, scratch, scratch + rows * h, out + begin * h);
    }
}

/* result[i] = weight * out[i], or += : the order of a row's pairs is that of ascending experts. */
MOE_CLONES static void scale_to(real *restrict result, const real *restrict out, real weight, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        result[i] = weight * out[i];
    }
}
MOE_CLONES static void scale_add(real *restrict result, const real *restrict out, real weight, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        result[i] += weight * out[i];
    }
}

static void sum_row(const moe_inbox *in, const moe_expert_buffers *b, int64_t r, int64_t h) {
    real *result = b->results + r * h;
    int64_t p = in->row_pair[r];
    scale_to(result, b->out + in->pair_position[p] * h, in->pair_weight[p], h);
    for (p++; p < in->row_pair[r + 1]; p++) {
        scale_add(result, b->out + in->pair_position[p] * h, in->pair_weight[p], h);
    }
}

void moe_experts_forward(const moe_ffn *f, const moe_inbox *in, moe_expert_buffers *b) {
    int64_t h = in->hidden, slots = (int64_t)in->num_local * in->slots, most = order_slots(in, b), per_thread = scratch_of_thread(f, most);
    moe_reserve(&b->out, &b->out_room, in->num_pairs * h, sizeof(real), "expert outputs");
    moe_reserve(&b->results, &b->results_room, in->num_rows * h, sizeof(real), "rows to return");
    reserve_scratch(f, most, b);
    const slot_load *load = (const slot_load *)b->order;
#pragma omp parallel
    {
        real *scratch = b->scratch + omp_get_thread_num() * per_thread;
#pragma omp for schedule(dynamic)
        for (int64_t s = 0; s < slots; s++) {
            run_slot(f, in, load[s].slot, scratch, b->out);
        }
#pragma omp for schedule(static)
        for (int64_t r = 0; r < in->num_rows; r++) {
            sum_row(in, b, r, h);
        }
    }
}

void moe_expert_buffers_free(moe_expert_buffers *b) {
    moe_free(b->out);
    moe_free(b->results);
    moe_free(b->scratch);
    moe_free(b->order);
    *b = (moe_expert_buffers){0};
}
