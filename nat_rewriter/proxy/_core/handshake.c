/* What is said before bytes are relayed: SOCKS and CONNECT with the client, the PROXY header to the other side. */
#include "internal.h"

typedef int step_function(struct relay_answer *, const uint8_t *, uint32_t, const char *, const char *);

void handshake_begin(struct worker *worker, struct connection *connection) {
    connection->state = GREETING;
    timer_set(worker, connection, worker->now_ms + proxy_of(worker, connection)->connect_ms);
}

static void forget(struct handshake *handshake, uint32_t used) {
    handshake->length -= used;
    memmove(handshake->data, handshake->data + used, handshake->length);
}

static bool answer(struct worker *worker, struct connection *connection) {
    struct relay_answer *said = &connection->handshake->answer;
    return !said->reply_length || deliver(worker, connection, UPSTREAM, said->reply, said->reply_length);
}

/* Works through what has come; returns false when the connection is done with reading for now. */
static bool take_step(struct worker *worker, struct connection *connection) {
    struct handshake *handshake = connection->handshake;
    struct relay_answer *said = &handshake->answer;
    const struct relay_proxy *proxy = proxy_of(worker, connection);
    step_function *step = proxy->mode == RELAY_SOCKS ? relay_socks_step : relay_connect_step;
    int found = step(said, handshake->data, handshake->length, proxy->username, proxy->password);
    if (found == RELAY_MORE && handshake->length < HANDSHAKE_SIZE)
        return false;
    if (found == RELAY_MORE || found == RELAY_WRONG) {
        connection_fail(worker, connection, found == RELAY_WRONG ? said->outcome : RELAY_BAD_REQUEST, 0);
        return false;
    }
    if (!answer(worker, connection)) {
        connection_close(worker, connection, RELAY_CLIENT_LEFT, errno);
        return false;
    }
    forget(handshake, said->used);
    if (found == RELAY_READY)
        upstream_begin(worker, connection, said->host, said->port);
    return found == RELAY_NEXT && handshake->length > 0;
}

void handshake_read(struct worker *worker, struct connection *connection) {
    if (!connection->handshake && !(connection->handshake = calloc(1, sizeof *connection->handshake))) {
        connection_close(worker, connection, RELAY_NO_DESCRIPTORS, ENOMEM);
        return;
    }
    while (connection->state == GREETING && connection->ends[CLIENT].readable) {
        struct handshake *handshake = connection->handshake;
        ssize_t got = recv(connection->ends[CLIENT].fd, handshake->data + handshake->length,
                           HANDSHAKE_SIZE - handshake->length, 0);
        if (got < 0 && errno == EAGAIN) {
            connection->ends[CLIENT].readable = false;
            return;
        }
        if (got <= 0) {
            connection_close(worker, connection, RELAY_CLIENT_LEFT, got < 0 ? errno : 0);
            return;
        }
        handshake->length += (uint32_t)got;
        while (connection->state == GREETING && take_step(worker, connection))
            ;
    }
}

static bool greet_upstream(struct worker *worker, struct connection *connection) {
    const struct relay_proxy *proxy = proxy_of(worker, connection);
    char header[128];
    bool intercepted = proxy->mode == RELAY_REDIRECT || proxy->mode == RELAY_TPROXY;
    const struct relay_address *wanted = intercepted ? &connection->destination : &connection->local;
    uint32_t length = relay_proxy_header(header, proxy->proxy_protocol, &connection->client, wanted);
    return !length || deliver(worker, connection, CLIENT, header, length);
}

static bool greet_client(struct worker *worker, struct connection *connection) {
    uint8_t mode = proxy_of(worker, connection)->mode;
    char reply[128];
    uint32_t length = 0;
    if (mode == RELAY_SOCKS)
        length = relay_socks_reply(reply, RELAY_FINISHED, &connection->source);
    if (mode == RELAY_CONNECT)
        length = relay_connect_reply(reply, RELAY_FINISHED);
    return !length || deliver(worker, connection, UPSTREAM, reply, length);
}

/* What a client sent behind its request, without waiting. */
static bool pass_early_data(struct worker *worker, struct connection *connection) {
    struct handshake *handshake = connection->handshake;
    uint32_t length = handshake ? handshake->length : 0;
    connection->ways[CLIENT].bytes += length;
    worker->counters[connection->proxy].bytes_up += length;
    return !length || deliver(worker, connection, CLIENT, (char *)handshake->data, length);
}

/* The upstream is connected: says so, and lets bytes flow. */
void handshake_done(struct worker *worker, struct connection *connection) {
    connection->ends[UPSTREAM].writable = true;
    connection->state = RELAYING;
    connection->last_ms = worker->now_ms;
    free(connection->addresses);
    connection->addresses = NULL;
    timer_set(worker, connection, worker->now_ms + proxy_of(worker, connection)->idle_ms);
    bool said = greet_upstream(worker, connection) && pass_early_data(worker, connection);
    said = said && greet_client(worker, connection);
    int error = errno;
    free(connection->handshake);
    connection->handshake = NULL;
    if (said)
        pump(worker, connection);
    else
        connection_close(worker, connection, RELAY_RESET, error);
}
