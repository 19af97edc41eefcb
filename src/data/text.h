/* text.h: reads the bytes of files, or of all files of folders. */
#ifndef MOESIM_DATA_TEXT_H
#define MOESIM_DATA_TEXT_H

#include <stdint.h>

#include "base/status.h"

/* Local. `paths` names files and folders, separated by ':'; each of them is a domain. *text becomes
 * their bytes, one domain behind the other: those of the file, or of every regular file under the
 * folder in the order of their paths. Domain i has the bytes domain_offset[i] ..
 * domain_offset[i+1] - 1; the last of the num_domains + 1 offsets is the length. Links to files are
 * followed; links to folders inside a folder are not, so that there are no loops. The caller frees
 * *text and *domain_offset with moe_free. MOE_USER with the path when something cannot be read,
 * when a domain has no text, or when there are more than most_bytes (< 0: no limit). */
int moe_text_read(const char *paths,
                  int64_t most_bytes,
                  uint8_t **text,
                  int32_t *num_domains,
                  int64_t **domain_offset,
                  moe_status *st);

#endif
