/* run.h: a run from a resolved configuration to its folder of results. */
#ifndef MOESIM_RUN_RUN_H
#define MOESIM_RUN_RUN_H

#include <stdbool.h>

#include "config/config.h"
#include "train/checkpoint.h"
#include "world/comm.h"

typedef struct moe_run_options {
    /* what of the last step is explained, on the screen and in explain.json */
    bool explains_token, explains_step;
    int64_t explain_token; /* global id */

    const char *out; /* --out: the folder of results, or NULL for the default */
    bool force, quiet;
    bool full;       /* --full: the ending on the screen tells everything */
    bool check_only; /* --check: validate everything, files included, print the resolved
                        configuration, and stop */
    bool model_only; /* the model is made and no folder of results: for moe_export_start */

    const moe_checkpoint *resume; /* go on from here, in folder `out`; NULL: a new run */
    const moe_checkpoint *model;  /* run.mode = generate: whose parameters are used */
    const char *word;             /* what is to be said about damaged checkpoints, "" = nothing */
} moe_run_options;

/* Collective. c is resolved for comm->size ranks; reading a recorded routing may settle its top_k.
 * Returns the exit code that all ranks agree on; the sentence is in *st. */
int moe_run(const moe_comm *comm, moe_config *c, const moe_run_options *options, moe_status *st);

#endif
