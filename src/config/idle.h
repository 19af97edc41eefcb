/* idle.h: settings that have no effect beside the others, so that nobody takes them for what made
 * the figures. */
#ifndef MOESIM_CONFIG_IDLE_H
#define MOESIM_CONFIG_IDLE_H

#include "config/sections.h"

typedef struct moe_idle {
    enum moe_key_id key;     /* has no effect */
    enum moe_key_id because; /* of the value of this key */
} moe_idle;

/* Local. Finds the keys of a resolved configuration that were changed by hand from their default
 * and have no effect: at most `room` of them, in the order of the rules. Returns how many. */
int moe_idle_find(const moe_config *c, moe_idle *idle, int room);

#endif
