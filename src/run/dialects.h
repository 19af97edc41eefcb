/* dialects.h: moesim --dialects: the same tokens and gate logits through every preset, side by
 * side. Layer 5 (simulate). */
#ifndef MOESIM_RUN_DIALECTS_H
#define MOESIM_RUN_DIALECTS_H

#include "base/status.h"
#include "config/config.h"
#include "world/comm.h"

/* Collective. c: the resolved configuration; it stays as it is. One layer, one step, forward, with
 * experts that compute nothing. Rows: c itself, every preset's router.*, balance.* and capacity.*
 * (N, D, data, gate and exchange stay c's), and c with one key read in another way. Rank 0 prints
 * the tables and a sentence where rows disagree by definition; what a preset cannot do here is
 * listed with its reason. */
int moe_dialects(const moe_comm *comm, const moe_config *c, moe_status *st);

#endif
