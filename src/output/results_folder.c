/* results_folder.c: makes the folder of a run, or empties it of the files of an earlier one. */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "output/results.h"
#include "output/results_internal.h"
#include "train/checkpoint.h"

void moe_results_path(const char *folder, const char *name, char path[MOE_RESULTS_PATH_MAX]) {
    snprintf(path, MOE_RESULTS_PATH_MAX, "%s/%s", folder, name);
}

int moe_results_folder_failed(moe_status *st, const char *what, const char *path) {
    int platform =
        errno == ENOSPC || errno == EDQUOT || errno == EFBIG || errno == EIO || errno == ENOMEM;
    return moe_fail(st, platform ? MOE_ERROR : MOE_USER,
                    "cannot %s '%s': %s; choose a folder that can be written to", what, path,
                    strerror(errno));
}

/* Makes the parents of path and leaves path itself alone. */
static int make_parents(const char *path, moe_status *st) {
    char part[MOE_PATH_MAX];
    snprintf(part, sizeof part, "%s", path);
    for (char *slash = part + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        if (mkdir(part, 0777) != 0 && errno != EEXIST) {
            return moe_results_folder_failed(st, "make the folder", part);
        }
        *slash = '/';
    }
    return MOE_OK;
}

/* Whether nothing stands in the folder but, maybe, a lock: of a run that was killed, or our own. */
static bool is_empty_folder(const char *path) {
    DIR *folder = opendir(path);
    bool empty = folder != NULL;
    for (struct dirent *e; empty && (e = readdir(folder));) {
        empty = !strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") ||
                !strcmp(e->d_name, MOE_LOCK_NAME);
    }
    if (folder) {
        closedir(folder);
    }
    return empty;
}

static int fail_not_empty(const char *option, const char *name, moe_status *st) {
    return moe_fail(st, MOE_USER,
                    "%s: the folder '%s' exists and is not empty; choose another one, or add "
                    "--force to replace what moesim wrote there before",
                    option, name);
}

/* Something has the name already: it has to be a folder, and an empty one without `force`. */
static int check_existing(const char *option, const char *name, bool force, moe_status *st) {
    struct stat what;
    if (stat(name, &what) != 0 || !S_ISDIR(what.st_mode)) {
        return moe_fail(st, MOE_USER, "%s: '%s' exists and is not a folder; choose another name",
                        option, name);
    }
    return force || is_empty_folder(name) ? MOE_OK : fail_not_empty(option, name, st);
}

/* Files of an earlier run are not removed through a link. */
static int check_no_link(const char *name, moe_status *st) {
    struct stat link;
    if (lstat(name, &link) != 0 || !S_ISLNK(link.st_mode) || is_empty_folder(name)) {
        return MOE_OK;
    }
    return moe_fail(st, MOE_USER,
                    "--out: '%s' is a link to a folder, and --force does not remove files through "
                    "a link: name the folder itself",
                    name);
}

static int remove_own_files(const char *name, moe_status *st) {
    char path[MOE_RESULTS_PATH_MAX + NAME_MAX];
    DIR *folder = opendir(name);
    if (!folder) {
        return moe_results_folder_failed(st, "read the folder", name);
    }
    for (struct dirent *e; st->code == MOE_OK && (e = readdir(folder));) {
        if (!moe_result_file_is_known(e->d_name)) {
            continue;
        }
        snprintf(path, sizeof path, "%s/%s", name, e->d_name);
        if (unlink(path) != 0) {
            moe_results_folder_failed(st, "remove", path);
        }
    }
    closedir(folder);
    return st->code == MOE_OK ? moe_checkpoint_remove(name, st) : st->code;
}

int moe_results_folder_name(char name[MOE_PATH_MAX],
                            const char *option,
                            const char *folder,
                            moe_status *st) {
    struct stat there, root;
    if (*folder == '\0' || strlen(folder) >= MOE_PATH_MAX) {
        return moe_fail(st, MOE_USER,
                        "%s: the folder's name must have 1 to %d characters, this one has %zu",
                        option, MOE_PATH_MAX - 1, strlen(folder));
    }
    snprintf(name, MOE_PATH_MAX, "%s", folder);
    for (size_t n = strlen(name); n > 1 && name[n - 1] == '/'; n--) {
        name[n - 1] = '\0';
    }
    if (stat(name, &there) == 0 && stat("/", &root) == 0 && there.st_dev == root.st_dev &&
        there.st_ino == root.st_ino) {
        return moe_fail(st, MOE_USER,
                        "%s: '%s' is the root of the file system, which cannot hold a run; "
                        "choose another one",
                        option, folder);
    }
    return MOE_OK;
}

/* A folder that the user named and that was there before. Whether anything is in it is looked at
 * under the lock, because another run may be about to begin in it as well. */
static int take_over(const char *name, bool force, moe_lock *lock, moe_status *st) {
    if (moe_lock_take(name, lock, st) != MOE_OK || is_empty_folder(name)) {
        return st->code;
    }
    if (!force) {
        return fail_not_empty("--out", name, st);
    }
    return check_no_link(name, st) == MOE_OK ? remove_own_files(name, st) : st->code;
}

int moe_results_folder_make(const char *name, bool force, moe_lock *lock, moe_status *st) {
    if (make_parents(name, st) != MOE_OK) {
        return st->code;
    }
    if (mkdir(name, 0777) == 0) {
        return moe_lock_take(name, lock, st);
    }
    if (errno != EEXIST) {
        return moe_results_folder_failed(st, "make the folder", name);
    }
    /* looked at before the lock too, which could not be made in a folder that is somebody else's */
    if (check_existing("--out", name, force, st) != MOE_OK) {
        return st->code;
    }
    return take_over(name, force, lock, st);
}

/* The folder itself, or where it is still to be made, the nearest one above it. */
static int check_writable(const char *option, const char *name, moe_status *st) {
    char part[MOE_PATH_MAX], *slash;
    struct stat link;
    snprintf(part, sizeof part, "%s", name);
    while (access(part, W_OK | X_OK) != 0) {
        const bool above = errno == ENOENT && lstat(part, &link) != 0;
        if (!above) {
            return moe_fail(st, MOE_USER,
                            "%s: cannot write into '%s': %s; choose a folder that can be written "
                            "to",
                            option, part, strerror(errno));
        }
        slash = strrchr(part, '/');
        snprintf(slash ? slash : part, 2, "%s", slash ? "" : ".");
        if (slash == part) {
            snprintf(part, sizeof part, "/");
        }
    }
    return MOE_OK;
}

int moe_results_check_folder(const char *folder, bool force, moe_status *st) {
    char name[MOE_PATH_MAX];
    struct stat there;
    if (moe_results_folder_name(name, "--out", folder, st) != MOE_OK) {
        return st->code;
    }
    if (lstat(name, &there) == 0 &&
        (check_existing("--out", name, force, st) != MOE_OK || check_no_link(name, st) != MOE_OK)) {
        return st->code;
    }
    return check_writable("--out", name, st);
}

int moe_results_make_folder(const char *option, const char *folder, bool force, moe_status *st) {
    char name[MOE_PATH_MAX];
    if (moe_results_folder_name(name, option, folder, st) || make_parents(name, st)) {
        return st->code;
    }
    if (mkdir(name, 0777) == 0) {
        return MOE_OK;
    }
    if (errno != EEXIST) {
        return moe_results_folder_failed(st, "make the folder", name);
    }
    return check_existing(option, name, force, st);
}

/* Where the folder of this second exists, -2, -3 and so on is appended until one is new. */
int moe_results_folder_make_default(char name[MOE_PATH_MAX],
                                    const char *config_name,
                                    moe_lock *lock,
                                    moe_status *st) {
    char stamp[32];
    time_t now = time(NULL);
    struct tm local;
    strftime(stamp, sizeof stamp, "%Y%m%d-%H%M%S", localtime_r(&now, &local));
    snprintf(name, MOE_PATH_MAX, "runs/%s-%s", config_name[0] ? config_name : "run", stamp);
    if (make_parents(name, st) != MOE_OK) {
        return st->code;
    }
    for (int attempt = 2; mkdir(name, 0777) != 0; attempt++) {
        if (errno != EEXIST || attempt > 1000) {
            return moe_results_folder_failed(st, "make the folder", name);
        }
        snprintf(name, MOE_PATH_MAX, "runs/%s-%s-%d", config_name[0] ? config_name : "run", stamp,
                 attempt);
    }
    return moe_lock_take(name, lock, st);
}
