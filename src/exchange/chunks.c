/* chunks.c: vectors there and results back in chunks, and how long they were on their way.
 *
 * What is for other ranks is packed chunk by chunk and lands chunk by chunk, in memory that stays
 * where it is, so that nothing is moved when a chunk has arrived. Open MPI works on a message only
 * inside its calls: whoever computes meanwhile calls moe_exchange_progress now and then. */
#include "exchange/chunks.h"

#include <string.h>

#include "base/status.h"
#include "data/batch.h"
#include "exchange/internal.h"

/* --- the order of rows --- */

/* The chunk of a token of source device `from`, whose id counts from its rank's first token on. */
static int32_t chunk_of(const moe_plan *plan, int32_t chunks, int32_t from, int64_t token) {
    const int32_t first = from - from % plan->num_local;
    const int64_t all = plan->num_tokens_global, devices = plan->devices;
    const int64_t of_rank = moe_batch_token_begin(all, (int32_t)devices, first),
                  begin = moe_batch_token_begin(all, (int32_t)devices, from),
                  end = moe_batch_token_begin(all, (int32_t)devices, from + 1);
    return (int32_t)((of_rank + token - begin) * chunks / (end - begin));
}

/* Lists the rows, whose chunks are known, by (own rank or not, chunk); the counting sort is stable,
 * and rows stand by rank already. rank_row [ranks + 1] */
static void sort_rows(moe_chunk_order *o,
                      int32_t chunks,
                      const int64_t *rank_row,
                      int rank,
                      int ranks) {
    const int64_t num_rows = rank_row[ranks];
    o->ranks = ranks;
    memset(o->begin, 0, ((size_t)chunks * (size_t)ranks + 1) * sizeof *o->begin);
    memset(o->own, 0, ((size_t)chunks + 1) * sizeof *o->own);
    for (int q = 0; q < ranks; q++) {
        for (int64_t r = rank_row[q]; r < rank_row[q + 1]; r++) {
            (q == rank ? &o->own[o->chunk[r] + 1] : &o->begin[o->chunk[r] * ranks + q + 1])[0]++;
        }
    }
    for (int64_t i = 0; i < (int64_t)chunks * ranks; i++) {
        o->begin[i + 1] += o->begin[i];
    }
    o->own[0] = o->begin[(int64_t)chunks * ranks];
    for (int32_t j = 0; j < chunks; j++) {
        o->own[j + 1] += o->own[j];
    }
    MOE_ASSERT(o->own[chunks] == num_rows);
    for (int q = 0; q < ranks; q++) {
        for (int64_t r = rank_row[q]; r < rank_row[q + 1]; r++) {
            int64_t *next = q == rank ? &o->own[o->chunk[r]] : &o->begin[o->chunk[r] * ranks + q];
            o->row[*next] = r;
            o->place[r] = (*next)++;
        }
    }
    /* each is the end of its rows now */
    memmove(o->begin + 1, o->begin, (size_t)chunks * (size_t)ranks * sizeof *o->begin);
    memmove(o->own + 1, o->own, (size_t)chunks * sizeof *o->own);
    o->begin[0] = 0;
    o->own[0] = o->begin[(int64_t)chunks * ranks];
}

void moe_chunks_order(moe_exchange *e, const moe_plan *plan) {
    moe_inbox *in = &e->inbox;
    for (int64_t c = 0; c < plan->device_cell[plan->num_local]; c++) {
        const moe_plan_cell *cell = &plan->cell[c];
        for (int64_t r = cell->first_row; r < cell->first_row + cell->rows; r++) {
            e->sent.chunk[r] = chunk_of(plan, in->chunks, cell->from, plan->row_token[r]);
        }
    }
    int64_t r = 0;
    for (int64_t c = 0; c < in->num_cells; c++) {
        for (int64_t end = r + in->cell[c].count; r < end; r++) {
            in->order.chunk[r] =
                chunk_of(plan, in->chunks, (int32_t)in->cell[c].row, in->row_token[r]);
        }
    }
    MOE_ASSERT(r == in->num_rows);
    sort_rows(&e->sent, in->chunks, plan->rank_row, e->comm->rank, plan->ranks);
    sort_rows(&in->order, in->chunks, in->rank_row, e->comm->rank, plan->ranks);
}

/* --- what is on its way --- */

static moe_flight *flight_of(const moe_exchange *e, enum moe_way way, int32_t chunk) {
    return &e->air.flight[(int64_t)way * e->inbox.chunks + chunk];
}

const moe_flight *moe_exchange_flight(const moe_exchange *e, enum moe_way way, int32_t chunk) {
    return flight_of(e, way, chunk);
}

/* A call of MPI is over that began at `called`. */
static void count_call(moe_air *air, double called, double now) {
    air->seconds.waited += now - called;
}

static bool anything_flies(const moe_air *air) {
    return air->under_way[MOE_WAY_THERE] || air->under_way[MOE_WAY_BACK];
}

static void landed(moe_exchange *e, enum moe_way way, double now) {
    moe_air *air = &e->air;
    air->under_way[way] = false;
    flight_of(e, way, air->chunk[way])->end = now;
    if (!anything_flies(air)) {
        air->seconds.in_flight += now - air->since;
    }
}

/* Counts and offsets of one side of a chunk: all ranks' rows stand by rank. Returns their number.
 */
static int64_t lay_out(const moe_chunk_order *o,
                       int32_t chunk,
                       int ranks,
                       int64_t *count,
                       int64_t *offset) {
    const int64_t *begin = o->begin + (int64_t)chunk * ranks;
    for (int q = 0; q < ranks; q++) {
        offset[q] = begin[q];
        count[q] = begin[q + 1] - begin[q];
    }
    return begin[ranks] - begin[0];
}

/* Sends a chunk off: rows of `bytes` bytes, which stand by chunk on both sides. */
static void take_off(moe_exchange *e,
                     enum moe_way way,
                     int32_t chunk,
                     const char *from,
                     char *to,
                     int64_t bytes) {
    moe_air *air = &e->air;
    const bool there = way == MOE_WAY_THERE;
    const int ranks = e->comm->size;
    int64_t *l = e->layout;
    moe_flight *f = flight_of(e, way, chunk);
    f->sent = lay_out(there ? &e->sent : &e->inbox.order, chunk, ranks, l, l + ranks);
    f->received =
        lay_out(there ? &e->inbox.order : &e->sent, chunk, ranks, l + 2 * ranks, l + 3 * ranks);
    f->begin = f->end = moe_comm_time();
    air->chunk[way] = chunk;
    if (ranks == 1) {
        return;
    }
    if (!anything_flies(air)) {
        air->since = f->begin;
    }
    air->under_way[way] = true;
    moe_comm_alltoallv_begin(e->comm, (moe_blocks){(void *)(uintptr_t)from, l, l + ranks},
                             (moe_blocks){to, l + 2 * ranks, l + 3 * ranks}, bytes, e->most_rows,
                             air->counts + (int64_t)way * 4 * ranks, &air->request[way]);
    count_call(air, f->begin, moe_comm_time());
}

/* Until the chunk that is under way has landed. */
static void await(moe_exchange *e, enum moe_way way) {
    moe_air *air = &e->air;
    if (!air->under_way[way]) {
        return;
    }
    double called = moe_comm_time();
    moe_comm_wait(&air->request[way]);
    double now = moe_comm_time();
    count_call(air, called, now);
    landed(e, way, now);
}

void moe_exchange_progress(moe_exchange *e) {
    moe_air *air = &e->air;
    for (int way = 0; way < MOE_NUM_WAYS; way++) {
        if (air->under_way[way]) {
            double called = moe_comm_time();
            bool done = moe_comm_is_done(&air->request[way]);
            double now = moe_comm_time();
            count_call(air, called, now);
            if (done) {
                landed(e, (enum moe_way)way, now);
            }
        }
    }
}

/* --- there --- */

/* Gathers the vectors of a chunk for other ranks. */
static void pack(moe_exchange *e, const moe_plan *plan, int32_t chunk, int64_t bytes) {
    const int64_t end = moe_chunk_begin(&e->sent, chunk + 1);
#pragma omp parallel for schedule(static)
    for (int64_t i = moe_chunk_begin(&e->sent, chunk); i < end; i++) {
        memcpy(e->sending.rows + i * bytes, e->tokens + plan->row_token[e->sent.row[i]] * bytes,
               (size_t)bytes);
    }
}

/* Sends a chunk of the vectors off. */
static void dispatch_chunk(moe_exchange *e, const moe_plan *plan, int32_t chunk) {
    const int64_t bytes = moe_payload_bytes(e->outgoing, e->inbox.hidden);
    char *to = moe_payload_rounds(e->outgoing) ? e->arriving.rows : e->going_to->landing.rows;
    pack(e, plan, chunk, bytes);
    take_off(e, MOE_WAY_THERE, chunk, e->sending.rows, to, bytes);
}

void moe_chunks_dispatch(moe_exchange *e,
                         const moe_plan *plan,
                         const char *tokens,
                         moe_payload_format f,
                         moe_inbox_rows *rows) {
    const moe_inbox *in = &e->inbox;
    const int64_t bytes = moe_payload_bytes(f, in->hidden), arriving = in->order.own[0];
    MOE_ASSERT(!e->host && !anything_flies(&e->air));
    e->tokens = tokens;
    e->outgoing = f;
    e->going_to = rows;
    e->air.seconds = (moe_overlap){0};
    moe_landing_memory(&e->sending, e->sent.own[0] * bytes, "rows to send");
    moe_landing_memory(&rows->landing, arriving * in->hidden * (int64_t)sizeof(real),
                       "received rows");
    if (moe_payload_rounds(f)) {
        moe_landing_memory(&e->arriving, arriving * bytes, "received rows");
    }
    const real *landing = (const real *)(const void *)rows->landing.rows;
    for (int64_t i = 0; i < arriving; i++) {
        rows->row[in->order.row[i]] = landing + i * in->hidden;
    }
    dispatch_chunk(e, plan, 0);
}

void moe_exchange_receive(moe_exchange *e, const moe_plan *plan, int32_t chunk) {
    const moe_inbox *in = &e->inbox;
    if (in->chunks == 1) {
        return;
    }
    await(e, MOE_WAY_THERE);
    MOE_ASSERT(e->air.chunk[MOE_WAY_THERE] == chunk);
    if (chunk + 1 < in->chunks) {
        dispatch_chunk(e, plan, chunk + 1);
    }
    if (moe_payload_rounds(e->outgoing)) {
        const int64_t bytes = moe_payload_bytes(e->outgoing, in->hidden),
                      begin = moe_chunk_begin(&in->order, chunk),
                      end = moe_chunk_begin(&in->order, chunk + 1);
        real *to = (real *)(void *)e->going_to->landing.rows;
        moe_payload_decode_all(e->outgoing, e->arriving.rows + begin * bytes, end - begin,
                               in->hidden, to + begin * in->hidden);
    }
}

/* --- back --- */

static int64_t bytes_of_result(const moe_exchange *e) {
    return moe_payload_bytes(e->combined, e->inbox.hidden);
}

/* Memory for all that comes back. */
static void reserve_back(moe_exchange *e) {
    const int64_t bytes = bytes_of_result(e);
    moe_landing_memory(&e->returned, e->sent.own[0] * bytes, "returned rows");
    if (moe_payload_rounds(e->combined)) {
        moe_landing_memory(&e->returning, e->inbox.num_rows * bytes, "rows to return");
    }
}

/* Results begin .. end - 1 of a narrow payload become bytes. */
static void encode_results(moe_exchange *e, const real *results, int64_t begin, int64_t end) {
    const int64_t h = e->inbox.hidden;
    moe_payload_encode_all(e->combined, results + begin * h, end - begin, h,
                           e->returning.rows + begin * bytes_of_result(e));
}

void moe_exchange_return(moe_exchange *e, int32_t chunk, const real *results) {
    const moe_chunk_order *o = &e->inbox.order;
    if (e->inbox.chunks == 1) {
        return;
    }
    if (chunk == 0) {
        reserve_back(e);
    }
    await(e, MOE_WAY_BACK);
    const char *from = (const char *)results;
    if (moe_payload_rounds(e->combined)) {
        encode_results(e, results, moe_chunk_begin(o, chunk), moe_chunk_begin(o, chunk + 1));
        encode_results(e, results, o->own[chunk], o->own[chunk + 1]);
        from = e->returning.rows;
    }
    take_off(e, MOE_WAY_BACK, chunk, from, e->returned.rows, bytes_of_result(e));
}

moe_returned moe_chunks_bring(moe_exchange *e, const moe_plan *plan, const real *results) {
    const int64_t bytes = bytes_of_result(e), others = e->sent.own[0],
                  own_begin = e->inbox.order.own[0];
    const char *own = moe_payload_rounds(e->combined) ? e->returning.rows : (const char *)results;
    await(e, MOE_WAY_BACK);
    moe_reserve_varying(&e->back, &e->back_capacity, plan->num_rows, sizeof *e->back,
                        "returned rows");
    for (int64_t i = 0; i < plan->num_rows; i++) {
        const int64_t place = e->sent.place[i];
        e->back[i] = place < others ? e->returned.rows + place * bytes
                                    : own + (own_begin + place - others) * bytes;
    }
    return (moe_returned){.row = e->back, .format = e->combined, .hidden = e->inbox.hidden};
}
