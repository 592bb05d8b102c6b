/* Reading a netlink socket, many datagrams a call. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "decode.h"

struct nr_receiver {
	int descriptor;
	unsigned int datagrams;  /* that fit */
	unsigned int filled;     /* datagrams received */
	unsigned int current;    /* datagram being decoded */
	uint64_t offset;         /* byte of it to go on from */
	size_t datagram_bytes;
	struct mmsghdr *headers;
	struct iovec *vectors;
	struct sockaddr_nl *senders;
	uint8_t *bytes;
};

typedef int decode_datagram(const uint8_t *bytes, size_t length, const struct nr_context *context, void *records,
			    size_t capacity, struct nr_progress *progress);

void nr_receiver_free(struct nr_receiver *receiver)
{
	if (!receiver)
		return;
	free(receiver->headers);
	free(receiver->vectors);
	free(receiver->senders);
	free(receiver->bytes);
	free(receiver);
}

static void point_headers(struct nr_receiver *receiver)
{
	for (unsigned int i = 0; i < receiver->datagrams; i++) {
		receiver->vectors[i].iov_base = receiver->bytes + i * receiver->datagram_bytes;
		receiver->vectors[i].iov_len = receiver->datagram_bytes;
		receiver->headers[i].msg_hdr.msg_iov = &receiver->vectors[i];
		receiver->headers[i].msg_hdr.msg_iovlen = 1;
		receiver->headers[i].msg_hdr.msg_name = &receiver->senders[i];
	}
}

struct nr_receiver *nr_receiver_new(int descriptor, unsigned int datagrams, size_t datagram_bytes)
{
	struct nr_receiver *receiver = calloc(1, sizeof(*receiver));

	if (!receiver)
		return NULL;
	receiver->descriptor = descriptor;
	receiver->datagrams = datagrams;
	receiver->datagram_bytes = datagram_bytes;
	receiver->headers = calloc(datagrams, sizeof(*receiver->headers));
	receiver->vectors = calloc(datagrams, sizeof(*receiver->vectors));
	receiver->senders = calloc(datagrams, sizeof(*receiver->senders));
	receiver->bytes = calloc(datagrams, datagram_bytes);
	if (!receiver->headers || !receiver->vectors || !receiver->senders || !receiver->bytes) {
		nr_receiver_free(receiver);
		return NULL;
	}
	point_headers(receiver);
	return receiver;
}

static void next_datagram(struct nr_receiver *receiver)
{
	receiver->current++;
	receiver->offset = 0;
}

/* Decode one received datagram; it is left when it is used up or wrong. */
static int decode_current(struct nr_receiver *receiver, decode_datagram *decode, const struct nr_context *context,
			  void *records, size_t capacity, struct nr_progress *progress)
{
	const struct mmsghdr *header = &receiver->headers[receiver->current];
	int problem;

	if (header->msg_hdr.msg_flags & MSG_TRUNC) {
		next_datagram(receiver);
		return NR_DATAGRAM_CUT;
	}
	progress->offset = receiver->offset;
	problem = decode(receiver->vectors[receiver->current].iov_base, header->msg_len, context, records, capacity,
			 progress);
	receiver->offset = progress->offset;
	if (problem || receiver->offset >= header->msg_len)
		next_datagram(receiver);
	return problem;
}

static int decode_filled(struct nr_receiver *receiver, decode_datagram *decode, const struct nr_context *context,
			 void *records, size_t capacity, struct nr_progress *progress)
{
	int problem = NR_OK;

	while (!problem && receiver->current < receiver->filled && progress->records < capacity) {
		/* Only the kernel, port id 0, is believed. */
		if (receiver->senders[receiver->current].nl_pid != 0)
			next_datagram(receiver);
		else
			problem = decode_current(receiver, decode, context, records, capacity, progress);
	}
	return problem;
}

/* Wait until something is there. Returns 1 when it is, else 0 with the reason in progress. */
static int wait_readable(struct nr_receiver *receiver, int timeout_ms, struct nr_progress *progress)
{
	struct pollfd poll_for = {.fd = receiver->descriptor, .events = POLLIN};
	int ready;

	progress->flags |= NR_DRAINED;
	if (timeout_ms == 0)
		return 0;
	ready = poll(&poll_for, 1, timeout_ms);
	if (ready > 0)
		return 1;
	if (ready < 0 && errno == EINTR)
		progress->flags |= NR_SIGNAL;
	else if (ready < 0)
		progress->error = errno;
	return 0;
}

static void reset_headers(struct nr_receiver *receiver)
{
	for (unsigned int i = 0; i < receiver->datagrams; i++)
		receiver->headers[i].msg_hdr.msg_namelen = sizeof(receiver->senders[i]);
	receiver->filled = 0;
	receiver->current = 0;
	receiver->offset = 0;
}

/* Receive what is there. Returns 1 when there is something to decode, else 0 with the reason in progress. */
static int refill(struct nr_receiver *receiver, int timeout_ms, struct nr_progress *progress)
{
	for (;;) {
		int got;

		reset_headers(receiver);
		got = recvmmsg(receiver->descriptor, receiver->headers, receiver->datagrams, MSG_DONTWAIT, NULL);
		if (got > 0) {
			receiver->filled = (unsigned int)got;
			return 1;
		}
		if (got < 0 && errno == ENOBUFS) {
			progress->overruns++;
		} else if (got < 0 && errno != EAGAIN && errno != EINTR) {
			progress->error = errno;
			return 0;
		} else if (got == 0 || errno == EAGAIN) {
			if (!wait_readable(receiver, timeout_ms, progress))
				return 0;
		}
	}
}

static int receive(struct nr_receiver *receiver, decode_datagram *decode, const struct nr_context *context,
		   void *records, size_t capacity, int until_done, int timeout_ms, struct nr_progress *progress)
{
	for (;;) {
		int problem = decode_filled(receiver, decode, context, records, capacity, progress);

		if (problem || progress->records >= capacity)
			return problem;
		if (until_done && progress->flags & (NR_DONE | NR_ANSWERED))
			return NR_OK;
		if (!refill(receiver, until_done || !progress->records ? timeout_ms : 0, progress))
			return NR_OK;
	}
}

/* What a sieve does not keep leaves no record: the next one is written over it. */
static int sift(const struct nr_context *context, struct nr_flow *records, struct nr_progress *progress, uint64_t before)
{
	int64_t kept = nr_sieve_sift(context->sieve, records + before, progress->records - before);

	progress->records = before;
	if (kept < 0)
		return -1;
	for (; kept > 0; kept--, progress->records++)
		records[progress->records].key = nr_flow_key(&records[progress->records], context->seed);
	return 0;
}

int nr_decode_sifted(const uint8_t *bytes, size_t length, const struct nr_context *context, void *records,
		     size_t capacity, struct nr_progress *progress)
{
	uint64_t before = progress->records;
	int problem = nr_decode_flows(bytes, length, context, records, capacity, progress);

	if (context->sieve && sift(context, records, progress, before))
		progress->error = ENOMEM;
	return problem;
}

static int decode_sockets(const uint8_t *bytes, size_t length, const struct nr_context *context, void *records,
			  size_t capacity, struct nr_progress *progress)
{
	return nr_decode_sockets(bytes, length, context, records, capacity, progress);
}

int nr_receive_flows(struct nr_receiver *receiver, const struct nr_context *context, struct nr_flow *records,
		     size_t capacity, int until_done, int timeout_ms, struct nr_progress *progress)
{
	return receive(receiver, nr_decode_sifted, context, records, capacity, until_done, timeout_ms, progress);
}

int nr_receive_sockets(struct nr_receiver *receiver, const struct nr_context *context, struct nr_socket *records,
		       size_t capacity, int until_done, int timeout_ms, struct nr_progress *progress)
{
	return receive(receiver, decode_sockets, context, records, capacity, until_done, timeout_ms, progress);
}
