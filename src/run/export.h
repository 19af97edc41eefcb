/* export.h: moesim --export-parameters: parameters as .npy files, one for each, which other
 * programs read: of a checkpoint with the state of the optimiser, or those that a run would start
 * from. docs/checkpoints.md has their names and shapes. */
#ifndef MOESIM_RUN_EXPORT_H
#define MOESIM_RUN_EXPORT_H

#include "base/status.h"
#include "config/config.h"
#include "run/run.h"
#include "world/comm.h"

typedef struct moe_export_options {
    const char *from;   /* the folder of a run, or NULL: what a run would start from */
    const char *folder; /* where the files go; NULL: FROM/parameters */
} moe_export_options;

/* Collective. Writes the newest checkpoint of o->from that is whole. */
int moe_export_checkpoint(const moe_comm *comm,
                          const moe_export_options *o,
                          const moe_run_options *run,
                          moe_status *st);

/* Collective. Writes the parameters that a run with this configuration would start from; the
 * folders of runs are left alone. c is resolved for comm->size ranks. */
int moe_export_start(const moe_comm *comm,
                     moe_config *c,
                     const moe_export_options *o,
                     const moe_run_options *run,
                     moe_status *st);

#endif
