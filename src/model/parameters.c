/* parameters.c: the table, the reduction of its gradients and their norm. */
#include "model/parameters.h"

#include <math.h>
#include <string.h>

#include "base/sums.h"

void moe_parameters_init(moe_parameters *all, int32_t devices, int32_t num_local_devices) {
    *all = (moe_parameters){.devices = devices, .num_local_devices = num_local_devices};
}

static void make_room(moe_parameters *all) {
    if (all->num < all->capacity) {
        return;
    }
    all->capacity = all->capacity ? 2 * all->capacity : 16;
    moe_parameter *grown = moe_alloc(all->capacity, sizeof *grown, "table of parameters");
    if (all->num) {
        memcpy(grown, all->p, (size_t)all->num * sizeof *grown);
    }
    moe_free(all->p);
    all->p = grown;
}

static int append(moe_parameters *all, moe_parameter p, const char *name) {
    MOE_ASSERT(strlen(name) < sizeof p.name);
    make_room(all);
    memcpy(p.name, name, strlen(name) + 1);
    if (!all->values_only) {
        p.gradient = moe_alloc_zero(p.count * p.size, sizeof(real), "gradients");
    }
    if (!all->values_only && !p.expert) {
        p.partial = moe_alloc_zero(all->num_local_devices * p.size, sizeof(real), "gradients");
    }
    all->p[all->num] = p;
    return all->num++;
}

int moe_parameters_add(moe_parameters *all,
                       const char *name,
                       bool decay,
                       int64_t size,
                       real *value) {
    return append(all,
                  (moe_parameter){
                      .decay = decay, .count = 1, .count_global = 1, .size = size, .value = value},
                  name);
}

int moe_parameters_add_experts(moe_parameters *all,
                               const char *name,
                               int64_t count,
                               int64_t count_global,
                               int64_t size,
                               const int32_t *id,
                               real *value) {
    moe_parameter p = {.expert = true,
                       .decay = true,
                       .count = count,
                       .count_global = count_global,
                       .size = size,
                       .id = id,
                       .value = value};
    return append(all, p, name);
}

void moe_parameters_free(moe_parameters *all) {
    for (int i = 0; i < all->num; i++) {
        moe_free(all->p[i].gradient);
        moe_free(all->p[i].partial);
        moe_free(all->p[i].m);
        moe_free(all->p[i].v);
    }
    moe_free(all->p);
    moe_block_free(&all->block);
    moe_device_tree_free(all->tree);
    *all = (moe_parameters){0};
}

/* --- gradients --- */

static void clear(real *values, int64_t n) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        values[i] = 0;
    }
}

void moe_parameters_clear_gradients(moe_parameters *all) {
    for (int i = 0; i < all->num; i++) {
        moe_parameter *p = &all->p[i];
        p->stale = p->expert;
        if (!p->expert) {
            clear(p->gradient, p->count * p->size);
            clear(p->partial, all->num_local_devices * p->size);
        }
    }
}

real *moe_parameters_expert_gradient(moe_parameters *all, int index, bool *replace) {
    moe_parameter *p = &all->p[index];
    MOE_ASSERT(p->expert);
    *replace = p->stale;
    p->stale = false;
    return p->gradient;
}

/* Gradients that nobody has written are 0. */
static void clear_stale(moe_parameters *all) {
    for (int i = 0; i < all->num; i++) {
        moe_parameter *p = &all->p[i];
        if (p->stale) {
            clear(p->gradient, p->count * p->size);
            p->stale = false;
        }
    }
}

enum {
    PIECE = 8192 /* elements of a block whose squares are added in double, in a fixed order */
};

static int64_t num_pieces(const moe_parameter *p) {
    return p->count * ((p->size + PIECE - 1) / PIECE);
}

/* Room for the vectors of the sum and the pieces of a parameter, which depend on the table alone.
 */
static void reserve(moe_parameters *all) {
    int64_t pieces = 0;
    for (int i = 0; i < all->num; i++) {
        const int64_t of_one = num_pieces(&all->p[i]);
        pieces = of_one > pieces ? of_one : pieces;
    }
    moe_block_array table[] = {
        MOE_ARRAY(all->vectors, all->num),
        MOE_ARRAY(all->square, pieces),
    };
    moe_block_reserve(&all->block, table, MOE_ARRAYS(table), "sums of the gradients");
}

/* The replicated parameters as the vectors of one sum; returns their elements. */
static int64_t list_vectors(moe_parameters *all, int *num) {
    int64_t total = 0;
    reserve(all);
    *num = 0;
    for (int i = 0; i < all->num; i++) {
        const moe_parameter *p = &all->p[i];
        if (p->expert) {
            continue;
        }
        all->vectors[(*num)++] = (moe_device_vector){p->partial, p->size, p->gradient};
        total += p->size;
    }
    return total;
}

static void scale_by(real *values, int64_t n, real factor) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        values[i] *= factor;
    }
}

void moe_parameters_reduce(moe_parameters *all,
                           const moe_comm *comm,
                           double scale,
                           int64_t *bytes) {
    int num;
    int64_t total = list_vectors(all, &num);
    clear_stale(all);
    if (total > 0) {
        if (!all->tree) {
            all->tree = moe_device_tree_new(comm, all->devices, all->num_local_devices, total);
        }
        moe_device_tree_sum(all->tree, comm, all->vectors, num);
    }
    for (int i = 0; i < all->num && scale != 1; i++) {
        scale_by(all->p[i].gradient, all->p[i].count * all->p[i].size, (real)scale);
    }
    *bytes += (int64_t)all->devices * total * (int64_t)sizeof(real);
}

/* --- norm --- */

/* Piece i of a parameter; no piece crosses a block. Returns its elements: 0 of a copy, because the
 * first slot of an expert counts. */
static int64_t piece_of(const moe_parameter *p, int64_t i, const real **x) {
    const int64_t per_block = (p->size + PIECE - 1) / PIECE, block = i / per_block;
    const int64_t begin = i % per_block * PIECE, left = p->size - begin;
    *x = p->gradient + block * p->size + begin;
    return p->copy && p->copy[block] ? 0 : left < PIECE ? left : PIECE;
}

/* square [num_pieces] of one parameter, several pieces of equal length at a time. */
static void square_pieces(const moe_parameter *p, double *square) {
    const int64_t pieces = num_pieces(p);
#pragma omp parallel for schedule(static)
    for (int64_t begin = 0; begin < pieces; begin += MOE_SUMS) {
        const int64_t count = pieces - begin < MOE_SUMS ? pieces - begin : MOE_SUMS;
        const real *x[MOE_SUMS];
        int64_t n[MOE_SUMS] = {0};
        bool equal = count == MOE_SUMS;
        for (int64_t i = 0; i < count; i++) {
            n[i] = piece_of(p, begin + i, &x[i]);
            equal = equal && n[i] == n[0];
        }
        if (equal) {
            moe_sums_of_squares(x, n[0], square + begin);
            continue;
        }
        for (int64_t i = 0; i < count; i++) {
            square[begin + i] = moe_sum_of_squares(x[i], n[i]);
        }
    }
}

/* Adds the squares of what this rank answers for to sums [MOE_NORM_WORDS]: of its experts, and on
 * rank 0 also of the replicated parameters. Returns the first parameter with a sum that is not
 * finite, or all->num. */
static int add_squares(moe_parameters *all, bool replicated, int64_t *sums) {
    int bad = all->num;
    reserve(all);
    for (int i = 0; i < all->num; i++) {
        if (!all->p[i].expert && !replicated) {
            continue;
        }
        square_pieces(&all->p[i], all->square);
        for (int64_t k = 0; k < num_pieces(&all->p[i]); k++) {
            if (isfinite(all->square[k])) {
                moe_exact_wide_add(sums, all->square[k]);
            } else if (bad == all->num) {
                bad = i;
            }
        }
    }
    return bad;
}

/* Collective. The first parameter that any rank found bad, and the lowest such rank. */
static const char *agree_bad(moe_parameters *all, const moe_comm *comm, int bad) {
    int64_t first = -bad;
    moe_comm_max_i64(comm, &first, 1);
    all->worst_rank = moe_comm_lowest_rank(comm, bad == -first);
    return all->p[-first].name;
}

/* The last word of the norm's counts the ranks that found something bad. */
double moe_parameters_gradient_norm_with(moe_parameters *all,
                                         const moe_comm *comm,
                                         int64_t *sums,
                                         int64_t num_further,
                                         const char **worst) {
    int exponent;
    clear_stale(all);
    memset(sums, 0, MOE_NORM_WORDS * sizeof *sums);
    const int bad = add_squares(all, comm->rank == 0, sums);
    sums[MOE_EXACT_WIDE_WORDS] = bad < all->num;
    moe_comm_sum_i64(comm, sums, MOE_NORM_WORDS + num_further);
    *worst = sums[MOE_EXACT_WIDE_WORDS] > 0 ? agree_bad(all, comm, bad) : NULL;
    const double square = moe_exact_wide_value(sums, &exponent);
    const int odd = exponent & 1;
    return *worst ? NAN : ldexp(sqrt(ldexp(square, odd)), (exponent - odd) / 2);
}

double moe_parameters_gradient_norm(moe_parameters *all, const moe_comm *comm, const char **worst) {
    int64_t sums[MOE_NORM_WORDS];
    return moe_parameters_gradient_norm_with(all, comm, sums, 0, worst);
}
