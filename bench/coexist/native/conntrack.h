/* One question to conntrack: does any entry hold this tuple? */
#ifndef CONNTRACK_H
#define CONNTRACK_H

#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>
#include <unistd.h>

#include "endpoint.h"

struct question {
	struct nlmsghdr head;
	struct nfgenmsg family;
	char attributes[256];
};

static inline struct nlattr *attribute(struct question *q, int kind, const void *value, size_t size)
{
	struct nlattr *a = (struct nlattr *)((char *)q + NLMSG_ALIGN(q->head.nlmsg_len));

	a->nla_type = kind;
	a->nla_len = NLA_HDRLEN + size;
	memcpy((char *)a + NLA_HDRLEN, value, size);
	q->head.nlmsg_len = NLMSG_ALIGN(q->head.nlmsg_len) + NLA_ALIGN(a->nla_len);
	return a;
}

static inline void ends_here(const struct question *q, struct nlattr *outer)
{
	outer->nla_len = (const char *)q + q->head.nlmsg_len - (const char *)outer;
}

static inline void put_tuple(struct question *q, int protocol, const union endpoint *from, const union endpoint *to)
{
	int six = from->any.sa_family == AF_INET6;
	uint8_t number = protocol;
	uint16_t source = htons(endpoint_port(from)), destination = htons(endpoint_port(to));
	struct nlattr *tuple = attribute(q, CTA_TUPLE_REPLY | NLA_F_NESTED, "", 0);
	struct nlattr *inner = attribute(q, CTA_TUPLE_IP | NLA_F_NESTED, "", 0);

	if (six) {
		attribute(q, CTA_IP_V6_SRC, &from->v6.sin6_addr, 16);
		attribute(q, CTA_IP_V6_DST, &to->v6.sin6_addr, 16);
	} else {
		attribute(q, CTA_IP_V4_SRC, &from->v4.sin_addr, 4);
		attribute(q, CTA_IP_V4_DST, &to->v4.sin_addr, 4);
	}
	ends_here(q, inner);
	inner = attribute(q, CTA_TUPLE_PROTO | NLA_F_NESTED, "", 0);
	attribute(q, CTA_PROTO_NUM, &number, 1);
	attribute(q, CTA_PROTO_SRC_PORT, &source, 2);
	attribute(q, CTA_PROTO_DST_PORT, &destination, 2);
	ends_here(q, inner);
	ends_here(q, tuple);
}

/* Whether replies from `server` to `local` belong to an entry. 1 yes, 0 no, -1 cannot tell. */
static inline int conntrack_holds(int netlink, int protocol, const union endpoint *local, const union endpoint *server)
{
	struct question q = { 0 };
	char answer[8192];
	const struct nlmsghdr *head = (const struct nlmsghdr *)answer;

	q.head.nlmsg_len = NLMSG_LENGTH(sizeof(q.family));
	q.head.nlmsg_type = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET;
	q.head.nlmsg_flags = NLM_F_REQUEST;
	q.family.nfgen_family = local->any.sa_family;
	put_tuple(&q, protocol, server, local);
	if (send(netlink, &q, q.head.nlmsg_len, 0) < 0 || recv(netlink, answer, sizeof(answer), 0) < NLMSG_HDRLEN)
		return -1;
	if (head->nlmsg_type != NLMSG_ERROR)
		return 1;
	return ((const struct nlmsgerr *)NLMSG_DATA(head))->error == -2 /* ENOENT */ ? 0 : -1;
}

#endif
