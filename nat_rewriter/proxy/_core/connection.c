/* The life of a connection, from accept(2) to the last close(2). */
#include "internal.h"

#include <linux/netfilter_ipv4.h>
#include <linux/netfilter_ipv6/ip6_tables.h>
#include <netinet/tcp.h>

#define ACCEPTS_A_TURN 64
#define MOST_PARTING 256 /* clients above the limit that are told so; more get a reset at once */

bool watch(struct worker *worker, struct connection *connection, int side) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET};
    event.data.u64 = (uintptr_t)connection | (side == CLIENT ? TAG_CLIENT : TAG_UPSTREAM);
    return epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, connection->ends[side].fd, &event) == 0;
}

static bool own_address(int fd, struct relay_address *address) {
    struct sockaddr_storage storage;
    socklen_t length = sizeof storage;
    if (getsockname(fd, (struct sockaddr *)&storage, &length) != 0)
        return false;
    address_from_kernel(address, &storage);
    return true;
}

/* Where a redirected connection was going before NAT: conntrack still knows. */
static bool original_destination(int fd, uint8_t family, struct relay_address *address) {
    struct sockaddr_storage storage = {0};
    socklen_t length = sizeof storage;
    int level = family == 6 ? SOL_IPV6 : SOL_IP, option = family == 6 ? IP6T_SO_ORIGINAL_DST : SO_ORIGINAL_DST;
    if (getsockopt(fd, level, option, &storage, &length) != 0)
        return false;
    address_from_kernel(address, &storage);
    return true;
}

/* Whether a connection comes from a source that this proxy itself uses: it has been led back to where it came from. */
static bool is_own_source(const struct relay_proxy *proxy, const struct relay_address *client) {
    for (uint32_t i = 0; i < proxy->range_count; i++) {
        const struct relay_range *range = &proxy->ranges[i];
        if (range->first.family == client->family && client->port >= range->first.port &&
            (uint32_t)(client->port - range->first.port) < range->count && !memcmp(range->first.bytes, client->bytes, 16))
            return true;
    }
    return false;
}

static void begin_intercepted(struct worker *worker, struct connection *connection) {
    struct relay_address destination = connection->local;
    bool redirected = proxy_of(worker, connection)->mode == RELAY_REDIRECT;
    if (redirected && (!original_destination(connection->ends[CLIENT].fd, connection->local.family, &destination) ||
                       address_equal(&destination, &connection->local)))
        connection_fail(worker, connection, RELAY_LOOP, 0); /* came to the port itself, without the rule */
    else
        upstream_resolved(worker, connection, &destination, 1);
}

static void begin(struct worker *worker, struct connection *connection) {
    const struct relay_proxy *proxy = proxy_of(worker, connection);
    bool needs_local = proxy->mode == RELAY_REDIRECT || proxy->mode == RELAY_TPROXY || proxy->proxy_protocol;
    if (needs_local && !own_address(connection->ends[CLIENT].fd, &connection->local))
        connection_close(worker, connection, RELAY_CLIENT_LEFT, errno);
    else if (is_own_source(proxy, &connection->client))
        connection_fail(worker, connection, RELAY_LOOP, 0);
    else if (proxy->mode == RELAY_SOCKS || proxy->mode == RELAY_CONNECT)
        handshake_begin(worker, connection);
    else if (proxy->mode == RELAY_LISTEN) {
        timer_set(worker, connection, worker->now_ms + proxy->connect_ms);
        upstream_begin(worker, connection, proxy->to_host, proxy->to_port);
    } else
        begin_intercepted(worker, connection);
}

/* How many connections there are above the limit, in all workers. */
static int64_t above_limit(const struct worker *worker, uint32_t proxy) {
    const struct relay_settings *settings = worker->settings;
    uint64_t active = 0;
    for (uint32_t i = 0; i < settings->workers; i++)
        active += __atomic_load_n(&settings->counters[i * settings->proxy_count + proxy].active, __ATOMIC_RELAXED);
    return (int64_t)active - settings->proxies[proxy].max_connections;
}

static struct connection *connection_new(struct worker *worker, int fd, uint32_t proxy) {
    struct connection *connection = calloc(1, sizeof *connection);
    if (!connection)
        return NULL;
    connection->ends[CLIENT] = (struct end){.fd = fd, .writable = true};
    connection->ends[UPSTREAM].fd = -1;
    for (int side = CLIENT; side <= UPSTREAM; side++)
        connection->ways[side].pipe[0] = connection->ways[side].pipe[1] = -1;
    connection->proxy = proxy;
    connection->timer_slot = WHEEL_SLOTS;
    connection->started_ms = connection->last_ms = worker->now_ms;
    connection->deadline_ms = worker->now_ms;
    worker->active++;
    worker->counters[proxy].active++;
    worker->counters[proxy].accepted++;
    return connection;
}

static bool accept_one(struct worker *worker, const struct relay_listener *listener) {
    struct sockaddr_storage storage;
    socklen_t length = sizeof storage;
    int fd = accept4(listener->fd, (struct sockaddr *)&storage, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0 && (errno == EMFILE || errno == ENFILE) && worker->spare_fd >= 0) {
        /* No descriptor left: one is kept back to take the client, and to tell it by a reset. */
        close(worker->spare_fd);
        close(accept(listener->fd, NULL, NULL));
        worker->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        tell(worker, &(struct connection){.proxy = listener->proxy}, RELAY_NO_DESCRIPTORS, EMFILE);
        return false;
    }
    if (fd < 0)
        return errno == ECONNABORTED || errno == EINTR;
    struct connection *connection = connection_new(worker, fd, listener->proxy);
    if (!connection) {
        close(fd);
        return false;
    }
    address_from_kernel(&connection->client, &storage);
    int64_t above = above_limit(worker, listener->proxy);
    if (above > MOST_PARTING)
        connection_close(worker, connection, RELAY_LIMIT, 0);
    else if (!watch(worker, connection, CLIENT))
        connection_close(worker, connection, RELAY_NO_DESCRIPTORS, errno);
    else if (above > 0)
        connection_fail(worker, connection, RELAY_LIMIT, 0);
    else
        begin(worker, connection);
    return true;
}

void connection_accept(struct worker *worker, const struct relay_listener *listener) {
    for (int i = 0; i < ACCEPTS_A_TURN && accept_one(worker, listener); i++)
        ;
}

/* After an answer to a client that gets no connection: waits until it has read it, for a close with bytes unread is a
 * reset, which would overtake the answer. */
static void part(struct worker *worker, struct connection *connection) {
    struct end *client = &connection->ends[CLIENT];
    while (client->readable) {
        ssize_t got = recv(client->fd, worker->buffer, COPY_SIZE, 0);
        if (got == 0 || (got < 0 && errno != EAGAIN)) {
            connection_close(worker, connection, RELAY_FAILED, 0);
            return;
        }
        if (got < 0)
            client->readable = false;
    }
}

void connection_event(struct worker *worker, struct connection *connection, int side, uint32_t events) {
    struct end *end = &connection->ends[side];
    end->readable |= (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
    end->closing |= (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
    end->writable |= (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0;
    connection->last_ms = worker->now_ms;
    if (connection->state == CLOSED)
        return;
    if (connection->state == RELAYING) {
        pump(worker, connection);
        if (events & EPOLLERR && connection->state == RELAYING) /* what could be passed on has been */
            connection_close(worker, connection, RELAY_RESET, ECONNRESET);
    } else if (side == UPSTREAM) {
        if (connection->state == CONNECTING)
            upstream_event(worker, connection, events);
    } else if (connection->state == PARTING)
        part(worker, connection);
    else if (events & (EPOLLERR | EPOLLHUP))
        connection_close(worker, connection, RELAY_CLIENT_LEFT, ECONNRESET);
    else if (connection->state == GREETING && end->readable)
        handshake_read(worker, connection);
}

void connection_expired(struct worker *worker, struct connection *connection) {
    switch (connection->state) {
    case GREETING: connection_fail(worker, connection, RELAY_SLOW_REQUEST, 0); break;
    case RESOLVING: connection_fail(worker, connection, RELAY_UNRESOLVED, ETIMEDOUT); break;
    case SEARCHING: case CONNECTING: upstream_timed_out(worker, connection); break;
    case RELAYING: connection_close(worker, connection, RELAY_IDLE, 0); break;
    default: connection_close(worker, connection, RELAY_FAILED, 0);
    }
}

static void release(struct worker *worker, struct connection *connection) {
    for (int side = CLIENT; side <= UPSTREAM; side++) {
        pipe_give_back(worker, &connection->ways[side]);
        free(connection->ways[side].kept);
        connection->ways[side].kept = NULL;
    }
    if (connection->taken)
        ports_give_back(connection->taken, connection->taken_index, false, worker->now_ms);
    connection->taken = NULL;
    if (connection->job)
        resolver_forget(connection->job);
    connection->job = NULL;
    free(connection->addresses);
    connection->addresses = NULL;
    free(connection->handshake);
    connection->handshake = NULL;
}

static void close_end(struct end *end, bool reset) {
    static const struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    if (end->fd < 0)
        return;
    if (reset)
        setsockopt(end->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(end->fd);
    end->fd = -1;
}

/* Ends a connection. What did not end well ends with a reset at both ends: a cut stream must not look whole. */
void connection_close(struct worker *worker, struct connection *connection, uint32_t outcome, int error) {
    if (connection->state == CLOSED)
        return;
    bool parting = connection->state == PARTING;
    if (!parting)
        tell(worker, connection, outcome, error);
    connection->state = CLOSED;
    timer_clear(worker, connection);
    close_end(&connection->ends[CLIENT], outcome != RELAY_FINISHED && !parting);
    close_end(&connection->ends[UPSTREAM], outcome != RELAY_FINISHED);
    release(worker, connection);
    worker->active--;
    worker->counters[connection->proxy].active--;
    if (!connection->is_ready) { /* else the loop comes to it, and lets it go then */
        connection->next = worker->closed;
        worker->closed = connection;
    }
}

static uint32_t last_words(const struct worker *worker, const struct connection *connection, uint32_t outcome,
                           char *reply) {
    const struct relay_answer *said = connection->handshake ? &connection->handshake->answer : NULL;
    uint8_t mode = proxy_of(worker, connection)->mode;
    if (said && connection->state == GREETING && said->reply_length) { /* the parser knows the words */
        memcpy(reply, said->reply, said->reply_length);
        return said->reply_length;
    }
    if (mode == RELAY_SOCKS && connection->state != GREETING)
        return relay_socks_reply(reply, outcome, NULL);
    return mode == RELAY_CONNECT ? relay_connect_reply(reply, outcome) : 0;
}

/* Ends a connection that never came to be: the client is told why where its protocol has words for it. */
void connection_fail(struct worker *worker, struct connection *connection, uint32_t outcome, int error) {
    char reply[256];
    uint32_t length = last_words(worker, connection, outcome, reply);
    if (!length || !deliver(worker, connection, UPSTREAM, reply, length) || connection->ways[UPSTREAM].kept) {
        connection_close(worker, connection, outcome, error);
        return;
    }
    tell(worker, connection, outcome, error);
    connection->state = PARTING;
    close_end(&connection->ends[UPSTREAM], true);
    release(worker, connection);
    shutdown(connection->ends[CLIENT].fd, SHUT_WR);
    timer_set(worker, connection, worker->now_ms + PARTING_MS);
    part(worker, connection);
}
