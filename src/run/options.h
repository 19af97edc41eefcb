/* options.h: the command line of moesim. */
#ifndef MOESIM_RUN_OPTIONS_H
#define MOESIM_RUN_OPTIONS_H

#include <stdbool.h>
#include <stdio.h>

#include "base/status.h"
#include "run/export.h"
#include "run/run.h"

typedef struct moe_set_options {
    const char **assignment; /* [count] */
    int count;
} moe_set_options;

typedef struct moe_options {
    const char *config;            /* the file, or NULL */
    const char *resume;            /* the folder of --resume, or NULL */
    const char *calibrate;         /* the file to write, or NULL */
    const char *explain;           /* the text behind --explain, or NULL */
    const char *export_parameters; /* the folder behind it, or NULL */
    moe_set_options sets;
    moe_run_options run;
    moe_export_options parameters; /* of --export-parameters, where that is not NULL */
    bool help, version, keys, verify, dialects, placements, ranks;
    bool generates;      /* --set run.mode=generate: --resume names the model */
    bool verify_predict; /* the word behind --verify; `verify` is then off */
} moe_options;

/* Local. Reads the command line into *o, which points into argv afterwards. Fails with MOE_USER and
 * one sentence about the first mistake. To be freed with moe_options_free, also on failure. */
int moe_options_parse(int argc, char **argv, moe_options *o, moe_status *st);
void moe_options_free(moe_options *o);

/* Local. Prints what --help shows, from the table of options. */
void moe_options_print_help(FILE *out);

#endif
