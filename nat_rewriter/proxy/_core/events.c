/* What the supervisor hears of: counters in shared memory, and how connections ended through a pipe. */
#include "internal.h"

#include <stdio.h>

#define A_SECOND 100 /* events of one kind; the rest is counted only */

static bool is_quiet(uint32_t outcome) {
    return outcome == RELAY_FINISHED || outcome == RELAY_RESET || outcome == RELAY_CLIENT_LEFT ||
           outcome == RELAY_ENDED;
}

static bool may_tell(struct worker *worker, uint32_t outcome) {
    struct told *told = &worker->told[outcome];
    if (worker->settings->tell_all)
        return true;
    if (is_quiet(outcome))
        return false;
    if (told->second != worker->now_ms / 1000)
        *told = (struct told){.second = worker->now_ms / 1000};
    return told->count++ < A_SECOND;
}

void tell(struct worker *worker, const struct connection *connection, uint32_t outcome, int error) {
    struct relay_counters *counters = &worker->counters[connection->proxy];
    counters->ended[outcome]++;
    if (!may_tell(worker, outcome)) {
        counters->untold += !is_quiet(outcome);
        return;
    }
    struct relay_event event = {
        .worker = worker->settings->worker,
        .proxy = connection->proxy,
        .outcome = outcome,
        .error = error,
        .bytes_up = connection->ways[CLIENT].bytes,
        .bytes_down = connection->ways[UPSTREAM].bytes,
        .duration_ms = worker->now_ms - connection->started_ms,
        .client = connection->client,
        .destination = connection->destination,
        .source = connection->source,
    };
    const struct relay_proxy *proxy = proxy_of(worker, connection);
    const char *host = connection->handshake ? connection->handshake->answer.host : "";
    snprintf(event.host, sizeof event.host, "%s", proxy->mode == RELAY_LISTEN ? proxy->to_host : host);
    if (write(worker->settings->events_fd, &event, sizeof event) != sizeof event)
        counters->untold++;
}
