/* MPI_Allreduce of fp32 sums between the ranks that mpirun starts: what a user without a parameter server would do.
 *
 *   mpicc -O3 -o allreduce allreduce.c
 *   mpirun -n 2 allreduce [--bytes 16777216] [--seconds 1]
 *
 * Prints the bytes that one rank had reduced in a second.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double flag(int count, char **arguments, const char *name, double otherwise) {
    for (int i = 1; i + 1 < count; i += 2)
        if (strcmp(arguments[i], name) == 0) return atof(arguments[i + 1]);
    return otherwise;
}

int main(int count, char **arguments) {
    MPI_Init(&count, &arguments);
    int rank, ranks, more = 1, rounds = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    size_t bytes = flag(count, arguments, "--bytes", 16 << 20), floats = bytes / sizeof(float);
    double limit = flag(count, arguments, "--seconds", 1);
    float *mine = malloc(bytes), *sum = malloc(bytes);
    if (!mine || !sum) MPI_Abort(MPI_COMM_WORLD, 1);
    for (size_t i = 0; i < floats; i++) mine[i] = rank + 1, sum[i] = 0;
    MPI_Allreduce(mine, sum, floats, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    double start = MPI_Wtime(), spent = 0;
    for (; more; rounds++) {
        MPI_Allreduce(mine, sum, floats, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        spent = MPI_Wtime() - start;
        more = spent < limit;
        /* All stop after the same round. */
        MPI_Bcast(&more, 1, MPI_INT, 0, MPI_COMM_WORLD);
    }
    for (size_t i = 0; i < floats; i++)
        if (sum[i] != ranks * (ranks + 1) / 2) MPI_Abort(MPI_COMM_WORLD, 1);
    if (rank == 0) printf("{\"op\":\"allreduce\",\"gbytes_per_second\":%.4f}\n", rounds * (double)bytes / spent / 1e9);
    MPI_Finalize();
    return 0;
}
