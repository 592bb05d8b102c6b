/* From the wish for a destination to a socket that is connected with it from a port of a slice. */
#include "internal.h"

#include <netinet/tcp.h>

enum attempt { UNDER_WAY, TAKEN, IMPOSSIBLE };

#define TRIES_A_TURN 512  /* sources tried before others have their turn */
#define MOST_REFUSALS 64  /* sources tried where NAT may have been the one who refused */

static uint32_t outcome_of(int error) {
    switch (error) {
    case ECONNREFUSED: return RELAY_REFUSED;
    case ENETUNREACH: case EHOSTUNREACH: case ENETDOWN: case EHOSTDOWN: case EAFNOSUPPORT: return RELAY_UNREACHABLE;
    case ETIMEDOUT: return RELAY_CONNECT_TIMEOUT;
    case EMFILE: case ENFILE: case ENOBUFS: case ENOMEM: return RELAY_NO_DESCRIPTORS;
    default: return RELAY_FAILED;
    }
}

static void drop_attempt(struct worker *worker, struct connection *connection, bool busy) {
    struct end *end = &connection->ends[UPSTREAM];
    if (end->fd >= 0)
        close(end->fd);
    *end = (struct end){.fd = -1};
    if (connection->taken) {
        ports_give_back(connection->taken, connection->taken_index, busy, worker->now_ms);
        connection->taken = NULL;
    }
}

static void next_address(struct worker *worker, struct connection *connection, uint32_t outcome, int error) {
    drop_attempt(worker, connection, false);
    if (connection->address_next >= connection->address_count) {
        connection_fail(worker, connection, outcome, error);
        return;
    }
    connection->destination = connection->addresses[connection->address_next++];
    connection->refused = 0;
    /* Each address has its share of the time that is left, so that one that hangs does not take all. */
    uint64_t end = connection->started_ms + proxy_of(worker, connection)->connect_ms;
    uint64_t left = end > worker->now_ms ? end - worker->now_ms : 1;
    uint32_t addresses = 1u + connection->address_count - connection->address_next;
    timer_set(worker, connection, worker->now_ms + left / addresses);
    connection->state = SEARCHING;
    upstream_search(worker, connection);
}

void upstream_begin(struct worker *worker, struct connection *connection, const char *host, uint16_t port) {
    struct relay_address address;
    connection->state = RESOLVING;
    if (address_parse(&address, host, port)) {
        upstream_resolved(worker, connection, &address, 1);
        return;
    }
    connection->job = resolver_ask(worker->resolver, connection, host, port);
    if (!connection->job)
        connection_fail(worker, connection, RELAY_UNRESOLVED, EAGAIN);
}

void upstream_resolved(struct worker *worker, struct connection *connection, const struct relay_address *found,
                       uint8_t count) {
    const struct relay_proxy *proxy = proxy_of(worker, connection);
    bool by_client = proxy->mode == RELAY_SOCKS || proxy->mode == RELAY_CONNECT, forbidden = false;
    connection->job = NULL;
    connection->addresses = calloc(count ? count : 1, sizeof *found);
    for (uint8_t i = 0; connection->addresses && i < count; i++) {
        forbidden |= by_client && address_is_forbidden(&found[i]);
        if (ports_has_family(worker->pools[connection->proxy], found[i].family))
            connection->addresses[connection->address_count++] = found[i];
    }
    if (count)
        connection->destination = found[0];
    if (forbidden)
        connection_fail(worker, connection, RELAY_FORBIDDEN, 0);
    else if (!count)
        connection_fail(worker, connection, RELAY_UNRESOLVED, 0);
    else
        next_address(worker, connection, RELAY_UNREACHABLE, EAFNOSUPPORT);
}

/* Tries one source; sets errno unless the connection is under way. */
static enum attempt attempt(struct worker *worker, struct connection *connection) {
    static const int on = 1;
    struct sockaddr_storage storage;
    struct end *end = &connection->ends[UPSTREAM];
    int family = connection->source.family == 6 ? AF_INET6 : AF_INET;
    end->fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (end->fd < 0)
        return IMPOSSIBLE;
    /* Shares the port with connections to other destinations; the kernel still refuses one tuple twice. */
    setsockopt(end->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(end->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (bind(end->fd, (struct sockaddr *)&storage, address_to_kernel(&connection->source, &storage)) != 0)
        return errno == EADDRINUSE ? TAKEN : IMPOSSIBLE;
    if (connect(end->fd, (struct sockaddr *)&storage, address_to_kernel(&connection->destination, &storage)) != 0 &&
        errno != EINPROGRESS)
        return errno == EADDRNOTAVAIL ? TAKEN : IMPOSSIBLE; /* the tuple is in use, or in TIME_WAIT */
    connection->state = CONNECTING;
    return watch(worker, connection, UPSTREAM) ? UNDER_WAY : IMPOSSIBLE;
}

/* Whether another source is worth a try: with coexist = "refuse" it may have been the rule that refused this one. */
static bool may_be_claimed(const struct worker *worker, struct connection *connection, int error) {
    uint32_t most = ports_count(worker->pools[connection->proxy], connection->destination.family);
    if (most > MOST_REFUSALS)
        most = MOST_REFUSALS;
    bool may_be = error == ECONNREFUSED && proxy_of(worker, connection)->retry_refused;
    return may_be && ++connection->refused < most;
}

/* Tries sources until one is under way, or until there is none, or for so long that others should have their turn. */
void upstream_search(struct worker *worker, struct connection *connection) {
    struct port_pool *pool = worker->pools[connection->proxy];
    struct destination *place = ports_find(pool, &connection->destination, worker->now_ms);
    for (int tries = 0; tries < TRIES_A_TURN; tries++) {
        int64_t index = place ? ports_take(place, worker->now_ms) : -1;
        if (index < 0) {
            memset(&connection->source, 0, sizeof connection->source);
            next_address(worker, connection, connection->refused ? RELAY_REFUSED : RELAY_EXHAUSTED, 0);
            return;
        }
        connection->taken = place;
        connection->taken_index = (uint32_t)index;
        ports_source(pool, place, (uint32_t)index, &connection->source);
        enum attempt how = attempt(worker, connection);
        if (how == UNDER_WAY)
            return;
        int error = errno;
        if (how == IMPOSSIBLE && !may_be_claimed(worker, connection, error)) {
            next_address(worker, connection, outcome_of(error), error);
            return;
        }
        worker->counters[connection->proxy].port_tries++;
        drop_attempt(worker, connection, how == TAKEN);
    }
    make_ready(worker, connection);
}

static void attempt_failed(struct worker *worker, struct connection *connection, int error) {
    if (!may_be_claimed(worker, connection, error)) {
        next_address(worker, connection, outcome_of(error), error);
        return;
    }
    worker->counters[connection->proxy].port_tries++;
    drop_attempt(worker, connection, false);
    connection->state = SEARCHING;
    upstream_search(worker, connection);
}

void upstream_timed_out(struct worker *worker, struct connection *connection) {
    next_address(worker, connection, RELAY_CONNECT_TIMEOUT, ETIMEDOUT);
}

void upstream_event(struct worker *worker, struct connection *connection, uint32_t events) {
    if (events & (EPOLLERR | EPOLLHUP)) {
        int error = 0;
        socklen_t length = sizeof error;
        getsockopt(connection->ends[UPSTREAM].fd, SOL_SOCKET, SO_ERROR, &error, &length);
        /* A peer that accepted and left at once is a connection, whose end the pump will find. */
        if (error || !(events & EPOLLOUT)) {
            attempt_failed(worker, connection, error ? error : ECONNABORTED);
            return;
        }
    }
    if (events & EPOLLOUT)
        handshake_done(worker, connection);
}
