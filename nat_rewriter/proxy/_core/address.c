/* Addresses: between the kernel's form and the relay's. */
#include "internal.h"

#include <arpa/inet.h>

socklen_t address_to_kernel(const struct relay_address *address, struct sockaddr_storage *storage) {
    memset(storage, 0, sizeof *storage);
    if (address->family == 4) {
        struct sockaddr_in *in = (struct sockaddr_in *)storage;
        in->sin_family = AF_INET;
        in->sin_port = htons(address->port);
        memcpy(&in->sin_addr, address->bytes, 4);
        return sizeof *in;
    }
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)storage;
    in6->sin6_family = AF_INET6;
    in6->sin6_port = htons(address->port);
    memcpy(&in6->sin6_addr, address->bytes, 16);
    return sizeof *in6;
}

void address_from_kernel(struct relay_address *address, const struct sockaddr_storage *storage) {
    memset(address, 0, sizeof *address);
    if (storage->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)storage;
        address->family = 4;
        address->port = ntohs(in->sin_port);
        memcpy(address->bytes, &in->sin_addr, 4);
    } else if (storage->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)storage;
        address->family = 6;
        address->port = ntohs(in6->sin6_port);
        memcpy(address->bytes, &in6->sin6_addr, 16);
    }
}

bool address_parse(struct relay_address *address, const char *host, uint16_t port) {
    memset(address, 0, sizeof *address);
    address->port = port;
    if (inet_pton(AF_INET, host, address->bytes) == 1)
        address->family = 4;
    else if (inet_pton(AF_INET6, host, address->bytes) == 1)
        address->family = 6;
    return address->family != 0;
}

bool address_equal(const struct relay_address *left, const struct relay_address *right) {
    return left->family == right->family && left->port == right->port && !memcmp(left->bytes, right->bytes, 16);
}

/* What no client may ask for: the host itself, this network, groups, links without a name, IPv4 in IPv6's clothes. */
bool address_is_forbidden(const struct relay_address *address) {
    const uint8_t *bytes = address->bytes;
    if (address->family == 4)
        return bytes[0] == 0 || bytes[0] == 127 || bytes[0] >= 224;
    static const uint8_t zeros[16];
    if (!memcmp(bytes, zeros, 10) && ((bytes[10] == 0xff && bytes[11] == 0xff) || (!bytes[10] && !bytes[11])))
        return true; /* ::, ::1, ::ffff:0:0/96 and the IPv4-compatible ones that nobody uses */
    return bytes[0] == 0xff || (bytes[0] == 0xfe && (bytes[1] & 0xc0) == 0x80);
}
