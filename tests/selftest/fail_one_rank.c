/* fail_one_rank.c: a check fails on the last rank only; every rank must hear of it, and none may be
 * left waiting. With an argument it passes. */
#include <mpi.h>

#include "check.h"

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    int rank, size;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    CHECK(size > 1);
    CHECK_MSG(argc > 1 || rank != size - 1,
              "this failure is wanted: it proves that one rank's failure fails the test");
    MPI_Barrier(MPI_COMM_WORLD);
    int verdict = check_verdict_mpi(MPI_COMM_WORLD);
    MPI_Finalize();
    return verdict;
}
