/* window.c: windows by MPI_Win_allocate_shared. Pages stand in a file of the host's folder for
 * shared memory; where that is full a process dies of SIGBUS when it touches one. So the room is
 * looked at first, and every rank touches its whole piece at once, which also puts it into the
 * memory next to that rank. */
#include "world/window.h"

#include <limits.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/status.h"

#if defined(__x86_64__) || defined(__i386__)
#define MOE_PAUSE() __builtin_ia32_pause()
#else
#define MOE_PAUSE() ((void)0)
#endif

/* A turn is some ten nanoseconds: a rank with a core of its own waits some microseconds. */
enum { FEW_TURNS = 10, MANY_TURNS = 500 };

/* --- hosts --- */

/* As long as the communicator lives, and so not among what a run allocates and frees. */
static void *list(int count, size_t size) {
    void *memory = calloc((size_t)count, size);
    if (!memory) {
        moe_out_of_memory("ranks of a host", (size_t)count * size);
    }
    return memory;
}

moe_host *moe_host_new(const moe_comm *comm, MPI_Comm ranks) {
    moe_host *h = list(1, sizeof *h);
    h->comm = ranks;
    MPI_Comm_rank(ranks, &h->rank);
    MPI_Comm_size(ranks, &h->size);
    h->patience = h->size > sysconf(_SC_NPROCESSORS_ONLN) ? FEW_TURNS : MANY_TURNS;
    h->id = list(h->size, sizeof *h->id);
    h->place = list(comm->size, sizeof *h->place);
    h->bytes = list(h->size, sizeof *h->bytes);
    MPI_Allgather(&comm->rank, 1, MPI_INT, h->id, 1, MPI_INT, ranks);
    for (int q = 0; q < comm->size; q++) {
        h->place[q] = -1;
    }
    for (int p = 0; p < h->size; p++) {
        MOE_ASSERT(p == 0 || h->id[p] > h->id[p - 1]);
        h->place[h->id[p]] = p;
    }
    return h;
}

void moe_host_free(moe_host *h) {
    if (!h) {
        return;
    }
    moe_window_free_flags(h);
    MPI_Comm_free(&h->comm);
    free(h->id);
    free(h->place);
    free(h->bytes);
    free(h);
}

/* --- room --- */

/* Open MPI takes this folder unless it is told otherwise; MPICH knows no other. */
const char *moe_window_folder(void) {
    const char *told = getenv("OMPI_MCA_osc_sm_backing_directory");
    return told ? told : "/dev/shm";
}

int64_t moe_window_room(void) {
    struct statvfs s;
    const char *folder = moe_window_folder();
    if (access(folder, W_OK) != 0 || statvfs(folder, &s) != 0) {
        return -1;
    }
    return (int64_t)s.f_bavail * (int64_t)s.f_frsize;
}

/* Collective. Ends all ranks where the folder does not take `bytes` more. */
static void demand_room(const moe_host *h, int64_t bytes, const char *what) {
    int full = 0;
    if (h->rank == 0) {
        int64_t left = moe_window_room();
        full = left >= 0 && left < bytes;
        if (full) {
            fprintf(stderr,
                    "%s has %lld bytes left, and the windows of shared memory for %s need %lld: "
                    "enlarge it (docker run --shm-size), or set exchange.transport = alltoallv\n",
                    moe_window_folder(), (long long)left, what, (long long)bytes);
            fflush(stderr);
        }
    }
    MPI_Bcast(&full, 1, MPI_INT, 0, h->comm);
    if (full) {
        moe_comm_abort(MOE_ERROR);
    }
}

/* --- windows --- */

static _Atomic int64_t *flag_of(const moe_host *h, int p) {
    return (_Atomic int64_t *)(void *)h->flags->piece[p];
}

/* Waits until rank p has reached the barrier. Whoever waits for long gives its core away, and lets
 * MPI go on with messages that others wait for. */
static void wait_for(const moe_host *h, int p, int64_t barrier) {
    enum { TURNS_OF_MPI = 8 };
    for (int turn = 0; atomic_load_explicit(flag_of(h, p), memory_order_acquire) < barrier;
         turn = turn < INT_MAX ? turn + 1 : h->patience) {
        if (turn < h->patience) {
            MOE_PAUSE();
        } else if (turn % TURNS_OF_MPI == 0) {
            int found;
            MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, h->comm, &found, MPI_STATUS_IGNORE);
        } else {
            sched_yield();
        }
    }
}

/* Flags, which are a third of the time of MPI_Barrier. */
void moe_window_barrier(const moe_window *w, moe_host *h) {
    MPI_Win_sync(w->handle);
    h->barriers++;
    atomic_store_explicit(flag_of(h, h->rank), h->barriers, memory_order_release);
    for (int i = 1; i < h->size; i++) {
        wait_for(h, (h->rank + i) % h->size, h->barriers);
    }
    MPI_Win_sync(w->handle);
}

static int64_t bytes_of_pieces;

static void count(int64_t bytes) {
    moe_alloc_note(bytes);
    bytes_of_pieces += bytes;
}

int64_t moe_window_bytes(void) {
    return bytes_of_pieces;
}

static void release(moe_window *w) {
    MPI_Win_unlock_all(w->handle);
    MPI_Win_free(&w->handle);
}

/* Pieces of w->capacity, and where each of them stands. */
static void allocate(moe_window *w, const moe_host *h) {
    char *own;
    MPI_Info info;
    MPI_Info_create(&info);
    MPI_Info_set(info, "alloc_shared_noncontig", "true");
    MPI_Win_allocate_shared((MPI_Aint)w->capacity[h->rank], 1, info, h->comm, &own, &w->handle);
    MPI_Info_free(&info);
    MPI_Win_lock_all(MPI_MODE_NOCHECK, w->handle);
    for (int p = 0; p < h->size; p++) {
        MPI_Aint size;
        int unit;
        MPI_Win_shared_query(w->handle, p, &size, &unit, &w->piece[p]);
    }
    memset(own, 0, (size_t)w->capacity[h->rank]);
    w->own_bytes = w->capacity[h->rank];
    count(w->own_bytes);
    MPI_Barrier(h->comm);
}

/* Bytes of all pieces, `bytes` together, and of what MPI puts beside them. */
static int64_t room_of(const moe_host *h, int64_t bytes) {
    enum { PAGE = 4096, BESIDE = 16 * PAGE };
    return bytes + 2 * PAGE * h->size + BESIDE;
}

bool moe_window_fits(const moe_host *h, int64_t bytes) {
    int fits = moe_window_room() >= 2 * room_of(h, bytes * h->size);
    MPI_Allreduce(MPI_IN_PLACE, &fits, 1, MPI_INT, MPI_LAND, h->comm);
    return fits;
}

static void reserve(moe_window *w, moe_host *h, const int64_t *bytes, const char *what) {
    enum { LINE = 64 };
    bool first = !w->piece, grows = first;
    int64_t all = 0;
    if (first) {
        w->piece = moe_alloc_zero(h->size, sizeof *w->piece, what);
        w->capacity = moe_alloc_zero(h->size, sizeof *w->capacity, what);
    }
    for (int p = 0; p < h->size; p++) {
        grows = grows || bytes[p] > w->capacity[p];
    }
    if (!grows) {
        return;
    }
    if (!first) {
        count(-w->own_bytes);
        release(w);
    }
    for (int p = 0; p < h->size; p++) {
        int64_t wanted = (bytes[p] + bytes[p] / 4 + LINE - 1) / LINE * LINE;
        w->capacity[p] = wanted > w->capacity[p] ? wanted : w->capacity[p];
        w->capacity[p] = w->capacity[p] > 0 ? w->capacity[p] : LINE;
        all += w->capacity[p];
    }
    demand_room(h, room_of(h, all), what);
    allocate(w, h);
}

void moe_window_reserve(moe_window *w, moe_host *h, const int64_t *bytes, const char *what) {
    if (!h->flags) {
        int64_t *one = moe_alloc_zero(h->size, sizeof *one, what);
        h->flags = moe_alloc_zero(1, sizeof *h->flags, what);
        reserve(h->flags, h, one, "barriers");
        moe_free(one);
    }
    reserve(w, h, bytes, what);
}

void moe_window_free_flags(moe_host *h) {
    if (h->flags) {
        moe_window_free(h->flags);
        moe_free(h->flags);
        h->flags = NULL;
    }
}

void moe_window_free(moe_window *w) {
    if (!w->piece) {
        return;
    }
    count(-w->own_bytes);
    release(w);
    moe_free(w->piece);
    moe_free(w->capacity);
    *w = (moe_window){0};
}
