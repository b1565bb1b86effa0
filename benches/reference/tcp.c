/* Loopback TCP with nothing around it: what a parameter server over TCP could reach on this machine.
 *
 *   tcp OP [--bytes 1048576] [--table 268435456] [--piece 262144] [--congestion cubic] [--senders 1] [--spin 0|1]
 *          [--seconds 1] [--option quickack|incoming-cpu|busy-poll|nagle]
 *
 *   stream      sends --bytes again and again, from and to one buffer
 *   source      the same out of a table that is walked round, into one buffer: a bare pull
 *   add         receives pieces and adds each to a table that is walked round: a bare push
 *   duplex      sends --bytes while it receives as many; the other end adds each piece to the table and sends it back: a
 *               bare push_pull. Bytes of one direction are counted.
 *   reduce      --senders such clients; the other end sends a piece back to all when it has it from all
 *   pingpong    64 bytes there and back, each end on a CPU of its own: where they share one a wake-up is ten times as fast
 *
 * Those who receive block, or ask again and again (--spin 1), for as long as it takes.
 * --option sets one more option of the sockets (busy-poll: 50 microseconds), or leaves out the one that turns Nagle's algorithm off.
 */
#include "bare.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *congestion, *option;
static double limit;
static size_t bytes, table_bytes, piece;
static int spins;

static void options(int fd) {
    int on = 1, off = 0, busy = 50, failed = 0;
    if (strcmp(option, "nagle")) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (!strcmp(option, "quickack")) failed = setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof on);
    if (!strcmp(option, "incoming-cpu")) failed = setsockopt(fd, SOL_SOCKET, SO_INCOMING_CPU, &off, sizeof off);
    if (!strcmp(option, "busy-poll")) failed = setsockopt(fd, SOL_SOCKET, SO_BUSY_POLL, &busy, sizeof busy);
    if (failed) fail(option);
    if (setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, congestion, strlen(congestion))) fail("TCP_CONGESTION");
}

static int listener(struct sockaddr_in *address) {
    socklen_t length = sizeof *address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    options(fd);
    if (bind(fd, (void *)address, sizeof *address) || listen(fd, 64)) fail("listen");
    getsockname(fd, (void *)address, &length);
    return fd;
}

static int dial(const struct sockaddr_in *address) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    options(fd);
    if (connect(fd, (const void *)address, sizeof *address)) fail("connect");
    return fd;
}

/* Bytes that came, 0 at the end of the stream. */
static size_t receive(int fd, char *to, size_t length) {
    ssize_t got;
    while ((got = recv(fd, to, length, spins ? MSG_DONTWAIT : 0)) < 0 && errno == EAGAIN) _mm_pause();
    return got > 0 ? got : 0;
}

static int receive_all(int fd, char *to, size_t length) {
    for (size_t have = 0, got; have < length; have += got)
        if (!(got = receive(fd, to + have, length - have))) return 0;
    return 1;
}

static void send_all(int fd, const char *from, size_t length) {
    for (size_t have = 0; have < length;) {
        ssize_t sent = send(fd, from + have, length - have, MSG_NOSIGNAL);
        if (sent <= 0) _exit(0); /* the other end has had enough */
        have += sent;
    }
}

static void stream(int fd, const char *op) {
    int walks = op[0] == 's' && op[1] == 'o';
    size_t size = walks ? table_bytes : bytes;
    char *source = memory(size);
    send_all(fd, "!", 1); /* its memory is touched */
    for (size_t at = 0;; at = at + 2 * bytes <= size ? at + bytes : 0) send_all(fd, source + at, bytes);
}

/* Receives for the time of the measurement, from when all memory was touched. */
static void sink(int fd, const char *op) {
    int adds = op[0] == 'a';
    float *table = adds ? memory(table_bytes) : NULL;
    size_t size = adds ? piece : bytes;
    char *buffer = memory(size);
    if (!receive_all(fd, buffer, 1)) fail("recv");
    double start = now(), total = 0, spent;
    for (size_t at = 0; (spent = now() - start) < limit;) {
        if (!adds) {
            total += receive(fd, buffer, size);
            continue;
        }
        if (!receive_all(fd, buffer, piece)) fail("recv");
        add(table + at / sizeof(float), (float *)buffer, piece / sizeof(float));
        at = at + 2 * piece <= table_bytes ? at + piece : 0;
        total += piece;
    }
    print_rate(op, total, spent);
}

/* Answers each piece that all clients have sent. */
static void reducer(int *fds, int clients) {
    float *table = memory(table_bytes);
    char *buffer = memory(piece);
    for (int i = 0; i < clients; i++) send_all(fds[i], "!", 1);
    for (size_t at = 0;; at = at + 2 * piece <= table_bytes ? at + piece : 0) {
        float *here = table + at / sizeof(float);
        for (int i = 0; i < clients; i++) {
            if (!receive_all(fds[i], buffer, piece)) _exit(0);
            add(here, (float *)buffer, piece / sizeof(float));
        }
        for (int i = 0; i < clients; i++) send_all(fds[i], (char *)here, piece);
    }
}

/* Sends and receives --bytes at once, again and again; how many there were. */
static double exchange(int fd) {
    char *source = memory(bytes), *target = memory(bytes);
    if (!receive_all(fd, target, 1)) fail("recv");
    fcntl(fd, F_SETFL, O_NONBLOCK);
    double start = now(), rounds = 0;
    for (; now() - start < limit; rounds++) {
        int idle = 0;
        for (size_t sent = 0, got = 0; got < bytes;) {
            /* Two pieces ahead of the answers: more would only lie in the kernel. */
            size_t room = got + 4 * piece < bytes ? got + 4 * piece : bytes;
            ssize_t s = sent < room ? send(fd, source + sent, room - sent, MSG_NOSIGNAL) : 0;
            if (s > 0) sent += s;
            ssize_t r = recv(fd, target + got, bytes - got, 0);
            if (r > 0) got += r;
            if (r == 0 || ((s < 0 || r < 0) && errno != EAGAIN)) return rounds * bytes / (now() - start);
            if (s > 0 || r > 0) idle = 0;
            /* Others may need this core. */
            if (++idle > 200 && !spins) poll(&(struct pollfd){.fd = fd, .events = POLLIN | (sent < room ? POLLOUT : 0)}, 1, 100);
        }
    }
    return rounds * bytes / (now() - start);
}

static void pingpong(int fd) {
    enum { MOST = 1 << 22 };
    double *seconds = memory(MOST * sizeof *seconds), start = now();
    size_t rounds = 0;
    char message[64] = {0};
    while (rounds < MOST && now() - start < limit) {
        double before = now();
        send_all(fd, message, sizeof message);
        if (!receive_all(fd, message, sizeof message)) fail("recv");
        seconds[rounds++] = now() - before;
    }
    print_latencies(spins ? "pingpong_spinning" : "pingpong_blocking", seconds, rounds);
}

int main(int count, char **arguments) {
    const char *op = count > 1 ? arguments[1] : "";
    bytes = flag(count, arguments, "--bytes", 1 << 20), table_bytes = flag(count, arguments, "--table", 256 << 20);
    piece = flag(count, arguments, "--piece", 256 << 10), limit = flag(count, arguments, "--seconds", 1);
    congestion = text_flag(count, arguments, "--congestion", "cubic");
    option = text_flag(count, arguments, "--option", "");
    spins = flag(count, arguments, "--spin", 0);
    int clients = flag(count, arguments, "--senders", 1);
    struct sockaddr_in address;
    int at = listener(&address), fds[64];

    if (!strcmp(op, "stream") || !strcmp(op, "source") || !strcmp(op, "add")) {
        if (fork() == 0) {
            stream(dial(&address), op);
            return 0;
        }
        sink(accept(at, NULL, NULL), op);
    } else if (!strcmp(op, "duplex") || !strcmp(op, "reduce")) {
        if (bytes % piece || clients < 1 || clients > 64 || (op[0] == 'd' && clients != 1)) {
            fprintf(stderr, "tcp: expected whole pieces and 1 to 64 senders\n");
            return 2;
        }
        int results[2];
        if (pipe(results)) fail("pipe");
        for (int i = 0; i < clients; i++)
            if (fork() == 0) {
                double rate = exchange(dial(&address));
                if (write(results[1], &rate, sizeof rate) != sizeof rate) fail("write");
                return 0;
            }
        pid_t server = fork();
        if (server == 0) {
            close(results[1]);
            for (int i = 0; i < clients; i++) fds[i] = accept(at, NULL, NULL);
            reducer(fds, clients);
        }
        close(results[1]);
        double rate, total = 0;
        for (int i = 0; i < clients && read(results[0], &rate, sizeof rate) == sizeof rate; i++) total += rate;
        print_rate(op, total / clients, 1);
    } else if (!strcmp(op, "pingpong")) {
        if (fork() == 0) {
            char message[64];
            int fd = dial(&address);
            pin(1);
            while (receive_all(fd, message, sizeof message)) send_all(fd, message, sizeof message);
            return 0;
        }
        pin(0);
        pingpong(accept(at, NULL, NULL));
    } else {
        fprintf(stderr, "tcp: expected stream, source, add, duplex, reduce or pingpong\n");
        return 2;
    }
    return 0;
}
