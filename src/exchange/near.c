/* near.c: how the ranks of a host read each other's rows, metadata and results where they stand
 * (exchange.transport = shared).
 *
 * A rank puts what is its own into its piece of a window and passes a barrier; then the others read
 * it there. So a vector is copied at most once on its way, into the window by the rank that has it,
 * and results not at all, as experts write them there. What was shown is read until the next
 * barrier, and is not written before. x and dy are read by the experts until combine, or backward,
 * ends, which has a barrier of its own. */
#include <omp.h>
#include <string.h>

#include "base/status.h"
#include "exchange/internal.h"
#include "exchange/row_format.h"

enum { LINE = 64 };

/* --- showing --- */

void moe_shown_wait(moe_shown *s, moe_host *h) {
    if (s->barriers == h->barriers) {
        moe_window_barrier(&s->window, h);
    }
}

char *moe_shown_begin(moe_shown *s, moe_host *h, const int64_t *bytes, const char *what) {
    moe_window_reserve(&s->window, h, bytes, what);
    moe_shown_wait(s, h);
    return s->window.piece[h->rank];
}

void moe_shown_write(moe_shown *s,
                     moe_host *h,
                     const char *from,
                     int64_t count,
                     int64_t bytes,
                     char *to) {
    if (from == to) {
        return;
    }
    moe_shown_wait(s, h);
    moe_copy_rows(from, count, bytes, to);
}

void moe_shown_end(moe_shown *s, moe_host *h) {
    moe_window_barrier(&s->window, h);
    s->barriers = h->barriers;
}

void moe_shown_free(moe_shown *s) {
    moe_window_free(&s->window);
    *s = (moe_shown){0};
}

/* --- counts and metadata --- */

/* What a rank writes on the board: behind this its counts [2][ranks], for and from each rank; its
 * metadata; and in a second hop over several hosts which of the rows that arrived in the first one
 * each row is. */
typedef struct board {
    int64_t bytes; /* of all that */
} board;

static int64_t head_bytes(const moe_exchange *e) {
    int64_t bytes = (int64_t)sizeof(board) + 2 * e->comm->size * (int64_t)sizeof(moe_counts);
    return (bytes + LINE - 1) / LINE * LINE;
}

static board *board_of(const moe_exchange *e, int q) {
    return (board *)(void *)e->board.window.piece[e->host->place[q]];
}

/* On the board of rank q of the host. */
static moe_counts *counts_of(const moe_exchange *e, int q) {
    return (moe_counts *)(void *)(board_of(e, q) + 1);
}
static int32_t *words_of(const moe_exchange *e, int q) {
    return (int32_t *)(void *)((char *)(void *)board_of(e, q) + head_bytes(e));
}

/* What rank q, of any host, has for rank p of this one. */
static const moe_counts *sent(const moe_exchange *e, int q, int p) {
    return e->host->place[q] >= 0 ? counts_of(e, q) + p : counts_of(e, p) + e->comm->size + q;
}

static int64_t words_in(const moe_exchange *e, const moe_counts *c) {
    return moe_row_format_words(e->format, c->rows, c->pairs);
}

/* Writes this rank's board, as far as there is room for it. */
static void write_board(moe_exchange *e, const moe_plan *plan, const moe_inbox *before) {
    int rank = e->comm->rank;
    int64_t words = moe_row_format_words(plan->format, plan->num_rows, plan->num_pairs);
    int64_t indices = before && moe_exchange_has_far(e) ? plan->num_rows : 0;
    int64_t bytes = head_bytes(e) + (words + indices) * (int64_t)sizeof(int32_t);
    board_of(e, rank)->bytes = bytes;
    memcpy(counts_of(e, rank), e->counts, 2 * (size_t)e->comm->size * sizeof *e->counts);
    if (bytes > e->board.window.capacity[e->host->rank]) {
        return;
    }
    int32_t *to = words_of(e, rank);
    moe_exchange_write_words(plan, before, 0, plan->num_rows, to);
    if (indices > 0) {
        memcpy(to + words, plan->row_token, (size_t)indices * sizeof *to);
    }
}

/* Makes all boards as large as was asked for; returns whether they are. */
static bool boards_fit(moe_exchange *e) {
    moe_host *h = e->host;
    bool fit = true;
    for (int p = 0; p < h->size; p++) {
        h->bytes[p] = board_of(e, h->id[p])->bytes;
        fit = fit && h->bytes[p] <= e->board.window.capacity[p];
    }
    if (!fit) {
        moe_window_reserve(&e->board.window, h, h->bytes, "metadata of rows");
    }
    return fit;
}

/* Where the metadata from each rank of the host stand. */
static void find_words(moe_exchange *e) {
    const moe_host *h = e->host;
    for (int p = 0; p < h->size; p++) {
        int q = h->id[p];
        const moe_counts *c = counts_of(e, q);
        const int32_t *from = words_of(e, q);
        for (int r = 0; r < e->comm->rank; r++) {
            from += words_in(e, c + r);
        }
        e->word_from[q] = from;
        e->counts[e->comm->size + q] = c[e->comm->rank];
    }
}

/* What each rank of the host gets, which is learned now: later the boards may be written again. */
static void count_all(moe_exchange *e) {
    const moe_host *h = e->host;
    for (int p = 0; p < h->size; p++) {
        moe_counts sum = {0};
        for (int q = 0; q < e->comm->size; q++) {
            const moe_counts *c = sent(e, q, h->id[p]);
            if (q == e->comm->rank) {
                e->landing[h->size + p] = sum;
            }
            sum.rows += c->rows;
            sum.pairs += c->pairs;
            sum.parts += c->parts;
        }
        e->landing[p] = sum;
    }
}

static int64_t count_of(const moe_counts *c, enum moe_unit unit) {
    return unit == MOE_UNIT_ROW ? c->rows : unit == MOE_UNIT_PAIR ? c->pairs : c->parts;
}

void moe_near_announce(moe_exchange *e, const moe_plan *plan, const moe_inbox *before) {
    moe_host *h = e->host;
    for (int p = 0; p < h->size; p++) {
        h->bytes[p] = head_bytes(e);
    }
    moe_shown_begin(&e->board, h, h->bytes, "metadata of rows");
    do {
        write_board(e, plan, before);
        moe_shown_end(&e->board, h);
    } while (!boards_fit(e));
    find_words(e);
    count_all(e);
}

/* Which of the rows that arrived in the first hop the rows are that come from rank q. */
static const int32_t *index_from(const moe_exchange *e, int q) {
    const moe_counts *c = counts_of(e, q);
    int64_t words = 0, before = 0;
    for (int r = 0; r < e->comm->size; r++) {
        words += words_in(e, c + r);
        before += r < e->comm->rank ? c[r].rows : 0;
    }
    return words_of(e, q) + words + before;
}

/* --- vectors --- */

char *moe_near_tokens(moe_exchange *e, const moe_plan *plan, int64_t bytes, moe_inbox_rows *rows) {
    moe_host *h = e->host;
    for (int p = 0; p < h->size; p++) {
        int32_t first = h->id[p] * plan->num_local;
        h->bytes[p] =
            bytes * (moe_batch_token_begin(plan->num_tokens_global, plan->devices,
                                           first + plan->num_local) -
                     moe_batch_token_begin(plan->num_tokens_global, plan->devices, first));
    }
    return moe_shown_begin(&rows->tokens, h, h->bytes, "tokens of a host");
}

/* The token of row r of the inbox where its rank shows it; that rank is one of the host. */
static const real *shown_token(const moe_exchange *e,
                               const moe_inbox_rows *rows,
                               int q,
                               int64_t r,
                               int64_t bytes) {
    return (const real *)(const void *)(rows->tokens.window.piece[e->host->place[q]] +
                                        e->inbox.row_token[r] * bytes);
}

/* The first hop of rows of the host needs no copy: they are read where their tokens stand. Those
 * that came from another host stand where they landed. */
static void find_relayed(const moe_exchange *e,
                         int q,
                         int64_t bytes,
                         const moe_inbox_rows *landed,
                         moe_inbox_rows *rows) {
    const moe_inbox *in = &e->inbox;
    const int32_t *index = moe_exchange_has_far(e) ? index_from(e, q) : NULL;
    for (int64_t r = in->rank_row[q]; r < in->rank_row[q + 1]; r++) {
        const int source = in->row_source[r] / in->num_local;
        rows->row[r] =
            moe_exchange_is_far(e, source)
                ? (const real *)(const void *)(landed->tokens.window.piece[e->host->place[q]] +
                                               index[r - in->rank_row[q]] * bytes)
                : shown_token(e, rows, source, r, bytes);
    }
}

void moe_near_find(const moe_exchange *e,
                   const moe_plan *plan,
                   int64_t bytes,
                   moe_inbox_rows *rows) {
    const moe_inbox *in = &e->inbox;
    for (int p = 0; p < e->host->size; p++) {
        const int q = e->host->id[p];
        if (plan->hop > 0) {
            const moe_inbox *first = &e->relay->first.inbox;
            find_relayed(e, q, bytes, rows == &in->dy ? &first->dy : &first->x, rows);
            continue;
        }
        for (int64_t r = in->rank_row[q]; q != e->comm->rank && r < in->rank_row[q + 1]; r++) {
            rows->row[r] = shown_token(e, rows, q, r, bytes);
        }
    }
}

/* Bytes of what all ranks have for each rank of the host, in h->bytes. */
static void count_landing(const moe_exchange *e, enum moe_unit unit, int64_t bytes) {
    moe_host *h = e->host;
    for (int p = 0; p < h->size; p++) {
        h->bytes[p] = bytes * count_of(&e->landing[p], unit);
    }
}

/* Where this rank's rows begin among all that rank p of the host gets. */
static int64_t rows_below(const moe_exchange *e, enum moe_unit unit, int p) {
    return count_of(&e->landing[e->host->size + p], unit);
}

char *moe_near_landing(moe_exchange *e, int64_t bytes, moe_inbox_rows *rows) {
    count_landing(e, MOE_UNIT_ROW, bytes);
    return moe_shown_begin(&rows->tokens, e->host, e->host->bytes, "rows on their way");
}

void moe_near_copy(const moe_exchange *e, int64_t bytes, const moe_inbox_rows *rows, char *to) {
    const moe_inbox *in = &e->inbox;
    for (int p = 0; p < e->host->size; p++) {
        const int q = e->host->id[p];
        for (int64_t r = in->rank_row[q]; r < in->rank_row[q + 1]; r++) {
            memcpy(to + r * bytes, shown_token(e, rows, q, r, bytes), (size_t)bytes);
        }
    }
}

/* --- results --- */

char *moe_near_results(moe_exchange *e, enum moe_unit unit, int64_t bytes, moe_shown *s) {
    count_landing(e, unit, bytes);
    moe_window_reserve(&s->window, e->host, e->host->bytes, "results of a host");
    return s->window.piece[e->host->rank];
}

const char *moe_near_returned(const moe_exchange *e,
                              enum moe_unit unit,
                              int64_t bytes,
                              const moe_shown *s,
                              int q) {
    const int p = e->host->place[q];
    return s->window.piece[p] + rows_below(e, unit, p) * bytes;
}
