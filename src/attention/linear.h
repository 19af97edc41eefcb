/* linear.h: y = W x for all tokens of a rank, and its gradients, under the guarantee that no
 * product takes rows of two devices: its bits do not depend on which devices a rank has. */
#ifndef MOESIM_ATTENTION_LINEAR_H
#define MOESIM_ATTENTION_LINEAR_H

#include <stdint.h>

#include "base/alloc.h"
#include "data/batch.h"

/* Local. y [T,out] = x [T,in] w^T, w [out,in]. OpenMP over rows. */
void moe_linear_forward(const moe_batch *b,
                        int64_t out,
                        int64_t in,
                        const real *x,
                        const real *w,
                        real *y);

/* Local. dx [T,in] = dy [T,out] w + keep dx, keep 0 or 1. OpenMP over rows. */
void moe_linear_backward(const moe_batch *b,
                         int64_t out,
                         int64_t in,
                         const real *dy,
                         const real *w,
                         real keep,
                         real *dx);

/* One weight gradient that is still to be made: partial[j] [out,in] += dy^T x over the tokens of
 * local device j. */
typedef struct moe_linear_job {
    int64_t out, in;
    const real *dy, *x;
    real *partial; /* [num_local_devices, out, in] */
} moe_linear_job;

/* Local. Makes all of them. OpenMP over devices and jobs. */
void moe_linear_weight_gradients(const moe_batch *b, const moe_linear_job *job, int num_jobs);

#endif
