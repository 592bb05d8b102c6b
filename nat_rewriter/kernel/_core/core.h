/* The C core of natctl: netlink messages in, packed records out.
 *
 * Decoding (decode.c, flows.c, sockets.c) is pure: it allocates nothing, keeps nothing between calls and never trusts
 * a length it has not compared with the bytes it was given. Receiving (receive.c) is apart from it.
 */
#ifndef NATCTL_CORE_H
#define NATCTL_CORE_H

#include <stddef.h>
#include <stdint.h>

/* One conntrack entry: FLOW_FIELDS of model/flows.py, in the same order. No padding: tests compare the offsets. */
struct nr_flow {
	uint64_t key;
	uint64_t orig_src[2];
	uint64_t orig_dst[2];
	uint64_t reply_src[2];
	uint64_t reply_dst[2];
	uint64_t packets[2];
	uint64_t bytes[2];
	uint64_t start_ns;
	uint64_t stop_ns;
	uint16_t orig_sport;
	uint16_t orig_dport;
	uint16_t reply_sport;
	uint16_t reply_dport;
	uint32_t status;
	uint32_t mark;
	uint32_t id;
	uint32_t timeout_s;
	uint16_t zone;
	uint16_t present;
	uint8_t family;
	uint8_t protocol;
	uint8_t tcp_state;
	uint8_t event;
	uint8_t icmp_type;
	uint8_t icmp_code;
	uint8_t zone_direction;
	uint8_t reserved;
	uint32_t reserved2;
};

/* One socket of sock_diag: SOCKET_FIELDS of model/sockets.py, in the same order. */
struct nr_socket {
	uint64_t src[2];
	uint64_t dst[2];
	uint64_t cookie;
	uint32_t inode;
	uint32_t uid;
	uint32_t ifindex;
	uint16_t sport;
	uint16_t dport;
	uint8_t family;
	uint8_t protocol;
	uint8_t state;
	uint8_t reserved;
	uint32_t reserved2;
};

/* nr_flow.event: Event of model/flows.py. */
enum nr_event { NR_EVENT_DUMP, NR_EVENT_NEW, NR_EVENT_UPDATE, NR_EVENT_DESTROY };

/* nr_flow.present: Present of model/flows.py. */
enum nr_present {
	NR_PRESENT_COUNTERS = 1,
	NR_PRESENT_TIMESTAMP = 2,
	NR_PRESENT_TIMEOUT = 4,
	NR_PRESENT_TCP_STATE = 8,
	NR_PRESENT_MARK = 16,
	NR_PRESENT_ZONE = 32,
	NR_PRESENT_ID = 64,
	NR_PRESENT_STATUS = 128,
};

/* Which fields of nr_filter.wanted a record must equal. */
enum nr_match {
	NR_MATCH_FAMILY = 1 << 0,
	NR_MATCH_PROTOCOL = 1 << 1,
	NR_MATCH_ZONE = 1 << 2,
	NR_MATCH_ORIG_SRC = 1 << 3,
	NR_MATCH_ORIG_DST = 1 << 4,
	NR_MATCH_ORIG_SPORT = 1 << 5,
	NR_MATCH_ORIG_DPORT = 1 << 6,
	NR_MATCH_REPLY_SRC = 1 << 7,
	NR_MATCH_REPLY_DST = 1 << 8,
	NR_MATCH_REPLY_SPORT = 1 << 9,
	NR_MATCH_REPLY_DPORT = 1 << 10,
};

/* What to keep of a dump. All zero keeps everything. */
struct nr_filter {
	uint32_t fields; /* enum nr_match */
	uint32_t status_mask;
	uint32_t mark_mask;
	struct nr_flow wanted;
};

/* What a decoder needs to know beside the bytes. */
struct nr_context {
	uint64_t seed[2];                /* of nr_flow.key */
	const struct nr_filter *filter;  /* of flows; NULL keeps everything */
	uint8_t events;                  /* flows: whether NEW messages are events, or entries that were asked for */
	uint8_t protocol;                /* sockets: the protocol that was asked for (the answer does not repeat it) */
	uint16_t families;               /* sockets: bits 1 << 4 and 1 << 6 */
};

/* nr_progress.flags: what was met on the way. */
enum nr_flag {
	NR_DONE = 1,         /* NLMSG_DONE: the dump is complete (or ended with `error`) */
	NR_ANSWERED = 2,     /* NLMSG_ERROR: acknowledged (`error` 0) or refused (`error` an errno) */
	NR_OVERRUN = 4,      /* NLMSG_OVERRUN: data was lost */
	NR_INTERRUPTED = 8,  /* NLM_F_DUMP_INTR: the table changed so that the dump is not consistent */
	NR_DRAINED = 16,     /* receive: nothing was left to read */
	NR_SIGNAL = 32,      /* receive: a signal arrived while waiting */
};

/* How far a call came. The caller sets it to zero before the first call. */
struct nr_progress {
	uint64_t offset;              /* decode: the byte to go on from; of the message that is wrong, after a problem */
	uint64_t records;             /* written so far */
	uint64_t messages;            /* seen so far, also those that are no record */
	uint64_t unknown_attributes;  /* skipped so far */
	uint64_t foreign_messages;    /* skipped so far: of another subsystem, type or family */
	uint64_t overruns;            /* receive: how often the kernel said ENOBUFS */
	uint32_t flags;               /* enum nr_flag */
	int32_t error;                /* errno, positive; of the kernel's answer or of the receiving call */
};

/* Why bytes are not what the kernel writes. nr_problem_text() has the words. */
enum nr_problem {
	NR_OK,
	NR_HEADER_CUT,
	NR_MESSAGE_LENGTH,
	NR_FAMILY_HEADER_CUT,
	NR_ATTRIBUTE_CUT,
	NR_ATTRIBUTE_LENGTH,
	NR_ATTRIBUTE_SIZE,
	NR_TUPLE_MISSING,
	NR_ADDRESS_MISSING,
	NR_PROTOCOL_MISSING,
	NR_FAMILY_MISMATCH,
	NR_ANSWER_CUT,
	NR_SOCKET_CUT,
	NR_DATAGRAM_CUT,
	NR_PROBLEMS,
};

const char *nr_problem_text(int problem);

/* Decode one datagram from progress->offset on, until its end, the end of a dump, or `capacity` records. Records go to
 * records[progress->records] and on. Returns an enum nr_problem. */
int nr_decode_flows(const uint8_t *bytes, size_t length, const struct nr_context *context, struct nr_flow *records,
		    size_t capacity, struct nr_progress *progress);
int nr_decode_sockets(const uint8_t *bytes, size_t length, const struct nr_context *context,
		      struct nr_socket *records, size_t capacity, struct nr_progress *progress);

/* A netlink socket being read: datagrams that were received and not yet decoded stay in it between calls. */
struct nr_receiver;
struct nr_receiver *nr_receiver_new(int descriptor, unsigned int datagrams, size_t datagram_bytes);
void nr_receiver_free(struct nr_receiver *receiver);

/* Receive and decode until `capacity` records are there or the answer is complete (`until_done`), or nothing more is
 * to be read. Waits up to timeout_ms (-1: without end) for the next datagram; without until_done only when there is no
 * record yet. Returns an enum nr_problem; the records before it are there, the rest of its datagram is skipped. */
int nr_receive_flows(struct nr_receiver *receiver, const struct nr_context *context, struct nr_flow *records,
		     size_t capacity, int until_done, int timeout_ms, struct nr_progress *progress);
int nr_receive_sockets(struct nr_receiver *receiver, const struct nr_context *context, struct nr_socket *records,
		       size_t capacity, int until_done, int timeout_ms, struct nr_progress *progress);

#endif
