/* derive_parts.h: what the files of derive share. Layer 4 (show). Private to derive*.c. */
#ifndef MOESIM_EXPLAIN_DERIVE_INTERNAL_H
#define MOESIM_EXPLAIN_DERIVE_INTERNAL_H

#include "explain/derive.h"

/* A number and what is reported for it; integers are compared exactly (they are below 2^53). */
typedef struct moe_derived_numbers {
    double value, reported;
} moe_derived_numbers;

/* Local. Adds an item; `format` and what follows fill in the formula. */
void moe_derive_add(moe_derivation *d,
                    enum moe_derived_part part,
                    int32_t layer,
                    const char *name,
                    moe_derived_numbers n,
                    const char *formula,
                    const char *format,
                    ...) MOE_PRINTF(7, 8);

/* Text that is put together piece by piece; what does not fit is cut off. */
typedef struct moe_pieces {
    char text[480];
    int length;
} moe_pieces;
void moe_pieces_add(moe_pieces *p, const char *format, ...) MOE_PRINTF(2, 3);

/* derive_balance.c: max/mean, MaxVio, mean/max, CV, Gini, entropy and idle of the four kinds of
 * load. */
void moe_derive_balance(moe_derivation *d, const moe_step_metrics *r);
/* derive_volume.c: devices per token, rows, bytes. */
void moe_derive_volume(moe_derivation *d, const moe_config *c, const moe_step_metrics *r);

#endif
