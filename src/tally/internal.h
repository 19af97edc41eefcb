/* tally_parts.h: the part of the tally that dropping at a capacity adds. Layer 5 (simulate).
 * Private to tally*.c. */
#ifndef MOESIM_TALLY_INTERNAL_H
#define MOESIM_TALLY_INTERNAL_H

#include "measure/metrics.h"
#include "model/layer.h"

/* Local. Words that the part needs in the vector that is summed over ranks. */
int64_t moe_tally_drop_words(const moe_context *context);
/* Local. This rank's share. */
void moe_tally_drop_count(const moe_context *context, const moe_activations *a, int64_t *words);
/* Local. From the sums over ranks: kept and dropped pairs, and the record of the capacity.
 * rows_saved: rows without dropping less rows sent. */
void moe_tally_drop_fill(const moe_context *context,
                         const moe_activations *a,
                         const int64_t *words,
                         int64_t rows_saved,
                         moe_layer_metrics *out);
/* Local. No buffer holds more than its capacity. */
void moe_tally_drop_check(const moe_context *context,
                          const moe_layer_metrics *out,
                          moe_step_metrics *metrics);

#endif
