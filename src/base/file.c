/* file.c: a new file is written beside the old one and takes its name only when it is on disk. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
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
    FILE *file = moe_file_create_stream(beside);
    if (!file) {
        return moe_fail(st, MOE_ERROR, "cannot write '%s': %s", path, strerror(errno));
    }
    fputs(text, file);
    return moe_file_replace(path, beside, file, st);
}

int moe_file_create(const char *path) {
    if (unlink(path) != 0 && errno != ENOENT) {
        return -1;
    }
    return open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
}

FILE *moe_file_create_stream(const char *path) {
    int descriptor = moe_file_create(path);
    return descriptor >= 0 ? fdopen(descriptor, "w") : NULL;
}

/* Looks before it opens, because opening a device may do something. Looks again afterwards, since
 * another file may stand there by then; O_NONBLOCK makes opening a pipe return at once. */
int moe_file_open(const char *path, const char **why) {
    struct stat about;
    int file = -1;
    *why = "not a regular file";
    if (stat(path, &about) == 0 && !S_ISREG(about.st_mode)) {
        return -1;
    }
    file = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (file < 0 || fstat(file, &about) != 0) {
        *why = strerror(errno);
    } else if (S_ISREG(about.st_mode)) {
        return file;
    }
    if (file >= 0) {
        close(file);
    }
    return -1;
}

FILE *moe_file_stream(const char *path, const char **why) {
    int descriptor = moe_file_open(path, why);
    FILE *file = descriptor >= 0 ? fdopen(descriptor, "rb") : NULL;
    if (!file && descriptor >= 0) {
        *why = strerror(errno);
        close(descriptor);
    }
    return file;
}
