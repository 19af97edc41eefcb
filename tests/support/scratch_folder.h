/* scratch_folder.h: a folder for the files of one test. All ranks use the same, and in the end it
 * is removed with all that is in it. */
#ifndef MOESIM_TESTS_SCRATCH_FOLDER_H
#define MOESIM_TESTS_SCRATCH_FOLDER_H

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "world/comm.h"

static char scratch_folder[64];

/* Collective. Makes the folder. The pattern is its path, which ends with XXXXXX: mkdtemp puts
 * characters there that make it unique. */
static inline void scratch_folder_make(const moe_comm *comm, const char *pattern) {
    if (comm->rank == 0) {
        snprintf(scratch_folder, sizeof scratch_folder, "%s", pattern);
        CHECK(mkdtemp(scratch_folder) != NULL);
    }
    moe_comm_bcast(comm, scratch_folder, sizeof scratch_folder, 0);
}

/* Local. The path of a file or folder in it. The text is valid until the next call but one. */
static inline const char *in_scratch_folder(const char *name) {
    static char path[2][256];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", scratch_folder, name);
    return path[turn];
}

static inline int scratch_remove_entry(const char *path,
                                       const struct stat *what,
                                       int kind,
                                       struct FTW *place) {
    (void)what, (void)kind, (void)place;
    return remove(path);
}

/* Collective. Removes the folder, when no rank uses it any more. */
static inline void scratch_folder_remove(const moe_comm *comm) {
    moe_comm_barrier(comm);
    if (comm->rank == 0) {
        CHECK(nftw(scratch_folder, scratch_remove_entry, 16, FTW_DEPTH | FTW_PHYS) == 0);
    }
}

#endif
