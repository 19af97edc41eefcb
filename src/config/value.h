/* value.h: one value of a configuration, from text and to text. */
#ifndef MOESIM_CONFIG_VALUE_H
#define MOESIM_CONFIG_VALUE_H

#include <stddef.h>

#include "base/status.h"
#include "config/sections.h"
#include "config/table.h"

enum { MOE_VALUE_TEXT_MAX = MOE_PATH_MAX }; /* bytes of any value as text */

/* Local. Gives the key the value that the text means. When the text is not allowed, the field stays
 * as it is and the call fails with MOE_USER and "place: section.key = text: allowed is ...".
 * c->place and c->given stay as they are. */
int moe_value_set(moe_config *c,
                  enum moe_key_id key,
                  const char *text,
                  const char *place,
                  moe_status *st);

/* Local. Gives the key the value as --set does: c->place and c->given say so afterwards. */
int moe_value_override(moe_config *c, enum moe_key_id key, const char *text, moe_status *st);

/* Local. Takes a list of settings (table.h) as if each stood behind --set. */
int moe_value_override_all(moe_config *c, const moe_setting *settings, moe_status *st);

/* Local. The value of the key as text that moe_value_set reads back to the same value. */
void moe_value_format(const moe_config *c, enum moe_key_id key, char text[MOE_VALUE_TEXT_MAX]);

/* Local. What the key allows, cut to `capacity` bytes: "a whole number from 1 to 8", "one of a, b",
 * and so on. */
void moe_value_allowed(enum moe_key_id key, char *text, size_t capacity);

#endif
