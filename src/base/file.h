/* file.h: files that are written whole or not at all, and opening files so that nothing waits and
 * no link is followed where moesim writes. */
#ifndef MOESIM_BASE_FILE_H
#define MOESIM_BASE_FILE_H

#include <stdio.h>

#include "base/status.h"

/* Local. Writes the text to a file beside `path`, puts it on disk and renames it to `path`, so that
 * `path` never stands for half a text. Fails with MOE_ERROR when the text cannot be written; then
 * what `path` held before is still there. */
int moe_file_write(const char *path, const char *text, moe_status *st);

/* Local. The second half of the above, for a caller that has written the file itself: `file` is
 * open for writing on `beside` and is closed here. When anything failed before or fails here (also
 * when *st holds a failure already), `beside` is removed and `path` stays as it was. */
int moe_file_replace(const char *path, const char *beside, FILE *file, moe_status *st);

/* Local. A new, empty file for writing: what stood under its name before is removed, so that a link
 * or a pipe there is never written through. Returns -1 with errno on failure. */
int moe_file_create(const char *path);
/* Local. The same as a stream, or NULL. */
FILE *moe_file_create_stream(const char *path);

/* Local. Opens a regular file for reading. Anything else is refused without waiting, such as a pipe
 * that nobody writes to. Returns -1 on failure, with the reason in *why. */
int moe_file_open(const char *path, const char **why);
/* Local. The same as a stream, or NULL. */
FILE *moe_file_stream(const char *path, const char **why);

#endif
