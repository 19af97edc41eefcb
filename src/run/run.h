/* run.h: a run from a resolved configuration to its folder of results. Layer 5 (simulate). */
#ifndef MOESIM_RUN_RUN_H
#define MOESIM_RUN_RUN_H

#include <stdbool.h>

#include "config/config.h"
#include "train/checkpoint.h"
#include "world/comm.h"

typedef struct moe_run_options {
    bool explains_token, explains_step; /* of the last step: shown, and written to explain.json */
    int64_t explain_token;              /* global id */
    const char *out;                    /* folder, or NULL for the default */
    bool force, quiet;
    const moe_checkpoint *resume; /* go on from here, in folder `out`; NULL: a new run */
    const char *word;             /* what is to be said about damaged checkpoints, "" = nothing */
    bool check_only; /* --check: validate everything, files included, print the resolved
                        configuration, stop */
} moe_run_options;

/* Collective. c is resolved for comm->size ranks. Returns the exit code that all ranks agree on;
 * the sentence is in st. */
int moe_run(const moe_comm *comm, moe_config *c, const moe_run_options *options, moe_status *st);

#endif
