/* parent.c: a thread that looks at the parent's id twice a second. The signal of prctl
 * (PR_SET_PDEATHSIG) is not used, because it also comes when only the launcher's thread ends that
 * started this process. */
#include "base/parent.h"

#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/status.h"

static pid_t parent;

static void *watch(void *unused) {
    const struct timespec half_a_second = {.tv_nsec = 500000000};
    while (getppid() == parent) {
        nanosleep(&half_a_second, NULL);
    }
    (void)unused;
    _exit(MOE_ERROR);
}

bool moe_parent_is_launcher(void) {
    return getenv("OMPI_COMM_WORLD_RANK") || getenv("PMI_RANK") || getenv("PMIX_RANK");
}

void moe_parent_watch(void) {
    pthread_t thread;
    sigset_t all, before;
    if (!moe_parent_is_launcher()) {
        return;
    }
    parent = getppid();
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the other threads */
    if (pthread_create(&thread, NULL, watch, NULL) == 0) {
        pthread_detach(thread);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}
