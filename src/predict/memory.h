/* memory.h: what a run will need, said before it is allocated. Layer 2 (decide): pure. */
#ifndef MOESIM_PREDICT_MEMORY_H
#define MOESIM_PREDICT_MEMORY_H

#include "config/config.h"

typedef struct moe_memory { /* bytes of one rank; saturated at INT64_MAX */
    int64_t weights;
    int64_t gradients; /* and the partial gradients of each local device (training) */
    int64_t optimizer; /* its state (training) */
    int64_t activations, exchange, statistics;
    int64_t input;
    int64_t total;
} moe_memory;

/* Parameters of the whole model, each counted once; saturated. */
typedef struct moe_parameter_counts {
    int64_t expert;     /* of the routed experts: each on one device */
    int64_t replicated; /* gates, norms, shared experts; training: embedding and head too */
} moe_parameter_counts;

/* Local. */
moe_parameter_counts moe_memory_parameters(const moe_config *c);

/* Local. Estimate for the fullest rank under a balanced load. num_tokens_global: 0 = devices x
 * tokens_per_device. Training keeps what backward needs in every layer; forward only lets the
 * layers share it. */
moe_memory moe_memory_estimate(const moe_config *c, int64_t num_tokens_global);

/* Local. Layers whose activations exist at the same time: all in training, and where the gradient
 * of the loss over all layers is written; else one. */
int32_t moe_memory_kept_layers(const moe_config *c);

#endif
