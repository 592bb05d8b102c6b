/* The PROXY protocol, versions 1 and 2: who the client is, told to the other side before its first byte. */
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "relay.h"

static uint32_t version_1(char *header, const struct relay_address *client, const struct relay_address *destination) {
    char from[INET6_ADDRSTRLEN], to[INET6_ADDRSTRLEN];
    int family = client->family == 6 ? AF_INET6 : AF_INET;
    inet_ntop(family, client->bytes, from, sizeof from);
    inet_ntop(family, destination->bytes, to, sizeof to);
    return (uint32_t)snprintf(header, 108, "PROXY TCP%u %s %s %u %u\r\n", client->family, from, to, client->port,
                              destination->port);
}

static uint32_t version_2(char *header, const struct relay_address *client, const struct relay_address *destination) {
    static const char signature[12] = "\r\n\r\n\0\r\nQUIT\n";
    uint32_t size = client->family == 6 ? 16 : 4;
    uint16_t length = htons((uint16_t)(2 * size + 4)), ports[2] = {htons(client->port), htons(destination->port)};
    memcpy(header, signature, 12);
    header[12] = 0x21; /* version 2, PROXY */
    header[13] = client->family == 6 ? 0x21 : 0x11;
    memcpy(header + 14, &length, 2);
    memcpy(header + 16, client->bytes, size);
    memcpy(header + 16 + size, destination->bytes, size);
    memcpy(header + 16 + 2 * size, ports, 4);
    return 16 + 2 * size + 4;
}

/* Returns the length of the header, below 128; 0 for version 0. Both addresses are of one family. */
uint32_t relay_proxy_header(char *header, int version, const struct relay_address *client,
                            const struct relay_address *destination) {
    if (version == 1)
        return version_1(header, client, destination);
    return version == 2 ? version_2(header, client, destination) : 0;
}
