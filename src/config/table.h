/* config_table.h: the one table of configuration keys, and presets as lists of its keys. Layer 0
 * (base). Parsing, ranges, --keys, the resolved echo and the messages all read this table; adding a
 * key is adding a row. */
#ifndef MOESIM_CONFIG_TABLE_H
#define MOESIM_CONFIG_TABLE_H

#include <stddef.h>

#include "config/config.h"

enum moe_key_type {
    MOE_KEY_INT32,
    MOE_KEY_INT64,
    MOE_KEY_DOUBLE,
    MOE_KEY_BOOL,
    MOE_KEY_ENUM,
    MOE_KEY_PATH,
    MOE_KEY_PRESET
};

typedef struct moe_key {
    const char *section, *name;
    enum moe_key_type type;
    size_t offset;            /* in moe_config */
    double min, max;          /* numbers; both ends are allowed */
    const char *const *names; /* enum: names in the order of their values, then NULL */
    const char *default_text; /* parsed like a value of the file */
    const char *sentence;     /* for --keys */
} moe_key;

extern const moe_key moe_keys[];
extern const int moe_num_keys;

enum { MOE_KEY_TEXT_MAX = 2 * MOE_NAME_MAX }; /* "section.key" */
enum { MOE_VALUE_TEXT_MAX = MOE_PATH_MAX };

/* Local. Index of a key by its two names, or of "section.key" of the given length; -1 = unknown. */
int moe_key_find(const char *section, const char *name);
int moe_key_find_full(const char *full, size_t length);
/* Local. True when some key has this section. */
bool moe_key_section_known(const char *section);

/* Local. Sets key k from text; MOE_USER with "place: section.key = text: what is allowed" when it
 * is not allowed. Leaves place and given alone. */
int moe_key_set(moe_config *c, int k, const char *text, const char *place, moe_status *st);
/* Local. The value of key k as text that moe_key_set reads back to the same value. */
void moe_key_format(const moe_config *c, int k, char text[MOE_VALUE_TEXT_MAX]);
/* Local. What key k allows: "a whole number from 1 to 8", "one of a, b, c", ... */
void moe_key_allowed(int k, char *text, size_t capacity);
/* Local. Keys that were changed from their default by hand and have no effect beside the other keys
 * of a resolved configuration: at most `room` of them in key; because: the key whose value makes
 * each idle, -1 = nothing uses it yet. Returns how many. */
int moe_config_idle(const moe_config *c, int *key, int *because, int room);
/* Local. Name of a value of enum key k; NULL when there is none. */
const char *moe_key_enum_name(int k, int value);

/* Local. Fails with a sentence about an unknown section or key that names the nearest known one. */
int moe_key_unknown_section(const char *section, const char *place, moe_status *st);
int moe_key_unknown(const char *section, const char *name, const char *place, moe_status *st);

enum { MOE_PLACE_TEXT_MAX = 320 };
/* Local. "file:line" for messages; of a very long file name only the end. */
void moe_hint_place(const char *file_name, int line, char place[MOE_PLACE_TEXT_MAX]);
/* Local. Edits (insert, delete, change, swap of neighbours) between two words; words longer than 63
 * characters are far from everything. */
int moe_hint_distance(const char *a, const char *b);
/* Local. Is `candidate`, at this distance from `word`, near enough to be suggested? At most a third
 * of the word's length (1 at least). */
bool moe_hint_near(const char *word, int distance);
/* Local. Copies text for a message: at most 60 characters, control characters as '?'. */
void moe_hint_quote(const char *text, char out[68]);

typedef struct moe_preset {
    const char *name;
    const char *settings;    /* "section.key=value" separated by blanks; NULL: not available yet */
    const char *description; /* lines for the echo: where the figures come from, what is left out */
} moe_preset;

extern const moe_preset moe_presets[];
extern const int moe_num_presets;

/* Local. The preset of that name, or NULL. */
const moe_preset *moe_preset_find(const char *name);
/* Local. What the preset says about key k, copied into value; false when it says nothing. */
bool moe_preset_value(const moe_preset *preset, int k, char value[MOE_VALUE_TEXT_MAX]);

#endif
