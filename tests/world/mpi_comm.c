/* mpi_comm.c: Alltoallv in one and in many rounds, agreement, the lowest rank, integer sums,
 * broadcast beyond the count limit, collective .npy files; the same messages by the board of a
 * host, one after the other without anything between. */
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/rng.h"
#include "check.h"
#include "world/board.h"
#include "world/comm.h"

/* Rows that rank q sends to rank p: a keyed random number, often 0. */
static int64_t rows_between(int q, int p) {
    uint64_t bits = moe_rng_bits((moe_rng){7, MOE_RNG_TEST}, (uint64_t)q, (uint64_t)p, 0);
    return bits % 3 == 0 ? 0 : (int64_t)(bits % 23);
}

static void check_alltoallv(moe_comm comm, int64_t max_count, int64_t row_bytes) {
    int n = comm.size;
    int64_t count[4 * 64];
    int64_t *sc = count;
    int64_t *so = sc + n;
    int64_t *rc = so + n;
    int64_t *ro = rc + n;
    int64_t out = 0;
    int64_t in = 0;
    int64_t most = 0;
    comm.max_count = max_count;
    for (int q = 0; q < n; q++) {
        sc[q] = rows_between(comm.rank, q);
        rc[q] = rows_between(q, comm.rank);
        so[q] = out + 1; /* a gap before each block */
        ro[q] = in + 2;
        out = so[q] + sc[q];
        in = ro[q] + rc[q];
    }
    most = 25 * n + 2;
    unsigned char *send = moe_alloc_zero(out + 1, (size_t)row_bytes, "test"),
                  *recv = moe_alloc_zero(in + 1, (size_t)row_bytes, "test");
    for (int q = 0; q < n; q++) {
        for (int64_t i = 0; i < sc[q] * row_bytes; i++) {
            send[so[q] * row_bytes + i] = (unsigned char)(comm.rank * 31 + q * 7 + i);
        }
    }
    moe_comm_alltoallv(&comm, (moe_blocks){send, sc, so}, (moe_blocks){recv, rc, ro}, row_bytes,
                       most);
    int64_t wrong = 0;
    for (int q = 0; q < n; q++) {
        for (int64_t i = 0; i < rc[q] * row_bytes; i++) {
            wrong += recv[ro[q] * row_bytes + i] != (unsigned char)(q * 31 + comm.rank * 7 + i);
        }
    }
    CHECK_MSG(wrong == 0, "%lld wrong bytes with max_count %lld", (long long)wrong,
              (long long)max_count);
    CHECK_EQ(recv[0], 0);
    moe_free(send);
    moe_free(recv);
}

static void check_lowest_rank(const moe_comm *comm) {
    CHECK_EQ(moe_comm_lowest_rank(comm, false), -1);
    for (int lowest = 0; lowest < comm->size; lowest++) {
        CHECK_EQ(moe_comm_lowest_rank(comm, comm->rank >= lowest), lowest);
    }
}

static void check_agreement(const moe_comm *comm) {
    moe_status st = {0};
    CHECK(moe_comm_agree(comm, &st) == MOE_OK);
    if (comm->rank == comm->size - 1) {
        moe_fail(&st, MOE_USER, "rank %d says no", comm->rank);
    }
    CHECK(moe_comm_agree(comm, &st) == MOE_USER);
    char expected[64];
    snprintf(expected, sizeof expected, "rank %d says no", comm->size - 1);
    CHECK_MSG(strcmp(st.message, expected) == 0, "%s", st.message);
    moe_status both = {0};
    moe_fail(&both, MOE_ERROR + comm->rank % 2, "rank %d", comm->rank);
    CHECK(moe_comm_agree(comm, &both) == MOE_ERROR && strcmp(both.message, "rank 0") == 0);
}

static void check_sums(moe_comm comm) {
    int64_t values[10], limits[2] = {INT64_C(1) << 30, 3};
    for (int l = 0; l < 2; l++) {
        comm.max_count = limits[l];
        for (int i = 0; i < 10; i++) {
            values[i] = (int64_t)(comm.rank + 1) * (i + (INT64_C(1) << 40));
        }
        moe_comm_sum_i64(&comm, values, 10);
        for (int i = 0; i < 10; i++) {
            CHECK_EQ(values[i],
                     (int64_t)comm.size * (comm.size + 1) / 2 * (i + (INT64_C(1) << 40)));
        }
        char text[20] = "";
        if (comm.rank == comm.size - 1) {
            strcpy(text, "a longer message");
        }
        moe_comm_bcast(&comm, text, sizeof text, comm.size - 1);
        CHECK(strcmp(text, "a longer message") == 0);
    }
}

/* --- the board --- */

/* What rank q says in message i. */
static int64_t said(int q, int64_t i) {
    return (int64_t)(moe_rng_bits((moe_rng){8, MOE_RNG_TEST}, (uint64_t)q, (uint64_t)i, 0) >> 8);
}

static void check_sum_and_maximum(const moe_comm *comm, int64_t i, int64_t count) {
    int64_t *sum = moe_alloc(2 * count + 1, sizeof *sum, "test"), *most = sum + count;
    for (int64_t k = 0; k < count; k++) {
        sum[k] = said(comm->rank, i) + k;
        most[k] = said(comm->rank, i) - k;
    }
    moe_comm_sum_i64(comm, sum, count);
    moe_comm_max_i64(comm, most, count);
    int64_t total = 0, largest = 0, wrong = 0;
    for (int q = 0; q < comm->size; q++) {
        total += said(q, i);
        largest = said(q, i) > largest ? said(q, i) : largest;
    }
    for (int64_t k = 0; k < count; k++) {
        wrong += sum[k] != total + comm->size * k || most[k] != largest - k;
    }
    CHECK_MSG(wrong == 0, "message %lld: %lld wrong of %lld", (long long)i, (long long)wrong,
              (long long)count);
    moe_free(sum);
}

/* Every rank gives a block to every rank, and one of another length to all. */
static void check_blocks(const moe_comm *comm, int64_t i) {
    enum { MOST = 64 };
    int64_t ours[MOST], theirs[MOST], lengths[MOST], all[3 * MOST], at = 0, wrong = 0;
    for (int q = 0; q < comm->size; q++) {
        ours[q] = said(comm->rank * MOST + q, i);
        lengths[q] = (q + i) % 4 * (int64_t)sizeof *all;
    }
    moe_comm_alltoall(comm, ours, theirs, sizeof *ours);
    const int64_t mine[3] = {said(comm->rank, i), said(comm->rank, i) + 1, said(comm->rank, i) + 2};
    moe_comm_allgatherv(comm, mine, all, lengths);
    for (int q = 0; q < comm->size; q++) {
        wrong += theirs[q] != said(q * MOST + comm->rank, i);
        for (int64_t k = 0; k < lengths[q] / (int64_t)sizeof *all; k++) {
            wrong += all[at++] != said(q, i) + k;
        }
    }
    CHECK_MSG(wrong == 0, "message %lld: %lld wrong", (long long)i, (long long)wrong);
}

/* Without and with a board, at lengths that fit on it and that do not. */
static void check_messages(const moe_comm *comm) {
    const int64_t longest = MOE_BOARD_BYTES / (int64_t)sizeof(int64_t);
    for (int64_t i = 0; i < 400; i++) {
        check_sum_and_maximum(comm, i, i % 50 == 0 ? longest + i / 50 % 2 : i % 7);
        check_blocks(comm, i);
    }
}

static void check_board(moe_comm comm) {
    check_messages(&comm);
    if (comm.num_hosts > 1 || !moe_board_open(comm.host)) {
        return;
    }
    CHECK(moe_board_open(comm.host));
    check_messages(&comm);
    moe_board_close(comm.host);
    CHECK(comm.host->board != NULL);
    moe_board_close(comm.host);
    CHECK(comm.host->board == NULL);
}

static void check_npy(const moe_comm *comm) {
    char path[] = "/tmp/moesim-test-comm-XXXXXX";
    if (comm->rank == 0) {
        int fd = mkstemp(path);
        if (fd >= 0) {
            close(fd);
        }
    }
    moe_comm_bcast(comm, path, sizeof path, 0);
    moe_status st = {0};
    int64_t shape[2] = {comm->size, 3}, mine[3] = {comm->rank, comm->rank * 10, -1};
    moe_npy_piece pieces[2] = {{mine, comm->rank * 3, 2}, {mine + 2, comm->rank * 3 + 2, 1}};
    CHECK(moe_comm_write_npy(comm, path, MOE_I64, 2, shape, pieces, 2, &st) == MOE_OK);
    moe_comm_barrier(comm);
    moe_npy_header header;
    void *data = NULL;
    CHECK_MSG(moe_npy_read(path, &header, &data, &st) == MOE_OK, "%s", st.message);
    for (int q = 0; q < comm->size && data; q++) {
        CHECK(moe_npy_i64(&header, data, 3 * q) == q &&
              moe_npy_i64(&header, data, 3 * q + 1) == 10 * q &&
              moe_npy_i64(&header, data, 3 * q + 2) == -1);
    }
    moe_free(data);
    moe_comm_barrier(comm);
    if (comm->rank == 0) {
        unlink(path);
    }
    moe_status bad = {0};
    CHECK(moe_comm_write_npy(comm, "/no/such/folder/a.npy", MOE_I64, 2, shape, pieces, 2, &bad) ==
              MOE_ERROR &&
          strstr(bad.message, "/no/such/folder/a.npy"));
}

/* On one host the clock is shared; measured all the same, as between hosts, the offset is within
 * what messages take. */
static void check_clock(moe_comm comm) {
    CHECK(moe_comm_clock_offset(&comm) == 0);
    comm.num_hosts = 2;
    bool measured = false;
    for (int i = 0; i < 20; i++) { /* one alone may well come out as 0 */
        double before = moe_comm_time();
        double offset = moe_comm_clock_offset(&comm), took = moe_comm_time() - before;
        CHECK_MSG(fabs(offset) <= took / 2, "offset %g s, measured in %g s", offset, took);
        measured = measured || offset != 0;
    }
    CHECK(measured == (comm.rank != 0));
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    RUN(check_alltoallv, comm, comm.max_count, 12);
    RUN(check_alltoallv, comm, 1, 4);
    RUN(check_alltoallv, comm, 7, 5);
    RUN(check_alltoallv, comm, 40, 64);
    RUN(check_lowest_rank, &comm);
    RUN(check_agreement, &comm);
    RUN(check_sums, comm);
    RUN(check_board, comm);
    RUN(check_npy, &comm);
    RUN(check_clock, comm);
    int verdict = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return verdict;
}
