/* host_limits.c: how much memory and how many cores this process may have: /proc/meminfo, the
 * control groups it lives in, and the limits of its shell. Containers often leave the whole machine
 * visible and limit it by cgroup; both versions are read, at every level up to the root, because
 * the tightest level counts. What cannot be read limits nothing. */
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "world/topology.h"

enum { FOLDER_MAX = 1024 };

typedef struct limits {
    int64_t memory_limit, memory_free; /* bytes, INT64_MAX = no limit */
    double cores;                      /* quota, 0 = none */
} limits;

/* The first number in folder/name; -1 when the file is missing or says "max". *second, unless NULL,
 * becomes the number behind it. */
static int64_t read_number(const char *folder, const char *name, int64_t *second) {
    char path[FOLDER_MAX + 64];
    long long value = -1, other = -1;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "r");
    if (!file) {
        return -1;
    }
    int found = fscanf(file, "%lld %lld", &value, &other);
    fclose(file);
    if (second) {
        *second = found == 2 ? other : -1;
    }
    return found >= 1 ? value : -1;
}

/* The number that follows `key` at the start of a line of the file; -1 when there is none. */
static int64_t read_field(const char *path, const char *key) {
    FILE *file = fopen(path, "r");
    if (!file) {
        return -1;
    }
    char line[256];
    long long value = -1;
    size_t length = strlen(key);
    while (value < 0 && fgets(line, sizeof line, file)) {
        if (!strncmp(line, key, length) && sscanf(line + length, "%lld", &value) != 1) {
            value = -1;
        }
    }
    fclose(file);
    return value;
}

/* File cache that the kernel gives back when memory is short counts as free. */
static int64_t reclaimable(const char *folder, const char *key) {
    char path[FOLDER_MAX + 64];
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    int64_t bytes = read_field(path, key);
    return bytes > 0 ? bytes : 0;
}

static void tighten_memory(limits *l, int64_t limit, int64_t used, int64_t cache) {
    if (limit < 0) {
        return;
    }
    int64_t left = limit - (used > cache ? used - cache : 0);
    if (left < 0) {
        left = 0;
    }
    if (limit < l->memory_limit) {
        l->memory_limit = limit;
    }
    if (used >= 0 && left < l->memory_free) {
        l->memory_free = left;
    }
}

static void tighten_cores(limits *l, int64_t quota, int64_t period) {
    if (quota <= 0 || period <= 0) {
        return;
    }
    double cores = (double)quota / (double)period;
    if (l->cores == 0 || cores < l->cores) {
        l->cores = cores;
    }
}

/* Reads one level of the hierarchy; the names of both versions are tried. */
static void read_folder(limits *l, const char *folder) {
    int64_t period = -1, quota = read_number(folder, "cpu.max", &period);
    tighten_cores(l, quota, period);
    tighten_cores(l, read_number(folder, "cpu.cfs_quota_us", NULL),
                  read_number(folder, "cpu.cfs_period_us", NULL));
    tighten_memory(l, read_number(folder, "memory.max", NULL),
                   read_number(folder, "memory.current", NULL),
                   reclaimable(folder, "inactive_file "));
    tighten_memory(l, read_number(folder, "memory.limit_in_bytes", NULL),
                   read_number(folder, "memory.usage_in_bytes", NULL),
                   reclaimable(folder, "total_inactive_file "));
}

/* Reads all levels from base/path up to base. */
static void read_up(limits *l, const char *base, const char *path) {
    char folder[FOLDER_MAX];
    if (snprintf(folder, sizeof folder, "%s%s", base, path) >= FOLDER_MAX) {
        return;
    }
    size_t root = strlen(base);
    while (strlen(folder) > root) {
        read_folder(l, folder);
        *strrchr(folder, '/') = '\0';
    }
    read_folder(l, base);
}

static bool names_controller(const char *list, const char *name) {
    size_t length = strlen(name);
    for (const char *at = list; (at = strstr(at, name)); at += length) {
        if ((at == list || at[-1] == ',') && (at[length] == '\0' || at[length] == ',')) {
            return true;
        }
    }
    return false;
}

/* The lines of /proc/self/cgroup read "id:controllers:/path"; one without controllers is of version
 * 2. */
static limits cgroup_limits(void) {
    limits l = {INT64_MAX, INT64_MAX, 0};
    char line[FOLDER_MAX], controllers[128], path[FOLDER_MAX];
    FILE *file = fopen("/proc/self/cgroup", "r");
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        char *first = strchr(line, ':'), *second = first ? strchr(first + 1, ':') : NULL;
        if (!second || second[1] != '/') {
            continue;
        }
        snprintf(controllers, sizeof controllers, "%.*s", (int)(second - first - 1), first + 1);
        snprintf(path, sizeof path, "%s", second + 1);
        if (controllers[0] == '\0') {
            read_up(&l, "/sys/fs/cgroup", path);
        }
        if (names_controller(controllers, "memory")) {
            read_up(&l, "/sys/fs/cgroup/memory", path);
        }
        if (names_controller(controllers, "cpu")) {
            read_up(&l, "/sys/fs/cgroup/cpu", path);
        }
    }
    if (file) {
        fclose(file);
    }
    return l;
}

int64_t moe_memory_available(void) {
    limits l = cgroup_limits();
    int64_t kib = read_field("/proc/meminfo", "MemAvailable:");
    int64_t free_bytes = kib >= 0 ? kib * 1024 : INT64_MAX;
    if (l.memory_free < free_bytes) {
        free_bytes = l.memory_free;
    }
    return free_bytes == INT64_MAX ? -1 : free_bytes;
}

int64_t moe_memory_limit(void) {
    limits l = cgroup_limits();
    int64_t kib = read_field("/proc/meminfo", "MemTotal:");
    int64_t bytes = kib >= 0 ? kib * 1024 : INT64_MAX;
    if (l.memory_limit < bytes) {
        bytes = l.memory_limit;
    }
    return bytes == INT64_MAX ? -1 : bytes;
}

int moe_core_quota(void) {
    double cores = cgroup_limits().cores;
    int whole = (int)cores;
    return cores > whole ? whole + 1 : whole;
}

/* --- to start --- */

/* What MPI_Init of Open MPI 4.1 took on x86-64, with the libraries of this program: bytes of
 * addresses, most of which are never touched, and the size of the file that each rank shares with
 * the others of its host. */
enum { START_BYTES = 448 << 20, SHARED_FILE_BYTES = 4194312 };

static bool is_below(int resource, int64_t bytes, int64_t *limit) {
    struct rlimit l;
    const bool known = getrlimit(resource, &l) == 0 && l.rlim_cur != RLIM_INFINITY;
    *limit = known && l.rlim_cur < INT64_MAX ? (int64_t)l.rlim_cur : INT64_MAX;
    return *limit < bytes;
}

int moe_limits_check_start(moe_status *st) {
    const char *launched = getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
    const int ranks = launched ? atoi(launched) : 0;
    const int64_t needed = START_BYTES + (int64_t)ranks * SHARED_FILE_BYTES;
    int64_t limit;
    if (ranks > 0 && is_below(RLIMIT_AS, needed, &limit)) {
        return moe_fail(st, MOE_ERROR,
                        "the limit on addresses (ulimit -v) is %lld KiB, and MPI takes about %lld "
                        "KiB to start with %d rank%s on this host: raise it",
                        (long long)(limit / 1024), (long long)(needed / 1024), ranks,
                        ranks == 1 ? "" : "s");
    }
    if (ranks > 0 && is_below(RLIMIT_FSIZE, SHARED_FILE_BYTES, &limit)) {
        return moe_fail(st, MOE_ERROR,
                        "the limit on the size of files (ulimit -f) is %lld KiB, and MPI makes one "
                        "of %d KiB for the memory that the ranks of a host share: raise it",
                        (long long)(limit / 1024), (SHARED_FILE_BYTES + 1023) / 1024);
    }
    return MOE_OK;
}
