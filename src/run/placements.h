/* placements.h: moesim --placements: the same routing under every placement, side by side. */
#ifndef MOESIM_RUN_PLACEMENTS_H
#define MOESIM_RUN_PLACEMENTS_H

#include "base/status.h"
#include "config/config.h"
#include "run/run.h"
#include "world/comm.h"

/* Collective. c is resolved with compares_placements set. Every balancer decides by the load of a
 * first window of steps (placement.fit) and is judged on a later one (placement.score), step by
 * step. The steps are those of a forward run of c, or the loads of the file placement.load, which
 * say nothing about rows. Rank 0 prints a table and writes placements.json and, for each policy,
 * placements/POLICY.npy into the folder of results. Of the options, out, force, quiet and
 * check_only count. MOE_USER and one sentence where slots do not divide, a window is longer than
 * the run, or a file does not fit. */
int moe_placements(const moe_comm *comm,
                   moe_config *c,
                   const moe_run_options *options,
                   moe_status *st);

#endif
