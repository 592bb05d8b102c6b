/* The parts of a worker: one process, one loop, no locks but those of name resolution. */
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "relay.h"

enum { CLIENT, UPSTREAM };
enum state { GREETING, RESOLVING, SEARCHING, CONNECTING, RELAYING, PARTING, CLOSED };

#define TICK_MS 100
#define WHEEL_SLOTS 1024
#define COPY_SIZE (32 << 10)
#define HANDSHAKE_SIZE (8 << 10)
#define ADDRESSES_TRIED 8
#define PARTING_MS 2000

/* What epoll hands back, told apart by the two lowest bits of its pointer. */
enum tag { TAG_CLIENT, TAG_UPSTREAM, TAG_LISTENER, TAG_OTHER };

struct end {
    int fd;
    bool readable, writable, closing; /* as far as epoll told; closing: a FIN has come */
};

/* One direction: what came from the end of the same number and has to go to the other. */
struct way {
    int pipe[2]; /* -1: none; only while something is on its way through it */
    uint32_t held;
    uint32_t kept_from, kept_to;
    char *kept; /* copied bytes that the other end would not take yet; they go before what the pipe holds */
    bool splicing, eof, shut;
    uint64_t bytes;
};

struct handshake {
    struct relay_answer answer;
    uint32_t length;
    uint8_t data[HANDSHAKE_SIZE];
};

struct connection {
    struct end ends[2];
    struct way ways[2];
    uint8_t state;
    bool is_ready;
    uint16_t refused; /* sources that were refused, where NAT may have been the one who did */
    uint32_t proxy;
    struct relay_address client, local, destination, source;
    struct destination *taken; /* the port table's entry, while a source is held */
    uint32_t taken_index;
    struct handshake *handshake;
    struct job *job;
    uint8_t address_count, address_next;
    uint64_t started_ms, last_ms, deadline_ms;
    struct connection *timer_previous, *timer_next;
    struct connection *next; /* in the list of those ready, or of those closed */
    uint16_t timer_slot;
    struct relay_address *addresses;
};

struct pipes {
    int free[64][2];
    uint32_t free_count;
    uint64_t open;
};

struct told {
    uint64_t second;
    uint32_t count;
};

struct worker {
    const struct relay_settings *settings;
    struct relay_counters *counters; /* this worker's, by proxy */
    struct port_pool **pools;        /* by proxy */
    struct resolver *resolver;
    int epoll_fd, signal_fd, spare_fd;
    bool draining, ending;
    uint32_t active;
    uint64_t now_ms, tick;
    struct connection *wheel[WHEEL_SLOTS];
    struct connection *ready_first, *ready_last, *closed;
    struct pipes pipes;
    struct told told[RELAY_OUTCOMES];
    char buffer[COPY_SIZE];
};

static inline const struct relay_proxy *proxy_of(const struct worker *worker, const struct connection *connection) {
    return &worker->settings->proxies[connection->proxy];
}

/* address.c */
socklen_t address_to_kernel(const struct relay_address *address, struct sockaddr_storage *storage);
void address_from_kernel(struct relay_address *address, const struct sockaddr_storage *storage);
bool address_parse(struct relay_address *address, const char *host, uint16_t port);
bool address_equal(const struct relay_address *left, const struct relay_address *right);
bool address_is_forbidden(const struct relay_address *address);

/* ports.c: which source each destination's next connection leaves from */
struct port_pool **ports_open(const struct relay_settings *settings);
struct destination *ports_find(struct port_pool *pool, const struct relay_address *destination, uint64_t now_ms);
int64_t ports_take(struct destination *destination, uint64_t now_ms);
void ports_give_back(struct destination *destination, uint32_t index, bool busy, uint64_t now_ms);
void ports_source(const struct port_pool *pool, struct destination *destination, uint32_t index,
                  struct relay_address *source);
bool ports_has_family(const struct port_pool *pool, uint8_t family);
uint32_t ports_count(const struct port_pool *pool, uint8_t family);
void ports_sweep(struct port_pool *pool, uint64_t now_ms);

/* resolve.c: getaddrinfo(3) in threads of its own */
struct resolver *resolver_open(void);
int resolver_fd(const struct resolver *resolver);
struct job *resolver_ask(struct resolver *resolver, struct connection *connection, const char *host, uint16_t port);
void resolver_forget(struct job *job);
struct connection *resolver_take(struct resolver *resolver, struct relay_address *addresses, uint8_t *count);

/* timers.c */
void timer_set(struct worker *worker, struct connection *connection, uint64_t deadline_ms);
void timer_clear(struct worker *worker, struct connection *connection);
void timers_run(struct worker *worker);

/* pipes.c */
bool pipe_take(struct worker *worker, struct way *way);
void pipe_give_back(struct worker *worker, struct way *way);

/* pump.c */
void pump(struct worker *worker, struct connection *connection);
bool deliver(struct worker *worker, struct connection *connection, int from, const char *data, uint32_t length);
void make_ready(struct worker *worker, struct connection *connection);

/* upstream.c */
void upstream_begin(struct worker *worker, struct connection *connection, const char *host, uint16_t port);
void upstream_resolved(struct worker *worker, struct connection *connection, const struct relay_address *found,
                       uint8_t count);
void upstream_search(struct worker *worker, struct connection *connection);
void upstream_event(struct worker *worker, struct connection *connection, uint32_t events);
void upstream_timed_out(struct worker *worker, struct connection *connection);

/* handshake.c */
void handshake_begin(struct worker *worker, struct connection *connection);
void handshake_read(struct worker *worker, struct connection *connection);
void handshake_done(struct worker *worker, struct connection *connection);

/* connection.c */
void connection_accept(struct worker *worker, const struct relay_listener *listener);
void connection_event(struct worker *worker, struct connection *connection, int side, uint32_t events);
void connection_expired(struct worker *worker, struct connection *connection);
void connection_fail(struct worker *worker, struct connection *connection, uint32_t outcome, int error);
void connection_close(struct worker *worker, struct connection *connection, uint32_t outcome, int error);
bool watch(struct worker *worker, struct connection *connection, int side);

/* events.c */
void tell(struct worker *worker, const struct connection *connection, uint32_t outcome, int error);
