/* ctnetlink messages (dumps, single answers and events alike) into struct nr_flow.
 * What the kernel writes: net/netfilter/nf_conntrack_netlink.c, ctnetlink_fill_info() and ctnetlink_conntrack_event(). */
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "decode.h"
#include "siphash.h"

/* One direction, while its attributes are read. */
struct tuple {
	uint64_t src[2], dst[2];
	uint16_t sport, dport, zone;
	uint8_t protocol, icmp_type, icmp_code;
	uint8_t has_tuple, has_src, has_dst, has_protocol, has_zone;
};

enum { ZONE_BOTH, ZONE_ORIGINAL, ZONE_REPLY };

/* A tuple does not say its family: it has to have the addresses of the family of its message. */
static int read_address(const struct nr_attribute *attribute, int wanted, int family, uint64_t address[2], uint8_t *has)
{
	if (wanted != family)
		return NR_FAMILY_MISMATCH;
	if (attribute->length != (family == AF_INET ? 4 : 16))
		return NR_ATTRIBUTE_SIZE;
	address[0] = family == AF_INET ? 0 : nr_load_u64(attribute->value);
	address[1] = family == AF_INET ? nr_load_u32(attribute->value) : nr_load_u64(attribute->value + 8);
	*has = 1;
	return NR_OK;
}

static int read_addresses(struct nr_rest rest, int family, struct tuple *tuple, struct nr_progress *progress)
{
	struct nr_attribute attribute;
	int problem;

	while (!(problem = nr_next_attribute(&rest, &attribute)) && attribute.value) {
		switch (attribute.type) {
		case CTA_IP_V4_SRC:
			problem = read_address(&attribute, AF_INET, family, tuple->src, &tuple->has_src);
			break;
		case CTA_IP_V4_DST:
			problem = read_address(&attribute, AF_INET, family, tuple->dst, &tuple->has_dst);
			break;
		case CTA_IP_V6_SRC:
			problem = read_address(&attribute, AF_INET6, family, tuple->src, &tuple->has_src);
			break;
		case CTA_IP_V6_DST:
			problem = read_address(&attribute, AF_INET6, family, tuple->dst, &tuple->has_dst);
			break;
		default:
			progress->unknown_attributes++;
		}
		if (problem)
			return problem;
	}
	return problem;
}

/* The echo id stands for both ports, so that the reply's destination port is what is seen on the wire everywhere. */
static int read_echo_id(const struct nr_attribute *attribute, struct tuple *tuple)
{
	int problem = nr_read_u16(attribute, &tuple->sport);

	tuple->dport = tuple->sport;
	return problem;
}

static int read_protocol_attribute(const struct nr_attribute *attribute, struct tuple *tuple,
				   struct nr_progress *progress)
{
	switch (attribute->type) {
	case CTA_PROTO_NUM:
		tuple->has_protocol = 1;
		return nr_read_u8(attribute, &tuple->protocol);
	case CTA_PROTO_SRC_PORT:
		return nr_read_u16(attribute, &tuple->sport);
	case CTA_PROTO_DST_PORT:
		return nr_read_u16(attribute, &tuple->dport);
	case CTA_PROTO_ICMP_ID:
	case CTA_PROTO_ICMPV6_ID:
		return read_echo_id(attribute, tuple);
	case CTA_PROTO_ICMP_TYPE:
	case CTA_PROTO_ICMPV6_TYPE:
		return nr_read_u8(attribute, &tuple->icmp_type);
	case CTA_PROTO_ICMP_CODE:
	case CTA_PROTO_ICMPV6_CODE:
		return nr_read_u8(attribute, &tuple->icmp_code);
	default:
		progress->unknown_attributes++;
		return NR_OK;
	}
}

static int read_protocol(struct nr_rest rest, struct tuple *tuple, struct nr_progress *progress)
{
	struct nr_attribute attribute;
	int problem;

	while (!(problem = nr_next_attribute(&rest, &attribute)) && attribute.value) {
		problem = read_protocol_attribute(&attribute, tuple, progress);
		if (problem)
			return problem;
	}
	return problem;
}

static int read_tuple(struct nr_rest rest, int family, struct tuple *tuple, struct nr_progress *progress)
{
	struct nr_attribute attribute;
	int problem;

	tuple->has_tuple = 1;
	while (!(problem = nr_next_attribute(&rest, &attribute)) && attribute.value) {
		switch (attribute.type) {
		case CTA_TUPLE_IP:
			problem = read_addresses(nr_nested(&attribute), family, tuple, progress);
			break;
		case CTA_TUPLE_PROTO:
			problem = read_protocol(nr_nested(&attribute), tuple, progress);
			break;
		case CTA_TUPLE_ZONE:
			tuple->has_zone = 1;
			problem = nr_read_u16(&attribute, &tuple->zone);
			break;
		default:
			progress->unknown_attributes++;
		}
		if (problem)
			return problem;
	}
	return problem;
}

static int read_counters(struct nr_rest rest, int direction, struct nr_flow *flow, struct nr_progress *progress)
{
	struct nr_attribute attribute;
	int problem;

	while (!(problem = nr_next_attribute(&rest, &attribute)) && attribute.value) {
		switch (attribute.type) {
		case CTA_COUNTERS_PACKETS:
			problem = nr_read_u64(&attribute, &flow->packets[direction]);
			break;
		case CTA_COUNTERS_BYTES:
			problem = nr_read_u64(&attribute, &flow->bytes[direction]);
			break;
		case CTA_COUNTERS_PAD:
			break;
		default:
			progress->unknown_attributes++;
		}
		if (problem)
			return problem;
	}
	flow->present |= NR_PRESENT_COUNTERS;
	return problem;
}

static int read_timestamps(struct nr_rest rest, struct nr_flow *flow, struct nr_progress *progress)
{
	struct nr_attribute attribute;
	int problem;

	while (!(problem = nr_next_attribute(&rest, &attribute)) && attribute.value) {
		switch (attribute.type) {
		case CTA_TIMESTAMP_START:
			problem = nr_read_u64(&attribute, &flow->start_ns);
			break;
		case CTA_TIMESTAMP_STOP:
			problem = nr_read_u64(&attribute, &flow->stop_ns);
			break;
		case CTA_TIMESTAMP_PAD:
			break;
		default:
			progress->unknown_attributes++;
		}
		if (problem)
			return problem;
	}
	flow->present |= NR_PRESENT_TIMESTAMP;
	return problem;
}

static int read_tcp_info(struct nr_rest rest, struct nr_flow *flow, struct nr_progress *progress)
{
	struct nr_attribute attribute;
	int problem;

	while (!(problem = nr_next_attribute(&rest, &attribute)) && attribute.value) {
		if (attribute.type == CTA_PROTOINFO_TCP_STATE) {
			problem = nr_read_u8(&attribute, &flow->tcp_state);
			flow->present |= NR_PRESENT_TCP_STATE;
		} else if (attribute.type > CTA_PROTOINFO_TCP_MAX) {
			progress->unknown_attributes++;
		}
		if (problem)
			return problem;
	}
	return problem;
}

static int read_protocol_info(struct nr_rest rest, struct nr_flow *flow, struct nr_progress *progress)
{
	struct nr_attribute attribute;
	int problem;

	while (!(problem = nr_next_attribute(&rest, &attribute)) && attribute.value) {
		if (attribute.type == CTA_PROTOINFO_TCP)
			problem = read_tcp_info(nr_nested(&attribute), flow, progress);
		else if (attribute.type > CTA_PROTOINFO_MAX)
			progress->unknown_attributes++;
		if (problem)
			return problem;
	}
	return problem;
}

static int read_present_u32(const struct nr_attribute *attribute, uint32_t *value, struct nr_flow *flow, int present)
{
	flow->present |= present;
	return nr_read_u32(attribute, value);
}

static int read_entry_attribute(const struct nr_attribute *attribute, int family, struct nr_flow *flow,
				struct tuple tuples[2], struct nr_progress *progress)
{
	switch (attribute->type) {
	case CTA_TUPLE_ORIG:
		return read_tuple(nr_nested(attribute), family, &tuples[0], progress);
	case CTA_TUPLE_REPLY:
		return read_tuple(nr_nested(attribute), family, &tuples[1], progress);
	case CTA_STATUS:
		return read_present_u32(attribute, &flow->status, flow, NR_PRESENT_STATUS);
	case CTA_TIMEOUT:
		return read_present_u32(attribute, &flow->timeout_s, flow, NR_PRESENT_TIMEOUT);
	case CTA_MARK:
		return read_present_u32(attribute, &flow->mark, flow, NR_PRESENT_MARK);
	case CTA_ID:
		return read_present_u32(attribute, &flow->id, flow, NR_PRESENT_ID);
	case CTA_ZONE:
		flow->present |= NR_PRESENT_ZONE;
		return nr_read_u16(attribute, &flow->zone);
	case CTA_COUNTERS_ORIG:
		return read_counters(nr_nested(attribute), 0, flow, progress);
	case CTA_COUNTERS_REPLY:
		return read_counters(nr_nested(attribute), 1, flow, progress);
	case CTA_TIMESTAMP:
		return read_timestamps(nr_nested(attribute), flow, progress);
	case CTA_PROTOINFO:
		return read_protocol_info(nr_nested(attribute), flow, progress);
	default:
		if (attribute->type > CTA_MAX)
			progress->unknown_attributes++;
		return NR_OK;
	}
}

static int check_tuples(const struct tuple tuples[2])
{
	for (int direction = 0; direction < 2; direction++) {
		if (!tuples[direction].has_tuple)
			return NR_TUPLE_MISSING;
		if (!tuples[direction].has_src || !tuples[direction].has_dst)
			return NR_ADDRESS_MISSING;
		if (!tuples[direction].has_protocol)
			return NR_PROTOCOL_MISSING;
	}
	return NR_OK;
}

/* A zone of both directions is an attribute of the entry, a zone of one direction is one of that tuple. */
static void set_zone(struct nr_flow *flow, const struct tuple tuples[2])
{
	for (int direction = 0; direction < 2; direction++) {
		if (!tuples[direction].has_zone)
			continue;
		flow->zone = tuples[direction].zone;
		flow->zone_direction = direction == 0 ? ZONE_ORIGINAL : ZONE_REPLY;
		flow->present |= NR_PRESENT_ZONE;
	}
}

static void set_tuples(struct nr_flow *flow, const struct tuple tuples[2])
{
	memcpy(flow->orig_src, tuples[0].src, sizeof(flow->orig_src));
	memcpy(flow->orig_dst, tuples[0].dst, sizeof(flow->orig_dst));
	memcpy(flow->reply_src, tuples[1].src, sizeof(flow->reply_src));
	memcpy(flow->reply_dst, tuples[1].dst, sizeof(flow->reply_dst));
	flow->orig_sport = tuples[0].sport;
	flow->orig_dport = tuples[0].dport;
	flow->reply_sport = tuples[1].sport;
	flow->reply_dport = tuples[1].dport;
	flow->protocol = tuples[0].protocol;
	flow->icmp_type = tuples[0].icmp_type;
	flow->icmp_code = tuples[0].icmp_code;
}

/* What the kernel tells entries apart by: the original tuple (of ICMP its type and code as well) and the zone. */
uint64_t nr_flow_key(const struct nr_flow *flow, const uint64_t seed[2])
{
	const uint64_t words[6] = {
		flow->orig_src[0],
		flow->orig_src[1],
		flow->orig_dst[0],
		flow->orig_dst[1],
		(uint64_t)flow->orig_sport << 48 | (uint64_t)flow->orig_dport << 32 | (uint64_t)flow->zone << 16 |
			(uint64_t)flow->protocol << 8 | flow->family,
		(uint64_t)flow->icmp_type << 16 | (uint64_t)flow->icmp_code << 8 | flow->zone_direction,
	};

	return nr_siphash(seed, words, sizeof(words) / sizeof(words[0]));
}

/* An event of a new entry has NLM_F_CREATE | NLM_F_EXCL, one of a change has neither: ctnetlink_conntrack_event(). */
static uint8_t event_of(const struct nlmsghdr *header, const struct nr_context *context)
{
	if (NFNL_MSG_TYPE(header->nlmsg_type) == IPCTNL_MSG_CT_DELETE)
		return NR_EVENT_DESTROY;
	if (!context->events)
		return NR_EVENT_DUMP;
	return header->nlmsg_flags & (NLM_F_CREATE | NLM_F_EXCL) ? NR_EVENT_NEW : NR_EVENT_UPDATE;
}

static int read_entry(struct nr_rest rest, int family, struct nr_flow *flow, struct nr_progress *progress)
{
	struct tuple tuples[2] = {{.has_tuple = 0}};
	struct nr_attribute attribute;
	int problem;

	while (!(problem = nr_next_attribute(&rest, &attribute)) && attribute.value) {
		problem = read_entry_attribute(&attribute, family, flow, tuples, progress);
		if (problem)
			return problem;
	}
	if (!problem)
		problem = check_tuples(tuples);
	if (problem)
		return problem;
	set_tuples(flow, tuples);
	set_zone(flow, tuples);
	flow->family = family == AF_INET ? 4 : 6;
	return NR_OK;
}

static int is_entry(const struct nlmsghdr *header)
{
	int type = NFNL_MSG_TYPE(header->nlmsg_type);

	return NFNL_SUBSYS_ID(header->nlmsg_type) == NFNL_SUBSYS_CTNETLINK &&
	       (type == IPCTNL_MSG_CT_NEW || type == IPCTNL_MSG_CT_DELETE);
}

static int take_flow(const struct nlmsghdr *header, struct nr_rest payload, const struct nr_context *context,
		     void *records, struct nr_progress *progress)
{
	struct nr_flow *flow = (struct nr_flow *)records + progress->records;
	size_t family_header = NLMSG_ALIGN(sizeof(struct nfgenmsg));
	int family, problem;

	if (!is_entry(header)) {
		progress->foreign_messages++;
		return NR_OK;
	}
	if ((size_t)(payload.end - payload.at) < family_header)
		return NR_FAMILY_HEADER_CUT;
	family = payload.at[offsetof(struct nfgenmsg, nfgen_family)];
	if (family != AF_INET && family != AF_INET6) {
		progress->foreign_messages++;
		return NR_OK;
	}
	payload.at += family_header;
	memset(flow, 0, sizeof(*flow));
	problem = read_entry(payload, family, flow, progress);
	if (problem)
		return problem;
	flow->event = event_of(header, context);
	if (context->filter && !nr_matches(flow, context->filter))
		return NR_OK;
	if (!context->sieve) /* most are only counted: the others get their keys afterwards */
		flow->key = nr_flow_key(flow, context->seed);
	progress->records++;
	return NR_OK;
}

int nr_decode_flows(const uint8_t *bytes, size_t length, const struct nr_context *context, struct nr_flow *records,
		    size_t capacity, struct nr_progress *progress)
{
	return nr_walk(bytes, length, take_flow, context, records, capacity, progress);
}
