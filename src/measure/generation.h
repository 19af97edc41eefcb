/* generation.h: the traffic of a run that generates: of prefill, where all tokens of the prompts go
 * through the layers at once, beside that of a decode step, which has one token of each sequence.
 */
#ifndef MOESIM_MEASURE_GENERATION_H
#define MOESIM_MEASURE_GENERATION_H

#include "measure/metrics.h"

enum moe_pass { MOE_PASS_PREFILL, MOE_PASS_DECODE, MOE_NUM_PASSES };
extern const char *const moe_pass_names[MOE_NUM_PASSES]; /* keys in JSON, and on the screen */

/* Local. Step 0 of a run that generates is prefill. */
static inline enum moe_pass moe_pass_of(int64_t step) {
    return step == 0 ? MOE_PASS_PREFILL : MOE_PASS_DECODE;
}

/* Sums over the steps of a pass, and over the layers where nothing else is said. */
typedef struct moe_pass_traffic {
    int64_t steps, tokens; /* tokens are those of a layer */
    int64_t active;        /* experts that have a token, in each layer of each step */
    int64_t selections;    /* token-expert pairs */
    int64_t rows;          /* of dispatch: a row each for what a token sends */
    moe_traffic by_level[MOE_NUM_LEVELS]; /* rows of dispatch; bytes of dispatch and combine */
    double seconds;
} moe_pass_traffic;

typedef struct moe_generation_metrics {
    int64_t sequences, prompt_bytes; /* of all devices; prompt bytes of all sequences */
    int64_t new_bytes;               /* of each sequence */
    int64_t places;                  /* tokens that the cache has room for in each sequence */
    int32_t layers, devices, experts;
    moe_pass_traffic pass[MOE_NUM_PASSES];
} moe_generation_metrics;

/* The figures of a mean step; NaN where there was none. */
typedef struct moe_pass_figures {
    double tokens, tokens_per_device;
    double active_experts;  /* mean over layers */
    double rows_per_expert; /* token-expert pairs of an active expert: the rows of its GEMMs */
    double rows_per_token;  /* mean over layers: devices (or nodes, ...) that a token is sent to */
    double bytes;           /* dispatch and combine, all layers */
    double bytes_by_level[MOE_NUM_LEVELS];
    double message_bytes; /* of those that leave a device: mean of a layer, device and direction */
    double seconds;
} moe_pass_figures;

/* Local. Adds a step. */
void moe_generation_add(moe_generation_metrics *g, const moe_step_metrics *step);

/* Local. The traffic of one step by itself. */
moe_pass_traffic moe_pass_traffic_of(const moe_step_metrics *step);

/* Local, pure. */
moe_pass_figures moe_pass_figures_of(const moe_pass_traffic *t, int32_t layers, int32_t devices);

#endif
