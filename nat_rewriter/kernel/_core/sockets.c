/* sock_diag answers into struct nr_socket. What the kernel writes: net/ipv4/inet_diag.c, inet_sk_diag_fill(). */
#include <linux/inet_diag.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "decode.h"

static void read_ipv6(const __be32 words[4], uint64_t address[2])
{
	const uint8_t *bytes = (const uint8_t *)words;

	address[0] = nr_load_u64(bytes);
	address[1] = nr_load_u64(bytes + 8);
}

static void read_ipv4(const __be32 words[4], uint64_t address[2])
{
	address[0] = 0;
	address[1] = ntohl(words[0]);
}

/* ::ffff:0:0/96, RFC 4291 section 2.5.5.2 */
static int is_mapped(const uint64_t address[2])
{
	return address[0] == 0 && address[1] >> 32 == 0xffff;
}

static int is_any(const uint64_t address[2])
{
	return address[0] == 0 && address[1] == 0;
}

/* An IPv6 socket that talks IPv4 holds an IPv4 tuple. Bound to a mapped address only, its peer is still "any". */
static void unmap(struct nr_socket *socket)
{
	if (!is_mapped(socket->src) || !(is_mapped(socket->dst) || is_any(socket->dst)))
		return;
	socket->src[1] &= 0xffffffff;
	socket->dst[1] &= 0xffffffff;
	socket->family = 4;
}

static void set_addresses(struct nr_socket *socket, const struct inet_diag_msg *message)
{
	if (message->idiag_family == AF_INET) {
		read_ipv4(message->id.idiag_src, socket->src);
		read_ipv4(message->id.idiag_dst, socket->dst);
		socket->family = 4;
		return;
	}
	read_ipv6(message->id.idiag_src, socket->src);
	read_ipv6(message->id.idiag_dst, socket->dst);
	socket->family = 6;
	unmap(socket);
}

static void set_socket(struct nr_socket *socket, const struct inet_diag_msg *message, uint8_t protocol)
{
	memset(socket, 0, sizeof(*socket));
	set_addresses(socket, message);
	socket->sport = ntohs(message->id.idiag_sport);
	socket->dport = ntohs(message->id.idiag_dport);
	socket->cookie = (uint64_t)message->id.idiag_cookie[1] << 32 | message->id.idiag_cookie[0];
	socket->inode = message->idiag_inode;
	socket->uid = message->idiag_uid;
	socket->ifindex = message->id.idiag_if;
	socket->state = message->idiag_state;
	socket->protocol = protocol;
}

static int take_socket(const struct nlmsghdr *header, struct nr_rest payload, const struct nr_context *context,
		       void *records, struct nr_progress *progress)
{
	struct nr_socket *socket = (struct nr_socket *)records + progress->records;
	struct inet_diag_msg message;

	if (header->nlmsg_type != SOCK_DIAG_BY_FAMILY) {
		progress->foreign_messages++;
		return NR_OK;
	}
	if ((size_t)(payload.end - payload.at) < sizeof(message))
		return NR_SOCKET_CUT;
	memcpy(&message, payload.at, sizeof(message));
	if (message.idiag_family != AF_INET && message.idiag_family != AF_INET6) {
		progress->foreign_messages++;
		return NR_OK;
	}
	set_socket(socket, &message, context->protocol);
	if (context->families & 1 << socket->family)
		progress->records++;
	return NR_OK;
}

int nr_decode_sockets(const uint8_t *bytes, size_t length, const struct nr_context *context, struct nr_socket *records,
		      size_t capacity, struct nr_progress *progress)
{
	return nr_walk(bytes, length, take_socket, context, records, capacity, progress);
}
