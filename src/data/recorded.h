/* recorded.h: the files of a recording (data.source = logits or routing): its steps, mask, weights
 * and scores. */
#ifndef MOESIM_DATA_RECORDED_H
#define MOESIM_DATA_RECORDED_H

#include "config/config.h"
#include "data/batch.h"
#include "data/input.h"
#include "world/comm.h"

/* Collective. Reads and checks data.path and what goes with it, of as many steps as the run has.
 * Settles c->run.steps, and c->router.top_k for a routing. A failure is agreed by all ranks, and
 * what was allocated is left in *in. */
int moe_recorded_read_logits(const moe_comm *comm, moe_config *c, moe_input *in, moe_status *st);
int moe_recorded_read_routing(const moe_comm *comm, moe_config *c, moe_input *in, moe_status *st);

#endif
