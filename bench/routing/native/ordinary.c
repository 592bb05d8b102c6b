/*
 * ordinary: what ordinary sockets of a host do, as fast as it goes, on one processor.
 *
 *   ordinary frames DEVICE HEX COUNT       send one Ethernet frame again and again; prints nanoseconds per frame. The
 *                                          other end of a veth pair receives it before the next one is sent, so that
 *                                          this is what receiving costs there, and a constant.
 *   ordinary sends ADDRESS PORT COUNT      send datagrams from an unconnected socket; prints nanoseconds per datagram
 *   ordinary connects ADDRESS PORT COUNT   connect and reset; prints the median and the 99th percentile in microseconds
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* What is measured goes in parts, and their median counts: what else the machine does falls into few of them. */
enum { FRAME = 2048, PARTS = 100 };

static double parts[PARTS];

static double now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static int by_value(const void *one, const void *other)
{
	double a = *(const double *)one, b = *(const double *)other;

	return (a > b) - (a < b);
}

static void print_median(void)
{
	qsort(parts, PARTS, sizeof(*parts), by_value);
	printf("%.1f\n", parts[PARTS / 2]);
}

static size_t unhex(const char *text, unsigned char *bytes)
{
	size_t size = 0;
	unsigned byte;

	for (; size < FRAME && sscanf(text, "%2x", &byte) == 1; text += 2)
		bytes[size++] = byte;
	return size;
}

static void frames(const char *device, const char *hex, long count)
{
	struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(device) };
	unsigned char frame[FRAME];
	size_t size = unhex(hex, frame);
	int one = 1, fd = socket(AF_PACKET, SOCK_RAW, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&to, sizeof(to)))
		err(1, "%s", device);
	setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one));
	for (int part = 0; part < PARTS; part++) {
		double began = now_ns();

		for (long n = 0; n < count / PARTS; n++)
			if (send(fd, frame, size, 0) < 0)
				err(1, "send");
		parts[part] = (now_ns() - began) / (count / PARTS);
	}
	print_median();
}

static struct sockaddr_in endpoint(const char *address, const char *port)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };

	if (inet_pton(AF_INET, address, &to.sin_addr) != 1)
		errx(2, "no address: %s", address);
	return to;
}

static void sends(struct sockaddr_in to, long count)
{
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	for (int part = 0; part < PARTS; part++) {
		double began = now_ns();

		for (long n = 0; n < count / PARTS; n++)
			if (sendto(fd, "x", 1, 0, (struct sockaddr *)&to, sizeof(to)) < 0)
				err(1, "sendto");
		parts[part] = (now_ns() - began) / (count / PARTS);
	}
	print_median();
}

static void connects(struct sockaddr_in to, long count)
{
	struct linger reset = { .l_onoff = 1 };
	double *took = calloc(count, sizeof(*took));

	for (long n = 0; n < count; n++) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);
		double began = now_ns();

		if (connect(fd, (struct sockaddr *)&to, sizeof(to)))
			err(1, "connect");
		took[n] = (now_ns() - began) / 1000;
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		close(fd);
	}
	qsort(took, count, sizeof(*took), by_value);
	printf("%.2f %.2f\n", took[count / 2], took[count * 99 / 100]);
}

int main(int argc, char **argv)
{
	cpu_set_t first;

	if (argc != 5)
		errx(2, "expected frames, sends or connects, and three words");
	CPU_ZERO(&first);
	CPU_SET(0, &first);
	sched_setaffinity(0, sizeof(first), &first);
	if (!strcmp(argv[1], "frames"))
		frames(argv[2], argv[3], atol(argv[4]));
	else if (!strcmp(argv[1], "sends"))
		sends(endpoint(argv[2], argv[3]), atol(argv[4]));
	else
		connects(endpoint(argv[2], argv[3]), atol(argv[4]));
	return 0;
}
