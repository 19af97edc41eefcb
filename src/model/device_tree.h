/* device_tree.h: sums of vectors over devices in an order that nobody can change.
 *
 * Every device d has a vector v_d. The sum is taken in a binary tree over the device index: at
 * level s = 1, 2, 4, ... device d + s is added into device d, for d a multiple of 2 s. Where the
 * devices live plays no part in it, so the bits of the sum are the same on any number of ranks. */
#ifndef MOESIM_MODEL_DEVICE_TREE_H
#define MOESIM_MODEL_DEVICE_TREE_H

#include <stdint.h>

#include "base/alloc.h"
#include "world/comm.h"

/* One vector to be summed: sum [count] from partials [num_local_devices][count]. */
typedef struct moe_device_vector {
    const real *partials;
    int64_t count;
    real *sum;
} moe_device_vector;

typedef struct moe_device_tree moe_device_tree;

/* Local. Buffers for vectors of up to `longest` elements in all, at most a few MiB: longer ones are
 * taken in pieces. They are used again from call to call. Owner: the caller, moe_device_tree_free.
 */
moe_device_tree *moe_device_tree_new(const moe_comm *comm,
                                     int32_t devices,
                                     int32_t num_local_devices,
                                     int64_t longest);
void moe_device_tree_free(moe_device_tree *tree);

/* Collective. Sums several vectors, as if they were one laid end to end; every rank gets all of the
 * sums. The work is shared: each rank sums a slice (MPI_Alltoallv), and all gather the slices. */
void moe_device_tree_sum(moe_device_tree *tree,
                         const moe_comm *comm,
                         const moe_device_vector *vectors,
                         int num_vectors);

#endif
