/* summary_parts.h: what the files of the summary share. Layer 4 (show). Private to summary*.c. */
#ifndef MOESIM_SUMMARY_PARTS_H
#define MOESIM_SUMMARY_PARTS_H

#include <math.h>

#include "moesim/history.h"
#include "moesim/status.h"
#include "moesim/summary.h"

/* Takes over the reference to value. */
static inline void put(json_t *object, const char *key, json_t *value) {
    if (json_object_set_new(object, key, value) != 0) moe_out_of_memory("the summary", 0);
}

/* null where the value is not defined. */
static inline json_t *number(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

/* summary_training.c */
/* Local. Adds to a step's line what only training has. */
void moe_summary_put_training(json_t *line, const moe_config *c, const moe_step_record *step);
/* Local. The summary's object `training`. */
json_t *moe_summary_training(const moe_config *c, const moe_step_record *last, const moe_history *h, const moe_training_facts *f);

/* summary_capacity.c */
/* Local. A layer's object `capacity`. */
json_t *moe_summary_capacity(const moe_config *c, const moe_step_record *r, const moe_layer_record *l);

#endif
