/* Rows by key over loopback TCP with nothing around it: what a push to a sparse table could reach on this machine.
 *
 *   sparse push [--rows 1048576] [--keys 100000] [--dim 1] [--spread 0] [--lists 16] [--congestion cubic] [--seconds 1]
 *
 * One end sends lists of --keys keys drawn evenly from --rows, each with its --dim fp32; of --lists such lists in turns, made
 * beforehand. The other end receives frames of at most 256 KiB, decodes the keys, probes an open-addressing index and adds
 * the rows. Row r has the key r * --spread; 0 stands for 2^64 / --rows. Within a frame a key is its difference to the last
 * one, in as many bytes as the largest of them needs. Frames: keys u32, bytes of a difference u32, first key u64, differences,
 * 8 bytes of room, values.
 */
#include "bare.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

enum { FRAME = 256 << 10, ASIDE = 64 };
static size_t rows, keys, dim, lists;
static uint64_t spread;

struct head { uint32_t keys, width; uint64_t first; };
struct place { uint64_t key, row; };

static uint64_t hash(uint64_t key) {
    key ^= key >> 32;
    key *= 0x9e3779b97f4a7c15u;
    return key ^ key >> 29;
}

static int by_key(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static size_t frame_bytes(size_t count, size_t width) {
    return sizeof(struct head) + ((count * width + 15) & ~(size_t)7) + count * dim * sizeof(float);
}

/* The bytes of one list of different keys, all of its frames; how many. */
static size_t encode(char *out, uint64_t *random, uint64_t *list) {
    size_t have = 0, bytes = 0;
    while (have < keys) {
        for (; have < keys; have++) {
            *random ^= *random << 13, *random ^= *random >> 7, *random ^= *random << 17;
            list[have] = *random % rows;
        }
        qsort(list, keys, sizeof *list, by_key);
        have = 0;
        for (size_t i = 0; i < keys; i++)
            if (i == 0 || list[i] != list[have - 1]) list[have++] = list[i];
    }
    for (size_t i = 0; i < keys; i++) list[i] *= spread;
    for (size_t at = 0; at < keys;) {
        size_t count = (FRAME - 64) / (8 + dim * sizeof(float)), width = 1;
        if (count > keys - at) count = keys - at;
        for (size_t i = at + 1; i < at + count; i++)
            while (width < 8 && (list[i] - list[i - 1]) >> (8 * width)) width++;
        struct head head = {count, width, list[at]};
        memcpy(out + bytes, &head, sizeof head);
        for (size_t i = 1; i < count; i++) {
            uint64_t difference = list[at + i] - list[at + i - 1];
            memcpy(out + bytes + sizeof head + (i - 1) * width, &difference, width);
        }
        float *values = (float *)(out + bytes + frame_bytes(count, width)) - count * dim;
        for (size_t i = 0; i < count * dim; i++) values[i] = 1;
        bytes += frame_bytes(count, width);
        at += count;
    }
    return bytes;
}

static void options(int fd, const char *congestion) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, congestion, strlen(congestion))) fail("TCP_CONGESTION");
}

static void sender(const struct sockaddr_in *address, const char *congestion) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    options(fd, congestion);
    if (connect(fd, (const void *)address, sizeof *address)) fail("connect");
    char **bodies = malloc(lists * sizeof *bodies);
    size_t *lengths = malloc(lists * sizeof *lengths);
    uint64_t random = 88172645463325252u, *list = memory(keys * sizeof *list);
    for (size_t i = 0; i < lists; i++) {
        bodies[i] = memory(2 * keys * (16 + dim * sizeof(float)) + FRAME);
        lengths[i] = encode(bodies[i], &random, list);
    }
    for (size_t n = 0;; n = (n + 1) % lists)
        for (size_t have = 0; have < lengths[n];) {
            ssize_t sent = send(fd, bodies[n] + have, lengths[n] - have, MSG_NOSIGNAL);
            if (sent <= 0) _exit(0); /* the other end has had enough */
            have += sent;
        }
}

static int receive_all(int fd, char *to, size_t length) {
    for (size_t have = 0; have < length;) {
        ssize_t got = recv(fd, to + have, length - have, 0);
        if (got <= 0) return 0;
        have += got;
    }
    return 1;
}

static void add_rows(const struct place *index, size_t mask, float *table, const uint64_t *list, const float *values,
                     size_t count) {
    for (size_t first = 0; first < count; first += ASIDE) {
        size_t at[ASIDE], some = count - first < ASIDE ? count - first : ASIDE;
        for (size_t i = 0; i < some; i++) __builtin_prefetch(&index[at[i] = hash(list[first + i]) & mask]);
        for (size_t i = 0; i < some; i++) {
            while (index[at[i]].key != list[first + i]) at[i] = (at[i] + 1) & mask;
            at[i] = index[at[i]].row * dim;
            for (size_t line = 0; line < dim; line += 16) __builtin_prefetch(table + at[i] + line, 1);
        }
        for (size_t i = 0; i < some; i++)
            for (size_t j = 0; j < dim; j++) table[at[i] + j] += values[(first + i) * dim + j];
    }
}

int main(int count, char **arguments) {
    rows = flag(count, arguments, "--rows", 1 << 20), keys = flag(count, arguments, "--keys", 100000);
    dim = flag(count, arguments, "--dim", 1), lists = flag(count, arguments, "--lists", 16);
    spread = flag(count, arguments, "--spread", 0);
    double limit = flag(count, arguments, "--seconds", 1);
    const char *congestion = text_flag(count, arguments, "--congestion", "cubic");
    if (count < 2 || strcmp(arguments[1], "push") || keys < 1 || keys * 2 > rows || lists < 1) {
        fprintf(stderr, "sparse: expected push, and at most half as many keys as rows\n");
        return 2;
    }
    if (spread == 0) spread = UINT64_MAX / rows;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int at = socket(AF_INET, SOCK_STREAM, 0);
    options(at, congestion);
    if (bind(at, (void *)&address, sizeof address) || listen(at, 1)) fail("listen");
    getsockname(at, (void *)&address, &length);
    if (fork() == 0) sender(&address, congestion);
    size_t places = 1;
    while (places < rows * 2) places *= 2;
    struct place *index = memory(places * sizeof *index);
    float *table = memory(rows * dim * sizeof(float));
    for (size_t i = 0; i < places; i++) index[i].row = UINT64_MAX;
    for (uint64_t row = 0; row < rows; row++) {
        size_t here = hash(row * spread) & (places - 1);
        while (index[here].row != UINT64_MAX) here = (here + 1) & (places - 1);
        index[here] = (struct place){row * spread, row};
    }
    char *body = memory(2 * FRAME);
    uint64_t *list = memory(FRAME), taken = 0;
    int fd = accept(at, NULL, NULL);
    struct head head;
    double start = 0;
    while (start == 0 || now() - start < limit) {
        if (!receive_all(fd, (char *)&head, sizeof head)) fail("recv");
        if (start == 0) start = now(); /* the lists are made */
        size_t bytes = frame_bytes(head.keys, head.width) - sizeof head;
        if (!receive_all(fd, body, bytes)) fail("recv");
        uint64_t mask = head.width == 8 ? UINT64_MAX : (1ull << 8 * head.width) - 1, key = list[0] = head.first;
        for (size_t i = 1; i < head.keys; i++) {
            uint64_t difference;
            memcpy(&difference, body + (i - 1) * head.width, 8);
            list[i] = key += difference & mask;
        }
        add_rows(index, places - 1, table, list, (float *)(body + bytes) - head.keys * dim, head.keys);
        taken += head.keys;
    }
    double spent = now() - start;
    printf("{\"op\":\"push\",\"keys_per_second\":%.0f,\"gbytes_per_second\":%.4f}\n", taken / spent,
           taken * dim * sizeof(float) / spent / 1e9);
    return 0;
}
