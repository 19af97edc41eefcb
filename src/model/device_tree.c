/* device_tree.c: the tree sum, shared among the ranks.
 *
 * The elements of a piece are dealt to the ranks in slices. A rank first adds up the subtrees that
 * lie wholly on its own devices, then sends what is left of each slice to the slice's rank (one
 * MPI_Alltoallv), finishes the tree for its own slice, and all ranks gather the slices. Device d >
 * 0 is added into device d - low, where low is the lowest set bit of d, once its own subtree d .. d
 * + low - 1 is complete.
 *
 * Short vectors are not worth two messages: every rank gathers the rows of all ranks and finishes
 * the whole tree by itself. The additions, and so the bits, are the same.
 *
 * Advantage: the work of the sum is shared, and a rank with whole subtrees sends one row for each
 * of them instead of one for each device. Disadvantage: with one device a rank there are no whole
 * subtrees, and each rank sends everything once, as a reduce-scatter does. A ring would not need
 * room for D rows, but the order of its sums depends on the ranks. */
#include "model/device_tree.h"

#include <string.h>

#include "base/block.h"
#include "base/status.h"
#include "base/vector.h"

enum {
    PIECE_BYTES = 1 << 22, /* of all local devices together */
    SHORT_BYTES = 1 << 16, /* of all rows that a rank gathers of short vectors */
    CHUNK = 2048           /* columns that a thread takes through the whole tree */
};

struct moe_device_tree {
    int32_t devices, num_local, first; /* first: this rank's first device */
    int64_t piece;                     /* most elements taken at a time */
    moe_block block;                   /* everything below */

    /* Where a device's row stands, before the tree of the rank and before that of all ranks; -1:
     * the device has been added into another already. */
    int32_t *local, *global; /* [num_local], [devices] */
    int64_t *rows;           /* [ranks] rows that each rank has left after its own tree */

    /* counts and offsets of the Alltoallv, bytes of the allgather */
    int64_t *send, *recv; /* [2][ranks] */
    int64_t *bytes;       /* [ranks] */

    real *stage;   /* [num_local][piece], by slices */
    bool is_short; /* all rows of all ranks are gathered */
    real *inbox; /* [devices][a slice], or [devices][piece] of short vectors; with several ranks */
    real *sum;   /* [piece], with several ranks */
};

/* Is device d added into its parent by the rank that has the devices first .. end - 1? */
static bool joins(const moe_device_tree *tree, int32_t d, int32_t first, int32_t end) {
    int32_t low = d & -d, stop = d + low < tree->devices ? d + low : tree->devices;
    return d > 0 && d - low >= first && stop <= end;
}

/* First element of rank q's slice of a piece. */
static int64_t slice_begin(int64_t length, int64_t q, int64_t ranks) {
    return length * q / ranks;
}

static void lay_out(moe_device_tree *tree, const moe_comm *comm) {
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

moe_device_tree *moe_device_tree_new(const moe_comm *comm,
                                     int32_t devices,
                                     int32_t num_local_devices,
                                     int64_t longest) {
    MOE_ASSERT(num_local_devices > 0 && (int64_t)num_local_devices * comm->size == devices);
    const char *what = "sums over devices";
    int64_t ranks = comm->size;
    int64_t most = PIECE_BYTES / (int64_t)sizeof(real) / num_local_devices;
    bool several = ranks > 1;
    moe_device_tree *tree = moe_alloc_zero(1, sizeof *tree, what);
    tree->devices = devices;
    tree->num_local = num_local_devices;
    tree->first = comm->rank * num_local_devices;
    tree->piece = longest < most ? longest : most > 0 ? most : 1;
    tree->is_short = devices * tree->piece * (int64_t)sizeof(real) <= SHORT_BYTES;
    int64_t slice = tree->is_short ? tree->piece : tree->piece / ranks + 1;
    moe_block_array table[] = {
        MOE_ARRAY(tree->local, num_local_devices),
        MOE_ARRAY(tree->global, devices),
        MOE_ARRAY(tree->rows, ranks),
        MOE_ARRAY(tree->send, 2 * ranks),
        MOE_ARRAY(tree->recv, 2 * ranks),
        MOE_ARRAY(tree->bytes, ranks),
        MOE_ARRAY(tree->stage, num_local_devices * tree->piece),
        MOE_ARRAY(tree->inbox, several ? devices * slice : 0),
        MOE_ARRAY(tree->sum, several ? tree->piece : 0),
    };
    moe_block_reserve(&tree->block, table, MOE_ARRAYS(table), what);
    lay_out(tree, comm);
    return tree;
}

void moe_device_tree_free(moe_device_tree *tree) {
    if (tree) {
        moe_block_free(&tree->block);
        moe_free(tree);
    }
}

/* --- between the vectors and the pieces --- */

/* Row j of the vectors laid end to end, elements begin .. begin + count - 1. */
static void gather(const moe_device_vector *vector,
                   int32_t j,
                   int64_t begin,
                   int64_t count,
                   real *out) {
    for (; count > 0; vector++) {
        int64_t n = vector->count - begin < count ? vector->count - begin : count;
        if (n > 0) {
            memcpy(out, vector->partials + j * vector->count + begin, (size_t)n * sizeof *out);
            out += n;
            count -= n;
        }
        begin = n > 0 ? 0 : begin - vector->count;
    }
}

static void scatter(const moe_device_vector *vector,
                    int64_t begin,
                    int64_t count,
                    const real *from) {
    for (; count > 0; vector++) {
        int64_t n = vector->count - begin < count ? vector->count - begin : count;
        if (n > 0) {
            memcpy(vector->sum + begin, from, (size_t)n * sizeof *from);
            from += n;
            count -= n;
        }
        begin = n > 0 ? 0 : begin - vector->count;
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
static void add_rows(const moe_device_tree *tree,
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
static void stage_slice(const moe_device_tree *tree,
                        const moe_device_vector *vector,
                        int64_t begin,
                        int64_t width,
                        real *block) {
    int32_t end = tree->first + tree->num_local, row = 0;
#pragma omp parallel for schedule(static)
    for (int32_t j = 0; j < tree->num_local; j++) {
        gather(vector, j, begin, width, block + j * width);
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

/* Collective, on several ranks: the slices of a piece go from stage through inbox to sum. */
static void exchange(moe_device_tree *tree, const moe_comm *comm, int64_t length) {
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

/* Collective: the rows of all ranks go from stage to inbox, where row 0 becomes the sum. */
static void gather_short(moe_device_tree *tree, const moe_comm *comm, int64_t length) {
    for (int q = 0; q < comm->size; q++) {
        tree->bytes[q] = tree->rows[q] * length * (int64_t)sizeof(real);
    }
    moe_comm_allgatherv(comm, tree->stage, tree->inbox, tree->bytes);
    add_rows(tree, 0, tree->devices, tree->global, tree->inbox, length);
}

static void sum_short(moe_device_tree *tree,
                      const moe_comm *comm,
                      const moe_device_vector *vector,
                      int64_t length) {
    stage_slice(tree, vector, 0, length, tree->stage);
    if (comm->size > 1) {
        gather_short(tree, comm, length);
    }
    scatter(vector, 0, length, comm->size > 1 ? tree->inbox : tree->stage);
}

void moe_device_tree_sum(moe_device_tree *tree,
                         const moe_comm *comm,
                         const moe_device_vector *vector,
                         int num_vectors) {
    int64_t total = 0;
    for (int i = 0; i < num_vectors; i++) {
        total += vector[i].count;
    }
    if (tree->is_short) {
        MOE_ASSERT(total <= tree->piece);
        sum_short(tree, comm, vector, total);
        return;
    }
    for (int64_t begin = 0; begin < total; begin += tree->piece) {
        int64_t length = total - begin < tree->piece ? total - begin : tree->piece;
        for (int q = 0; q < comm->size; q++) {
            int64_t from = slice_begin(length, q, comm->size),
                    to = slice_begin(length, q + 1, comm->size);
            stage_slice(tree, vector, begin + from, to - from,
                        tree->stage + tree->num_local * from);
        }
        if (comm->size > 1) {
            exchange(tree, comm, length);
        }
        scatter(vector, begin, length, comm->size > 1 ? tree->sum : tree->stage);
    }
}
