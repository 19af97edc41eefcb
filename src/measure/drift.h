/* drift.h: how far the popularity of experts moves from one step to another one. */
#ifndef MOESIM_MEASURE_DRIFT_H
#define MOESIM_MEASURE_DRIFT_H

#include <stdint.h>

/* Local. The mean over layers of the total variation distance of the experts' shares,
 *     1/2 sum over e of |a_e / sum a - b_e / sum b|,
 * which is the share of the load that other experts have than before: 0 to 1. a and b are loads
 * [layers][N] of two steps. Layers without any load in one of them are left out; NaN where all are.
 */
double moe_drift(const double *a, const double *b, int32_t layers, int64_t num_experts);

#endif
