/* memory.h: what a run will need, said before it is allocated. Layer 2 (decide): pure. */
#ifndef MOESIM_MEMORY_H
#define MOESIM_MEMORY_H

#include "moesim/config.h"

typedef struct moe_memory { /* bytes of one rank; saturated at INT64_MAX */
    int64_t weights, activations, exchange, statistics, input, total;
} moe_memory;

/* Local. Estimate for the fullest rank under a balanced load. num_tokens_global: 0 = devices x tokens_per_device. */
moe_memory moe_memory_estimate(const moe_config *c, int64_t num_tokens_global);

#endif
