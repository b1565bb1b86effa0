/* Has a program's TCP run under one congestion control, where the program can't be told and the host's may not be changed.
 *
 *   cc -O2 -shared -fPIC -o congestion.so congestion.c
 *   BENCH_CONGESTION=cubic LD_PRELOAD=$PWD/congestion.so PROGRAM
 *
 * Stands before the C library's socket(). Accepted sockets take over what their listener has. A program ends with 1 where the system
 * refuses: it would measure something else.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int socket(int domain, int type, int protocol) {
    int fd = syscall(SYS_socket, domain, type, protocol);
    const char *name = getenv("BENCH_CONGESTION");
    int streams = (type & ~(SOCK_NONBLOCK | SOCK_CLOEXEC)) == SOCK_STREAM && (protocol == 0 || protocol == IPPROTO_TCP);
    if (fd < 0 || !name || !streams || (domain != AF_INET && domain != AF_INET6)) return fd;
    if (setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, strlen(name))) {
        fprintf(stderr, "congestion control %s: %s\n", name, strerror(errno));
        _exit(1);
    }
    return fd;
}
