/* lock.h: a folder that one process at a time may write to. */
#ifndef MOESIM_BASE_LOCK_H
#define MOESIM_BASE_LOCK_H

#include "base/status.h"

#define MOE_LOCK_NAME ".lock"
enum { MOE_LOCK_PATH_MAX = 2048 };

/* A lock that nobody holds is all zero. */
typedef struct moe_lock {
    char path[MOE_LOCK_PATH_MAX]; /* FOLDER/.lock; "" when there is none */
    int file;
} moe_lock;

/* Local. Locks the folder until moe_lock_release, or until the process ends in any way: the system
 * holds the lock (flock), and a file that a killed run has left behind locks nothing. MOE_USER when
 * another process has locked the folder, or when the file cannot be made. A file system that knows
 * no locks is not in the way. */
int moe_lock_take(const char *folder, moe_lock *lock, moe_status *st);
/* Local. Removes the file and lets go of it; nothing happens where no lock is held. */
void moe_lock_release(moe_lock *lock);

#endif
