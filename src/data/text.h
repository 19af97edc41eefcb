/* text.h: the bytes of files, or of all files of folders. Layer 0 (base). Private to input.c and
 * tests. */
#ifndef MOESIM_DATA_TEXT_H
#define MOESIM_DATA_TEXT_H

#include <stdint.h>

#include "base/status.h"

/* Local. `paths` names files and folders, separated by ':'; each is a domain. *text (moe_alloc'ed,
 * like *domain_offset; caller frees both with moe_free) = their bytes: a file's, or those of every
 * regular file under the folder, one after the other in the order of their paths. Domain i has the
 * bytes domain_offset[i] .. domain_offset[i+1] - 1; the last of the num_domains + 1 offsets is the
 * length. Links to files are followed, links to folders inside a folder are not (so there are no
 * loops). MOE_USER with the path when something cannot be read, when there is no text, or more than
 * most_bytes (< 0: no limit). */
int moe_text_read(const char *paths,
                  int64_t most_bytes,
                  uint8_t **text,
                  int32_t *num_domains,
                  int64_t **domain_offset,
                  moe_status *st);

#endif
