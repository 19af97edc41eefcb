/* timeline.h: the timeline of a step as a file in Chrome's trace-event format, which trace viewers
 * and the report read. */
#ifndef MOESIM_OUTPUT_TIMELINE_H
#define MOESIM_OUTPUT_TIMELINE_H

#include "base/status.h"
#include "config/config.h"
#include "measure/timeline.h"
#include "world/comm.h"
#include "world/topology.h"

/* Collective. Rank 0 writes folder/timeline.json whole or not at all: a process for each host, a
 * thread for each rank, a complete event ("X") for each span. ts and dur are microseconds since the
 * first rank began the step, on rank 0's clock (moe_comm_clock_offset). topologies [size] are those
 * of all ranks. MOE_ERROR, agreed by all ranks, when the file cannot be written. */
int moe_timeline_write(const moe_comm *comm,
                       const moe_timeline *t,
                       const moe_config *c,
                       const moe_topology *topologies,
                       int64_t step,
                       const char *folder,
                       moe_status *st);

#endif
