/* row_protocol.h: how many bytes a row costs in a real system, with fp8 (an fp32 scale for each 128
 * values) on the way out and bf16 on the way back. Nothing is computed from it: it restates the
 * rows of a small run as the traffic of a large one. docs/method.md section 4. */
#ifndef MOESIM_EXCHANGE_ROW_PROTOCOL_H
#define MOESIM_EXCHANGE_ROW_PROTOCOL_H

#include <stdint.h>

#include "config/config.h"

typedef struct moe_row_protocol {
    const char *name;  /* the value of exchange.row_protocol */
    const char *means; /* what is counted beside the vector, for the screen */
    int64_t (*out)(int64_t hidden, int64_t top_k);
    int64_t (*back)(int64_t hidden, int64_t top_k);
} moe_row_protocol;

/* Local. The row of a protocol; asserts that it exists. */
const moe_row_protocol *moe_row_protocol_of(enum moe_row_protocol_name protocol);

/* Local. The width that bytes are counted for: cluster.model_hidden_size, or the run's own. */
static inline int64_t moe_row_protocol_hidden(const moe_config *c) {
    return c->cluster.model_hidden_size > 0 ? c->cluster.model_hidden_size : c->model.hidden_size;
}

#endif
