/* bare_mpi.c: a bare MPI program, to subtract.
 *
 * bench: part of startup and memory */
#include <mpi.h>
#include <stdio.h>

int main(int argc, char **argv) {
    int rank;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0) {
        puts("hello");
    }
    MPI_Finalize();
    return 0;
}
