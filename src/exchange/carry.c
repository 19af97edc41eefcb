/* carry.c: carries blocks of rows from every rank to every rank by MPI_Alltoallv, but for those
 * that share memory (near.c). */
#include <omp.h>
#include <string.h>

#include "base/status.h"
#include "exchange/internal.h"

enum { SHORT_BYTES = 64 }; /* rows that are no longer are copied block by block */

char *moe_landing_memory(moe_landing *l, int64_t bytes, const char *what) {
    moe_reserve_varying(&l->rows, &l->capacity, bytes, 1, what);
    return l->rows;
}

void moe_landing_free(moe_landing *l) {
    moe_free(l->rows);
    *l = (moe_landing){0};
}

/* --- rows --- */

/* Where another core holds the lines of a row in its cache, the processor's own instruction for
 * copies writes them a third faster than stores of vectors do, as it need not read them first. */
static void copy_row(char *to, const char *from, int64_t bytes) {
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
    enum { LONG_BYTES = 512 };
    if (bytes >= LONG_BYTES) {
        __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
        return;
    }
#endif
    memcpy(to, from, (size_t)bytes);
}

void moe_copy_rows(const char *from, int64_t count, int64_t bytes, char *to) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) {
        copy_row(to + i * bytes, from + i * bytes, bytes);
    }
}

static void write_rows(const moe_cargo *c, int64_t begin, int64_t end, char *to) {
#pragma omp for schedule(static) nowait
    for (int64_t i = begin; i < end; i++) {
        copy_row(to + (i - begin) * c->bytes, c->from + (c->index ? c->index[i] : i) * c->bytes,
                 c->bytes);
    }
}

/* Rows that are short are copied as one. */
void moe_cargo_write(const moe_cargo *c, int64_t begin, int64_t end, char *to) {
    if (c->index || c->bytes > SHORT_BYTES) {
        write_rows(c, begin, end, to);
        return;
    }
#pragma omp single nowait
    {
        if (end > begin) {
            memcpy(to, c->from + begin * c->bytes, (size_t)((end - begin) * c->bytes));
        }
    }
}

/* --- by MPI_Alltoallv --- */

bool moe_exchange_is_far(const moe_exchange *e, int q) {
    return e->host ? e->host->place[q] < 0 : q != e->comm->rank;
}

bool moe_exchange_has_far(const moe_exchange *e) {
    return (e->host ? e->host->size : 1) < e->comm->size;
}

/* Counts and offsets of the rows for and from ranks that are far: one behind the other, but where
 * they stand in their order already, or have places among all that arrive. Returns how many
 * are sent, and in *arrive how many arrive. */
static int64_t lay_out(const moe_exchange *e, const moe_cargo *c, int64_t *arrive) {
    int ranks = e->comm->size;
    int64_t *send = e->layout, *from = send + ranks, *recv = from + ranks, *to = recv + ranks;
    int64_t sent = 0;
    *arrive = 0;
    for (int q = 0; q < ranks; q++) {
        bool travels = moe_exchange_is_far(e, q);
        send[q] = travels ? c->begin[q + 1] - c->begin[q] : 0;
        recv[q] = travels ? c->arriving[q + 1] - c->arriving[q] : 0;
        from[q] = c->index ? sent : c->begin[q];
        to[q] = c->into ? c->arriving[q] : *arrive;
        sent += send[q];
        *arrive += recv[q];
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
const char *moe_exchange_carry(moe_exchange *e, const moe_cargo *c, moe_landing *l) {
    int64_t ranks = e->comm->size, arrive, *counts = e->layout;
    if (!moe_exchange_has_far(e)) {
        return NULL;
    }
    int64_t sent = lay_out(e, c, &arrive);
    const char *from = c->from;
    char *to = !l ? c->into : moe_landing_memory(l, arrive * c->bytes, c->what);
    if (c->index) {
        char *room = moe_landing_memory(&e->returned, sent * c->bytes, "rows to send");
        pack(e, c, room);
        from = room;
    }
    moe_comm_alltoallv(e->comm, (moe_blocks){(void *)(uintptr_t)from, counts, counts + ranks},
                       (moe_blocks){to, counts + 2 * ranks, counts + 3 * ranks}, c->bytes, c->most);
    return to;
}
