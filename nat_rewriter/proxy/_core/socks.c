/* SOCKS5 as RFC 1928 has it, with the password of RFC 1929: pure functions over what a client sent. */
#include <arpa/inet.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "relay.h"

enum { STAGE_METHODS, STAGE_PASSWORD, STAGE_REQUEST };
enum { NO_AUTHENTICATION = 0x00, BY_PASSWORD = 0x02, NO_METHOD = 0xff };
enum { ADDRESS_IPV4 = 1, ADDRESS_NAME = 3, ADDRESS_IPV6 = 4 };
enum { SUCCEEDED, GENERAL_FAILURE, NOT_ALLOWED, NET_UNREACHABLE, HOST_UNREACHABLE, REFUSED, EXPIRED, NO_COMMAND, NO_TYPE };

static int say(struct relay_answer *answer, int found, uint8_t version, uint8_t code) {
    answer->reply[0] = (char)version;
    answer->reply[1] = (char)code;
    answer->reply_length = 2;
    return found;
}

static int wrong(struct relay_answer *answer, uint32_t outcome) {
    answer->outcome = outcome;
    return RELAY_WRONG;
}

static int read_methods(struct relay_answer *answer, const uint8_t *data, uint32_t length, bool by_password) {
    if (length >= 1 && data[0] != 5)
        return wrong(answer, RELAY_BAD_REQUEST);
    if (length < 2 || length < 2u + data[1])
        return RELAY_MORE;
    uint8_t wanted = by_password ? BY_PASSWORD : NO_AUTHENTICATION;
    if (!memchr(data + 2, wanted, data[1])) {
        answer->outcome = RELAY_NOT_AUTHORIZED;
        return say(answer, RELAY_WRONG, 5, NO_METHOD);
    }
    answer->used = 2u + data[1];
    answer->stage = by_password ? STAGE_PASSWORD : STAGE_REQUEST;
    return say(answer, RELAY_NEXT, 5, wanted);
}

/* Takes as long for a wrong text as for a right one. */
static bool same_text(const uint8_t *given, uint32_t length, const char *wanted) {
    size_t size = strlen(wanted);
    unsigned different = length != size;
    for (uint32_t i = 0; i < length; i++)
        different |= given[i] ^ (uint8_t)(size ? wanted[i % size] : 1);
    return !different;
}

static int read_password(struct relay_answer *answer, const uint8_t *data, uint32_t length, const char *username,
                         const char *password) {
    if (length >= 1 && data[0] != 1)
        return wrong(answer, RELAY_BAD_REQUEST);
    if (length < 2 || length < 3u + data[1])
        return RELAY_MORE;
    uint32_t name = data[1], secret = data[2 + name];
    if (length < 3 + name + secret)
        return RELAY_MORE;
    unsigned known = (unsigned)same_text(data + 2, name, username) & (unsigned)same_text(data + 3 + name, secret, password);
    answer->used = 3 + name + secret;
    answer->stage = STAGE_REQUEST;
    if (known)
        return say(answer, RELAY_NEXT, 1, 0);
    answer->outcome = RELAY_NOT_AUTHORIZED;
    return say(answer, RELAY_WRONG, 1, 1);
}

static int refuse(struct relay_answer *answer, uint8_t code, uint32_t outcome) {
    static const char none[8] = {0, ADDRESS_IPV4};
    answer->outcome = outcome;
    say(answer, RELAY_WRONG, 5, code);
    memcpy(answer->reply + 2, none, sizeof none);
    answer->reply_length = 2 + sizeof none;
    return RELAY_WRONG;
}

/* A name without control characters; what else it is, the resolver will say. */
static bool read_name(struct relay_answer *answer, const uint8_t *name, uint32_t length) {
    for (uint32_t i = 0; i < length; i++)
        if (name[i] <= ' ' || name[i] > '~')
            return false;
    memcpy(answer->host, name, length);
    answer->host[length] = 0;
    return length > 0;
}

static bool read_address(struct relay_answer *answer, uint8_t type, const uint8_t *data, uint32_t size) {
    if (type == ADDRESS_NAME)
        return read_name(answer, data + 1, size - 1);
    return inet_ntop(type == ADDRESS_IPV4 ? AF_INET : AF_INET6, data, answer->host, sizeof answer->host) != NULL;
}

static int read_request(struct relay_answer *answer, const uint8_t *data, uint32_t length) {
    if (length >= 1 && data[0] != 5)
        return wrong(answer, RELAY_BAD_REQUEST);
    if (length < 5)
        return RELAY_MORE;
    if (data[1] != 1)
        return refuse(answer, NO_COMMAND, RELAY_BAD_REQUEST);
    uint8_t type = data[3];
    if (data[2] != 0 || (type != ADDRESS_IPV4 && type != ADDRESS_IPV6 && type != ADDRESS_NAME))
        return refuse(answer, data[2] ? GENERAL_FAILURE : NO_TYPE, RELAY_BAD_REQUEST);
    uint32_t size = type == ADDRESS_IPV4 ? 4 : type == ADDRESS_IPV6 ? 16 : 1u + data[4];
    if (length < 4 + size + 2)
        return RELAY_MORE;
    answer->port = (uint16_t)(data[4 + size] << 8 | data[5 + size]);
    if (!read_address(answer, type, data + 4, size) || !answer->port)
        return refuse(answer, GENERAL_FAILURE, RELAY_BAD_REQUEST);
    answer->used = 4 + size + 2;
    return RELAY_READY;
}

int relay_socks_step(struct relay_answer *answer, const uint8_t *data, uint32_t length, const char *username,
                     const char *password) {
    answer->used = answer->reply_length = 0;
    switch (answer->stage) {
    case STAGE_METHODS: return read_methods(answer, data, length, username[0] != 0);
    case STAGE_PASSWORD: return read_password(answer, data, length, username, password);
    default: return read_request(answer, data, length);
    }
}

static uint8_t code_of(uint32_t outcome) {
    switch (outcome) {
    case RELAY_FINISHED: return SUCCEEDED;
    case RELAY_FORBIDDEN: case RELAY_LOOP: return NOT_ALLOWED;
    case RELAY_UNREACHABLE: return NET_UNREACHABLE;
    case RELAY_UNRESOLVED: return HOST_UNREACHABLE;
    case RELAY_REFUSED: return REFUSED;
    case RELAY_CONNECT_TIMEOUT: return EXPIRED;
    default: return GENERAL_FAILURE;
    }
}

/* The answer to a request; bound: where the connection leaves from. Returns its length, at most 22. */
uint32_t relay_socks_reply(char *reply, uint32_t outcome, const struct relay_address *bound) {
    bool is_ipv6 = bound && bound->family == 6;
    uint32_t size = is_ipv6 ? 16 : 4;
    memset(reply, 0, 6 + size);
    reply[0] = 5;
    reply[1] = (char)code_of(outcome);
    reply[3] = is_ipv6 ? ADDRESS_IPV6 : ADDRESS_IPV4;
    if (bound) {
        memcpy(reply + 4, bound->bytes, size);
        reply[4 + size] = (char)(bound->port >> 8);
        reply[5 + size] = (char)bound->port;
    }
    return 6 + size;
}
