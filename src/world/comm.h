/* comm.h: what ranks say to each other. Errors of MPI end the program (MPI_ERRORS_ARE_FATAL).
 * Counts are int64 everywhere; they are narrowed to MPI's int in comm.c only. */
#ifndef MOESIM_WORLD_COMM_H
#define MOESIM_WORLD_COMM_H

#ifdef MOE_WITHOUT_MPI
typedef int MPI_Comm; /* libmoesim: one rank, which says nothing to anybody (library/alone.c) */
typedef int MPI_Request;
#else
#include <mpi.h>
#endif
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
    bool hosts_are_equal;   /* each host has as many ranks */
    bool hosts_are_in_turn; /* the ranks of a host follow each other */
    struct moe_host *host;  /* the ranks that share this one's memory (window.h). Owned */
    int64_t max_count; /* the largest count given to one MPI call: INT_MAX, or less in tests, which
                          force several rounds with it */
    int *many; /* [4 * size] counts and offsets of an MPI call where there are many ranks. Owned */
} moe_comm;

/* Collective. Sets the parameters of Open MPI that a program can set (to yield where ranks share
 * cores, to use shared memory on one host) unless the user has, and starts MPI (FUNNELED). */
void moe_comm_init(moe_comm *comm, int *argc, char ***argv);
/* Collective. Ends MPI. */
void moe_comm_finalize(moe_comm *comm);
/* Local. Ends all ranks at once with this exit code. Does not return. */
void moe_comm_abort(int code);

/* Collective. Gives every rank the status of the lowest rank that failed; nothing changes where
 * none has. Returns the agreed code. */
int moe_comm_agree(const moe_comm *comm, moe_status *st);

/* Collective. The lowest rank on which `flag` is set, the same on all ranks; -1 where it is set on
 * none. */
int moe_comm_lowest_rank(const moe_comm *comm, bool flag);

/* Collective. */
void moe_comm_barrier(const moe_comm *comm);

/* Collective. Gives all ranks `count` bytes, of any number, of rank `root`. */
void moe_comm_bcast(const moe_comm *comm, void *bytes, int64_t count, int root);

/* Collective. Sums and maxima over ranks, in place; none depends on the order of ranks. */
void moe_comm_sum_i64(const moe_comm *comm, int64_t *values, int64_t count);
void moe_comm_max_i64(const moe_comm *comm, int64_t *values, int64_t count);
void moe_comm_max_f64(const moe_comm *comm, double *values, int64_t count);

/* Collective. A block of `bytes` bytes for each pair of ranks: block q of recv becomes what rank q
 * has for this rank in its `send`. */
void moe_comm_alltoall(const moe_comm *comm, const void *send, void *recv, int64_t bytes);

/* Collective. Gives every rank the bytes of all ranks, one behind the other in the order of ranks.
 * counts[q] is the number of bytes of rank q, which all know; recv holds their sum. */
void moe_comm_allgatherv(const moe_comm *comm, const void *send, void *recv, const int64_t *counts);

/* One side of an exchange: the block for or from rank q begins at row offset[q] of `rows` and has
 * count[q] rows. */
typedef struct moe_blocks {
    void *rows;
    const int64_t *count, *offset;
} moe_blocks;
/* Collective. One MPI_Alltoallv of rows of row_bytes bytes each; a contiguous datatype keeps counts
 * in rows. most_rows is the same number on all ranks, and no rank's sum of counts or end of a block
 * exceeds it. Where it passes max_count, all ranks go through several rounds with staging buffers
 * of bounded size instead: no count or offset ever overflows MPI's int. */
void moe_comm_alltoallv(const moe_comm *comm,
                        moe_blocks send,
                        moe_blocks recv,
                        int64_t row_bytes,
                        int64_t most_rows);

typedef MPI_Request moe_comm_request; /* a call that goes on after it has returned */
/* Collective. Begins what moe_comm_alltoallv does (MPI_Ialltoallv). Rows, `counts` [4 * size],
 * which it fills, and the memory that receives stay as they are until the request is done. Where
 * most_rows passes max_count, the rounds are over when it returns, and so is the request. */
void moe_comm_alltoallv_begin(const moe_comm *comm,
                              moe_blocks send,
                              moe_blocks recv,
                              int64_t row_bytes,
                              int64_t most_rows,
                              int *counts,
                              moe_comm_request *request);
/* Local. Lets MPI work; whether the request is done. */
bool moe_comm_is_done(moe_comm_request *request);
/* Collective among all ranks that take part. Returns when the request is done. */
void moe_comm_wait(moe_comm_request *request);

/* Local. Seconds of a clock that only runs forward and that the ranks of a host share. Only
 * differences have a meaning. */
double moe_comm_time(void);
/* Collective. Seconds by which this rank's moe_comm_time is ahead of rank 0's: 0 where all ranks
 * share a host, else measured with messages; the error is at most half the time of one message
 * there and back. */
double moe_comm_clock_offset(const moe_comm *comm);

/* One rank's piece of a .npy file: `count` elements of the file's dtype, beginning with element
 * `offset` of the array. */
typedef struct moe_npy_piece {
    const void *data;
    int64_t offset, count;
} moe_npy_piece;
/* Collective. Writes a .npy file with MPI-IO, every rank any number of pieces; all pieces together
 * tile the array. The file is a new one: what stood under its name, a link too, is removed first.
 * MOE_ERROR with one sentence, agreed by all ranks, when the disk is full, the file cannot be made,
 * or one rank alone cannot open it. */
int moe_comm_write_npy(const moe_comm *comm,
                       const char *path,
                       enum moe_dtype dtype,
                       int num_dims,
                       const int64_t *shape,
                       const moe_npy_piece *pieces,
                       int64_t num_pieces,
                       moe_status *st);

/* One rank's piece of any file: `bytes` bytes, beginning with byte `offset`. */
typedef struct moe_file_piece {
    const void *data;
    int64_t offset, bytes;
} moe_file_piece;
/* Collective. Writes a file of `bytes` bytes with MPI-IO and puts it on disk (MPI_File_sync), every
 * rank any number of pieces; all pieces together tile the file. A new file and MOE_ERROR as above.
 */
int moe_comm_write_blocks(const moe_comm *comm,
                          const char *path,
                          int64_t bytes,
                          const moe_file_piece *pieces,
                          int64_t num_pieces,
                          moe_status *st);

#endif
