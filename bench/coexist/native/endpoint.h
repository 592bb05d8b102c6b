/* Addresses and ports, IPv4 and IPv6 alike. */
#ifndef ENDPOINT_H
#define ENDPOINT_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

union endpoint {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

static inline socklen_t endpoint_size(const union endpoint *e)
{
	return e->any.sa_family == AF_INET6 ? sizeof(e->v6) : sizeof(e->v4);
}

static inline void endpoint_parse(union endpoint *e, const char *text)
{
	memset(e, 0, sizeof(*e));
	e->any.sa_family = strchr(text, ':') ? AF_INET6 : AF_INET;
	void *address = e->any.sa_family == AF_INET6 ? (void *)&e->v6.sin6_addr : (void *)&e->v4.sin_addr;
	if (inet_pton(e->any.sa_family, text, address) != 1) {
		fprintf(stderr, "expected an address: '%s'\n", text);
		exit(2);
	}
}

static inline void endpoint_set_port(union endpoint *e, uint16_t port)
{
	if (e->any.sa_family == AF_INET6)
		e->v6.sin6_port = htons(port);
	else
		e->v4.sin_port = htons(port);
}

static inline uint16_t endpoint_port(const union endpoint *e)
{
	return ntohs(e->any.sa_family == AF_INET6 ? e->v6.sin6_port : e->v4.sin_port);
}

/* The address that is `number` after the given one; only the last 32 bits change. */
static inline union endpoint endpoint_after(const union endpoint *first, uint32_t number)
{
	union endpoint e = *first;
	uint8_t *last = e.any.sa_family == AF_INET6 ? e.v6.sin6_addr.s6_addr + 12 : (uint8_t *)&e.v4.sin_addr;
	uint32_t value;

	memcpy(&value, last, 4);
	value = htonl(ntohl(value) + number);
	memcpy(last, &value, 4);
	return e;
}

#endif
