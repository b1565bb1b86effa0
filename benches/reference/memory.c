/* What one core of this machine does with memory, in loops as plain as they come.
 *
 *   memory OP [--bytes 268435456] [--ways 8] [--rows 10000000] [--dim 16] [--seconds 1]
 *
 *   read        reads --bytes, again and again: the bandwidth that folds are compared with
 *   add         table += values, 256 KiB at a time from one buffer, over a table of --bytes
 *   copy        copies 256 KiB pieces of --bytes into one buffer
 *   fold        sums --ways arrays of --bytes each into one; the reads and the write are counted
 *   gather      looks random u64 keys up in an open-addressing index of --rows and copies their rows of --dim fp32
 */
#include "bare.h"

enum { PIECE = 256 << 10 };
static volatile float sink;

static float sum_of(const float *values, size_t count) {
#ifdef __AVX512F__
    __m512 s[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    for (size_t i = 0; i + 64 <= count; i += 64)
        for (int k = 0; k < 4; k++) s[k] = _mm512_add_ps(s[k], _mm512_loadu_ps(values + i + 16 * k));
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(s[0], s[1]), _mm512_add_ps(s[2], s[3])));
#else
    float s[16] = {0};
    for (size_t i = 0; i + 16 <= count; i += 16)
        for (int k = 0; k < 16; k++) s[k] += values[i + k];
    for (int k = 1; k < 16; k++) s[0] += s[k];
    return s[0];
#endif
}

static uint64_t hash(uint64_t key) {
    key ^= key >> 32;
    key *= 0x9e3779b97f4a7c15u;
    return key ^ key >> 29;
}

static void gather(size_t rows, size_t dim, double limit) {
    size_t places = 1;
    while (places < rows * 2) places *= 2;
    struct place { uint64_t key; uint64_t row; } *index = memory(places * sizeof *index);
    float *table = memory(rows * dim * sizeof(float)), *out = memory(4096 * dim * sizeof(float));
    for (uint64_t row = 0; row < rows; row++) {
        size_t at = hash(row + 1) & (places - 1);
        while (index[at].key) at = (at + 1) & (places - 1);
        index[at] = (struct place){row + 1, row};
    }
    uint64_t keys[4096], random = 88172645463325252u, total = 0;
    double spent = 0;
    while (spent < limit) {
        for (int i = 0; i < 4096; i++) {
            random ^= random << 13, random ^= random >> 7, random ^= random << 17;
            keys[i] = random % rows + 1;
        }
        double start = now();
        /* Three passes over 64 keys at a time, so that misses overlap. */
        for (int first = 0; first < 4096; first += 64) {
            size_t at[64];
            for (int i = 0; i < 64; i++) __builtin_prefetch(&index[at[i] = hash(keys[first + i]) & (places - 1)]);
            for (int i = 0; i < 64; i++) {
                while (index[at[i]].key != keys[first + i]) at[i] = (at[i] + 1) & (places - 1);
                __builtin_prefetch(table + index[at[i]].row * dim);
            }
            for (int i = 0; i < 64; i++)
                memcpy(out + (first + i) * dim, table + index[at[i]].row * dim, dim * sizeof(float));
        }
        spent += now() - start;
        total += 4096;
        sink = out[random % 4096];
    }
    printf("{\"op\":\"gather\",\"keys_per_second\":%.0f,\"gbytes_per_second\":%.4f}\n", total / spent,
           total * dim * sizeof(float) / spent / 1e9);
}

int main(int count, char **arguments) {
    const char *op = count > 1 ? arguments[1] : "";
    size_t bytes = flag(count, arguments, "--bytes", 256 << 20), ways = flag(count, arguments, "--ways", 8);
    double limit = flag(count, arguments, "--seconds", 1);
    if (strcmp(op, "gather") == 0) {
        gather(flag(count, arguments, "--rows", 10e6), flag(count, arguments, "--dim", 16), limit);
        return 0;
    }
    int fold = strcmp(op, "fold") == 0;
    if (!fold && strcmp(op, "read") && strcmp(op, "add") && strcmp(op, "copy")) {
        fprintf(stderr, "memory: expected read, add, copy, fold or gather\n");
        return 2;
    }
    float *table = memory(bytes), *piece = memory(PIECE), *arrays[64] = {0};
    if (ways > 64) ways = 64;
    for (size_t k = 0; fold && k < ways; k++) arrays[k] = memory(bytes);
    size_t values = bytes / sizeof(float), step = PIECE / sizeof(float);
    double total = 0, start = now();
    while (now() - start < limit) {
        for (size_t at = 0; at + step <= values; at += step) {
            if (op[0] == 'r') sink = sum_of(table + at, step);
            if (op[0] == 'a') add(table + at, piece, step);
            if (op[0] == 'c') memcpy(piece, table + at, PIECE);
            if (!fold) continue;
            for (size_t i = at; i < at + step; i += 16)
                for (size_t lane = i; lane < i + 16; lane++) {
                    float sum = 0;
                    for (size_t k = 0; k < ways; k++) sum += arrays[k][lane];
                    table[lane] = sum;
                }
        }
        total += (double)bytes * (fold ? ways + 1 : 1);
    }
    print_rate(op, total, now() - start);
    return 0;
}
