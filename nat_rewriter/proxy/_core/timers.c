/* One timer a connection, on a wheel of tenths of a second. A deadline that has moved on is found out when its slot comes
 * round: activity costs nothing. */
#include "internal.h"

static void unlink_timer(struct worker *worker, struct connection *connection) {
    if (connection->timer_slot == WHEEL_SLOTS)
        return;
    if (connection->timer_previous)
        connection->timer_previous->timer_next = connection->timer_next;
    else
        worker->wheel[connection->timer_slot] = connection->timer_next;
    if (connection->timer_next)
        connection->timer_next->timer_previous = connection->timer_previous;
    connection->timer_slot = WHEEL_SLOTS;
}

static void place(struct worker *worker, struct connection *connection) {
    uint64_t due = connection->deadline_ms / TICK_MS + 1;
    if (due <= worker->tick)
        due = worker->tick + 1;
    if (due >= worker->tick + WHEEL_SLOTS)
        due = worker->tick + WHEEL_SLOTS - 1;
    uint16_t slot = due % WHEEL_SLOTS;
    connection->timer_slot = slot;
    connection->timer_previous = NULL;
    connection->timer_next = worker->wheel[slot];
    if (connection->timer_next)
        connection->timer_next->timer_previous = connection;
    worker->wheel[slot] = connection;
}

void timer_set(struct worker *worker, struct connection *connection, uint64_t deadline_ms) {
    unlink_timer(worker, connection);
    connection->deadline_ms = deadline_ms;
    place(worker, connection);
}

void timer_clear(struct worker *worker, struct connection *connection) { unlink_timer(worker, connection); }

static void timer_fire(struct worker *worker, struct connection *connection) {
    unlink_timer(worker, connection);
    if (connection->state == RELAYING)
        connection->deadline_ms = connection->last_ms + proxy_of(worker, connection)->idle_ms;
    if (connection->deadline_ms > worker->now_ms)
        place(worker, connection);
    else
        connection_expired(worker, connection);
}

void timers_run(struct worker *worker) {
    uint64_t until = worker->now_ms / TICK_MS;
    if (until > worker->tick + WHEEL_SLOTS)
        worker->tick = until - WHEEL_SLOTS; /* the machine was suspended: one turn of the wheel reaches all */
    while (worker->tick < until) {
        worker->tick++;
        struct connection *connection;
        while ((connection = worker->wheel[worker->tick % WHEEL_SLOTS]))
            timer_fire(worker, connection);
    }
}
