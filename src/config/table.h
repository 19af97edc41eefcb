/* table.h: the table of configuration keys, made from the list in keys.def. Parsing, ranges,
 * --keys, the resolved configuration and the messages all read it. */
#ifndef MOESIM_CONFIG_TABLE_H
#define MOESIM_CONFIG_TABLE_H

#include <stdbool.h>
#include <stddef.h>

#include "config/keys.h"

enum moe_key_type {
    MOE_TYPE_INT32,
    MOE_TYPE_INT64,
    MOE_TYPE_DOUBLE,
    MOE_TYPE_BOOL,
    MOE_TYPE_ENUM,
    MOE_TYPE_PATH,
    MOE_TYPE_TEXT, /* stored like a path; what it may say is the reader's to check */
    MOE_TYPE_PRESET
};

typedef struct moe_key {
    const char *section, *name;
    const char *full; /* "section.name" */
    enum moe_key_type type;
    size_t offset;            /* of the field in moe_config */
    double min, max;          /* of a number; both ends are allowed */
    const char *const *names; /* of an enum's values, in their order, then NULL */
    const char *default_text; /* as it would stand in a file */
    const char *sentence;     /* for --keys */
} moe_key;

extern const moe_key moe_keys[MOE_NUM_KEYS];

/* A key and a value for it, as text: how our own code writes settings down. A list of them ends
 * with MOE_KEY_NONE.
 *
 *     MOE_SETTINGS(MOE_SET(router, top_k, 6), MOE_SET(balance, scope, device)) */
typedef struct moe_setting {
    enum moe_key_id key;
    const char *value;
} moe_setting;

#define MOE_SET(section, key, value) \
    { MOE_KEY(section, key), #value }
#define MOE_SETTINGS(...)      \
    (const moe_setting[]) {    \
        __VA_ARGS__, {         \
            MOE_KEY_NONE, NULL \
        }                      \
    }

/* Local. The key with these two names, or with the name "section.key" of the given length;
 * MOE_KEY_NONE when there is none. */
enum moe_key_id moe_table_find(const char *section, const char *name);
enum moe_key_id moe_table_find_full(const char *full, size_t length);

/* Local. True when some key has this section. */
bool moe_table_has_section(const char *section);
/* Local. True when both keys are of the same section. */
bool moe_table_same_section(enum moe_key_id a, enum moe_key_id b);
/* Local. True when the key is the first one of its section. */
bool moe_table_begins_section(enum moe_key_id key);

/* Local. The name of a value of an enum key; NULL when the key has no such value. */
const char *moe_table_enum_name(enum moe_key_id key, int value);

#endif
