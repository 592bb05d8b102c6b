/* A worker: a process that does nothing but this loop. */
#include "internal.h"

#include <linux/close_range.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <time.h>

#define EVENTS 256
#define AT_REST_MS 1000

static uint64_t monotonic_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void hear(struct worker *worker, int fd, uint64_t data) {
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = data};
    epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

/* Takes no more connections; those that are there go on. */
static void drain(struct worker *worker) {
    const struct relay_settings *settings = worker->settings;
    for (uint32_t i = 0; !worker->draining && i < settings->listener_count; i++) {
        epoll_ctl(worker->epoll_fd, EPOLL_CTL_DEL, settings->listeners[i].fd, NULL);
        close(settings->listeners[i].fd);
    }
    worker->draining = true;
}

static void read_signals(struct worker *worker) {
    struct signalfd_siginfo signal;
    while (read(worker->signal_fd, &signal, sizeof signal) == sizeof signal) {
        drain(worker);
        worker->ending |= signal.ssi_signo == SIGQUIT;
    }
}

static void read_resolved(struct worker *worker) {
    struct relay_address found[ADDRESSES_TRIED];
    struct connection *connection;
    uint8_t count;
    while ((connection = resolver_take(worker->resolver, found, &count)))
        upstream_resolved(worker, connection, found, count);
}

static void dispatch(struct worker *worker, const struct epoll_event *event) {
    uint64_t data = event->data.u64;
    void *pointer = (void *)(uintptr_t)(data & ~3ull);
    switch (data & 3) {
    case TAG_CLIENT: connection_event(worker, pointer, CLIENT, event->events); break;
    case TAG_UPSTREAM: connection_event(worker, pointer, UPSTREAM, event->events); break;
    case TAG_LISTENER:
        if (!worker->draining)
            connection_accept(worker, &worker->settings->listeners[data >> 2]);
        break;
    default:
        if ((int)(data >> 2) == worker->signal_fd)
            read_signals(worker);
        else
            read_resolved(worker);
    }
}

/* Goes on with those that had to let others have their turn. */
static void run_ready(struct worker *worker) {
    struct connection *connection = worker->ready_first, *next;
    worker->ready_first = worker->ready_last = NULL;
    for (; connection; connection = next) {
        next = connection->next;
        connection->is_ready = false;
        if (connection->state == CLOSED) {
            connection->next = worker->closed;
            worker->closed = connection;
        } else if (connection->state == RELAYING)
            pump(worker, connection);
        else if (connection->state == SEARCHING)
            upstream_search(worker, connection);
    }
}

/* Events of this turn may still name a connection that was closed in it. */
static void free_closed(struct worker *worker) {
    struct connection *connection = worker->closed, *next;
    worker->closed = NULL;
    for (; connection; connection = next) {
        next = connection->next;
        free(connection);
    }
}

static void run(struct worker *worker) {
    struct epoll_event events[EVENTS];
    uint64_t swept_ms = 0;
    while (!worker->ending && !(worker->draining && !worker->active)) {
        int timeout = worker->ready_first ? 0 : worker->active ? TICK_MS : AT_REST_MS;
        int count = epoll_wait(worker->epoll_fd, events, EVENTS, timeout);
        worker->now_ms = monotonic_ms();
        for (int i = 0; i < count; i++)
            dispatch(worker, &events[i]);
        run_ready(worker);
        timers_run(worker);
        free_closed(worker);
        if (worker->now_ms - swept_ms >= AT_REST_MS) {
            swept_ms = worker->now_ms;
            for (uint32_t i = 0; i < worker->settings->proxy_count; i++)
                ports_sweep(worker->pools[i], worker->now_ms);
        }
    }
}

/* Every connection has a timer. */
static void end_all(struct worker *worker) {
    for (uint32_t slot = 0; slot < WHEEL_SLOTS; slot++)
        while (worker->wheel[slot])
            connection_close(worker, worker->wheel[slot], RELAY_ENDED, 0);
}

static bool set_up(struct worker *worker, const struct relay_settings *settings, const sigset_t *signals) {
    worker->settings = settings;
    worker->counters = settings->counters + settings->worker * settings->proxy_count;
    worker->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    worker->signal_fd = signalfd(-1, signals, SFD_NONBLOCK | SFD_CLOEXEC);
    worker->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    worker->resolver = resolver_open();
    worker->pools = ports_open(settings);
    worker->now_ms = monotonic_ms();
    worker->tick = worker->now_ms / TICK_MS;
    if (worker->epoll_fd < 0 || worker->signal_fd < 0 || !worker->resolver || !worker->pools)
        return false;
    hear(worker, worker->signal_fd, (uint64_t)worker->signal_fd << 2 | TAG_OTHER);
    hear(worker, resolver_fd(worker->resolver), (uint64_t)resolver_fd(worker->resolver) << 2 | TAG_OTHER);
    for (uint64_t i = 0; i < settings->listener_count; i++)
        hear(worker, settings->listeners[i].fd, i << 2 | TAG_LISTENER);
    return true;
}

static bool is_needed(const struct relay_settings *settings, unsigned fd) {
    bool needed = fd == (unsigned)settings->events_fd;
    for (uint32_t i = 0; !needed && i < settings->listener_count; i++)
        needed = fd == (unsigned)settings->listeners[i].fd;
    return needed;
}

/* Lets go of what the parent has open, other workers' listeners above all: a port is free when its own are closed. */
static void close_others(const struct relay_settings *settings) {
    unsigned last = (unsigned)settings->events_fd;
    for (uint32_t i = 0; i < settings->listener_count; i++)
        if ((unsigned)settings->listeners[i].fd > last)
            last = (unsigned)settings->listeners[i].fd;
    for (unsigned fd = 3; fd < last; fd++)
        if (!is_needed(settings, fd))
            close((int)fd);
    close_range(last + 1, ~0u, 0);
}

static void worker_main(const struct relay_settings *settings, pid_t parent) {
    sigset_t signals;
    sigfillset(&signals);
    sigprocmask(SIG_BLOCK, &signals, NULL); /* SIGPIPE and SIGINT too: the parent hears the keyboard */
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGQUIT);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_NAME, "natctl-relay");
    close_others(settings);
    struct worker *worker = calloc(1, sizeof *worker);
    if (getppid() != parent || !worker || !set_up(worker, settings, &signals))
        _exit(1);
    run(worker);
    end_all(worker);
    _exit(0);
}

int relay_spawn(const struct relay_settings *settings) {
    pid_t parent = getpid(), pid = fork();
    if (pid == 0)
        worker_main(settings, parent);
    return pid < 0 ? -errno : pid;
}
