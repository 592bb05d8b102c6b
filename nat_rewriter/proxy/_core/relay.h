/* What Python and the relay share. cffi parses this file: structures, and functions that a worker is started with. */
#pragma once
#include <stdint.h>

enum relay_mode { RELAY_REDIRECT, RELAY_TPROXY, RELAY_LISTEN, RELAY_SOCKS, RELAY_CONNECT };

/* How a connection ended. Python has a word for each: nat_rewriter/proxy/outcomes.py. */
enum relay_outcome {
    RELAY_FINISHED, RELAY_RESET, RELAY_CLIENT_LEFT, RELAY_IDLE, RELAY_BAD_REQUEST, RELAY_SLOW_REQUEST,
    RELAY_NOT_AUTHORIZED, RELAY_FORBIDDEN, RELAY_LOOP, RELAY_UNRESOLVED, RELAY_EXHAUSTED, RELAY_REFUSED,
    RELAY_UNREACHABLE, RELAY_CONNECT_TIMEOUT, RELAY_LIMIT, RELAY_NO_DESCRIPTORS, RELAY_FAILED, RELAY_ENDED,
    RELAY_OUTCOMES
};

/* family: 4, 6, or 0 for none; the port in host order. */
struct relay_address {
    uint8_t family;
    uint8_t unused;
    uint16_t port;
    uint8_t bytes[16];
};

/* Ports of a slice that connections may leave from. */
struct relay_range {
    struct relay_address first;
    uint32_t count;
};

struct relay_proxy {
    uint8_t mode;
    uint8_t proxy_protocol; /* 0, 1 or 2 */
    uint8_t retry_refused;  /* a refusal may mean that NAT holds the tuple (coexist = "refuse"): try other ports */
    uint8_t unused;
    uint16_t to_port;
    uint32_t max_connections;
    uint32_t idle_ms;
    uint32_t connect_ms;
    uint32_t range_count;
    const struct relay_range *ranges;
    char to_host[256];
    char username[256];
    char password[256];
};

struct relay_listener {
    int32_t fd;
    uint32_t proxy;
};

/* Of one worker and one proxy, in memory that all workers of a generation share. */
struct relay_counters {
    uint64_t accepted;
    uint64_t active;
    uint64_t bytes_up;
    uint64_t bytes_down;
    uint64_t port_tries; /* sources that the kernel or NAT had given to someone else */
    uint64_t untold;     /* events that were left out, for there were too many */
    uint64_t pipes;
    uint64_t ended[RELAY_OUTCOMES];
    uint64_t unused[7]; /* so that no two workers write to one cache line */
};

/* One connection's end, written whole to events_fd. */
struct relay_event {
    uint32_t worker;
    uint32_t proxy;
    uint32_t outcome;
    int32_t error;
    uint64_t bytes_up;
    uint64_t bytes_down;
    uint64_t duration_ms;
    struct relay_address client;
    struct relay_address destination;
    struct relay_address source;
    char host[256];
};

struct relay_settings {
    uint32_t worker;
    uint32_t workers;
    uint32_t proxy_count;
    uint32_t listener_count;
    const struct relay_proxy *proxies;
    const struct relay_listener *listeners;
    struct relay_counters *counters; /* [workers][proxy_count] */
    int32_t events_fd;
    uint32_t tell_all; /* events for connections that ended well, too */
};

/* Starts a worker process; returns its pid, or a negative errno. SIGTERM: it takes no more connections and ends with the
 * last. SIGQUIT: it ends them. It dies with its parent. */
int relay_spawn(const struct relay_settings *settings);

/* What a step of a handshake found. */
enum relay_step { RELAY_MORE, RELAY_NEXT, RELAY_READY, RELAY_WRONG };

struct relay_answer {
    uint32_t used;         /* bytes of the input that are done with */
    uint32_t reply_length;
    uint32_t outcome;      /* with RELAY_WRONG */
    uint16_t port;         /* with RELAY_READY */
    uint8_t stage;         /* where the handshake stands; begins with 0 */
    char reply[256];
    char host[256];
};

/* Pure: read one step of SOCKS5 (RFC 1928, RFC 1929) or of HTTP CONNECT (RFC 9110, 9.3.6) from what a client sent. */
int relay_socks_step(struct relay_answer *answer, const uint8_t *data, uint32_t length, const char *username,
                     const char *password);
int relay_connect_step(struct relay_answer *answer, const uint8_t *data, uint32_t length, const char *username,
                       const char *password);
uint32_t relay_socks_reply(char *reply, uint32_t outcome, const struct relay_address *bound);
uint32_t relay_connect_reply(char *reply, uint32_t outcome);
uint32_t relay_proxy_header(char *header, int version, const struct relay_address *client,
                            const struct relay_address *destination);
