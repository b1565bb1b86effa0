/* MPI_Allreduce of fp32 sums, with the result in each rank's own buffer: what a user would take instead of a Bsp push_pull.
 *
 *   mpirun -n 2 allreduce [--bytes 16777216] [--seconds 1]
 *
 * Rank 0 prints bytes of one rank's values per second, by the time of the slower rank. Built by mpicc, and only where there is one.
 */
#include "bare.h"

#include <mpi.h>

int main(int count, char **arguments) {
    MPI_Init(&count, &arguments);
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    size_t bytes = 16 << 20;
    double limit = 1;
    for (int i = 1; i + 1 < count; i += 2) {
        if (strcmp(arguments[i], "--bytes") == 0) bytes = atof(arguments[i + 1]);
        if (strcmp(arguments[i], "--seconds") == 0) limit = atof(arguments[i + 1]);
    }
    float *from = memory(bytes), *to = memory(bytes);
    size_t length = bytes / sizeof(float);
    for (size_t i = 0; i < length; i++) from[i] = 1;
    double start = 0, took = 0;
    long done = -3; /* three to warm up */
    for (int more = 1; more; done++) {
        if (done == 0) {
            MPI_Barrier(MPI_COMM_WORLD);
            start = now();
        }
        MPI_Allreduce(from, to, length, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        more = done < 0 || now() - start < limit;
        /* All go on, or none. */
        MPI_Bcast(&more, 1, MPI_INT, 0, MPI_COMM_WORLD);
    }
    double own = now() - start;
    MPI_Allreduce(&own, &took, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    int ranks;
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (to[0] != ranks || to[length - 1] != ranks) fail("another sum");
    if (rank == 0) print_rate("allreduce", (double)bytes * done, took);
    MPI_Finalize();
    return 0;
}
