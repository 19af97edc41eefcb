/* comm.h: everything that ranks say to each other except the dispatch itself. Layer 1 (world).
 * MPI errors are fatal (MPI_ERRORS_ARE_FATAL). Counts are int64 everywhere; they are narrowed to
 * MPI's int in this file only. */
#ifndef MOESIM_WORLD_COMM_H
#define MOESIM_WORLD_COMM_H

#include <mpi.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/npy.h"
#include "base/status.h"

typedef struct moe_comm {
    MPI_Comm comm;
    int rank, size;
    int local_rank, local_size; /* among the ranks of this host */
    int num_hosts;
    int64_t max_count; /* largest count given to one MPI call; INT_MAX, tests lower it to force
                          several rounds */
    int *many; /* [4 * size] counts and offsets of an MPI call where there are many ranks; owned */
} moe_comm;

/* Collective. Sets Open MPI parameters that a program can set (yield when ranks share cores; shared
 * memory transport on one host) unless the user has, then MPI_Init_thread(FUNNELED). */
void moe_comm_init(moe_comm *comm, int *argc, char ***argv);
/* Collective. */
void moe_comm_finalize(moe_comm *comm);
/* Local. Ends all ranks at once with this exit code. Does not return. */
void moe_comm_abort(int code);

/* Collective. After it every rank holds the status of the lowest rank that failed (or MOE_OK);
 * returns the agreed code. */
int moe_comm_agree(const moe_comm *comm, moe_status *st);

/* Collective. The lowest rank on which `flag` is set, the same on all ranks; -1 where it is set on
 * none. */
int moe_comm_lowest_rank(const moe_comm *comm, bool flag);

void moe_comm_barrier(const moe_comm *comm);                                     /* collective */
void moe_comm_bcast(const moe_comm *comm, void *bytes, int64_t count, int root); /* collective; any
                                                                                    size */
void moe_comm_sum_i64(const moe_comm *comm, int64_t *values, int64_t count);     /* collective; in
                                                                                    place,
                                                                                    MPI_Allreduce(SUM)
                                                                                  */
void moe_comm_max_i64(const moe_comm *comm, int64_t *values, int64_t count); /* collective; in place
                                                                              */
void moe_comm_max_f64(const moe_comm *comm, double *values, int64_t count); /* collective; in place;
                                                                               order-free */
/* Collective. recv[q*n .. ) = what rank q sent to this rank: n int64 for each pair of ranks. */
void moe_comm_alltoall_i64(const moe_comm *comm, const int64_t *send, int64_t *recv, int64_t n);
/* Collective. Blocks of bytes of every rank, concatenated in rank order on every rank.
 * counts[q] = bytes of rank q, known to all; recv must hold their sum. */
void moe_comm_allgatherv(const moe_comm *comm, const void *send, void *recv, const int64_t *counts);

/* One side of an exchange: block q starts at row offset[q] of `rows` and has count[q] rows. */
typedef struct moe_blocks {
    void *rows;
    const int64_t *count, *offset;
} moe_blocks;
/* Collective: one MPI_Alltoallv of rows of row_bytes each (a contiguous datatype, so counts stay in
 * rows). most_rows: the same number on all ranks, that no rank's sum of counts or end of a block
 * exceeds. Where it passes max_count, all ranks go through several rounds of bounded staging
 * buffers instead: no count or offset ever overflows MPI's int. */
void moe_comm_alltoallv(
    const moe_comm *comm, moe_blocks send, moe_blocks recv, int64_t row_bytes, int64_t most_rows);

/* Local. Seconds of a clock that only runs forward and that the ranks of a host share; for
 * differences only. */
double moe_comm_time(void);
/* Collective. Seconds by which this rank's moe_comm_time is ahead of rank 0's: 0 where all ranks
 * share a host, else measured with messages (better than half the time of one there and back). */
double moe_comm_clock_offset(const moe_comm *comm);

/* One rank's piece of a .npy file: `count` elements of the file's dtype, to stand at element
 * `offset`. */
typedef struct moe_npy_piece {
    const void *data;
    int64_t offset, count;
} moe_npy_piece;
/* Collective. Writes path with MPI-IO behind a plain header: every rank any number of pieces (they
 * must tile the array). MOE_ERROR (agreed by all) with one sentence when the disk is full or the
 * file cannot be made. */
int moe_comm_write_npy(const moe_comm *comm,
                       const char *path,
                       enum moe_dtype dtype,
                       int num_dims,
                       const int64_t *shape,
                       const moe_npy_piece *pieces,
                       int64_t num_pieces,
                       moe_status *st);

/* One rank's piece of any file: `bytes` bytes, to stand at byte `offset`. */
typedef struct moe_file_piece {
    const void *data;
    int64_t offset, bytes;
} moe_file_piece;
/* Collective. Writes a file of `bytes` bytes with MPI-IO and puts it on disk (MPI_File_sync): every
 * rank any number of pieces (they must tile the file). The file is made, or overwritten where it
 * exists. MOE_ERROR as above. */
int moe_comm_write_blocks(const moe_comm *comm,
                          const char *path,
                          int64_t bytes,
                          const moe_file_piece *pieces,
                          int64_t num_pieces,
                          moe_status *st);

#endif
