/* collectives.h: counts the collective calls of this program by standing between it and MPI (MPI's
 * profiling interface). Included by one file of a program. */
#ifndef MOESIM_COLLECTIVES_H
#define MOESIM_COLLECTIVES_H

#include <mpi.h>
#include <stdio.h>
#include <string.h>

typedef struct collectives { /* calls so far */
    int allreduce, alltoall, alltoallv, allgatherv, bcast;
} collectives;

static collectives collectives_made;

int MPI_Allreduce(const void *send,
                  void *recv,
                  int count,
                  MPI_Datatype type,
                  MPI_Op op,
                  MPI_Comm comm) {
    collectives_made.allreduce++;
    return PMPI_Allreduce(send, recv, count, type, op, comm);
}
int MPI_Alltoall(const void *send,
                 int sends,
                 MPI_Datatype send_type,
                 void *recv,
                 int recvs,
                 MPI_Datatype recv_type,
                 MPI_Comm comm) {
    collectives_made.alltoall++;
    return PMPI_Alltoall(send, sends, send_type, recv, recvs, recv_type, comm);
}
int MPI_Alltoallv(const void *send,
                  const int *sends,
                  const int *send_at,
                  MPI_Datatype send_type,
                  void *recv,
                  const int *recvs,
                  const int *recv_at,
                  MPI_Datatype recv_type,
                  MPI_Comm comm) {
    collectives_made.alltoallv++;
    return PMPI_Alltoallv(send, sends, send_at, send_type, recv, recvs, recv_at, recv_type, comm);
}
int MPI_Allgatherv(const void *send,
                   int sends,
                   MPI_Datatype send_type,
                   void *recv,
                   const int *recvs,
                   const int *recv_at,
                   MPI_Datatype recv_type,
                   MPI_Comm comm) {
    collectives_made.allgatherv++;
    return PMPI_Allgatherv(send, sends, send_type, recv, recvs, recv_at, recv_type, comm);
}
int MPI_Bcast(void *bytes, int count, MPI_Datatype type, int root, MPI_Comm comm) {
    collectives_made.bcast++;
    return PMPI_Bcast(bytes, count, type, root, comm);
}

/* Those made since `before`, as one line on rank 0; a row of the table with their number. */
static inline void collectives_row(const moe_comm *comm, const char *what, collectives before) {
    collectives n = {
        collectives_made.allreduce - before.allreduce, collectives_made.alltoall - before.alltoall,
        collectives_made.alltoallv - before.alltoallv,
        collectives_made.allgatherv - before.allgatherv, collectives_made.bcast - before.bcast};
    if (comm->rank != 0) {
        return;
    }
    printf("%s: collectives (%d allreduce, %d alltoall, %d alltoallv, %d allgatherv, %d "
           "bcast)\t%d\t-\tcalls\t-\t-\t-\n",
           what, n.allreduce, n.alltoall, n.alltoallv, n.allgatherv, n.bcast,
           n.allreduce + n.alltoall + n.alltoallv + n.allgatherv + n.bcast);
    fflush(stdout);
}

#endif
