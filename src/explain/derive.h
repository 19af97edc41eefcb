/* derive.h: the numbers of a step's final tables, each derived from what it is made of: formula,
 * the formula with its values, and the value computed again beside the one that is reported. Layer
 * 4 (show). The values are put together in plain double from counts, mean scores and matrices, not
 * by the code that reported them: a number that does not agree is a bug. */
#ifndef MOESIM_EXPLAIN_DERIVE_H
#define MOESIM_EXPLAIN_DERIVE_H

#include "balance/scopes.h"
#include "config/config.h"
#include "measure/metrics.h"
#include "output/screen.h"

enum moe_derived_part {
    MOE_DERIVED_LOSSES,
    MOE_DERIVED_DEVICES,
    MOE_DERIVED_VOLUME,
    MOE_DERIVED_BALANCE,
    MOE_NUM_DERIVED_PARTS
};
extern const char *const moe_derived_parts[MOE_NUM_DERIVED_PARTS]; /* their headings */

typedef struct moe_derived {
    enum moe_derived_part part;
    int32_t layer;       /* -1: of all layers */
    int32_t micro_batch; /* -1: of all micro-batches */
    char name[64], formula[200], filled[560];
    double value, reported;
    bool agrees;
    bool aside; /* another one like it, of another layer or micro-batch, is shown */
} moe_derived;

typedef struct moe_derivation {
    moe_derived *item; /* [count] on rank 0 */
    int32_t count, room, disagree;
    double *micro; /* [layers][MOE_NUM_LOSSES] sums over micro-batches of the losses in the scope
                      that trains; NULL without micro-batches */
} moe_derivation;

/* What a layer's losses were made from. */
typedef struct moe_derive_job {
    const moe_comm *comm;
    const moe_config *config;
    const moe_balance *balance;
    const moe_placement *placement;
    const moe_batch *batch;
    const moe_scopes *scopes;
    int32_t layer, micro_batch;
} moe_derive_job;

/* Collective. Adds the layer's losses, in the three scopes, and their values at balance. */
void moe_derive_layer(moe_derivation *d,
                      const moe_derive_job *job,
                      const moe_layer_metrics *metrics);
/* Local, rank 0. Adds what a step's record is enough for: losses over layers, devices per token,
 * volume, balance. */
void moe_derive_step(moe_derivation *d, const moe_config *c, const moe_step_metrics *r);
/* Local. Prints all of it: the first layer's in full, the others' where they do not agree. */
void moe_derive_show(const moe_screen *s, const moe_derivation *d);
void moe_derivation_free(moe_derivation *d);

#endif
