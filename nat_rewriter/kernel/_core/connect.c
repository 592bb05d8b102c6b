/* Connections in one call: what an application does in six, each with a way through the interpreter. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core.h"

/* include/uapi/linux/in.h: the C library's header is older than the kernel's. */
#ifndef IP_LOCAL_PORT_RANGE
#define IP_LOCAL_PORT_RANGE 51
#endif

union address {
	struct sockaddr any;
	struct sockaddr_in ipv4;
	struct sockaddr_in6 ipv6;
};

static socklen_t set_address(union address *address, int family, const uint8_t bytes[16], uint16_t port, uint32_t scope)
{
	memset(address, 0, sizeof(*address));
	address->any.sa_family = (sa_family_t)family;
	if (family == AF_INET) {
		address->ipv4.sin_port = htons(port);
		memcpy(&address->ipv4.sin_addr, bytes, sizeof(address->ipv4.sin_addr));
		return sizeof(address->ipv4);
	}
	address->ipv6.sin6_port = htons(port);
	address->ipv6.sin6_scope_id = scope;
	memcpy(&address->ipv6.sin6_addr, bytes, sizeof(address->ipv6.sin6_addr));
	return sizeof(address->ipv6);
}

static int share_port(int descriptor)
{
	int on = 1;

	return setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
}

static int set_range(int descriptor, int kind, uint16_t first, uint16_t last)
{
	uint32_t range = (uint32_t)last << 16 | first;
	int on = 1;

	/* Of the level IP for IPv6 as well. */
	if (setsockopt(descriptor, IPPROTO_IP, IP_LOCAL_PORT_RANGE, &range, sizeof(range)))
		return -1;
	/* A port that bind() picks is the socket's towards every destination; UDP has no other moment. */
	if (kind != SOCK_STREAM)
		return 0;
	return setsockopt(descriptor, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on));
}

/* Returns the outcome of a connect() that has gone on without waiting: asked again, it says how the attempt stands
 * (__inet_stream_connect()). */
static int look_at_attempt(int descriptor, const union address *far, socklen_t length)
{
	if (connect(descriptor, &far->any, length) == 0)
		return NR_CONNECTED;
	return errno == EALREADY ? NR_SILENT : errno;
}

/* Returns 0, or -1 with errno set. */
static int bind_and_connect(int descriptor, const struct nr_ends *ends, uint16_t port, struct nr_connecting *begun)
{
	union address near, far;
	socklen_t length = set_address(&near, ends->family, ends->src, port, 0);
	int off = 0;

	begun->step = NR_STEP_BIND;
	if (bind(descriptor, &near.any, length))
		return -1;
	begun->step = NR_STEP_CONNECT;
	set_address(&far, ends->family, ends->dst, ends->dport, ends->scope);
	if (connect(descriptor, &far.any, length) == 0)
		begun->outcome = NR_CONNECTED;
	else if (errno != EINPROGRESS)
		return -1;
	else
		begun->outcome = look_at_attempt(descriptor, &far, length);
	if (begun->outcome == NR_CONNECTED && ioctl(descriptor, FIONBIO, &off))
		return -1;
	if (port == 0 && getsockname(descriptor, &near.any, &length))
		return -1;
	begun->port = ntohs(ends->family == AF_INET ? near.ipv4.sin_port : near.ipv6.sin6_port);
	return 0;
}

static int finish(int descriptor, int problem, struct nr_connecting *begun)
{
	if (!problem)
		return descriptor;
	begun->outcome = errno;
	if (descriptor >= 0)
		close(descriptor);
	return -1;
}

static int open_socket(const struct nr_ends *ends, struct nr_connecting *begun)
{
	begun->step = NR_STEP_OPEN;
	return socket(ends->family, ends->kind | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}

int nr_connect_at(const struct nr_ends *ends, uint16_t port, int shared, struct nr_connecting *begun)
{
	int descriptor = open_socket(ends, begun);

	return finish(descriptor,
		      descriptor < 0 || (shared && share_port(descriptor)) ||
			      bind_and_connect(descriptor, ends, port, begun),
		      begun);
}

int nr_connect_in_range(const struct nr_ends *ends, uint16_t first, uint16_t last, struct nr_connecting *begun)
{
	int descriptor = open_socket(ends, begun);

	return finish(descriptor,
		      descriptor < 0 || set_range(descriptor, ends->kind, first, last) ||
			      bind_and_connect(descriptor, ends, 0, begun),
		      begun);
}

int nr_await_connection(int descriptor, int timeout_ms)
{
	struct pollfd wanted = {.fd = descriptor, .events = POLLOUT};
	int ready = poll(&wanted, 1, timeout_ms), error = 0;
	socklen_t length = sizeof(error);

	if (ready == 0)
		return NR_SILENT;
	if (ready < 0)
		return errno == EINTR ? NR_INTERRUPTED_WAIT : errno;
	return getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &error, &length) ? errno : error;
}
