/*
 * server PORT: answers on a TCP and a UDP port of every address, IPv4 and IPv6.
 *
 * What comes in goes back as it is. A TCP message that starts with 'S' asks the server to close first: it closes as
 * soon as it has answered. Prints "ready" once it listens, and ends with SIGTERM.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "endpoint.h"

enum { BACKLOG = 65535, EVENTS = 256, MESSAGE = 65536 };

static int bound(int kind, uint16_t port)
{
	int fd = socket(AF_INET6, kind | SOCK_NONBLOCK, 0), off = 0, on = 1, space = 8 << 20;
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(port) };

	setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
	setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof(on));
	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &space, sizeof(space));
	if (kind == SOCK_STREAM)
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (fd < 0 || bind(fd, (struct sockaddr *)&any, sizeof(any)) || (kind == SOCK_STREAM && listen(fd, BACKLOG))) {
		perror("server");
		exit(1);
	}
	return fd;
}

static void watch(int epoll, int fd)
{
	struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };

	epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

static void accept_all(int epoll, int listener)
{
	int fd;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0)
		watch(epoll, fd);
}

static void answer_stream(int fd)
{
	static char text[MESSAGE];
	ssize_t size = read(fd, text, sizeof(text));

	if (size < 0 && errno == EAGAIN)
		return;
	if (size <= 0 || write(fd, text, size) != size || text[0] == 'S')
		close(fd);
}

/* From the address it was sent to: the ancillary data goes back as it came. */
static void answer_datagrams(int fd)
{
	static char text[MESSAGE];
	char control[256];
	union endpoint peer;

	for (;;) {
		struct iovec piece = { text, sizeof(text) };
		struct msghdr message = { &peer, sizeof(peer), &piece, 1, control, sizeof(control), 0 };
		ssize_t size = recvmsg(fd, &message, MSG_DONTWAIT);

		if (size < 0)
			return;
		piece.iov_len = size;
		sendmsg(fd, &message, MSG_DONTWAIT);
	}
}

int main(int count, char **arguments)
{
	uint16_t port = count == 2 ? atoi(arguments[1]) : 0;
	int epoll = epoll_create1(0), streams = bound(SOCK_STREAM, port), datagrams = bound(SOCK_DGRAM, port);

	watch(epoll, streams);
	watch(epoll, datagrams);
	puts("ready");
	fflush(stdout);
	for (;;) {
		struct epoll_event events[EVENTS];
		int ready = epoll_wait(epoll, events, EVENTS, -1);

		for (int i = 0; i < ready; i++) {
			int fd = events[i].data.fd;

			if (fd == streams)
				accept_all(epoll, fd);
			else if (fd == datagrams)
				answer_datagrams(fd);
			else
				answer_stream(fd);
		}
	}
}
