/* dialects.h: moesim --dialects: the same tokens and gate logits through every preset, side by
 * side. */
#ifndef MOESIM_RUN_DIALECTS_H
#define MOESIM_RUN_DIALECTS_H

#include "base/status.h"
#include "config/config.h"
#include "world/comm.h"

/* Collective. c is the resolved configuration, which stays as it is. One step of one layer runs
 * forward, with experts that compute nothing, once for each row: c itself; c with the router.*,
 * balance.* and capacity.* keys of each preset; and c with one key read in another way. Rank 0
 * prints the tables, a sentence on each key by whose definition rows disagree, and, for a preset
 * that does not go with c, the reason. */
int moe_dialects(const moe_comm *comm, const moe_config *c, moe_status *st);

#endif
