/* summary.h: the JSON of a run, made from metrics: one object a step, which is a line of
 * metrics.jsonl, and summary.json. Keys keep the order in which they are put in, NaN and Inf become
 * null, doubles carry 17 significant digits. docs/results.md describes all keys. */
#ifndef MOESIM_OUTPUT_SUMMARY_H
#define MOESIM_OUTPUT_SUMMARY_H

#include <jansson.h>
#include <stdint.h>

#include "config/config.h"
#include "measure/generation.h"
#include "measure/metrics.h"
#include "output/training_history.h"
#include "world/topology.h"

typedef struct moe_run_times {
    double seconds;                       /* the whole run */
    double step_seconds;                  /* sum over steps */
    double phase_seconds[MOE_NUM_PHASES]; /* sum over steps and layers, slowest rank */
    int64_t steps;
} moe_run_times;

/* Local. The object of one step. Owner: the caller, json_decref. */
json_t *moe_summary_step(const moe_config *c, const moe_step_metrics *step);

/* Local. The object of summary.json. topologies [ranks]; history and facts are used when run.mode =
 * train. Everything except for ranks, machine and time is independent of the number of ranks.
 * Owner: the caller, json_decref. */
json_t *moe_summary_run(const moe_config *c,
                        const moe_step_metrics *last,
                        const moe_topology *topologies,
                        int ranks,
                        const moe_run_times *times,
                        const moe_training_history *history,
                        const moe_training_facts *facts);

/* Local. Adds to the summary what only a run that generates has: `generate`, and times. */
void moe_summary_put_generation(json_t *summary,
                                const moe_config *c,
                                const moe_generation_metrics *g);

#endif
