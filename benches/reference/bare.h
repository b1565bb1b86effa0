/* What the bare loops share: time, memory, flags, one line of JSON. They share no code with the library. */
#ifndef BARE_H
#define BARE_H
#define _GNU_SOURCE

#include <errno.h>
#include <immintrin.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static inline double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static inline void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

/* Touches memory and has it on huge pages where there are any: at once, whatever the system's settings are (Linux 6.1). */
static inline void touch(void *at, size_t bytes) {
    madvise(at, bytes, MADV_HUGEPAGE);
    memset(at, 0, bytes);
    madvise(at, bytes, MADV_COLLAPSE);
}

/* Memory that was touched. */
static inline void *memory(size_t bytes) {
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) fail("mmap");
    touch(at, bytes);
    return at;
}

/* Keeps the calling thread on one of the CPUs that it may use, 0 the first of them; where there are fewer, some share one. */
static inline void pin(int which) {
    cpu_set_t all, one;
    if (sched_getaffinity(0, sizeof all, &all)) fail("sched_getaffinity");
    which %= CPU_COUNT(&all);
    int cpu = 0;
    while (!CPU_ISSET(cpu, &all) || which-- > 0) cpu++;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    if (sched_setaffinity(0, sizeof one, &one)) fail("sched_setaffinity");
}

/* The value of `--name value`, or `otherwise`. */
static inline const char *text_flag(int count, char **arguments, const char *name, const char *otherwise) {
    for (int i = 2; i + 1 < count; i += 2)
        if (strcmp(arguments[i], name) == 0) return arguments[i + 1];
    return otherwise;
}

static inline double flag(int count, char **arguments, const char *name, double otherwise) {
    const char *text = text_flag(count, arguments, name, NULL);
    return text ? atof(text) : otherwise;
}

/* table[i] += values[i], the best that this CPU has: the table is fetched 2 KiB ahead. */
static inline void add(float *table, const float *values, size_t count) {
#ifdef __AVX512F__
    for (size_t i = 0; i + 16 <= count; i += 16) {
        _mm_prefetch((const char *)(table + i) + 2048, _MM_HINT_T0);
        _mm512_storeu_ps(table + i, _mm512_add_ps(_mm512_loadu_ps(table + i), _mm512_loadu_ps(values + i)));
    }
#else
    for (size_t i = 0; i < count; i++) table[i] += values[i];
#endif
}

static inline int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static inline void print_rate(const char *op, double bytes, double seconds) {
    printf("{\"op\":\"%s\",\"gbytes_per_second\":%.4f}\n", op, bytes / seconds / 1e9);
}

/* Sorts. */
static inline void print_latencies(const char *op, double *seconds, size_t count) {
    qsort(seconds, count, sizeof *seconds, by_value);
    printf("{\"op\":\"%s\",\"p50_us\":%.3f,\"p99_us\":%.3f,\"rounds\":%zu}\n", op, seconds[count / 2] * 1e6,
           seconds[count * 99 / 100] * 1e6, count);
}

#endif
