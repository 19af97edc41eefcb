/* dialects_parts.h: a row of --dialects: its configuration and its figures. Private to dialects.c
 * and dialects_show.c. Layer 5 (simulate). */
#ifndef MOESIM_RUN_DIALECTS_INTERNAL_H
#define MOESIM_RUN_DIALECTS_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "balance/balance.h"
#include "config/config.h"

typedef struct moe_dialect {
    char name[MOE_NAME_MAX]; /* preset, or the key that is read in another way */
    bool is_preset;
    char reason[1024]; /* why it cannot be had here; "" = it ran */
    moe_config c;      /* resolved */
    int64_t selections, common, dropped, dispatch_bytes;
    double mean_devices;
    double loss[MOE_NUM_LOSSES], ideal[MOE_NUM_LOSSES]; /* raw, in the row's own scope; at balance
                                                         */
} moe_dialect;

/* Local. Tables and sentences on stdout; row 0 is the configuration itself. */
void moe_dialects_show(const moe_dialect *row, int num_rows, int64_t num_tokens);

#endif
