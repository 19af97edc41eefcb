/* parameters.h: the table of what is trained: values, gradients, optimiser state. Layer 3 (act).
 *
 * Two kinds: expert parameters live on their device (one block per local expert slot, keyed by
 * expert id; gradients stay there: expert parallel); replicated parameters are equal on every rank
 * (data parallel): each DEVICE adds its gradient into its own partial, and the partials are added
 * in a binary tree fixed on the device index, the same whether devices are folded or not. */
#ifndef MOESIM_MODEL_PARAMETERS_H
#define MOESIM_MODEL_PARAMETERS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/alloc.h"
#include "base/status.h"
#include "world/comm.h"

typedef struct moe_parameter {
    char name[64];        /* "layer0.experts.w1", "layer0.gate", "embedding", ... unique; keys the
                             checkpoint */
    bool expert;          /* expert parallel, else replicated */
    bool decay;           /* weight decay applies (matrices, not norm weights) */
    int64_t count;        /* blocks here: local expert slots, or 1 */
    int64_t count_global; /* blocks in all: num_experts, or 1 */
    int64_t size;         /* elements of a block */
    const int32_t *id;    /* [count] expert id of each block; NULL for replicated. Not owned */
    real *value;          /* [count * size]. Not owned */
    real *gradient;       /* [count * size] complete gradient of the step. Owned */
    real *partial; /* replicated: [num_local_devices][size]. Owned; NULL for expert parameters */
    real *m, *v;   /* optimiser state [count * size], NULL when the optimiser has none. Owned */
} moe_parameter;

typedef struct moe_parameters {
    moe_parameter *p;
    int num, room;
    int32_t devices, num_local_devices;
    struct moe_tree *tree; /* buffers of the reduction, from the first step on */
    struct moe_tree_part *parts;
    int64_t parts_room;
    double *square; /* sums of squares of pieces of the gradients */
    int64_t square_room;
    int worst_rank; /* where moe_parameters_gradient_norm found *worst */
} moe_parameters;

/* Local. */
void moe_parameters_init(moe_parameters *all, int32_t devices, int32_t num_local_devices);
/* Local. Adds a tensor to the table; returns its index (pointers into the table move). Expert
 * parameters always decay. */
int moe_parameters_add(
    moe_parameters *all, const char *name, bool decay, int64_t size, real *value);
int moe_parameters_add_experts(moe_parameters *all,
                               const char *name,
                               int64_t count,
                               int64_t count_global,
                               int64_t size,
                               const int32_t *id,
                               real *value);
/* Local. Clears gradients and partials before a step. */
void moe_parameters_clear_gradients(moe_parameters *all);
/* Collective. gradient of every replicated parameter = tree over devices of the partials; then
 * every gradient is multiplied by `scale` (1 / accumulate). *bytes += payload that devices gave
 * away, summed over devices (as if every device were a rank: reduce-scatter, then allgather: 2
 * (D-1) times the elements); the same number on every rank. */
void moe_parameters_reduce(moe_parameters *all, const moe_comm *comm, double scale, int64_t *bytes);
/* Collective. Euclidean norm of all gradients, each parameter once; independent of the number of
 * ranks (exact sums of sums of squares). NaN when a gradient is not finite: then *worst names the
 * first such parameter (in the table) and worst_rank is the lowest rank that has it. *worst is NULL
 * otherwise. */
double moe_parameters_gradient_norm(moe_parameters *all, const moe_comm *comm, const char **worst);
void moe_parameters_free(moe_parameters *all);

/* Collective. sum [count] = tree over all devices of partials [num_local][count]: level s adds
 * device d + s into device d for d multiple of 2s. Work is split by slices over ranks
 * (reduce-scatter by MPI_Alltoallv, then allgather); every rank gets all of sum. Local subtrees are
 * added before anything is sent. Vectors are taken in pieces: a few MiB of buffers, whatever the
 * count. */
void moe_tree_sum(const moe_comm *comm,
                  int32_t devices,
                  int32_t num_local,
                  const real *partials,
                  int64_t count,
                  real *sum);

#endif
