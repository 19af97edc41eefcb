/* table.c: the rows of the table of configuration keys, and how a key is found. */
#include "config/table.h"

#include <string.h>

#include "config/sections.h"

const moe_key moe_keys[MOE_NUM_KEYS] = {
#define MOE_KEY_ROW(section, key, type, smallest, largest, names, initial, sentence) \
    [MOE_KEY(section, key)] = {#section,                                             \
                               #key,                                                 \
                               #section "." #key,                                    \
                               MOE_TYPE_##type,                                      \
                               offsetof(moe_config, section.key),                    \
                               smallest,                                             \
                               largest,                                              \
                               names,                                                \
                               initial,                                              \
                               sentence},
#include "config/keys.def"
};

/* Values are read and written through the offset of their field, so each field has to be of the
 * type that its row names. An enum is read and written as an int, so it has to have that size. */
#define IS_INT32(field) _Generic((field), int32_t: 1, default: 0)
#define IS_INT64(field) _Generic((field), int64_t: 1, default: 0)
#define IS_DOUBLE(field) _Generic((field), double: 1, default: 0)
#define IS_BOOL(field) _Generic((field), bool: 1, default: 0)
#define IS_ENUM(field) \
    (sizeof(field) == sizeof(int) && _Generic((field), int32_t: 0, float: 0, default: 1))
#define IS_PATH(field) (sizeof(field) == MOE_PATH_MAX)
#define IS_TEXT(field) (sizeof(field) == MOE_PATH_MAX)
#define IS_PRESET(field) (sizeof(field) == MOE_NAME_MAX)
#define MOE_KEY_ROW(section, key, type, ...)                  \
    _Static_assert(IS_##type(((moe_config *)0)->section.key), \
                   #section "." #key " has another type in config.h than in keys.def");
#include "config/keys.def"

enum moe_key_id moe_table_find(const char *section, const char *name) {
    for (enum moe_key_id k = 0; k < MOE_NUM_KEYS; k++) {
        if (strcmp(moe_keys[k].section, section) == 0 && strcmp(moe_keys[k].name, name) == 0) {
            return k;
        }
    }
    return MOE_KEY_NONE;
}

enum moe_key_id moe_table_find_full(const char *full, size_t length) {
    for (enum moe_key_id k = 0; k < MOE_NUM_KEYS; k++) {
        if (strlen(moe_keys[k].full) == length && memcmp(moe_keys[k].full, full, length) == 0) {
            return k;
        }
    }
    return MOE_KEY_NONE;
}

bool moe_table_has_section(const char *section) {
    for (enum moe_key_id k = 0; k < MOE_NUM_KEYS; k++) {
        if (strcmp(moe_keys[k].section, section) == 0) {
            return true;
        }
    }
    return false;
}

bool moe_table_same_section(enum moe_key_id a, enum moe_key_id b) {
    return strcmp(moe_keys[a].section, moe_keys[b].section) == 0;
}

bool moe_table_begins_section(enum moe_key_id key) {
    return key == 0 || !moe_table_same_section(key, key - 1);
}

const char *moe_table_enum_name(enum moe_key_id key, int value) {
    const char *const *names = moe_keys[key].names;
    int count = 0;
    while (names != NULL && names[count] != NULL) {
        count++;
    }
    return value >= 0 && value < count ? names[value] : NULL;
}
