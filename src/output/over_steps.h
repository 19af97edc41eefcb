/* over_steps.h: what a run's steps were like together: how uneven the load was on average and in
 * the worst step, and how far the popularity of experts moved. A figure of the last step, or of the
 * sum over steps, says neither. docs/method.md section 6. */
#ifndef MOESIM_OUTPUT_OVER_STEPS_H
#define MOESIM_OUTPUT_OVER_STEPS_H

#include <jansson.h>
#include <stdint.h>

#include "measure/metrics.h"
#include "output/screen.h"

/* The largest load over the mean load, of every layer of every step that was added. */
typedef struct moe_peak {
    double sum, worst;
    int64_t count, worst_step;
    int32_t worst_layer;
} moe_peak;

typedef struct moe_over_steps {
    int64_t steps;
    moe_peak expert, device;        /* of selections; of devices not in training */
    double drift_mean, drift_worst; /* from each step to the next; NaN with one step */
    double first_to_last;           /* drift from the first step to the last one */
    int64_t drift_worst_step;       /* the later one of the two */
} moe_over_steps;

/* Local. Adds the device loads of a step. */
void moe_peak_add_devices(moe_peak *peak, const moe_step_metrics *step);

/* Local. From the loads of experts, load [steps][layers][N] of the run's steps 0 .. steps - 1, and
 * the peak of devices. */
moe_over_steps moe_over_steps_of(const int64_t *load,
                                 int64_t steps,
                                 int32_t layers,
                                 int64_t num_experts,
                                 const moe_peak *device);

/* Local. The object of summary.json; null where there is one step. Owner: the caller. */
json_t *moe_over_steps_json(const moe_over_steps *o, int32_t layers);

/* Local. The same in a few lines; nothing where there is one step. */
void moe_over_steps_show(const moe_screen *s, const moe_over_steps *o, int32_t layers);

#endif
