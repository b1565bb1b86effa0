/* Loopback TCP by io_uring beside epoll and plain calls, with nothing around either: whether a transport over io_uring could gain here.
 *
 *   uring OP [--way WAY] [--spin 0|1] [--piece 262144] [--congestion cubic] [--seconds 1]
 *
 * The two ends have a CPU each, if there are two: where they share one a wake-up is ten times as fast.
 *
 *   pingpong    64 bytes there and back, both ends in the same way
 *   stream      receives pieces into 16 MiB that are walked round; the other end sends 1 MiB at a time by plain calls
 *
 *   epoll       epoll_wait, then recv until nothing is left; with --spin 1 recv again and again
 *   enter       a send and the next receive are submitted together by io_uring_enter, which also waits
 *   defer       the same with IORING_SETUP_DEFER_TASKRUN and a registered descriptor
 *   fixed       as defer, into registered buffers (IORING_OP_READ_FIXED)
 *   sqpoll      a thread of the kernel takes what is submitted
 *   multishot   as defer, one receive for many completions, into a ring of provided buffers
 *
 * Exit code 3: this system refuses io_uring, or that way of it.
 */
#include "bare.h"

#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#endif
#ifdef IORING_SETUP_DEFER_TASKRUN

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MESSAGE = 64, ENTRIES = 64, BUFFERS = 64, SEND = 1, RECEIVE = 2, MEMORY = 16 << 20 };

static const char *way, *congestion;
static int spins, ring = -1, events;
static size_t piece;
static double limit;
static unsigned *sq_head, *sq_tail, *sq_mask, *sq_array, *sq_flags, *cq_head, *cq_tail, *cq_mask;
static struct io_uring_sqe *sqes;
static struct io_uring_cqe *cqes;
static struct io_uring_buf_ring *provided;
static char *target;

static int is(const char *name) { return !strcmp(way, name); }

static void refused(const char *what) {
    fprintf(stderr, "uring: %s: %s\n", what, strerror(errno));
    exit(3);
}

static void open_ring(int fd) {
    struct io_uring_params p = {.flags = IORING_SETUP_SINGLE_ISSUER};
    if (is("sqpoll")) p.flags |= IORING_SETUP_SQPOLL, p.sq_thread_idle = 1000;
    else if (!is("enter")) p.flags |= IORING_SETUP_DEFER_TASKRUN;
    ring = syscall(SYS_io_uring_setup, ENTRIES, &p);
    if (ring < 0) refused("io_uring_setup");
    char *sq = mmap(NULL, p.sq_off.array + p.sq_entries * 4, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
    char *cq = mmap(NULL, p.cq_off.cqes + p.cq_entries * sizeof *cqes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_CQ_RING);
    sqes = mmap(NULL, p.sq_entries * sizeof *sqes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
    if (sq == MAP_FAILED || cq == MAP_FAILED || sqes == MAP_FAILED) fail("mmap");
    sq_head = (void *)(sq + p.sq_off.head), sq_tail = (void *)(sq + p.sq_off.tail), sq_mask = (void *)(sq + p.sq_off.ring_mask);
    sq_array = (void *)(sq + p.sq_off.array), sq_flags = (void *)(sq + p.sq_off.flags);
    cq_head = (void *)(cq + p.cq_off.head), cq_tail = (void *)(cq + p.cq_off.tail), cq_mask = (void *)(cq + p.cq_off.ring_mask);
    cqes = (void *)(cq + p.cq_off.cqes);
    if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_FILES, &fd, 1)) refused("IORING_REGISTER_FILES");
    if (is("fixed")) {
        struct iovec all = {target, MEMORY};
        if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &all, 1)) refused("IORING_REGISTER_BUFFERS");
    }
    if (is("multishot")) {
        provided = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        struct io_uring_buf_reg reg = {.ring_addr = (uintptr_t)provided, .ring_entries = BUFFERS, .bgid = 0};
        if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_PBUF_RING, &reg, 1)) refused("IORING_REGISTER_PBUF_RING");
    }
}

static void provide(unsigned short number) {
    struct io_uring_buf *b = &provided->bufs[provided->tail & (BUFFERS - 1)];
    b->addr = (uintptr_t)(target + number * piece), b->len = piece, b->bid = number;
    __atomic_store_n(&provided->tail, provided->tail + 1, __ATOMIC_RELEASE);
}

static void push(int opcode, int tag, void *at, size_t length) {
    unsigned tail = *sq_tail, place = tail & *sq_mask;
    struct io_uring_sqe *s = &sqes[place];
    memset(s, 0, sizeof *s);
    s->opcode = opcode, s->flags = IOSQE_FIXED_FILE, s->addr = (uintptr_t)at, s->len = length, s->user_data = tag;
    if (opcode == IORING_OP_SEND) s->msg_flags = MSG_NOSIGNAL;
    if (tag == RECEIVE && is("multishot")) s->ioprio = IORING_RECV_MULTISHOT, s->flags |= IOSQE_BUFFER_SELECT, s->addr = 0, s->len = 0;
    sq_array[place] = place;
    __atomic_store_n(sq_tail, tail + 1, __ATOMIC_RELEASE);
}

static void receive_into(void *at, size_t length) { push(is("fixed") ? IORING_OP_READ_FIXED : IORING_OP_RECV, RECEIVE, at, length); }

struct done {
    int result;
    unsigned flags;
    unsigned long long tag;
};

/* Submits, and waits for one completion. */
static struct done next(void) {
    for (;;) {
        unsigned head = *cq_head, todo = *sq_tail - __atomic_load_n(sq_head, __ATOMIC_ACQUIRE);
        if (!todo && head != __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE)) {
            struct io_uring_cqe *from = &cqes[head & *cq_mask];
            struct done c = {from->res, from->flags, from->user_data};
            __atomic_store_n(cq_head, head + 1, __ATOMIC_RELEASE);
            return c;
        }
        if (is("sqpoll")) {
            int sleeps = __atomic_load_n(sq_flags, __ATOMIC_ACQUIRE) & IORING_SQ_NEED_WAKEUP;
            if (spins && !sleeps) continue;
            unsigned flags = (sleeps ? IORING_ENTER_SQ_WAKEUP : 0) | (spins ? 0 : IORING_ENTER_GETEVENTS);
            syscall(SYS_io_uring_enter, ring, todo, spins ? 0 : 1, flags, NULL, 0);
        } else if (todo || !spins || !is("enter")) {
            if (syscall(SYS_io_uring_enter, ring, todo, spins ? 0 : 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0 && errno != EINTR) fail("io_uring_enter");
        }
    }
}

static void ready(int fd) {
    target = memory(MEMORY);
    if (!is("epoll")) return open_ring(fd);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    events = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN | EPOLLET};
    if (events < 0 || epoll_ctl(events, EPOLL_CTL_ADD, fd, &e)) fail("epoll");
}

static void await(void) {
    struct epoll_event e;
    if (!spins) epoll_wait(events, &e, 1, -1);
}

static void begin_receiving(size_t length) {
    if (is("epoll")) return;
    for (unsigned n = 0; is("multishot") && n < BUFFERS && (n + 1) * piece <= MEMORY; n++) provide(n);
    receive_into(target, length);
}

/* Sends a message, unless it only listens; then waits for one. 0 when the other end is gone. */
static int turn(int fd, int sends) {
    static char out[MESSAGE];
    if (is("epoll")) {
        if (sends && send(fd, out, MESSAGE, MSG_NOSIGNAL) != MESSAGE) return 0;
        for (ssize_t got = 0; got < MESSAGE;) {
            ssize_t r = recv(fd, target, MESSAGE, 0);
            if (r == 0 || (r < 0 && errno != EAGAIN)) return 0;
            if (r > 0) got += r;
            else await();
        }
        return 1;
    }
    if (sends) push(IORING_OP_SEND, SEND, out, MESSAGE);
    if (sends && !is("multishot")) receive_into(target, MESSAGE);
    for (;;) {
        struct done c = next();
        if (c.result <= 0) return 0;
        if (c.tag == SEND) continue;
        if (c.flags & IORING_CQE_F_BUFFER) provide(c.flags >> IORING_CQE_BUFFER_SHIFT);
        if (is("multishot") && !(c.flags & IORING_CQE_F_MORE)) receive_into(target, MESSAGE);
        return c.result == MESSAGE;
    }
}

static void pingpong(int fd, int first) {
    enum { MOST = 1 << 22 };
    ready(fd);
    begin_receiving(MESSAGE);
    if (!first) {
        for (int sends = 0; turn(fd, sends); sends = 1) {}
        return;
    }
    double *seconds = memory(MOST * sizeof *seconds), start = now();
    size_t rounds = 0;
    /* The first receive is under way already. */
    static char out[MESSAGE];
    if (!is("epoll")) send(fd, out, MESSAGE, 0), turn(fd, 0);
    while (rounds < MOST && now() - start < limit) {
        double before = now();
        if (!turn(fd, 1)) fail("turn");
        seconds[rounds++] = now() - before;
    }
    print_latencies(spins ? "pingpong_spinning" : "pingpong_blocking", seconds, rounds);
}

static void stream(int fd) {
    ready(fd);
    begin_receiving(piece);
    double start = now(), total = 0, spent;
    for (size_t at = 0; (spent = now() - start) < limit; at = at + 2 * piece <= MEMORY ? at + piece : 0) {
        if (is("epoll")) {
            ssize_t got = recv(fd, target + at, piece, 0);
            if (got == 0) fail("recv");
            if (got > 0) total += got;
            else await();
            continue;
        }
        struct done c = next();
        if (c.result <= 0 && c.result != -ENOBUFS) fail("receive");
        if (c.result > 0) total += c.result;
        if (c.flags & IORING_CQE_F_BUFFER) provide(c.flags >> IORING_CQE_BUFFER_SHIFT);
        if (!(c.flags & IORING_CQE_F_MORE)) receive_into(target + at, piece);
    }
    print_rate("stream", total, spent);
}

static void options(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, congestion, strlen(congestion))) fail("TCP_CONGESTION");
}

int main(int count, char **arguments) {
    const char *op = count > 1 ? arguments[1] : "";
    way = text_flag(count, arguments, "--way", "epoll"), congestion = text_flag(count, arguments, "--congestion", "cubic");
    spins = flag(count, arguments, "--spin", 0), limit = flag(count, arguments, "--seconds", 1), piece = flag(count, arguments, "--piece", 256 << 10);
    if (strcmp(op, "pingpong") && strcmp(op, "stream")) {
        fprintf(stderr, "uring: expected pingpong or stream\n");
        return 2;
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int at = socket(AF_INET, SOCK_STREAM, 0);
    options(at);
    if (bind(at, (void *)&address, length) || listen(at, 1)) fail("listen");
    getsockname(at, (void *)&address, &length);
    pid_t child = fork();
    pin(child == 0);
    if (child == 0) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        options(fd);
        if (connect(fd, (void *)&address, length)) fail("connect");
        if (op[0] == 'p') return pingpong(fd, 0), 0;
        char *source = memory(1 << 20);
        while (send(fd, source, 1 << 20, MSG_NOSIGNAL) > 0) {}
        return 0;
    }
    int fd = accept(at, NULL, NULL);
    options(fd);
    if (op[0] == 'p') pingpong(fd, 1);
    else stream(fd);
    return 0;
}

#else

int main(void) {
    fprintf(stderr, "uring: it was compiled with headers that are older than Linux 6.1\n");
    return 3;
}

#endif
