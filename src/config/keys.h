/* keys.h: the ids of the configuration keys, made from the list in keys.def. Our own code names a
 * key as MOE_KEY(router, top_k), so that a name that is no key does not compile. */
#ifndef MOESIM_CONFIG_KEYS_H
#define MOESIM_CONFIG_KEYS_H

/* The id of a key, which is also its index in moe_keys (table.h). */
#define MOE_KEY(section, key) MOE_KEY_##section##_##key

enum moe_key_id {
    MOE_KEY_NONE = -1, /* no such key */
#define MOE_KEY_ROW(section, key, ...) MOE_KEY(section, key),
#include "config/keys.def"
    MOE_NUM_KEYS
};

#endif
