/* summary_parts.h: what the files of the summary share. Layer 4 (show). Private to summary*.c. */
#ifndef MOESIM_OUTPUT_SUMMARY_INTERNAL_H
#define MOESIM_OUTPUT_SUMMARY_INTERNAL_H

#include "base/status.h"
#include "output/json.h"
#include "output/summary.h"
#include "output/training_history.h"

/* summary_training.c */
/* Local. Adds to a step's line what only training has. */
void moe_summary_put_training(json_t *line, const moe_config *c, const moe_step_metrics *step);
/* Local. The summary's object `training`. */
json_t *moe_summary_training(const moe_config *c,
                             const moe_step_metrics *last,
                             const moe_training_history *h,
                             const moe_training_facts *f);

/* summary_capacity.c */
/* Local. A layer's object `capacity`. */
json_t *moe_summary_capacity(const moe_config *c,
                             const moe_step_metrics *r,
                             const moe_layer_metrics *l);

#endif
