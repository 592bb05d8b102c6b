/* One question to conntrack and its answer, without a way through the interpreter in between. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/netlink.h>
#include <sys/socket.h>

#include "decode.h"

/* An entry takes some 300 bytes, a few hundred more with labels and the like. */
enum { ANSWER_BYTES = 4096 };

/* Returns 0, the errno that the kernel answered with, or EPROTO for an answer that is neither. */
static int read_answer(const uint8_t *bytes, size_t length, struct nr_flow *flow)
{
	const struct nr_context everything = {.families = 1 << 4 | 1 << 6};
	struct nr_progress progress = {0};
	int problem = nr_decode_flows(bytes, length, &everything, flow, 1, &progress);

	if (problem || (!progress.records && !progress.error))
		return EPROTO;
	return progress.records ? 0 : progress.error;
}

int nr_ask_flow(int descriptor, uint8_t *request, size_t length, uint32_t number, struct nr_flow *flow)
{
	_Alignas(struct nlmsghdr) uint8_t answer[ANSWER_BYTES];
	const struct nlmsghdr *header = (const struct nlmsghdr *)answer;

	memcpy(request + offsetof(struct nlmsghdr, nlmsg_seq), &number, sizeof(number));
	if (send(descriptor, request, length, 0) < 0)
		return errno;
	for (;;) {
		ssize_t got = recv(descriptor, answer, sizeof(answer), MSG_DONTWAIT);

		if (got < 0)
			return errno;
		if (got >= (ssize_t)sizeof(*header) && header->nlmsg_seq == number)
			return read_answer(answer, (size_t)got, flow);
	}
}
