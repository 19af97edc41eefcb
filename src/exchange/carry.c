/* carry.c: carries blocks of rows from every rank to every rank: by MPI_Alltoallv, or between the
 * ranks of a host through windows of shared memory.
 *
 * In a window a rank copies, or encodes, each row straight to the place where it lands, which it
 * knows from the counts that all ranks of the host have published: gathering and sending are one
 * pass over the rows. Between hosts, Alltoallv fills the same piece of the window. A landing is
 * read from the barrier behind its writing until the next barrier; so where none has come since,
 * one is put in front. Vectors that are read for longer, the x and dy of an inbox, are written
 * again only after the counts of the next dispatch, which are a barrier too. */
#include <omp.h>
#include <string.h>

#include "base/status.h"
#include "exchange/internal.h"

enum { SHORT_BYTES = 64 }; /* rows that are no longer are copied block by block */

/* --- who sends how much --- */

static int64_t rows_of(const moe_row_format *f, const moe_counts *c) {
    (void)f;
    return c->rows;
}
static int64_t words_of(const moe_row_format *f, const moe_counts *c) {
    return moe_row_format_words(f, c->rows, c->pairs);
}
static int64_t pairs_of(const moe_row_format *f, const moe_counts *c) {
    (void)f;
    return c->pairs;
}
static int64_t parts_of(const moe_row_format *f, const moe_counts *c) {
    (void)f;
    return c->parts;
}

static const struct {
    bool whole; /* what a rank has for itself lands too */
    bool back;  /* from where rows arrived to where they came from */
    int64_t (*count)(const moe_row_format *f, const moe_counts *c);
} flows[] = {
    [MOE_FLOW_WORDS] = {true, false, words_of},  [MOE_FLOW_VECTORS] = {false, false, rows_of},
    [MOE_FLOW_RELAYED] = {true, false, rows_of}, [MOE_FLOW_RESULTS] = {false, true, rows_of},
    [MOE_FLOW_PARTS] = {false, true, parts_of},  [MOE_FLOW_PAIRS] = {true, true, pairs_of},
};

bool moe_exchange_is_near(const moe_exchange *e, int q) {
    return e->host && e->host->place[q] >= 0;
}

/* Published by rank p of the host: what it has for each rank, and what it gets from each. */
static const moe_counts *published(const moe_exchange *e, int p) {
    return (const moe_counts *)(const void *)e->published.piece[p];
}

/* What rank q sends to rank p of the host; what rank p sends to q. Both are ranks of the run. */
static const moe_counts *sent_to(const moe_exchange *e, int q, int p) {
    int place = e->host->place[q];
    return place >= 0 ? published(e, place) + p
                      : published(e, e->host->place[p]) + e->comm->size + q;
}
static const moe_counts *sent_by(const moe_exchange *e, int p, int q) {
    return published(e, e->host->place[p]) + q;
}

/* What lands at rank p of the host: the rows of all ranks below `end`. */
static int64_t landed(const moe_exchange *e, enum moe_flow flow, int p, int end) {
    int64_t rows = 0;
    for (int q = 0; q < end; q++) {
        if (flows[flow].whole || q != p) {
            rows += flows[flow].count(e->format,
                                      flows[flow].back ? sent_by(e, p, q) : sent_to(e, q, p));
        }
    }
    return rows;
}

/* --- where they land --- */

char *moe_landing_memory(moe_landing *l, int64_t bytes, const char *what) {
    moe_reserve_varying(&l->memory, &l->capacity, bytes, 1, what);
    l->rows = l->memory;
    return l->rows;
}

static void reserve(moe_exchange *e, const moe_cargo *c, moe_landing *l) {
    int rank = e->comm->rank, ranks = e->comm->size;
    int64_t own = flows[c->flow].whole ? 0 : c->arriving[rank + 1] - c->arriving[rank];
    moe_host *h = e->host;
    if (!h) {
        moe_landing_memory(l, (c->arriving[ranks] - own) * c->bytes, c->what);
        return;
    }
    for (int p = 0; p < h->size; p++) {
        h->bytes[p] = landed(e, c->flow, h->id[p], ranks) * c->bytes;
    }
    MOE_ASSERT(h->bytes[h->rank] == (c->arriving[ranks] - own) * c->bytes);
    moe_window_reserve(&l->window, h, h->bytes, c->what);
    l->rows = l->window.piece[h->rank];
}

void moe_landing_free(moe_landing *l) {
    moe_window_free(&l->window);
    moe_free(l->memory);
    *l = (moe_landing){0};
}

/* --- rows --- */

/* Writes rows begin .. end - 1 of the cargo to `to`, one behind the other; the threads of the team
 * share them. */
static void write_rows(const moe_cargo *c, int64_t begin, int64_t end, char *to) {
#pragma omp for schedule(static) nowait
    for (int64_t i = begin; i < end; i++) {
        const char *from = c->from + (c->index ? c->index[i] : i) * c->stride;
        char *row = to + (i - begin) * c->bytes;
        if (c->encoded) {
            moe_payload_encode(c->format, (const real *)(const void *)from, c->hidden, row);
        } else {
            memcpy(row, from, (size_t)c->bytes);
        }
    }
}

/* Rows that are short are copied as one. */
static void write_block(const moe_cargo *c, int64_t begin, int64_t end, char *to) {
    if (c->index || c->encoded || c->bytes > SHORT_BYTES) {
        write_rows(c, begin, end, to);
        return;
    }
#pragma omp single nowait
    {
        if (end > begin) {
            memcpy(to, c->from + begin * c->stride, (size_t)((end - begin) * c->bytes));
        }
    }
}

/* Rows for the own rank, in their places among all. */
static void keep(const moe_exchange *e, const moe_cargo *c, char *to) {
    int rank = e->comm->rank;
    if (flows[c->flow].whole) {
        write_block(c, c->begin[rank], c->begin[rank + 1], to + c->arriving[rank] * c->bytes);
    }
}

/* Rows for the other ranks of the host, beginning with the next one, so that not all write to the
 * same rank at a time. */
static void push(const moe_exchange *e, const moe_cargo *c, const moe_landing *l) {
    const moe_host *h = e->host;
    for (int i = 1; i < h->size; i++) {
        int p = (h->rank + i) % h->size, q = h->id[p];
        if (c->begin[q + 1] > c->begin[q]) {
            write_block(c, c->begin[q], c->begin[q + 1],
                        l->window.piece[p] + landed(e, c->flow, q, e->comm->rank) * c->bytes);
        }
    }
}

/* --- by MPI_Alltoallv --- */

/* Counts and offsets of the rows for and from ranks that are not near; packed: they stand one
 * behind the other where they are sent from. Returns how many are sent. */
static int64_t lay_out(const moe_exchange *e, const moe_cargo *c, bool packed, int64_t *layout) {
    int ranks = e->comm->size, rank = e->comm->rank;
    int64_t *send = layout, *from = send + ranks, *recv = from + ranks, *to = recv + ranks;
    int64_t sent = 0, own = flows[c->flow].whole ? 0 : c->arriving[rank + 1] - c->arriving[rank];
    for (int q = 0; q < ranks; q++) {
        bool travels = q != rank && !moe_exchange_is_near(e, q);
        send[q] = travels ? c->begin[q + 1] - c->begin[q] : 0;
        recv[q] = travels ? c->arriving[q + 1] - c->arriving[q] : 0;
        from[q] = packed ? sent : c->begin[q];
        to[q] = c->arriving[q] - (q > rank ? own : 0);
        sent += send[q];
    }
    return sent;
}

static void pack(const moe_exchange *e, const moe_cargo *c, char *to) {
    const int64_t *count = e->layout, *offset = count + e->comm->size;
#pragma omp parallel
    for (int q = 0; q < e->comm->size; q++) {
        write_rows(c, c->begin[q], c->begin[q] + count[q], to + offset[q] * c->bytes);
    }
}

/* Rows that stand in their order already are sent from where they are. Others are packed where
 * nothing stands now: what the last combine brought has been added up. */
static void travel(moe_exchange *e, const moe_cargo *c, char *to) {
    int64_t ranks = e->comm->size, *l = e->layout;
    bool packed = c->index || c->encoded;
    int64_t sent = lay_out(e, c, packed, l);
    const char *from = c->from;
    if (packed) {
        char *room = moe_landing_memory(&e->returned, sent * c->bytes, "rows to send");
        pack(e, c, room);
        from = room;
    }
    moe_comm_alltoallv(e->comm, (moe_blocks){(void *)(uintptr_t)from, l, l + ranks},
                       (moe_blocks){to, l + 2 * ranks, l + 3 * ranks}, c->bytes, c->most);
}

char *moe_exchange_carry(moe_exchange *e, const moe_cargo *c, moe_landing *l) {
    moe_host *h = e->host;
    reserve(e, c, l);
    if (h && h->barriers == l->barriers) {
        moe_window_barrier(&l->window, h);
    }
#pragma omp parallel
    {
        keep(e, c, l->rows);
        if (h) {
            push(e, c, l);
        }
    }
    if (!h || h->size < e->comm->size) {
        travel(e, c, l->rows);
    }
    if (h) {
        moe_window_barrier(&l->window, h);
        l->barriers = h->barriers;
    }
    return l->rows;
}
