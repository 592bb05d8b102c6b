/* The two ends of what is measured: a server, and clients that go through a proxy to it.
 *
 *   load server PORT                                       prints "ready"
 *   load flow ADDRESS PORT CONNECTIONS SECONDS             data from the server; prints bytes and nanoseconds
 *   load rate ADDRESS PORT CONNECTIONS SECONDS             short connections; prints done, failed, nanoseconds, and
 *                                                          the median and the 99th percentile of one, in microseconds
 *   load hold ADDRESS PORT CONNECTIONS                     prints how many there are, and keeps them until its input ends
 *
 * A client's first byte says what it wants: D data without end, R one answer and a close, H nothing. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PIECE (256 << 10)
#define EVENTS 256
#define MOST 65536
#define LONGEST_US 1000000

static char buffer[PIECE];
static char wish[MOST]; /* by descriptor */
static unsigned long long begun[MOST];
static unsigned took[LONGEST_US + 1]; /* connections by microseconds, what is longer at the end */
static int loop;

static unsigned long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static void hear(int fd, unsigned events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event);
}

static void serve_one(int fd) {
    if (!wish[fd]) {
        char asked;
        ssize_t got = recv(fd, &asked, 1, 0);
        if (got < 0 && errno == EAGAIN)
            return;
        if (got <= 0) {
            close(fd);
            return;
        }
        wish[fd] = asked;
        if (asked == 'R') {
            if (send(fd, buffer, 100, MSG_NOSIGNAL) < 0)
                perror("send");
            close(fd);
        }
    }
    while (wish[fd] == 'D') {
        ssize_t sent = send(fd, buffer, PIECE, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN)
            return;
        if (sent < 0) {
            close(fd);
            return;
        }
    }
    if (wish[fd] == 'H' && recv(fd, buffer, 1, MSG_DONTWAIT) == 0)
        close(fd);
}

static int serve(int port) {
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    int listener = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1, off = 0;
    setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&any, sizeof any) || listen(listener, 65535)) {
        perror("listen");
        return 1;
    }
    hear(listener, EPOLLIN);
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(loop, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd != listener) {
                serve_one(fd);
                continue;
            }
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                wish[fd] = 0;
                hear(fd, EPOLLIN | EPOLLOUT | EPOLLET);
            }
        }
    }
}

static struct sockaddr_in target;

/* From one of many addresses, so that there are ports enough. */
static int begin(unsigned number) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    struct sockaddr_in from = {.sin_family = AF_INET};
    from.sin_addr.s_addr = htonl(0x7f010000 + number % 200 + 1);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&from, sizeof from) ||
        (connect(fd, (struct sockaddr *)&target, sizeof target) && errno != EINPROGRESS)) {
        perror("connect");
        exit(1);
    }
    wish[fd] = 0;
    begun[fd] = now_ns();
    hear(fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
    return fd;
}

static void ask(int fd, char what) {
    if (!wish[fd] && send(fd, &what, 1, MSG_NOSIGNAL) == 1)
        wish[fd] = what;
}

static int flow(int connections, double seconds) {
    unsigned long long bytes = 0, start = now_ns() + 500000000, end = start + (unsigned long long)(seconds * 1e9), now;
    for (int i = 0; i < connections; i++)
        begin(i);
    while ((now = now_ns()) < end) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(loop, events, EVENTS, 100);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            ssize_t got;
            if (events[i].events & EPOLLOUT)
                ask(fd, 'D');
            while ((got = recv(fd, NULL, 4 << 20, MSG_TRUNC)) > 0) /* looks at no byte: the end should cost little */
                bytes += now >= start ? got : 0;
            if (got == 0 || errno != EAGAIN) {
                fprintf(stderr, "a connection ended\n");
                return 1;
            }
        }
    }
    printf("%llu %llu\n", bytes, now - start);
    return 0;
}

static void count_time(int fd) {
    unsigned long long us = (now_ns() - begun[fd]) / 1000;
    took[us < LONGEST_US ? us : LONGEST_US]++;
}

static unsigned percentile(unsigned long long count, double share) {
    unsigned us = 0;
    for (unsigned long long seen = took[0]; seen < count * share && us < LONGEST_US; seen += took[us])
        us++;
    return us;
}

static int rate(int connections, double seconds) {
    unsigned long long done = 0, failed = 0, start = now_ns(), end = start + (unsigned long long)(seconds * 1e9), now;
    unsigned number = 0;
    while (number < (unsigned)connections)
        begin(number++);
    while ((now = now_ns()) < end) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(loop, events, EVENTS, 100);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (events[i].events & EPOLLOUT)
                ask(fd, 'R');
            if (!(events[i].events & (EPOLLRDHUP | EPOLLERR | EPOLLHUP)))
                continue;
            *(recv(fd, buffer, sizeof buffer, 0) == 100 ? &done : &failed) += 1;
            count_time(fd);
            close(fd);
            begin(number++);
        }
    }
    unsigned long long count = done + failed;
    printf("%llu %llu %llu %u %u\n", done, failed, now - start, percentile(count, 0.5), percentile(count, 0.99));
    return 0;
}

static int hold(int connections) {
    for (int i = 0; i < connections; i++) {
        int fd = begin(i);
        struct epoll_event event;
        if (epoll_wait(loop, &event, 1, 1000) == 1)
            ask(fd, 'H');
    }
    sleep(1);
    int there = 0;
    for (int fd = 0; fd < MOST; fd++)
        there += wish[fd] == 'H' && recv(fd, buffer, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN;
    printf("%d\n", there);
    fflush(stdout);
    return getchar() == EOF ? 0 : 1;
}

int main(int count, char **words) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max < MOST ? limit.rlim_max : MOST;
    setrlimit(RLIMIT_NOFILE, &limit);
    signal(SIGPIPE, SIG_IGN);
    loop = epoll_create1(0);
    if (count == 3 && !strcmp(words[1], "server"))
        return serve(atoi(words[2]));
    if (count < 5)
        return 2;
    target = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(words[3]))};
    inet_pton(AF_INET, words[2], &target.sin_addr);
    if (!strcmp(words[1], "flow"))
        return flow(atoi(words[4]), atof(words[5]));
    return !strcmp(words[1], "rate") ? rate(atoi(words[4]), atof(words[5])) : hold(atoi(words[4]));
}
