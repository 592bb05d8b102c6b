/* What comes from one end goes to the other. Small pieces are copied: two calls, no pipe. Where a read fills the buffer
 * something large is coming, and from then on pages go from socket to socket through a pipe, without a copy: splice(2).
 *
 * A way reads only while its other end takes bytes and nothing is held: what a slow reader leaves stays in the kernel's
 * buffers, up to the sender, who is told by TCP itself. */
#include "internal.h"

#define BUDGET (4u << 20) /* bytes of one way before others have their turn */
#define SPLICE_SIZE (1u << 20)
#define SMALL 8192u

enum { FAILED = -1, BLOCKED = 0, MOVED = 1 };

static int again(bool *flag) {
    if (errno != EAGAIN)
        return errno == EINTR ? MOVED : FAILED;
    *flag = false;
    return BLOCKED;
}

static int send_kept(struct way *way, struct end *to) {
    ssize_t sent = send(to->fd, way->kept + way->kept_from, way->kept_to - way->kept_from, MSG_NOSIGNAL);
    if (sent < 0)
        return again(&to->writable);
    way->kept_from += (uint32_t)sent;
    if (way->kept_from == way->kept_to) {
        free(way->kept);
        way->kept = NULL;
    }
    return MOVED;
}

/* Keeps what an end did not take, which it will say when it does. */
static bool keep(struct way *way, const char *data, uint32_t length) {
    uint32_t before = way->kept ? way->kept_to - way->kept_from : 0;
    char *kept = malloc(before + length);
    if (!kept)
        return false;
    if (before)
        memcpy(kept, way->kept + way->kept_from, before);
    memcpy(kept + before, data, length);
    free(way->kept);
    way->kept = kept;
    way->kept_from = 0;
    way->kept_to = before + length;
    return true;
}

/* Sends data that did not come from the other end, or came before there was another end. `from` names the way. */
bool deliver(struct worker *worker, struct connection *connection, int from, const char *data, uint32_t length) {
    (void)worker;
    struct way *way = &connection->ways[from];
    ssize_t sent = way->kept ? 0 : send(connection->ends[!from].fd, data, length, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN)
            return false;
        connection->ends[!from].writable = false;
        sent = 0;
    }
    return (uint32_t)sent == length || keep(way, data + sent, length - (uint32_t)sent);
}

static int copy(struct worker *worker, struct way *way, struct end *from, struct end *to) {
    ssize_t got = recv(from->fd, worker->buffer, COPY_SIZE, 0);
    if (got < 0)
        return again(&from->readable);
    if (got == 0) {
        way->eof = true;
        return MOVED;
    }
    way->bytes += (uint64_t)got;
    way->splicing = got == COPY_SIZE;
    if (got < COPY_SIZE && !from->closing)
        from->readable = false; /* all there was: what comes later is an event of its own, epoll(7) */
    ssize_t sent = send(to->fd, worker->buffer, (size_t)got, MSG_NOSIGNAL);
    if (sent < 0) {
        if (again(&to->writable) == FAILED)
            return FAILED;
        sent = 0;
    }
    if (sent < got && !keep(way, worker->buffer + sent, (uint32_t)(got - sent)))
        return FAILED;
    return MOVED;
}

static int splice_in(struct way *way, struct end *from) {
    ssize_t got = splice(from->fd, NULL, way->pipe[1], NULL, SPLICE_SIZE, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (got < 0)
        return again(&from->readable);
    if (got == 0)
        way->eof = true;
    way->held = (uint32_t)got;
    way->bytes += (uint64_t)got;
    way->splicing = got >= SMALL;
    return MOVED;
}

static int splice_out(struct way *way, struct end *to) {
    ssize_t sent = splice(way->pipe[0], NULL, to->fd, NULL, way->held, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (sent < 0)
        return again(&to->writable);
    way->held -= (uint32_t)sent;
    return MOVED;
}

static int finish_way(struct connection *connection, int number) {
    struct way *way = &connection->ways[number];
    if (!way->shut) {
        way->shut = true;
        if (!connection->ways[!number].eof) /* else closing says it */
            shutdown(connection->ends[!number].fd, SHUT_WR);
    }
    return BLOCKED;
}

static int step(struct worker *worker, struct connection *connection, int number) {
    struct way *way = &connection->ways[number];
    struct end *from = &connection->ends[number], *to = &connection->ends[!number];
    if (way->kept)
        return to->writable ? send_kept(way, to) : BLOCKED;
    if (way->held)
        return to->writable ? splice_out(way, to) : BLOCKED;
    if (way->eof)
        return finish_way(connection, number);
    if (!from->readable || !to->writable)
        return BLOCKED;
    return way->splicing && pipe_take(worker, way) ? splice_in(way, from) : copy(worker, way, from, to);
}

void make_ready(struct worker *worker, struct connection *connection) {
    if (connection->is_ready)
        return;
    connection->is_ready = true;
    connection->next = NULL;
    if (worker->ready_first)
        worker->ready_last->next = connection;
    else
        worker->ready_first = connection;
    worker->ready_last = connection;
}

/* Returns whether the way may go on. */
static bool run_way(struct worker *worker, struct connection *connection, int number) {
    struct way *way = &connection->ways[number];
    uint64_t before = way->bytes;
    int did = MOVED;
    while (did == MOVED && way->bytes - before < BUDGET)
        did = step(worker, connection, number);
    struct relay_counters *counters = &worker->counters[connection->proxy];
    *(number == CLIENT ? &counters->bytes_up : &counters->bytes_down) += way->bytes - before;
    if (did == MOVED)
        make_ready(worker, connection);
    else if (!way->held)
        pipe_give_back(worker, way);
    return did != FAILED;
}

static bool is_through(const struct way *way) { return way->eof && !way->held && !way->kept; }

void pump(struct worker *worker, struct connection *connection) {
    for (int number = CLIENT; number <= UPSTREAM; number++)
        if (!run_way(worker, connection, number)) {
            connection_close(worker, connection, RELAY_RESET, errno);
            return;
        }
    if (is_through(&connection->ways[CLIENT]) && is_through(&connection->ways[UPSTREAM]))
        connection_close(worker, connection, RELAY_FINISHED, 0);
}
