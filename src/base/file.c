/* file.c: a new file is written beside the old one and takes its name only when it is on disk. */
#include "base/file.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

int moe_file_replace(const char *path, const char *beside, FILE *file, moe_status *st) {
    bool written = !ferror(file) && fflush(file) == 0 && fsync(fileno(file)) == 0;
    int reason = errno;
    if (fclose(file) != 0 && written) {
        written = false;
        reason = errno;
    }
    if (!written) {
        moe_fail(st, MOE_ERROR, "cannot write '%s': %s", path, strerror(reason));
    }
    if (st->code == MOE_OK && rename(beside, path) != 0) {
        moe_fail(st, MOE_ERROR, "cannot write '%s': %s", path, strerror(errno));
    }
    if (st->code != MOE_OK) {
        unlink(beside);
    }
    return st->code;
}

int moe_file_write(const char *path, const char *text, moe_status *st) {
    char beside[PATH_MAX];
    if (snprintf(beside, sizeof beside, "%s.tmp", path) >= (int)sizeof beside) {
        return moe_fail(st, MOE_ERROR, "cannot write '%s': %s", path, strerror(ENAMETOOLONG));
    }
    FILE *file = fopen(beside, "w");
    if (!file) {
        return moe_fail(st, MOE_ERROR, "cannot write '%s': %s", path, strerror(errno));
    }
    fputs(text, file);
    return moe_file_replace(path, beside, file, st);
}
