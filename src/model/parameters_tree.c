/* parameters_tree.c: the sum over devices whose order nobody can change.
 *
 * Idea: a binary tree over device indices: at level s = 1, 2, 4, ... device d + s is added into
 * device d for d a multiple of 2s. Where the devices live has no part in it, so that the bits are
 * the same on any number of ranks. Way: the elements of a piece are dealt to the ranks in slices. A
 * rank adds up the subtrees that lie wholly on its own devices, sends what is left of each slice to
 * the slice's rank (one MPI_Alltoallv), finishes the tree for its own slice, and all gather the
 * slices. Device d > 0 is added into d - low, low = its lowest set bit, once its own subtree d .. d
 * + low - 1 is complete. Advantage: the work of the sum is shared, and a rank with whole subtrees
 * sends one row for each instead of one per device. Disadvantage: without subtrees (one device per
 * rank) each rank sends everything once, as a reduce-scatter does; a ring would not need room for D
 * rows, but its order of sums depends on the ranks. */
#include "model/parameters_tree.h"

#include <string.h>

#include "base/status.h"
#include "base/vector.h"
#include "model/parameters.h"

enum {
    PIECE_BYTES = 1 << 22, /* of all local devices together */
    CHUNK = 2048           /* columns that a thread takes through the whole tree */
};

struct moe_tree {
    int32_t devices, num_local, first;
    int64_t piece;           /* most elements taken at a time */
    int32_t *local, *global; /* [num_local], [devices]: where a device's row stands before the tree
                                of the rank, of all; -1 = already added */
    int64_t *rows;           /* [ranks] rows that each rank has left */
    int64_t *send, *recv;    /* [2][ranks] counts and offsets of the Alltoallv */
    int64_t *bytes;          /* [ranks] of the allgather */
    real *stage, *inbox, *sum; /* [num_local][piece] by slices, [rows][slice], [piece] */
};

/* Is device d added into its parent by the rank that has the devices first .. end - 1? */
static bool joins(const moe_tree *tree, int32_t d, int32_t first, int32_t end) {
    int32_t low = d & -d, stop = d + low < tree->devices ? d + low : tree->devices;
    return d > 0 && d - low >= first && stop <= end;
}

/* First element of rank q's slice of a piece. */
static int64_t slice_begin(int64_t length, int64_t q, int64_t ranks) {
    return length * q / ranks;
}

static void lay_out(moe_tree *tree, const moe_comm *comm) {
    int32_t row = 0;
    for (int q = 0; q < comm->size; q++) {
        int32_t first = q * tree->num_local, end = first + tree->num_local;
        tree->rows[q] = 0;
        for (int32_t d = first; d < end; d++) {
            bool added = joins(tree, d, first, end);
            tree->global[d] = added ? -1 : row++;
            tree->rows[q] += !added;
        }
    }
    for (int32_t j = 0; j < tree->num_local; j++) {
        tree->local[j] = j;
    }
}

moe_tree *moe_tree_new(const moe_comm *comm, int32_t devices, int32_t num_local, int64_t longest) {
    MOE_ASSERT(num_local > 0 && (int64_t)num_local * comm->size == devices);
    const char *what = "sums over devices";
    int64_t ranks = comm->size, most = PIECE_BYTES / (int64_t)sizeof(real) / num_local;
    moe_tree *tree = moe_alloc_zero(1, sizeof *tree, what);
    tree->devices = devices;
    tree->num_local = num_local;
    tree->first = comm->rank * num_local;
    tree->piece = longest < most ? longest : most > 0 ? most : 1;
    tree->local = moe_alloc(num_local, sizeof *tree->local, what);
    tree->global = moe_alloc(devices, sizeof *tree->global, what);
    tree->rows = moe_alloc(6 * ranks, sizeof *tree->rows, what);
    tree->send = tree->rows + ranks;
    tree->recv = tree->send + 2 * ranks;
    tree->bytes = tree->recv + 2 * ranks;
    lay_out(tree, comm);
    tree->stage = moe_alloc(num_local * tree->piece, sizeof *tree->stage, what);
    if (ranks == 1) {
        return tree;
    }
    tree->inbox = moe_alloc(devices * (tree->piece / ranks + 1), sizeof *tree->inbox, what);
    tree->sum = moe_alloc(tree->piece, sizeof *tree->sum, what);
    return tree;
}

void moe_tree_free(moe_tree *tree) {
    if (!tree) {
        return;
    }
    moe_free(tree->local);
    moe_free(tree->global);
    moe_free(tree->rows);
    moe_free(tree->stage);
    moe_free(tree->inbox);
    moe_free(tree->sum);
    moe_free(tree);
}

/* --- between the vectors and the pieces --- */

/* Row j of the vectors laid end to end, elements begin .. begin + count - 1. */
static void gather(const moe_tree_part *part, int32_t j, int64_t begin, int64_t count, real *out) {
    for (; count > 0; part++) {
        int64_t n = part->count - begin < count ? part->count - begin : count;
        if (n > 0) {
            memcpy(out, part->partials + j * part->count + begin, (size_t)n * sizeof *out);
            out += n;
            count -= n;
        }
        begin = n > 0 ? 0 : begin - part->count;
    }
}

static void scatter(const moe_tree_part *part, int64_t begin, int64_t count, const real *from) {
    for (; count > 0; part++) {
        int64_t n = part->count - begin < count ? part->count - begin : count;
        if (n > 0) {
            memcpy(part->sum + begin, from, (size_t)n * sizeof *from);
            from += n;
            count -= n;
        }
        begin = n > 0 ? 0 : begin - part->count;
    }
}

/* --- the tree --- */

MOE_CLONES static void add(real *restrict to, const real *restrict from, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        to[i] += from[i];
    }
}

/* All additions that the devices first .. end - 1 allow; at[d - first]: row of device d in rows
 * [.][width], -1 = none. */
static void add_rows(const moe_tree *tree,
                     int32_t first,
                     int32_t end,
                     const int32_t *at,
                     real *rows,
                     int64_t width) {
#pragma omp parallel for schedule(static) if (width > CHUNK)
    for (int64_t begin = 0; begin < width; begin += CHUNK) {
        int64_t n = width - begin < CHUNK ? width - begin : CHUNK;
        for (int32_t s = 1; s < tree->devices; s *= 2) {
            for (int32_t d = (first + 2 * s - 1) / (2 * s) * 2 * s; d + s < end; d += 2 * s) {
                int32_t from = at[d + s - first];
                if (from >= 0 && joins(tree, d + s, first, end)) {
                    add(rows + at[d - first] * width + begin, rows + from * width + begin, n);
                }
            }
        }
    }
}

/* This rank's block for rank q: its devices' rows, those that can be added up added up, the rest
 * one after the other. */
static void stage_slice(
    const moe_tree *tree, const moe_tree_part *part, int64_t begin, int64_t width, real *block) {
    int32_t end = tree->first + tree->num_local, row = 0;
#pragma omp parallel for schedule(static)
    for (int32_t j = 0; j < tree->num_local; j++) {
        gather(part, j, begin, width, block + j * width);
    }
    add_rows(tree, tree->first, end, tree->local, block, width);
    for (int32_t j = 0; j < tree->num_local; j++) {
        if (joins(tree, tree->first + j, tree->first, end)) {
            continue;
        }
        if (row < j) {
            memmove(block + row * width, block + j * width, (size_t)width * sizeof *block);
        }
        row++;
    }
}

/* Elements of the piece [begin, begin + length): stage -> inbox -> sum, on several ranks. */
static void exchange(moe_tree *tree, const moe_comm *comm, int64_t length) {
    int64_t ranks = comm->size;
    int64_t arrived = 0;
    int64_t mine =
        slice_begin(length, comm->rank + 1, ranks) - slice_begin(length, comm->rank, ranks);
    for (int q = 0; q < comm->size; q++) {
        int64_t begin = slice_begin(length, q, ranks),
                width = slice_begin(length, q + 1, ranks) - begin;
        tree->send[q] = tree->rows[comm->rank] * width;
        tree->send[ranks + q] = tree->num_local * begin;
        tree->recv[q] = tree->rows[q] * mine;
        tree->recv[ranks + q] = arrived;
        tree->bytes[q] = width * (int64_t)sizeof(real);
        arrived += tree->recv[q];
    }
    moe_comm_alltoallv(comm, (moe_blocks){tree->stage, tree->send, tree->send + ranks},
                       (moe_blocks){tree->inbox, tree->recv, tree->recv + ranks}, sizeof(real),
                       tree->devices * (length / ranks + 1) + tree->num_local * length);
    add_rows(tree, 0, tree->devices, tree->global, tree->inbox, mine);
    moe_comm_allgatherv(comm, tree->inbox, tree->sum, tree->bytes);
}

void moe_tree_add(moe_tree *tree, const moe_comm *comm, const moe_tree_part *part, int num_parts) {
    int64_t total = 0;
    for (int i = 0; i < num_parts; i++) {
        total += part[i].count;
    }
    for (int64_t begin = 0; begin < total; begin += tree->piece) {
        int64_t length = total - begin < tree->piece ? total - begin : tree->piece;
        for (int q = 0; q < comm->size; q++) {
            int64_t from = slice_begin(length, q, comm->size),
                    to = slice_begin(length, q + 1, comm->size);
            stage_slice(tree, part, begin + from, to - from, tree->stage + tree->num_local * from);
        }
        if (comm->size > 1) {
            exchange(tree, comm, length);
        }
        scatter(part, begin, length, comm->size > 1 ? tree->sum : tree->stage);
    }
}

void moe_tree_sum(const moe_comm *comm,
                  int32_t devices,
                  int32_t num_local,
                  const real *partials,
                  int64_t count,
                  real *sum) {
    moe_tree *tree = moe_tree_new(comm, devices, num_local, count);
    moe_tree_add(tree, comm, &(moe_tree_part){partials, count, sum}, 1);
    moe_tree_free(tree);
}
