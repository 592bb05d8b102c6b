/* The kernel's floor: receives what ctnetlink sends and counts it, nothing else.
 *
 *   listen dump      one dump of the whole table
 *   listen events    events until SIGTERM, with a receive buffer of 32 MiB
 */
#include <errno.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static volatile sig_atomic_t stopped;
static unsigned char buffer[65536];
static unsigned long messages, overruns;

static void stop(int number)
{
	(void)number;
	stopped = 1;
}

/* Count the messages of a datagram; tell whether the last one was the end of a dump. */
static int count(size_t length)
{
	size_t at = 0;

	while (at + sizeof(struct nlmsghdr) <= length) {
		const struct nlmsghdr *head = (const struct nlmsghdr *)(buffer + at);

		if (head->nlmsg_type == NLMSG_DONE || head->nlmsg_type == NLMSG_ERROR)
			return 1;
		messages++;
		at += NLMSG_ALIGN(head->nlmsg_len);
	}
	return 0;
}

static int dump(int netlink)
{
	struct {
		struct nlmsghdr head;
		struct nfgenmsg family;
	} request = {
		{sizeof(request), NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET, NLM_F_REQUEST | NLM_F_DUMP, 1, 0}, {0},
	};

	if (send(netlink, &request, sizeof(request), 0) < 0)
		return -1;
	for (;;) {
		ssize_t got = recv(netlink, buffer, sizeof(buffer), 0);

		if (got < 0 && errno != EINTR)
			return -1;
		if (got > 0 && count((size_t)got))
			return 0;
	}
}

static int events(int netlink)
{
	struct sockaddr_nl self = {.nl_family = AF_NETLINK, .nl_groups = 1 << (NFNLGRP_CONNTRACK_NEW - 1) |
		1 << (NFNLGRP_CONNTRACK_UPDATE - 1) | 1 << (NFNLGRP_CONNTRACK_DESTROY - 1)};
	struct sigaction action = {.sa_handler = stop};
	int half = 16 << 20;

	sigaction(SIGTERM, &action, NULL);
	if (setsockopt(netlink, SOL_SOCKET, SO_RCVBUFFORCE, &half, sizeof(half)) < 0 ||
	    bind(netlink, (struct sockaddr *)&self, sizeof(self)) < 0)
		return -1;
	while (!stopped) {
		ssize_t got = recv(netlink, buffer, sizeof(buffer), 0);

		if (got > 0)
			count((size_t)got);
		else if (errno == ENOBUFS)
			overruns++;
		else if (errno != EINTR)
			return -1;
	}
	return 0;
}

int main(int argc, char **argv)
{
	int netlink = socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER);

	if (argc != 2 || netlink < 0 || (strcmp(argv[1], "dump") ? events(netlink) : dump(netlink)) < 0)
		return perror("listen"), 1;
	printf("{\"messages\": %lu, \"overruns\": %lu}\n", messages, overruns);
	return 0;
}
