/* window.h: memory that the ranks of a host share (MPI-3 windows), and the barrier that orders who
 * writes it and who reads it.
 *
 * A window has a piece for each rank of the host. Any of them may write into any piece; what was
 * written before a moe_window_barrier is seen by all after it. A piece that somebody still reads
 * must not be written: between the last look at it and the next writing stands a barrier too. */
#ifndef MOESIM_WORLD_WINDOW_H
#define MOESIM_WORLD_WINDOW_H

#include <stdbool.h>
#include <stdint.h>

#include "world/comm.h"

#ifdef MOE_WITHOUT_MPI
typedef int MPI_Win;
#endif

/* The ranks that share memory. */
typedef struct moe_host {
    MPI_Comm comm;
    int rank, size;
    int *id;          /* [size] their numbers among all ranks, ascending */
    int *place;       /* [all ranks] a rank's number among those of the host, -1 on another one */
    int64_t barriers; /* passed so far, the same on all ranks of the host */
    int patience;     /* turns that a rank waits for another before it lets others have its core */
    int64_t *bytes;   /* scratch [size] */
    struct moe_board *board;  /* of short messages (board.h), NULL while it is closed */
    struct moe_window *flags; /* how many barriers each rank has reached; made with the first window
                               */
} moe_host;

/* Zeroed before the first moe_window_reserve. */
typedef struct moe_window {
    char **piece;      /* [size] */
    int64_t *capacity; /* [size] bytes of each piece */
    int64_t own_bytes; /* of this rank's piece */
    MPI_Win handle;    /* while piece is not NULL */
} moe_window;

/* Local. The host's folder for shared memory, and the bytes that it still takes; -1 where it cannot
 * be used, and MPI finds another. */
const char *moe_window_folder(void);
int64_t moe_window_room(void);

/* Collective among `ranks`, which have to be ranks of one host in ascending order. The communicator
 * belongs to the host from now on. */
moe_host *moe_host_new(const moe_comm *comm, MPI_Comm ranks);
/* Collective among the ranks of the host. NULL is allowed. */
void moe_host_free(moe_host *h);

/* Collective among the ranks of the host. Whether the host's folder for shared memory has room for
 * twice a window with so many bytes of each rank. */
bool moe_window_fits(const moe_host *h, int64_t bytes);

/* Collective among the ranks of the host. Makes the piece of rank p hold at least bytes[p], which
 * all ranks give alike. Where one has to grow, each gets a quarter more than is asked for, and the
 * contents of all are lost. Ends all ranks with one sentence where the host's folder for shared
 * memory is too full. */
void moe_window_reserve(moe_window *w, moe_host *h, const int64_t *bytes, const char *what);
/* Local. The bytes of this rank's pieces of all windows. */
int64_t moe_window_bytes(void);
/* Collective among the ranks of the host. What they wrote into the window before, all see after. */
void moe_window_barrier(const moe_window *w, moe_host *h);
/* Collective among the ranks of the host. */
void moe_window_free(moe_window *w);
/* Collective among the ranks of the host, which has no window any more. Frees what barriers need;
 * the next window makes it again. */
void moe_window_free_flags(moe_host *h);

#endif
