/* summary_internal.h: the objects of summary.json that have a file of their own. */
#ifndef MOESIM_OUTPUT_SUMMARY_INTERNAL_H
#define MOESIM_OUTPUT_SUMMARY_INTERNAL_H

#include "config/config.h"
#include "measure/metrics.h"
#include "output/json.h"
#include "output/training_history.h"

/* --- summary_config.c --- */

/* Local. The resolved configuration as an object of sections: {"name": .., "run": {"seed": 1, ..},
 * ..}. Numbers and yes / no keep their type. */
json_t *moe_summary_config(const moe_config *c);

/* --- summary_training.c --- */

/* Local. Adds to the line of a step what only training has. */
void moe_summary_put_training(json_t *line, const moe_config *c, const moe_step_metrics *step);
/* Local. The summary's object `training`. */
json_t *moe_summary_training(const moe_config *c,
                             const moe_step_metrics *last,
                             const moe_training_history *h,
                             const moe_training_facts *f);

/* --- summary_capacity.c --- */

/* Local. The object `capacity` of a layer. */
json_t *moe_summary_capacity(const moe_config *c,
                             const moe_step_metrics *m,
                             const moe_layer_metrics *l);

/* --- summary_generation.c --- */

/* Local. The object `generate` of a step of a run that generates. */
json_t *moe_summary_pass(const moe_config *c, const moe_step_metrics *step);

#endif
