/* lock.c: flock on a file in the folder. */
#include "base/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* Whether the file that is open still stands under its name: whoever had the lock before may have
 * removed it between our opening and our locking it. */
static bool still_there(const moe_lock *lock) {
    struct stat by_name, open_file;
    return lstat(lock->path, &by_name) == 0 && fstat(lock->file, &open_file) == 0 &&
           by_name.st_ino == open_file.st_ino && by_name.st_dev == open_file.st_dev;
}

int moe_lock_take(const char *folder, moe_lock *lock, moe_status *st) {
    snprintf(lock->path, sizeof lock->path, "%s/" MOE_LOCK_NAME, folder);
    for (;;) {
        lock->file = open(lock->path, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666);
        if (lock->file < 0) {
            moe_fail(st, errno == ENOSPC || errno == EDQUOT ? MOE_ERROR : MOE_USER,
                     "cannot write '%s': %s", lock->path, strerror(errno));
            break;
        }
        if (flock(lock->file, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
            moe_fail(
                st, MOE_USER,
                "the folder '%s' is in use by another run: wait for its end, or choose another "
                "folder",
                folder);
            close(lock->file);
            break;
        }
        if (still_there(lock)) {
            return MOE_OK;
        }
        close(lock->file);
    }
    lock->path[0] = '\0';
    return st->code;
}

void moe_lock_release(moe_lock *lock) {
    if (lock->path[0]) {
        unlink(lock->path);
        close(lock->file);
        lock->path[0] = '\0';
    }
}
