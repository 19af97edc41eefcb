/* generation.h: what an exchange of a decode step, or of prefill, would take on the cluster: is it
 * the bytes that count, or that a message is sent at all? */
#ifndef MOESIM_PREDICT_GENERATION_H
#define MOESIM_PREDICT_GENERATION_H

#include "config/config.h"
#include "measure/generation.h"

typedef struct moe_pass_exchange { /* one exchange of one layer, mean over devices */
    double latency_seconds;        /* the part that is there without any bytes */
    double transfer_seconds;       /* the part that grows with them */
} moe_pass_exchange;

/* Local, pure. moe_cost_exchange of what a device sends on average, rows being as wide as
 * cluster.model_hidden_size; 0 for a single device. */
moe_pass_exchange moe_pass_exchange_of(const moe_config *c, const moe_pass_figures *f);

#endif
