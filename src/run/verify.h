/* verify.h: moesim --verify: the exact figures of method.md, computed again and compared. Layer 5
 * (simulate). */
#ifndef MOESIM_RUN_VERIFY_H
#define MOESIM_RUN_VERIFY_H

#include "base/status.h"
#include "world/comm.h"

/* Collective, any number of ranks; takes about a second. Rank 0 prints a line for each figure:
 * "name: expected, found, ok". MOE_RUN_FAILED when one is not what it should be. */
int moe_verify(const moe_comm *comm, moe_status *st);

#endif
