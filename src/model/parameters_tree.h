/* parameters_tree.h: sums over devices in a binary tree fixed on the device index. Layer 3 (act).
 * Private to parameters.c and tests. */
#ifndef MOESIM_MODEL_PARAMETERS_TREE_H
#define MOESIM_MODEL_PARAMETERS_TREE_H

#include <stdint.h>

#include "base/alloc.h"
#include "world/comm.h"

/* One vector: sum [count] from partials [num_local][count]. */
typedef struct moe_tree_part {
    const real *partials;
    int64_t count;
    real *sum;
} moe_tree_part;

typedef struct moe_tree moe_tree;

/* Local. Buffers for vectors of up to `longest` elements in all; used again from call to call.
 * Owner: caller, moe_tree_free. */
moe_tree *moe_tree_new(const moe_comm *comm, int32_t devices, int32_t num_local, int64_t longest);
void moe_tree_free(moe_tree *tree);
/* Collective. Adds up several vectors, as if they were one laid end to end. */
void moe_tree_add(moe_tree *tree, const moe_comm *comm, const moe_tree_part *part, int num_parts);

#endif
