/*
 * packets: sends prepared frames through an interface as fast as it takes them, and prints the nanoseconds per frame.
 *
 * That is the median over batches, so that whatever else the processor is given to do in between does not count.
 * Each frame is the first of a flow of its own, or with --one-flow all are of the same one. With --flows standard input
 * names the ends of each flow, and the frames are sent --rounds times. The whole way to the last hop is walked inside the
 * send call, since the interfaces of a lab are pairs of virtual ones. With --socket a client sends datagrams of its own,
 * and its share of the work counts too.
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include "endpoint.h"

enum { BATCH = 32, SLOT = 96, FIRST_PORT = 20000, PORTS = 40000 };

static struct {
	int tcp, one_flow, flows, socket, count, rounds, sources, destinations, cpu;
	const char *device, *gateway;
	union endpoint source, destination;
} want = { .count = 1000, .rounds = 1, .sources = 1, .destinations = 1, .cpu = -1 };

static uint8_t *frames;
static size_t frame_size;
static union endpoint *destinations; /* of each frame */
static int *sockets; /* of each source */

static uint32_t sum16(uint32_t sum, const void *bytes, size_t size)
{
	const uint8_t *b = bytes;

	for (size_t i = 0; i + 1 < size; i += 2)
		sum += b[i] << 8 | b[i + 1];
	return sum;
}

static uint16_t folded(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons(~sum);
}

static uint8_t *put_ethernet(uint8_t *frame)
{
	struct ether_header *head = (struct ether_header *)frame;

	sscanf(want.gateway, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &head->ether_dhost[0], &head->ether_dhost[1],
	       &head->ether_dhost[2], &head->ether_dhost[3], &head->ether_dhost[4], &head->ether_dhost[5]);
	memset(head->ether_shost, 2, 6);
	head->ether_type = htons(want.source.any.sa_family == AF_INET6 ? ETHERTYPE_IPV6 : ETHERTYPE_IP);
	return frame + sizeof(*head);
}

static uint8_t *put_ip(uint8_t *at, const union endpoint *from, const union endpoint *to, size_t payload)
{
	int protocol = want.tcp ? IPPROTO_TCP : IPPROTO_UDP;

	if (from->any.sa_family == AF_INET6) {
		struct ip6_hdr *six = (struct ip6_hdr *)at;

		six->ip6_flow = htonl(6u << 28);
		six->ip6_plen = htons(payload);
		six->ip6_nxt = protocol;
		six->ip6_hlim = 64;
		six->ip6_src = from->v6.sin6_addr;
		six->ip6_dst = to->v6.sin6_addr;
		return at + sizeof(*six);
	}
	struct iphdr *four = (struct iphdr *)at;

	four->version = 4;
	four->ihl = 5;
	four->tot_len = htons(sizeof(*four) + payload);
	four->ttl = 64;
	four->protocol = protocol;
	four->saddr = from->v4.sin_addr.s_addr;
	four->daddr = to->v4.sin_addr.s_addr;
	four->check = folded(sum16(0, four, sizeof(*four)));
	return at + sizeof(*four);
}

static uint32_t pseudo_sum(const union endpoint *from, const union endpoint *to, size_t payload)
{
	uint32_t sum = (want.tcp ? IPPROTO_TCP : IPPROTO_UDP) + payload;

	if (from->any.sa_family == AF_INET6)
		return sum16(sum16(sum, &from->v6.sin6_addr, 16), &to->v6.sin6_addr, 16);
	return sum16(sum16(sum, &from->v4.sin_addr, 4), &to->v4.sin_addr, 4);
}

static void put_transport(uint8_t *at, const union endpoint *from, const union endpoint *to, size_t size)
{
	uint16_t *checksum;

	if (want.tcp) {
		struct tcphdr *head = (struct tcphdr *)at;

		head->source = htons(endpoint_port(from));
		head->dest = htons(endpoint_port(to));
		head->seq = htonl(1000);
		head->doff = 5;
		head->syn = 1;
		head->window = htons(64240);
		checksum = &head->check;
	} else {
		struct udphdr *head = (struct udphdr *)at;

		head->source = htons(endpoint_port(from));
		head->dest = htons(endpoint_port(to));
		head->len = htons(size);
		checksum = &head->check;
	}
	*checksum = folded(sum16(pseudo_sum(from, to, size), at, size));
}

static void put_frame(int number, const union endpoint *from, const union endpoint *to)
{
	size_t size = want.tcp ? sizeof(struct tcphdr) : sizeof(struct udphdr) + 16;
	uint8_t *frame = frames + (size_t)number * SLOT;
	uint8_t *transport = put_ip(put_ethernet(frame), from, to, size);

	destinations[number] = *to;
	put_transport(transport, from, to, size);
	frame_size = transport + size - frame;
}

static void put_frames(void)
{
	int pairs = want.sources * want.destinations;

	for (int number = 0; number < want.count; number++) {
		int flow = want.one_flow ? 0 : number;
		union endpoint from = endpoint_after(&want.source, flow % want.sources);
		union endpoint to = endpoint_after(&want.destination, flow / want.sources % want.destinations);

		/* Towards another port each: the port search of NAT finds the first port it looks at free. */
		endpoint_set_port(&from, FIRST_PORT + flow / pairs / PORTS);
		endpoint_set_port(&to, FIRST_PORT + flow / pairs % PORTS);
		put_frame(number, &from, &to);
	}
}

/* Standard input has a line for each flow: address and port of the sender, then those of the receiver. */
static void read_frames(void)
{
	char from_address[64], to_address[64];
	unsigned from_port, to_port;

	for (int number = 0; number < want.count; number++) {
		if (scanf("%63s %u %63s %u", from_address, &from_port, to_address, &to_port) != 4) {
			fprintf(stderr, "packets: flow %d of %d: expected ADDRESS PORT ADDRESS PORT\n", number + 1, want.count);
			exit(2);
		}
		endpoint_parse(&want.source, from_address);
		endpoint_parse(&want.destination, to_address);
		endpoint_set_port(&want.source, from_port);
		endpoint_set_port(&want.destination, to_port);
		put_frame(number, &want.source, &want.destination);
	}
}

static int open_device(void)
{
	struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(want.device) };
	int fd = socket(AF_PACKET, SOCK_RAW, 0), on = 1;

	setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof(on));
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address))) {
		perror("packets");
		exit(1);
	}
	return fd;
}

static double now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static void open_sockets(void)
{
	sockets = calloc(want.sources, sizeof(*sockets));
	for (int i = 0; i < want.sources; i++) {
		union endpoint from = endpoint_after(&want.source, i);

		endpoint_set_port(&from, FIRST_PORT);
		sockets[i] = socket(from.any.sa_family, SOCK_DGRAM, 0);
		if (sockets[i] < 0 || bind(sockets[i], &from.any, endpoint_size(&from))) {
			perror("packets");
			exit(1);
		}
	}
}

static void send_datagrams(int first)
{
	for (int number = first; number < first + BATCH; number++) {
		int flow = want.one_flow ? 0 : number;
		union endpoint *to = &destinations[number];

		sendto(sockets[flow % want.sources], "0123456789abcdef", 16, 0, &to->any, endpoint_size(to));
	}
}

static void send_frames(int fd, int first)
{
	struct mmsghdr messages[BATCH] = { 0 };
	struct iovec pieces[BATCH];

	for (int i = 0; i < BATCH; i++) {
		pieces[i] = (struct iovec){ frames + (size_t)(first + i) * SLOT, frame_size };
		messages[i].msg_hdr.msg_iov = &pieces[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	for (int sent = 0; sent < BATCH;) {
		int done = sendmmsg(fd, messages + sent, BATCH - sent, 0);

		sent += done > 0 ? done : 0;
	}
}

static int ascending(const void *one, const void *other)
{
	double difference = *(const double *)one - *(const double *)other;

	return (difference > 0) - (difference < 0);
}

static double median_ns(void)
{
	int fd = open_device(), a_round = want.count / BATCH, batches = a_round * want.rounds;
	double *times = calloc(batches, sizeof(*times));

	for (int i = 0; i < batches; i++) {
		double start = now_ns();

		if (want.socket)
			send_datagrams(i % a_round * BATCH);
		else
			send_frames(fd, i % a_round * BATCH);
		times[i] = (now_ns() - start) / BATCH;
	}
	qsort(times, batches, sizeof(*times), ascending);
	return times[batches / 2];
}

static const struct option options[] = {
	{ "device", 1, 0, 'd' }, { "gateway", 1, 0, 'g' }, { "source", 1, 0, 's' }, { "sources", 1, 0, 'S' },
	{ "to", 1, 0, 't' }, { "destinations", 1, 0, 'D' }, { "count", 1, 0, 'c' }, { "tcp", 0, 0, 'T' },
	{ "one-flow", 0, 0, 'o' }, { "cpu", 1, 0, 'C' }, { "socket", 0, 0, 'k' },
	{ "flows", 0, 0, 'f' }, { "rounds", 1, 0, 'r' }, { 0 },
};

static void set_option(int option)
{
	switch (option) {
	case 'd': want.device = optarg; break;
	case 'g': want.gateway = optarg; break;
	case 's': endpoint_parse(&want.source, optarg); break;
	case 'S': want.sources = atoi(optarg); break;
	case 't': endpoint_parse(&want.destination, optarg); break;
	case 'D': want.destinations = atoi(optarg); break;
	case 'c': want.count = atoi(optarg); break;
	case 'T': want.tcp = 1; break;
	case 'o': want.one_flow = 1; break;
	case 'k': want.socket = 1; break;
	case 'f': want.flows = 1; break;
	case 'r': want.rounds = atoi(optarg); break;
	case 'C': want.cpu = atoi(optarg); break;
	default:
		fputs("packets --device NAME --gateway MAC --source ADDRESS [--sources N] --to ADDRESS [--destinations N]\n"
		      "  [--count N] [--tcp | --socket] [--one-flow | --flows] [--rounds N] [--cpu N]\n", stderr);
		exit(2);
	}
}

static void stay_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

int main(int count, char **arguments)
{
	int option;

	while ((option = getopt_long(count, arguments, "", options, NULL)) >= 0)
		set_option(option);
	if (want.cpu >= 0)
		stay_on(want.cpu);
	frames = calloc(want.count, SLOT);
	destinations = calloc(want.count, sizeof(*destinations));
	if (want.flows)
		read_frames();
	else
		put_frames();
	if (want.socket)
		open_sockets();
	printf("%.1f\n", median_ns());
	return 0;
}
