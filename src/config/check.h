/* check.h: which combinations of keys a configuration may have. */
#ifndef MOESIM_CONFIG_CHECK_H
#define MOESIM_CONFIG_CHECK_H

#include "base/status.h"
#include "config/sections.h"

/* Local. Refuses values that stand for features which do not exist yet. */
int moe_check_available(const moe_config *c, moe_status *st);

/* Local. Refuses combinations without a meaning, once everything is derived. */
int moe_check_combinations(const moe_config *c, moe_status *st);

/* Local. Refuses dense layers that leave no other, or stand beside a recording, and a layer from
 * files (model.load) beside what it has no room for; check_layers.c. */
int moe_check_layers(const moe_config *c, moe_status *st);

/* Local. Refuses what an exchange in chunks does not go with; check_exchange.c. */
int moe_check_exchange(const moe_config *c, moe_status *st);

/* Local. Refuses more chunks than the device with the fewest of all num_tokens has tokens:
 * moe_check_exchange cannot know that where the tokens stand in a file. */
int moe_check_chunk_tokens(const moe_config *c, int64_t num_tokens, moe_status *st);

/* Local. Refuses what attention does not go with; check_attention.c. */
int moe_check_attention(const moe_config *c, moe_status *st);

#endif
