/* board.h: short messages of all ranks of a host to all of them, through memory that they share: a
 * sum, a maximum or a gathering costs one barrier of flags instead of several messages of MPI.
 *
 * A rank's piece of the window has two halves that take turns. Whoever writes a half for the second
 * time has passed the barrier of the message between, and before that barrier all have read the
 * half's first message. */
#ifndef MOESIM_WORLD_BOARD_H
#define MOESIM_WORLD_BOARD_H

#include <stdbool.h>
#include <stdint.h>

#include "world/window.h"

enum {
    MOE_BOARD_HALVES = 2,
    MOE_BOARD_BYTES = 1 << 14 /* the longest message of a rank */
};

typedef struct moe_board {
    moe_window window;
    int64_t shown; /* messages so far */
    int users;     /* how often it was opened */
    bool first;    /* it was the host's first window, and so is the last one to be freed */
} moe_board;

/* Collective among the ranks of the host. From now on sums, maxima and gatherings of comm.h
 * go by the board, where it reaches all ranks and they are short enough. False, and nothing
 * changes, where the host has little room for shared memory. */
bool moe_board_open(moe_host *h);
/* Collective among the ranks of the host. To be called as often as moe_board_open returned true;
 * the last time after all windows that were made since it was first opened are freed. */
void moe_board_close(moe_host *h);

/* Collective among the ranks of the host, which has an open board. Shows `bytes` bytes of this
 * rank; there may be another number on each. */
void moe_board_show(moe_host *h, const void *mine, int64_t bytes);
/* Local. What rank p of the host has shown last, until this rank shows something. */
const char *moe_board_of(const moe_host *h, int p);

#endif
