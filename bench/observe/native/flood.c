/* Fills the conntrack table of this network namespace, or makes entries come and go, through ctnetlink.
 *
 *   flood fill COUNT            COUNT flows that NAT rewrote into slices; the same ones every time
 *   flood churn RATE SECONDS    as many events a second as asked, half of them NEW, half DESTROY (RATE 0: all it can)
 *   flood storm COUNT KEPT      COUNT events as fast as it goes: entries come, and go when KEPT others have come; the
 *                               last KEPT stay
 *
 * Entry i comes from 10.0.0.0/8, goes to one of SERVERS servers, and leaves from one of ADDRESSES addresses. Prints one
 * JSON object. Events are sent by the kernel while it works on the request: what is measured is what listeners cost.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { ADDRESSES = 8, SERVERS = 40, FIRST_PORT = 2000, PORTS = 48000, STRIDE = 15, BATCH = 32, MESSAGE_BYTES = 512, CHURNED = 1 << 23 };

struct batch {
	unsigned char bytes[BATCH * MESSAGE_BYTES];
	size_t used;
	unsigned int messages;
};

static int netlink;
static unsigned long refused;

static struct nlattr *put(struct batch *to, int kind, const void *value, size_t size)
{
	struct nlattr *made = (struct nlattr *)(to->bytes + to->used);

	made->nla_type = (uint16_t)kind;
	made->nla_len = (uint16_t)(NLA_HDRLEN + size);
	memcpy((unsigned char *)made + NLA_HDRLEN, value, size);
	to->used += NLA_ALIGN(made->nla_len);
	return made;
}

static struct nlattr *begin(struct batch *to, int kind)
{
	return put(to, kind | NLA_F_NESTED, "", 0);
}

static void end(struct batch *to, struct nlattr *outer)
{
	outer->nla_len = (uint16_t)(to->bytes + to->used - (unsigned char *)outer);
}

static void put_u32(struct batch *to, int kind, uint32_t value)
{
	value = htonl(value);
	put(to, kind, &value, sizeof(value));
}

static void put_u16(struct batch *to, int kind, uint16_t value)
{
	value = htons(value);
	put(to, kind, &value, sizeof(value));
}

static void put_tuple(struct batch *to, int kind, uint32_t src, uint16_t sport, uint32_t dst, uint16_t dport)
{
	struct nlattr *outer = begin(to, kind), *inner = begin(to, CTA_TUPLE_IP);
	uint8_t tcp = IPPROTO_TCP;

	put_u32(to, CTA_IP_V4_SRC, src);
	put_u32(to, CTA_IP_V4_DST, dst);
	end(to, inner);
	inner = begin(to, CTA_TUPLE_PROTO);
	put(to, CTA_PROTO_NUM, &tcp, 1);
	put_u16(to, CTA_PROTO_SRC_PORT, sport);
	put_u16(to, CTA_PROTO_DST_PORT, dport);
	end(to, inner);
	end(to, outer);
}

static void put_nat(struct batch *to, uint32_t address, uint16_t port)
{
	struct nlattr *outer = begin(to, CTA_NAT_SRC), *inner;

	put_u32(to, CTA_NAT_V4_MINIP, address);
	put_u32(to, CTA_NAT_V4_MAXIP, address);
	inner = begin(to, CTA_NAT_PROTO);
	put_u16(to, CTA_PROTONAT_PORT_MIN, port);
	put_u16(to, CTA_PROTONAT_PORT_MAX, port);
	end(to, inner);
	end(to, outer);
}

static void put_established(struct batch *to)
{
	struct nlattr *outer = begin(to, CTA_PROTOINFO), *inner = begin(to, CTA_PROTOINFO_TCP);
	uint8_t state = TCP_CONNTRACK_ESTABLISHED;

	put(to, CTA_PROTOINFO_TCP_STATE, &state, 1);
	end(to, inner);
	end(to, outer);
}

static struct nlmsghdr *begin_message(struct batch *to, int kind, int flags)
{
	struct nlmsghdr *head = (struct nlmsghdr *)(to->bytes + to->used);
	struct nfgenmsg family = {.nfgen_family = AF_INET};

	memset(head, 0, sizeof(*head));
	head->nlmsg_type = (uint16_t)(NFNL_SUBSYS_CTNETLINK << 8 | kind);
	head->nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags);
	memcpy(NLMSG_DATA(head), &family, sizeof(family));
	to->used += NLMSG_SPACE(sizeof(family));
	return head;
}

static void end_message(struct batch *to, struct nlmsghdr *head)
{
	head->nlmsg_len = (uint32_t)(to->bytes + to->used - (unsigned char *)head);
	to->messages++;
}

static void count_refusals(void)
{
	unsigned char answer[8192];

	while (recv(netlink, answer, sizeof(answer), MSG_DONTWAIT) > 0)
		refused++;
}

static void flush(struct batch *to)
{
	if (to->messages && send(netlink, to->bytes, to->used, 0) < 0) {
		perror("flood: send");
		exit(1);
	}
	to->used = to->messages = 0;
	count_refusals();
}

/* From CHURNED on, other servers: the two kinds of entries never want the same tuple on the wire. */
static uint32_t server_of(unsigned int i)
{
	return (203u << 24 | (i < CHURNED ? 113 : 114) << 8) + 1 + i % SERVERS;
}

static void put_original(struct batch *to, unsigned int i)
{
	put_tuple(to, CTA_TUPLE_ORIG, 10u << 24 | i >> 2, (uint16_t)(1024 + (i & 3) * 16000 + i % 16000), server_of(i),
		  443);
}

static void insert(struct batch *to, unsigned int i)
{
	struct nlmsghdr *head = begin_message(to, IPCTNL_MSG_CT_NEW, NLM_F_CREATE | NLM_F_EXCL);
	unsigned int j = i / SERVERS;
	uint32_t soft = (198u << 24 | 51 << 16 | 100 << 8) + 10 + j % ADDRESSES;
	uint16_t port = (uint16_t)(FIRST_PORT + (j / ADDRESSES * STRIDE + i % SERVERS) % PORTS);

	put_original(to, i);
	put_tuple(to, CTA_TUPLE_REPLY, server_of(i), 443, 10u << 24 | i >> 2,
		  (uint16_t)(1024 + (i & 3) * 16000 + i % 16000));
	put_u32(to, CTA_TIMEOUT, 36000);
	put_u32(to, CTA_STATUS, IPS_CONFIRMED | IPS_SEEN_REPLY | IPS_ASSURED);
	put_established(to);
	put_nat(to, soft, port);
	end_message(to, head);
	if (to->messages == BATCH)
		flush(to);
}

static void delete(struct batch *to, unsigned int i)
{
	struct nlmsghdr *head = begin_message(to, IPCTNL_MSG_CT_DELETE, 0);

	put_original(to, i);
	end_message(to, head);
	if (to->messages == BATCH)
		flush(to);
}

static double now(void)
{
	struct timespec moment;

	clock_gettime(CLOCK_MONOTONIC, &moment);
	return (double)moment.tv_sec + (double)moment.tv_nsec / 1e9;
}

static void sleep_until(double moment)
{
	struct timespec until = {(time_t)moment, (long)((moment - (double)(time_t)moment) * 1e9)};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
		continue;
}

static void fill(struct batch *to, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++)
		insert(to, i);
	flush(to);
}

/* Pairs of events in bunches of 1024: the entries come, then they go. Other entries than those of fill. */
static void pairs(struct batch *to, unsigned int first, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++)
		insert(to, CHURNED + (first + i) % (1u << 20));
	flush(to);
	for (unsigned int i = 0; i < count; i++)
		delete(to, CHURNED + (first + i) % (1u << 20));
	flush(to);
}

static unsigned long churn(struct batch *to, double rate, double seconds)
{
	double began = now();
	unsigned long made = 0;
	unsigned int bunch = rate > 0 && rate / 400 < 512 ? (unsigned int)(rate / 400) + 1 : 512;

	while (now() - began < seconds) {
		pairs(to, (unsigned int)(made / 2), bunch);
		made += 2 * bunch;
		if (rate > 0)
			sleep_until(began + (double)made / rate);
	}
	return made;
}

static unsigned long storm(struct batch *to, unsigned int count, unsigned int kept)
{
	unsigned int comings = kept + (count > kept ? (count - kept) / 2 : 0), goings = comings - kept;

	for (unsigned int i = 0; i < comings; i++) {
		insert(to, i);
		if (i >= kept)
			delete(to, i - kept);
	}
	flush(to);
	return comings + goings;
}

int main(int argc, char **argv)
{
	static struct batch batch;
	double began = now(), number = argc > 2 ? strtod(argv[2], NULL) : 0;
	unsigned long made = 0;

	netlink = socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER);
	if (netlink < 0)
		return perror("flood: socket"), 1;
	if (argc == 3 && !strcmp(argv[1], "fill"))
		fill(&batch, (unsigned int)(made = (unsigned long)number));
	else if (argc == 4 && !strcmp(argv[1], "churn"))
		made = churn(&batch, number, strtod(argv[3], NULL));
	else if (argc == 4 && !strcmp(argv[1], "storm"))
		made = storm(&batch, (unsigned int)number, (unsigned int)strtoul(argv[3], NULL, 10));
	else
		return fprintf(stderr, "usage: flood fill COUNT | churn RATE SECONDS | storm COUNT KEPT\n"), 2;
	printf("{\"made\": %lu, \"refused\": %lu, \"seconds\": %.3f}\n", made, refused, now() - began);
	return 0;
}
