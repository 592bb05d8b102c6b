/* HTTP CONNECT, RFC 9110 section 9.3.6, with Basic credentials (RFC 7617): pure functions over what a client sent. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "relay.h"

struct text {
    const char *start;
    uint32_t length;
};

static const char *const STATUS[RELAY_OUTCOMES] = {
    [RELAY_FINISHED] = "200 Connection established",
    [RELAY_BAD_REQUEST] = "400 Bad Request",
    [RELAY_SLOW_REQUEST] = "408 Request Timeout",
    [RELAY_NOT_AUTHORIZED] = "407 Proxy Authentication Required",
    [RELAY_FORBIDDEN] = "403 Forbidden",
    [RELAY_LOOP] = "403 Forbidden",
    [RELAY_EXHAUSTED] = "503 Slice Exhausted",
    [RELAY_LIMIT] = "503 Too Many Connections",
    [RELAY_NO_DESCRIPTORS] = "503 Out Of Descriptors",
    [RELAY_CONNECT_TIMEOUT] = "504 Gateway Timeout",
    [RELAY_UNRESOLVED] = "502 Name Not Resolved",
    [RELAY_REFUSED] = "502 Connection Refused",
    [RELAY_UNREACHABLE] = "502 Destination Unreachable",
};

static uint32_t write_status(char *reply, const char *status, const char *header) {
    return (uint32_t)snprintf(reply, 256, "HTTP/1.1 %s\r\n%sContent-Length: 0\r\nConnection: close\r\n\r\n", status,
                              header);
}

/* The answer to a request. Returns its length, below 256. */
uint32_t relay_connect_reply(char *reply, uint32_t outcome) {
    const char *status = outcome < RELAY_OUTCOMES && STATUS[outcome] ? STATUS[outcome] : "502 Bad Gateway";
    if (outcome == RELAY_FINISHED)
        return (uint32_t)snprintf(reply, 128, "HTTP/1.1 %s\r\n\r\n", status);
    bool asks = outcome == RELAY_NOT_AUTHORIZED;
    return write_status(reply, status, asks ? "Proxy-Authenticate: Basic realm=\"natctl\"\r\n" : "");
}

static int refuse(struct relay_answer *answer, uint32_t outcome) {
    answer->outcome = outcome;
    answer->reply_length = relay_connect_reply(answer->reply, outcome);
    return RELAY_WRONG;
}

static bool read_port(struct text digits, uint16_t *port) {
    uint32_t value = 0;
    if (digits.length < 1 || digits.length > 5)
        return false;
    for (uint32_t i = 0; i < digits.length; i++) {
        if (digits.start[i] < '0' || digits.start[i] > '9')
            return false;
        value = value * 10 + (uint32_t)(digits.start[i] - '0');
    }
    *port = (uint16_t)value;
    return value >= 1 && value <= 65535;
}

static bool read_host(struct text host, char *out) {
    uint8_t ignored[16];
    bool bracketed = host.length > 2 && host.start[0] == '[' && host.start[host.length - 1] == ']';
    if (bracketed)
        host = (struct text){host.start + 1, host.length - 2};
    if (!host.length || host.length > 255)
        return false;
    for (uint32_t i = 0; i < host.length; i++)
        if (host.start[i] <= ' ' || host.start[i] > '~')
            return false;
    memcpy(out, host.start, host.length);
    out[host.length] = 0;
    return bracketed ? inet_pton(AF_INET6, out, ignored) == 1 : !memchr(out, ':', host.length);
}

/* CONNECT host:port HTTP/1.x */
static bool read_target(struct relay_answer *answer, struct text line) {
    const char *space = memchr(line.start, ' ', line.length);
    if (!space)
        return false;
    struct text target = {space + 1, line.length - (uint32_t)(space + 1 - line.start)};
    space = memchr(target.start, ' ', target.length);
    if (!space)
        return false;
    struct text version = {space + 1, target.length - (uint32_t)(space + 1 - target.start)};
    target.length = (uint32_t)(space - target.start);
    const char *colon = memrchr(target.start, ':', target.length);
    if (!colon || version.length != 8 || memcmp(version.start, "HTTP/1.", 7) != 0)
        return false;
    struct text host = {target.start, (uint32_t)(colon - target.start)};
    struct text port = {colon + 1, target.length - host.length - 1};
    return read_port(port, &answer->port) && read_host(host, answer->host);
}

/* The next line without its end; false at the empty one that ends the head. */
static bool next_line(struct text *head, struct text *line) {
    const char *end = memchr(head->start, '\n', head->length);
    if (!end)
        return false;
    uint32_t whole = (uint32_t)(end - head->start) + 1;
    *line = (struct text){head->start, whole - 1};
    *head = (struct text){head->start + whole, head->length - whole};
    if (line->length && line->start[line->length - 1] == '\r')
        line->length--;
    return line->length > 0;
}

static uint32_t encode_base64(const char *data, uint32_t length, char *out) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t size = 0;
    for (uint32_t i = 0; i < length; i += 3) {
        uint32_t left = length - i;
        uint32_t bits = (uint32_t)(uint8_t)data[i] << 16 | (left > 1 ? (uint32_t)(uint8_t)data[i + 1] << 8 : 0) |
                        (left > 2 ? (uint32_t)(uint8_t)data[i + 2] : 0);
        out[size++] = letters[bits >> 18];
        out[size++] = letters[bits >> 12 & 63];
        out[size++] = left > 1 ? letters[bits >> 6 & 63] : '=';
        out[size++] = left > 2 ? letters[bits & 63] : '=';
    }
    return size;
}

static bool is_authorized(struct text head, const char *username, const char *password) {
    static const char name[] = "proxy-authorization:";
    char wanted[512], encoded[700];
    uint32_t plain = (uint32_t)snprintf(wanted, sizeof wanted, "%s:%s", username, password);
    uint32_t size = encode_base64(wanted, plain, encoded);
    for (struct text line; next_line(&head, &line);) {
        if (line.length < sizeof name || strncasecmp(line.start, name, sizeof name - 1) != 0)
            continue;
        struct text value = {line.start + sizeof name - 1, line.length - (uint32_t)(sizeof name - 1)};
        while (value.length && *value.start == ' ')
            value = (struct text){value.start + 1, value.length - 1};
        if (value.length != size + 6 || strncasecmp(value.start, "basic ", 6) != 0)
            return false;
        unsigned different = 0;
        for (uint32_t i = 0; i < size; i++)
            different |= (unsigned)(value.start[6 + i] ^ encoded[i]);
        return !different;
    }
    return false;
}

/* Looks no further than it must to see that this is not HTTP. */
static bool may_become_http(const uint8_t *data, uint32_t length) {
    for (uint32_t i = 0; i < length && i < 16; i++) {
        if (data[i] == ' ')
            return i > 0;
        if (data[i] < 'A' || data[i] > 'Z')
            return false;
    }
    return length < 16;
}

int relay_connect_step(struct relay_answer *answer, const uint8_t *data, uint32_t length, const char *username,
                       const char *password) {
    answer->used = answer->reply_length = 0;
    if (!may_become_http(data, length))
        return refuse(answer, RELAY_BAD_REQUEST);
    const uint8_t *end = memmem(data, length, "\r\n\r\n", 4);
    if (!end)
        return RELAY_MORE;
    struct text head = {(const char *)data, (uint32_t)(end - data) + 4}, line;
    if (!next_line(&head, &line) || memchr(data, 0, (size_t)(end - data)))
        return refuse(answer, RELAY_BAD_REQUEST);
    if (line.length < 8 || memcmp(line.start, "CONNECT ", 8) != 0) {
        answer->outcome = RELAY_BAD_REQUEST;
        answer->reply_length = write_status(answer->reply, "405 Method Not Allowed", "Allow: CONNECT\r\n");
        return RELAY_WRONG;
    }
    if (!read_target(answer, line))
        return refuse(answer, RELAY_BAD_REQUEST);
    if (username[0] && !is_authorized(head, username, password))
        return refuse(answer, RELAY_NOT_AUTHORIZED);
    answer->used = (uint32_t)(end - data) + 4;
    return RELAY_READY;
}
