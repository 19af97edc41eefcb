/* derivation.h: the list of a step's derived figures. Each has a formula, the formula with its
 * values, and the value that was computed again beside the one that is reported. */
#ifndef MOESIM_EXPLAIN_DERIVATION_H
#define MOESIM_EXPLAIN_DERIVATION_H

#include <stdbool.h>
#include <stdint.h>

enum moe_derived_section {
    MOE_DERIVED_LOSSES,
    MOE_DERIVED_DEVICES,
    MOE_DERIVED_VOLUME,
    MOE_DERIVED_BALANCE,
    MOE_NUM_DERIVED_SECTIONS
};
extern const char *const moe_derived_sections[MOE_NUM_DERIVED_SECTIONS]; /* their headings */

typedef struct moe_derived {
    enum moe_derived_section section;
    int32_t layer;       /* -1: of all layers */
    int32_t micro_batch; /* -1: of all micro-batches */
    char name[64], formula[200], filled[560];
    double value, reported;
    bool agrees;
    bool aside; /* not shown, because one like it of another layer or micro-batch is shown */
} moe_derived;

typedef struct moe_derivation {
    moe_derived *item; /* [count] on rank 0 */
    int32_t count, capacity;
    int32_t disagree; /* how many items do not agree */
    double *micro;    /* [layers][MOE_NUM_LOSSES] losses in the scope that trains, summed over
                         micro-batches; NULL without micro-batches */
} moe_derivation;

/* Local. */
void moe_derivation_free(moe_derivation *d);

#endif
