/* derive_internal.h: the parts of a derivation, and how they write. All functions are local. */
#ifndef MOESIM_EXPLAIN_DERIVE_INTERNAL_H
#define MOESIM_EXPLAIN_DERIVE_INTERNAL_H

#include "base/status.h"
#include "config/config.h"
#include "explain/derivation.h"
#include "measure/figures.h"
#include "measure/metrics.h"

/* A derived value and the one that is reported. Integers are compared exactly: they are below 2^53.
 */
typedef struct moe_derived_numbers {
    double value, reported;
} moe_derived_numbers;

/* Adds an item. `format` and what follows it are the formula with its values. */
void moe_derivation_add(moe_derivation *d,
                        enum moe_derived_section section,
                        int32_t layer,
                        const char *name,
                        moe_derived_numbers n,
                        const char *formula,
                        const char *format,
                        ...) MOE_PRINTF(7, 8);

/* A text that is put together piece by piece. What does not fit is cut off. */
typedef struct moe_pieces {
    char text[480];
    int length;
} moe_pieces;
void moe_pieces_add(moe_pieces *p, const char *format, ...) MOE_PRINTF(2, 3);

/* --- derive_losses.c: the means over layers and micro-batches, and the total --- */
void moe_derive_losses_over_layers(moe_derivation *d,
                                   const moe_config *c,
                                   const moe_step_metrics *m,
                                   const moe_figures *f);
/* --- derive_volume.c: devices per token, rows, bytes --- */
void moe_derive_volume(moe_derivation *d,
                       const moe_config *c,
                       const moe_step_metrics *m,
                       const moe_figures *f);
/* derive_balance.c: max/mean, MaxVio, mean/max, CV, Gini, entropy and idle of the four loads by
 * expert and device. */
void moe_derive_balance(moe_derivation *d, const moe_step_metrics *m);

#endif
