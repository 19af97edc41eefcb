/* text.h: the bytes of a file, or of all files of a folder. Layer 0 (base). Private to input.c and tests. */
#ifndef MOESIM_TEXT_H
#define MOESIM_TEXT_H

#include <stdint.h>

#include "moesim/status.h"

/* Local. *text (moe_alloc'ed; caller frees with moe_free) = the file's bytes, or those of every regular file under the folder, one after
 * the other in the order of their paths. Links to files are followed, links to folders inside the folder are not (so there are no loops).
 * MOE_USER with the path when something cannot be read, when there is no text, or more than most_bytes (< 0: no limit). */
int moe_text_read(const char *path, int64_t most_bytes, uint8_t **text, int64_t *length, moe_status *st);

#endif
