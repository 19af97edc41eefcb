/* board.c: see board.h. */
#include "world/board.h"

#include <string.h>

#include "base/alloc.h"

bool moe_board_open(moe_host *h) {
    const int64_t bytes = (int64_t)MOE_BOARD_HALVES * MOE_BOARD_BYTES;
    if (!h->board) {
        if (!moe_window_fits(h, bytes)) {
            return false;
        }
        h->board = moe_alloc_zero(1, sizeof *h->board, "board of a host");
        h->board->first = !h->flags;
        for (int p = 0; p < h->size; p++) {
            h->bytes[p] = bytes;
        }
        moe_window_reserve(&h->board->window, h, h->bytes, "sums over ranks");
    }
    h->board->users++;
    return true;
}

void moe_board_close(moe_host *h) {
    if (--h->board->users == 0) {
        moe_window_free(&h->board->window);
        if (h->board->first) {
            moe_window_free_flags(h);
        }
        moe_free(h->board);
        h->board = NULL;
    }
}

static char *half_of(const moe_host *h, int p, int64_t message) {
    return h->board->window.piece[p] + message % MOE_BOARD_HALVES * MOE_BOARD_BYTES;
}

const char *moe_board_of(const moe_host *h, int p) {
    return half_of(h, p, h->board->shown);
}

void moe_board_show(moe_host *h, const void *mine, int64_t bytes) {
    h->board->shown++;
    if (bytes > 0) {
        memcpy(half_of(h, h->rank, h->board->shown), mine, (size_t)bytes);
    }
    moe_window_barrier(&h->board->window, h);
}
