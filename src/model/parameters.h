/* parameters.h: the table of what is trained: values, gradients, state of the optimizer.
 *
 * There are two kinds of parameters. Expert parameters live on the device of their expert, one
 * block for each local expert slot, keyed by the expert's id; their gradients stay there (expert
 * parallel). Replicated parameters are equal on every rank (data parallel): each DEVICE adds its
 * gradient into a partial of its own, and the partials are summed in a binary tree over the device
 * index (device_tree.h), the same whether devices are folded onto a rank or not. */
#ifndef MOESIM_MODEL_PARAMETERS_H
#define MOESIM_MODEL_PARAMETERS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/alloc.h"
#include "base/block.h"
#include "base/exact.h"
#include "base/status.h"
#include "model/device_tree.h"
#include "world/comm.h"

typedef struct moe_parameter {
    char name[64];        /* "layer0.experts.w1", "layer0.gate", "embedding", ... unique; keys the
                             checkpoint */
    bool expert;          /* expert parallel, else replicated */
    bool decay;           /* weight decay applies (matrices, not norm weights) */
    int64_t count;        /* blocks here: local expert slots, or 1 */
    int64_t count_global; /* blocks in all: num_experts, or 1 */
    int64_t size;         /* elements of a block */
    int64_t columns;      /* of the matrix that a block is; 0: it is a vector */
    const int32_t *id;    /* [count] expert id of each block; NULL for replicated. Not owned */
    const uint8_t *copy; /* [count] 1: a replica of an expert whose first slot is another one; NULL:
                            there are no replicas. Not owned */
    real *value;         /* [count * size]. Not owned */
    real *gradient;      /* [count * size] complete gradient of the step. Owned */
    bool stale;          /* expert: `gradient` still holds that of the step before, and stands for 0
                            until something is written */
    real *partial; /* replicated: [num_local_devices][size]. Owned; NULL for expert parameters */
    real *m, *v;   /* optimiser state [count * size], NULL when the optimiser has none. Owned */
} moe_parameter;

typedef struct moe_parameters {
    moe_parameter *p; /* [num], room for [capacity] */
    int num, capacity;
    int32_t devices, num_local_devices;
    bool values_only; /* no gradients are kept: the caller sets it before the first tensor */
    int worst_rank;   /* where moe_parameters_gradient_norm found *worst */

    /* working memory of the reduction and the norm, from the first step on */
    moe_device_tree *tree;
    moe_block block;
    moe_device_vector *vectors; /* [num] the replicated parameters, as vectors of one sum */
    double *square;             /* sums of squares of pieces of the gradients */
} moe_parameters;

/* Local. An empty table. */
void moe_parameters_init(moe_parameters *all, int32_t devices, int32_t num_local_devices);
void moe_parameters_free(moe_parameters *all);

/* Local. Adds a replicated tensor of `size` elements to the table and returns its index. Pointers
 * into the table are invalid afterwards. `value` stays the caller's. decay: weight decay applies.
 */
int moe_parameters_add(moe_parameters *all,
                       const char *name,
                       bool decay,
                       int64_t size,
                       real *value);

/* Local. The same for a tensor of the experts: `count` blocks of `size` elements here, of
 * count_global on all ranks; id [count] are the experts of the blocks. They always decay. */
int moe_parameters_add_experts(moe_parameters *all,
                               const char *name,
                               int64_t count,
                               int64_t count_global,
                               int64_t size,
                               const int32_t *id,
                               real *value);

/* Local. Begins a step: every gradient is 0. Those of experts are not walked through: whoever
 * makes them writes over the old ones first (moe_parameters_expert_gradient). */
void moe_parameters_clear_gradients(moe_parameters *all);

/* Local. The gradients of expert parameter `index`, all blocks of which the caller is about to
 * make. *replace: they are the first ones of the step, and must be written instead of added. */
real *moe_parameters_expert_gradient(moe_parameters *all, int index, bool *replace);

/* Collective. Sums the partials of every replicated parameter over devices into its gradient, then
 * multiplies every gradient by `scale` (1 / accumulate). Adds to *bytes the payload that the
 * devices would give to MPI_Allreduce if every device were a rank, summed over devices: D times the
 * elements, as for the counts of the balance losses. The number is the same on every rank. */
void moe_parameters_reduce(moe_parameters *all, const moe_comm *comm, double scale, int64_t *bytes);

/* Collective. The Euclidean norm of all gradients, each parameter once. It does not depend on the
 * number of ranks, since the sums of squares are summed exactly. When a gradient is not finite the
 * norm is NaN, *worst names the first such parameter of the table, and worst_rank is the lowest
 * rank that has it; otherwise *worst is NULL. */
double moe_parameters_gradient_norm(moe_parameters *all, const moe_comm *comm, const char **worst);

enum { MOE_NORM_WORDS = MOE_EXACT_WIDE_WORDS + 1 };
/* Collective. The same, and sums what the caller has in `sums` behind the first MOE_NORM_WORDS,
 * which are the norm's, over the ranks in the same message: num_further words. */
double moe_parameters_gradient_norm_with(moe_parameters *all,
                                         const moe_comm *comm,
                                         int64_t *sums,
                                         int64_t num_further,
                                         const char **worst);

#endif
