/* dialects_internal.h: a row of --dialects, which dialects.c fills and dialects_show.c prints. */
#ifndef MOESIM_RUN_DIALECTS_INTERNAL_H
#define MOESIM_RUN_DIALECTS_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "balance/balance.h"
#include "config/config.h"

typedef struct moe_dialect {
    char name[MOE_NAME_MAX]; /* of the preset, or the key that is read in another way */
    bool is_preset;
    char reason[1024]; /* why it does not go with the configuration; "" when it ran */
    moe_config c;      /* resolved */
    int64_t selections;
    int64_t common; /* selections that the configuration's own router makes too */
    int64_t dropped;
    int64_t dispatch_bytes;
    double mean_devices;          /* that a token is sent to */
    double loss[MOE_NUM_LOSSES];  /* raw, in the row's own scope */
    double ideal[MOE_NUM_LOSSES]; /* its value at balance */
} moe_dialect;

/* Local. Prints the tables and sentences on stdout. Row 0 is the configuration itself. */
void moe_dialects_show(const moe_dialect *row, int num_rows, int64_t num_tokens);

#endif
