/* What two processes of this machine do with memory that they share, in loops as plain as they come.
 *
 *   shm OP [--bytes 16777216] [--table 268435456] [--part 4194304] [--passes 1] [--spin 0] [--seconds 1]
 *
 *   add         table += values, where the values lie in a memfd of --bytes that another process has filled: the best that a server
 *               can do with a push
 *   ring        the same while the other process announces each piece of 256 KiB by an entry of a ring of 32 KiB, in a memfd of its own,
 *               and fills no place anew before it was added; both spin, each on a CPU of its own
 *   reduce      what Bsp asks of two workers and two server threads on two CPUs, without telling anybody anything: each of two threads, on
 *               a CPU of its own, adds both workers' values to half of the table, meets the other, copies the whole to its own worker's
 *               result and meets it again, --part bytes at a time; --passes 2 takes the first worker's values to a sum before;
 *               --direct 1 lets each thread copy its half to both results as soon as it is there, as if servers could write to workers' memory
 *   pingpong    64 bytes each way through two flags and two lines of a memfd, each side on a CPU of its own; it spins (--spin 1), or blocks on an eventfd (0)
 *               or on a futex (--spin -1)
 */
#include "bare.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PIECE = 256 << 10, WARM = 16 << 10, HUGE = 2 << 20, ROUNDS = 10000000 };

struct entry {
    uint64_t at, bytes;
};

struct ring {
    _Alignas(64) _Atomic uint64_t announced;
    _Alignas(64) _Atomic uint64_t taken;
    _Alignas(64) struct entry entries[(32 << 10) / sizeof(struct entry)];
};

struct line {
    _Alignas(64) _Atomic uint32_t count;
    _Alignas(64) char bytes[64];
};

/* A memfd, mapped where huge pages can lie. */
static void *shared(size_t bytes) {
    int fd = memfd_create("bare", 0);
    if (fd < 0 || ftruncate(fd, bytes)) fail("memfd");
    char *room = mmap(NULL, bytes + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) fail("mmap");
    void *place = room + (HUGE - (uintptr_t)room % HUGE) % HUGE;
    void *at = mmap(place, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    if (at == MAP_FAILED) fail("mmap");
    touch(at, bytes);
    return at;
}

static float *filled_by_another(size_t bytes) {
    float *values = shared(bytes);
    if (fork() == 0) {
        for (size_t i = 0; i < bytes / sizeof(float); i++) values[i] = 1;
        _exit(0);
    }
    wait(NULL);
    return values;
}

static void add_from(size_t bytes, size_t table_bytes, double limit) {
    float *values = filled_by_another(bytes), *table = memory(table_bytes);
    double total = 0, start = now();
    size_t at = 0, step = PIECE / sizeof(float);
    while (now() - start < limit)
        for (size_t from = 0; from + step <= bytes / sizeof(float); from += step, total += PIECE) {
            add(table + at, values + from, step);
            at = (at + 2 * step) * sizeof(float) <= table_bytes ? at + step : 0;
        }
    print_rate("add", total, now() - start);
}

static void reach(_Atomic uint64_t *value, uint64_t least) {
    while (atomic_load_explicit(value, memory_order_acquire) < least) _mm_pause();
}

static void announce(struct ring *ring, size_t bytes) {
    uint64_t places = sizeof ring->entries / sizeof *ring->entries, pieces = bytes / PIECE;
    uint64_t ahead = pieces < places ? pieces : places;
    for (uint64_t count = 0;; count++) {
        if (count >= ahead) reach(&ring->taken, count - ahead + 1);
        ring->entries[count % places] = (struct entry){count % pieces * PIECE, PIECE};
        atomic_store_explicit(&ring->announced, count + 1, memory_order_release);
    }
}

static void take_announced(size_t bytes, size_t table_bytes, double limit) {
    struct ring *ring = shared(sizeof *ring);
    float *values = filled_by_another(bytes);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pin(1);
        announce(ring, bytes);
    }
    pin(0);
    float *table = memory(table_bytes); /* not the child's, too: each page would be copied at the first add */
    double total = 0, start = now();
    uint64_t places = sizeof ring->entries / sizeof *ring->entries;
    size_t at = 0, step = PIECE / sizeof(float);
    for (uint64_t count = 0; now() - start < limit; total += PIECE) {
        reach(&ring->announced, count + 1);
        struct entry entry = ring->entries[count % places];
        add(table + at, values + entry.at / sizeof(float), entry.bytes / sizeof(float));
        atomic_store_explicit(&ring->taken, ++count, memory_order_release);
        at = (at + 2 * step) * sizeof(float) <= table_bytes ? at + step : 0;
    }
    kill(child, SIGKILL);
    print_rate("ring", total, now() - start);
}

static long futex(_Atomic uint32_t *word, int operation, uint32_t value) {
    return syscall(SYS_futex, word, operation, value, NULL, NULL, 0);
}

static void await(struct line *line, uint32_t count, int spin, int fd) {
    uint32_t found;
    uint64_t rung;
    while ((found = atomic_load_explicit(&line->count, memory_order_acquire)) != count) {
        if (spin > 0) _mm_pause();
        else if (spin < 0) futex(&line->count, FUTEX_WAIT, found);
        else if (read(fd, &rung, sizeof rung) < 0) fail("read");
    }
}

static void tell(struct line *line, const char *bytes, uint32_t count, int spin, int fd) {
    uint64_t ring = 1;
    memcpy(line->bytes, bytes, sizeof line->bytes);
    atomic_store_explicit(&line->count, count, memory_order_release);
    if (spin < 0) futex(&line->count, FUTEX_WAKE, 1);
    else if (spin == 0 && write(fd, &ring, sizeof ring) < 0) fail("write");
}

static void pingpong(int spin, double limit) {
    struct line *lines = shared(2 * sizeof *lines);
    int fds[2] = {eventfd(0, 0), eventfd(0, 0)};
    char bytes[64] = {0};
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pin(1);
        for (uint32_t count = 1;; count++) {
            await(&lines[0], count, spin, fds[0]);
            memcpy(bytes, lines[0].bytes, sizeof bytes);
            tell(&lines[1], bytes, count, spin, fds[1]);
        }
    }
    pin(0);
    double *taken = malloc(ROUNDS * sizeof *taken), end = now() + limit;
    uint32_t count = 0;
    for (double start = now(), next; count < ROUNDS && start < end; start = next) {
        bytes[0] = (char)count;
        tell(&lines[0], bytes, count + 1, spin, fds[0]);
        await(&lines[1], count + 1, spin, fds[1]);
        if (lines[1].bytes[0] != (char)count) fail("another message");
        next = now();
        taken[count++] = next - start;
    }
    kill(child, SIGKILL);
    print_latencies("pingpong", taken, count);
}

static struct {
    float *values[2], *results[2], *table, *sum;
    size_t bytes, part;
    int passes, direct, stop;
    double limit, took;
    uint64_t parts;
    _Atomic uint64_t arrived;
} job;

static void meet(uint64_t *meetings) {
    atomic_fetch_add(&job.arrived, 1);
    *meetings += 2;
    while (atomic_load(&job.arrived) < *meetings) _mm_pause();
}

/* table += sum + a + b, or without the sum where it is NULL, and leaves it at 0. */
static void step(float *table, float *sum, const float *a, const float *b, size_t count) {
    for (size_t i = 0; sum && i < count; i++) table[i] += sum[i] + b[i], sum[i] = 0;
    for (size_t i = 0; !sum && i < count; i++) table[i] += a[i] + b[i];
}

/* A piece of the table, and of both results while it is in the first-level cache. */
static void step_and_copy(size_t first, size_t count) {
    for (size_t i = first, warm = WARM / sizeof(float); i < first + count; i += warm) {
        step(job.table + i, NULL, job.values[0] + i, job.values[1] + i, warm);
        for (int to = 0; to < 2; to++) memcpy(job.results[to] + i, job.table + i, WARM);
    }
}

static void *reducer(void *argument) {
    size_t me = (size_t)argument, piece = PIECE / sizeof(float);
    pin(me);
    uint64_t meetings = 0;
    double start = now();
    for (size_t at = 0; !job.stop; at = (at + job.part) % job.bytes) {
        size_t first = at / sizeof(float), end = first + job.part / sizeof(float);
        for (size_t i = first + me * piece; job.passes > 1 && i < end; i += 2 * piece) add(job.sum + i, job.values[0] + i, piece);
        for (size_t i = first + me * piece; job.direct && i < end; i += 2 * piece) step_and_copy(i, piece);
        for (size_t i = first + me * piece; !job.direct && i < end; i += 2 * piece)
            step(job.table + i, job.passes > 1 ? job.sum + i : NULL, job.values[0] + i, job.values[1] + i, piece);
        meet(&meetings);
        /* First what it has in its own cache. */
        for (size_t half = 0; !job.direct && half < 2; half++)
            for (size_t i = first + (half ^ me) * piece; i < end; i += 2 * piece) memcpy(job.results[me] + i, job.table + i, PIECE);
        if (me == 0) job.parts++, job.took = now() - start, job.stop = job.took > job.limit;
        meet(&meetings);
    }
    return NULL;
}

static void reduce(size_t bytes, size_t part, int passes, int direct, double limit) {
    job.bytes = bytes, job.part = part < bytes ? part : bytes, job.passes = passes, job.direct = direct, job.limit = limit;
    if (job.part % (2 * PIECE) || bytes % job.part) {
        fprintf(stderr, "shm: expected parts of a multiple of 512 KiB that divide --bytes\n");
        exit(2);
    }
    for (int i = 0; i < 2; i++) job.values[i] = memory(bytes), job.results[i] = memory(bytes);
    job.table = memory(bytes), job.sum = memory(bytes);
    pthread_t threads[2];
    for (size_t i = 0; i < 2; i++)
        if ((errno = pthread_create(&threads[i], NULL, reducer, (void *)i))) fail("pthread_create");
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    print_rate("reduce", (double)job.parts * job.part, job.took);
}

int main(int count, char **arguments) {
    const char *op = count > 1 ? arguments[1] : "";
    double limit = flag(count, arguments, "--seconds", 1);
    if (strcmp(op, "add") == 0)
        add_from(flag(count, arguments, "--bytes", 16 << 20), flag(count, arguments, "--table", 256 << 20), limit);
    else if (strcmp(op, "ring") == 0)
        take_announced(flag(count, arguments, "--bytes", 16 << 20), flag(count, arguments, "--table", 256 << 20), limit);
    else if (strcmp(op, "reduce") == 0)
        reduce(flag(count, arguments, "--bytes", 16 << 20), flag(count, arguments, "--part", 4 << 20),
               flag(count, arguments, "--passes", 1),
               flag(count, arguments, "--direct", 0), limit);
    else if (strcmp(op, "pingpong") == 0)
        pingpong(flag(count, arguments, "--spin", 0), limit);
    else {
        fprintf(stderr, "shm: expected add, ring, reduce or pingpong\n");
        return 2;
    }
    return 0;
}
