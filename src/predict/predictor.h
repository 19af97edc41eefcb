/* predictor.h: what the parts of a prediction share: prediction.c, which adds up times, and
 * bottleneck.c, which says where they come from. */
#ifndef MOESIM_PREDICT_PREDICTOR_H
#define MOESIM_PREDICT_PREDICTOR_H

#include "predict/cost.h"
#include "predict/prediction.h"

/* What one device does in a layer. */
typedef struct moe_device_load {
    moe_cost_traffic rows;
    double arrived;    /* rows, those of its own tokens included */
    double selections; /* that its experts serve */
    double active;     /* experts that serve any */
    double products;   /* seconds of their products */
} moe_device_load;

/* Seconds of what a device does with its own tokens, there and in training back. */
typedef struct moe_two_ways {
    double forward, backward;
} moe_two_ways;

typedef struct moe_predictor {
    const moe_config *config;
    moe_cluster cluster;
    moe_cost_expert expert;
    int32_t num_layers;         /* MoE layers of the run */
    double weights;             /* numbers of an expert */
    double out_bytes, in_bytes; /* of a row to the experts and back */
    double micro_batches;
    double tokens;          /* of a device and micro-batch */
    moe_two_ways attention; /* of a layer and micro-batch, and its gate: the same in each */
    double gate;
    moe_device_load *load;  /* [D] of a layer */
    moe_device_load *total; /* [D] sum over layers, without times */
    double fixed;           /* seconds of an exchange that no byte costs */
    double across_back;     /* rows of combine across nodes for each of dispatch */
} moe_predictor;

/* Local. Writes out->bottleneck from out->seconds, which are those of `layers` MoE layers and of
 * the dense ones. */
void moe_predictor_describe(const moe_predictor *p, double layers, moe_prediction *out);

#endif
