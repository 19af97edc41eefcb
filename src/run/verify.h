/* verify.h: moesim --verify: the figures that are known exactly (docs/method.md), computed again
 * and compared. */
#ifndef MOESIM_RUN_VERIFY_H
#define MOESIM_RUN_VERIFY_H

#include "base/status.h"
#include "world/comm.h"

/* Collective, on any number of ranks; it takes about a second. Rank 0 prints a line for each
 * figure: "name: expected ..., found ..., ok". Fails with MOE_RUN_FAILED when a figure is not what
 * it should be. */
int moe_verify(const moe_comm *comm, moe_status *st);

/* Local, on rank 0. moesim --verify predict: published times of real clusters beside those that
 * configs/clusters and the formulas predict, with the error of each, and what is not explained.
 * There is nothing to fail: measurements are not figures that are known exactly. */
void moe_verify_predict(void);

#endif
