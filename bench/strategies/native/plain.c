/* What plain sockets cost without an interpreter: binds ports one after the other, connects, and keeps them open.
 *
 *   plain SOURCE FIRST-PORT DESTINATION PORT COUNT      binds each port
 *   plain SOURCE FIRST-PORT DESTINATION PORT COUNT LAST-PORT      has the kernel pick it (IP_LOCAL_PORT_RANGE)
 *
 * Prints seconds, seconds of processor time, and the nanoseconds of each, a line each. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#ifndef IP_LOCAL_PORT_RANGE
#define IP_LOCAL_PORT_RANGE 51
#endif

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static double used(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void connect_one(struct sockaddr_in *near, const struct sockaddr_in *far, unsigned range) {
    int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);

    if (fd < 0)
        fail("socket");
    if (range && setsockopt(fd, IPPROTO_IP, IP_LOCAL_PORT_RANGE, &range, sizeof range))
        fail("IP_LOCAL_PORT_RANGE");
    if (setsockopt(fd, range ? IPPROTO_IP : SOL_SOCKET, range ? IP_BIND_ADDRESS_NO_PORT : SO_REUSEADDR, &on, sizeof on))
        fail("setsockopt");
    if (bind(fd, (struct sockaddr *)near, sizeof *near))
        fail("bind");
    if (connect(fd, (const struct sockaddr *)far, sizeof *far))
        fail("connect");
}

int main(int argc, char **argv) {
    struct sockaddr_in near = {.sin_family = AF_INET}, far = {.sin_family = AF_INET};
    int count = argc > 5 ? atoi(argv[5]) : 0, first = argc > 2 ? atoi(argv[2]) : 0;
    unsigned range = argc > 6 ? (unsigned)atoi(argv[6]) << 16 | (unsigned)first : 0;
    double *each = calloc((size_t)count + 1, sizeof *each), began, cpu;

    if (count < 1 || !each || !inet_aton(argv[1], &near.sin_addr) || !inet_aton(argv[3], &far.sin_addr))
        return 2;
    far.sin_port = htons((unsigned short)atoi(argv[4]));
    began = now(), cpu = used();
    for (int i = 0; i < count; i++) {
        double before = now();

        near.sin_port = range ? 0 : htons((unsigned short)(first + i));
        connect_one(&near, &far, range);
        each[i] = now() - before;
    }
    printf("%.9f\n%.9f\n", now() - began, used() - cpu);
    for (int i = 0; i < count; i++)
        printf("%.0f\n", each[i] * 1e9);
    return 0;
}
