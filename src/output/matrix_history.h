/* matrix_history.h: the device matrices of some of a run's steps, few enough to keep and to write.
 *
 * After n steps, the matrices of those steps are kept whose number is a multiple of a stride. The
 * stride is the smallest power of two that leaves at most MOE_MATRICES steps and at most
 * MOE_MATRICES_BYTES. It doubles as the run goes on and depends on n alone, so that a run that was
 * resumed keeps the same steps. The last step is written beside them. */
#ifndef MOESIM_OUTPUT_MATRIX_HISTORY_H
#define MOESIM_OUTPUT_MATRIX_HISTORY_H

#include <stdint.h>

#include "measure/metrics.h"

enum { MOE_MATRICES = 32, MOE_MATRICES_BYTES = 16 << 20 };

typedef struct moe_matrix_history {
    int64_t *rows; /* [kept][layers][D][D] dispatch rows */
    int64_t capacity;
} moe_matrix_history;

/* Local. How many steps are kept after `steps` steps, and the stride between them; 0 where one step
 * alone is too large. */
int64_t moe_matrix_history_kept(int32_t layers, int32_t devices, int64_t steps, int64_t *stride);
/* Local. The steps that are written after `steps` >= 1 steps: the kept ones and the last one.
 * Returns how many there are; 0 where one step alone is too large. */
int64_t moe_matrix_history_steps(int32_t layers,
                                 int32_t devices,
                                 int64_t steps,
                                 int64_t step[MOE_MATRICES + 1]);

/* Local. Makes the memory fit what is kept after `steps` steps. When it grows, its contents are
 * lost.
 */
void moe_matrix_history_reserve(moe_matrix_history *m,
                                int32_t layers,
                                int32_t devices,
                                int64_t steps);
/* Local. Adds the matrices of the step that follows `steps` steps. */
void moe_matrix_history_add(moe_matrix_history *m, const moe_step_metrics *step, int64_t steps);
void moe_matrix_history_free(moe_matrix_history *m);

#endif
