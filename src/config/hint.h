/* hint.h: words for messages about a mistake in a configuration: where it stands, what was written
 * there, and which known word the user may have meant. */
#ifndef MOESIM_CONFIG_HINT_H
#define MOESIM_CONFIG_HINT_H

#include <stdbool.h>

#include "base/status.h"

enum { MOE_PLACE_TEXT_MAX = 320, MOE_QUOTE_MAX = 68 }; /* bytes, the final zero included */

/* Local. "file:line"; of a very long file name only the end. */
void moe_hint_place(const char *file_name, int line, char place[MOE_PLACE_TEXT_MAX]);

/* Local. Copies text for a message: at most 60 characters, control characters as '?'. */
void moe_hint_quote(const char *text, char out[MOE_QUOTE_MAX]);

/* Local. How many edits (insert, delete, change a character, swap two neighbours) lie between two
 * words: the optimal string alignment distance. Words longer than 63 characters are far from
 * everything. */
int moe_hint_distance(const char *a, const char *b);

/* Local. True when a word at this distance from `word` is near enough to be suggested: at a third
 * of the length of `word` at most, or at 1. */
bool moe_hint_near(const char *word, int distance);

/* Local. Fails with a sentence about a section, or a key, that does not exist. It names the nearest
 * known one when one is near. `place` stands at its beginning. */
int moe_hint_unknown_section(const char *section, const char *place, moe_status *st);
int moe_hint_unknown_key(const char *section, const char *name, const char *place, moe_status *st);

#endif
