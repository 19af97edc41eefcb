/* overlap.h: how much of an exchange in chunks was hidden behind the experts, rank by rank, as it
 * is written and shown. docs/results.md defines it. */
#ifndef MOESIM_OUTPUT_OVERLAP_H
#define MOESIM_OUTPUT_OVERLAP_H

#include <jansson.h>

#include "config/config.h"
#include "exchange/chunks.h"
#include "measure/metrics.h"
#include "output/screen.h"
#include "world/comm.h"

/* Local. Adds what a step measured on this rank. */
void moe_overlap_add(moe_overlap *sum, const moe_step_metrics *step);

/* Collective. Those of all ranks [size]. Owner: the caller, moe_free. */
moe_overlap *moe_overlap_gather(const moe_comm *comm, const moe_overlap *mine);

/* Local. What was hidden of the time on the way, 0 to 1; NaN where nothing was on its way. */
double moe_overlap_share(const moe_overlap *o);

/* Local. The sum over ranks. */
moe_overlap moe_overlap_total(const moe_overlap *of_ranks, int ranks);

/* Local. time.overlap of summary.json; NULL with one chunk. Owner: the caller. */
json_t *moe_overlap_json(const moe_config *c, const moe_overlap *of_ranks, int ranks);

/* Local. The same in a few lines; nothing with one chunk. */
void moe_overlap_show(const moe_screen *s,
                      const moe_config *c,
                      const moe_overlap *of_ranks,
                      int ranks);

#endif
