/* The C core of natctl: netlink messages in, packed records out.
 *
 * Decoding (decode.c, flows.c, sockets.c) is pure: it allocates nothing, keeps nothing between calls and never trusts
 * a length it has not compared with the bytes it was given. Receiving (receive.c) is apart from it, and so is what
 * becomes of records: told apart by the slices (slices.c, uses.c, sieve.c), and found by their keys (index.c). Beside
 * them: connections from ports of slices (connect.c).
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

/* What a decoder needs to know beside the bytes; `sieve` is for receiving alone. */
struct nr_context {
	uint64_t seed[2];                /* of nr_flow.key */
	const struct nr_filter *filter;  /* of flows; NULL keeps everything */
	struct nr_sieve *sieve;          /* of received flows: what it does not keep leaves no record; NULL keeps all */
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

/* Ask for one entry of conntrack: give a ready request its number, send it, to which the kernel answers before send(2)
 * returns, and decode the answer; those to other numbers are passed over. Returns 0, or an errno: ENOENT where there is
 * none. */
int nr_ask_flow(int descriptor, uint8_t *request, size_t length, uint32_t number, struct nr_flow *flow);

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

/* The same for one long dump, which a thread of the pump receives while the caller decodes: until `capacity` records
 * are there, the dump is complete, or there is an error. The thread begins at once, and keeps up to `most` datagrams for
 * whoever decodes them. The descriptor must not be closed before the pump is freed. */
struct nr_pump;
struct nr_pump *nr_pump_new(int descriptor, int timeout_ms, size_t most);
void nr_pump_free(struct nr_pump *pump);
int nr_pump_flows(struct nr_pump *pump, const struct nr_context *context, struct nr_flow *records, size_t capacity,
		  struct nr_progress *progress);

/* A soft-unicast address. */
struct nr_soft {
	uint64_t address[2];
	uint32_t family;
	uint32_t reserved;
};

/* Ports of a slice: `place` is three times the number of its address, plus 0 for TCP, 1 for UDP, 2 for ICMP. */
struct nr_owned {
	uint32_t place;
	uint16_t first;
	uint16_t last;
	int32_t slice;
};

/* The use of a slice's ports towards one destination: USE_FIELDS of detect/uses.py, in the same order. */
struct nr_use {
	uint64_t server[2];
	uint32_t slice;
	uint32_t used;   /* distinct ports */
	uint32_t flows;
	uint32_t number; /* less than nr_sieve_numbers() */
	uint16_t port;   /* 0 where an echo id takes the place of ports */
	uint16_t zone;
	uint8_t family;
	uint8_t protocol;
	uint16_t reserved;
};

/* Tells the flows that detection has to see one by one from those that it is enough to count, and counts them: flows
 * of each slice, and ports in use of each (slice, protocol, destination, zone). Both lists of ranges are ordered by
 * place and first port and do not overlap: all ports of the slices, and those for packet rewriting. */
struct nr_sieve;
struct nr_sieve *nr_sieve_new(const struct nr_soft *addresses, size_t address_count, const struct nr_owned *owned,
			      size_t owned_count, const struct nr_owned *rewritten, size_t rewritten_count,
			      size_t slice_count);
void nr_sieve_free(struct nr_sieve *sieve);
/* Forget what was counted. Returns 0, or -1 where memory is lacking. */
int nr_sieve_reset(struct nr_sieve *sieve);
/* Count records in (sign 1) or out again (sign -1); `kept`, where given, says of each whether detection has to see it.
 * Returns 0, or -1 where memory is lacking. */
int nr_sieve_count(struct nr_sieve *sieve, const struct nr_flow *records, size_t count, int sign, uint8_t *kept);
/* Count records in, and move those that detection has to see to the front. Returns how many, or -1. */
int64_t nr_sieve_sift(struct nr_sieve *sieve, struct nr_flow *records, size_t count);
uint64_t nr_sieve_flows(const struct nr_sieve *sieve);
/* Flows of each slice; room for as many as there are slices. */
void nr_sieve_slices(const struct nr_sieve *sieve, uint64_t *flows);
/* All uses; returns how many there are, and writes up to `capacity`. */
size_t nr_sieve_uses(const struct nr_sieve *sieve, struct nr_use *uses, size_t capacity);
size_t nr_sieve_numbers(const struct nr_sieve *sieve);
/* Ports in use: `places` has a place for the number of each use, or -1. Returns how many ports there are, and writes up
 * to `capacity`, as place << 16 | port, in no order. */
size_t nr_sieve_ports(const struct nr_sieve *sieve, const int64_t *places, int64_t *ports, size_t capacity);
/* The zones of the flows that leave from a soft-unicast address: 65536 bits, ever seen since the last reset. */
void nr_sieve_zones(const struct nr_sieve *sieve, uint8_t *bits);

/* Which row of a table has the entry of which key; it also hands out the rows. */
struct nr_index;
struct nr_index *nr_index_new(size_t most);
void nr_index_free(struct nr_index *index);
size_t nr_index_count(const struct nr_index *index); /* entries */
size_t nr_index_rows(const struct nr_index *index);  /* rows ever handed out */
int64_t nr_index_find(const struct nr_index *index, uint64_t key); /* the row, or -1 */

/* What a batch of records does: places in the batch, and the rows they are for. Room for as many as the batch has. */
struct nr_steps {
	int64_t *new_rows, *new_at; /* to be written whole */
	int64_t *old_rows, *old_at; /* to be changed by what the record brings */
	int64_t *gone_rows;         /* given up; not handed out again before nr_index_release() */
	uint64_t new_count, old_count, gone_count, refused;
};

/* Take in events, in their order. Returns 0, or -1 where memory is lacking. */
int nr_index_apply(struct nr_index *index, const struct nr_flow *records, size_t count, struct nr_steps *steps);
/* Take in dumped entries: new ones, and those known already. An entry that ended since nr_index_journal() is neither. */
int nr_index_dump(struct nr_index *index, const struct nr_flow *records, size_t count, struct nr_steps *steps);
int nr_index_release(struct nr_index *index, const int64_t *rows, size_t count);
void nr_index_remove(struct nr_index *index, const uint64_t *keys, size_t count);
/* Begin (or end) to remember which entries end. Forgets those remembered so far. */
void nr_index_journal(struct nr_index *index, int wanted);
int nr_index_overflown(const struct nr_index *index); /* more have ended than can be remembered */

/* Where a connection goes from and to; addresses in network order, the first 4 bytes of one of IPv4. */
struct nr_ends {
	uint8_t src[16];
	uint8_t dst[16];
	uint32_t scope; /* of a link-local destination: the number of its device */
	uint16_t dport;
	uint16_t family; /* AF_INET, AF_INET6 */
	uint16_t kind;   /* SOCK_STREAM, SOCK_DGRAM */
};

/* How far a connection came. */
enum nr_step { NR_STEP_OPEN, NR_STEP_BIND, NR_STEP_CONNECT };

/* How a connection stands that was begun: 0 is connected, an errno is why it failed. */
enum nr_outcome { NR_CONNECTED = 0, NR_SILENT = -1, NR_INTERRUPTED_WAIT = -2 };

struct nr_connecting {
	int32_t outcome; /* enum nr_outcome, or the errno of the step or of the connection */
	uint16_t step;   /* enum nr_step */
	uint16_t port;   /* that the socket has */
};

/* Open a socket, bind it to a port, which `shared` (SO_REUSEADDR) lets others have towards other
 * destinations, and send its SYN; UDP: give it its destination. Returns the descriptor, or -1 where a step failed. The
 * outcome is NR_SILENT, and the socket does not block, unless the answer is there already. */
int nr_connect_at(const struct nr_ends *ends, uint16_t port, int shared, struct nr_connecting *begun);
/* The same from a port that the kernel picks from `first` to `last`. */
int nr_connect_in_range(const struct nr_ends *ends, uint16_t first, uint16_t last, struct nr_connecting *begun);

/* Wait for a connection that was begun; returns its outcome. NR_SILENT: nothing came in time. */
int nr_await_connection(int descriptor, int timeout_ms);

#endif
