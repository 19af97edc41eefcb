/* checkpoint_folder.c: names of checkpoints, and the list of those in a folder. */
#include "train/checkpoint_folder.h"

#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"

void moe_checkpoint_folder_path(const char *folder, char path[MOE_CHECKPOINT_PATH_MAX]) {
    snprintf(path, MOE_CHECKPOINT_PATH_MAX, "%.*s/checkpoints", MOE_PATH_MAX - 1, folder);
}

void moe_checkpoint_folder_file(const char *folder,
                                int64_t step,
                                char path[MOE_CHECKPOINT_PATH_MAX]) {
    snprintf(path, MOE_CHECKPOINT_PATH_MAX, "%.*s/checkpoints/step-%08lld.moe", MOE_PATH_MAX - 1,
             folder, (long long)step);
}

static bool is_link(const char *path) {
    struct stat about;
    return lstat(path, &about) == 0 && S_ISLNK(about.st_mode);
}

bool moe_checkpoint_folder_is_own(const char *folder, moe_status *st) {
    char path[MOE_CHECKPOINT_PATH_MAX];
    moe_checkpoint_folder_path(folder, path);
    if (!is_link(path)) {
        return true;
    }
    moe_fail(st, MOE_USER,
             "'%s' is a link, and checkpoints are not written through one: put the folder itself "
             "there",
             path);
    return false;
}

/* The step in the name of a checkpoint; -1 for any other name. */
static int64_t step_of_name(const char *name) {
    char again[64];
    long long step = -1;
    if (sscanf(name, "step-%18lld", &step) != 1 || step < 0) {
        return -1;
    }
    snprintf(again, sizeof again, "step-%08lld.moe", step);
    return strcmp(name, again) == 0 ? step : -1;
}

static bool is_leftover(const char *name) {
    size_t length = strlen(name), end = strlen(".moe.tmp");
    return length > end && strncmp(name, "step-", 5) == 0 &&
           strcmp(name + length - end, ".moe.tmp") == 0;
}

static int newest_first(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

int64_t *moe_checkpoint_folder_list(const char *folder, int *num) {
    char path[MOE_CHECKPOINT_PATH_MAX];
    moe_checkpoint_folder_path(folder, path);
    DIR *names = opendir(path);
    int64_t *steps = NULL;
    int expected = 0;
    *num = 0;
    for (struct dirent *e; names && (e = readdir(names));) {
        expected += step_of_name(e->d_name) >= 0;
    }
    if (expected > 0) {
        steps = moe_alloc(expected, sizeof *steps, "list of checkpoints");
        rewinddir(names);
        for (struct dirent *e; *num < expected && (e = readdir(names));) {
            if (step_of_name(e->d_name) >= 0) {
                steps[(*num)++] = step_of_name(e->d_name);
            }
        }
        qsort(steps, (size_t)*num, sizeof *steps, newest_first);
    }
    if (names) {
        closedir(names);
    }
    return steps;
}

void moe_checkpoint_folder_clean(const char *folder) {
    char path[MOE_CHECKPOINT_PATH_MAX];
    moe_checkpoint_folder_path(folder, path);
    DIR *names = opendir(path);
    for (struct dirent *e; names && (e = readdir(names));) {
        if (is_leftover(e->d_name)) {
            unlinkat(dirfd(names), e->d_name, 0);
        }
    }
    if (names) {
        closedir(names);
    }
}

int moe_checkpoint_remove(const char *folder, moe_status *st) {
    char path[MOE_CHECKPOINT_PATH_MAX];
    int num;
    moe_checkpoint_folder_path(folder, path);
    if (is_link(path)) {
        if (unlink(path) != 0) {
            moe_fail(st, MOE_USER, "cannot remove '%s': %s", path, strerror(errno));
        }
        return st->code;
    }
    int64_t *steps = moe_checkpoint_folder_list(folder, &num);
    moe_checkpoint_folder_clean(folder);
    for (int i = 0; i < num; i++) {
        moe_checkpoint_folder_file(folder, steps[i], path);
        if (unlink(path) != 0 && errno != ENOENT) {
            moe_fail(st, MOE_USER, "cannot remove '%s': %s", path, strerror(errno));
        }
    }
    moe_checkpoint_folder_path(folder, path);
    rmdir(path);
    moe_free(steps);
    return st->code;
}
