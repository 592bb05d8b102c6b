/* Shared by the decoders: reading numbers, attributes and messages out of bytes that nobody vouches for. */
#ifndef NATCTL_DECODE_H
#define NATCTL_DECODE_H

#include <linux/netlink.h>
#include <string.h>

#include "core.h"

/* The bytes that are left of a message or of a nested attribute. */
struct nr_rest {
	const uint8_t *at;
	const uint8_t *end;
};

struct nr_attribute {
	uint16_t type;
	size_t length;
	const uint8_t *value;
};

/* Tells how a message that is not the transport's own becomes a record. Returns an enum nr_problem. */
typedef int nr_take_message(const struct nlmsghdr *header, struct nr_rest payload, const struct nr_context *context,
			    void *records, struct nr_progress *progress);

int nr_walk(const uint8_t *bytes, size_t length, nr_take_message *take, const struct nr_context *context, void *records,
	    size_t capacity, struct nr_progress *progress);

uint64_t nr_flow_key(const struct nr_flow *flow, const uint64_t seed[2]);

/* nr_decode_flows(), and what the sieve of the context makes of it. */
int nr_decode_sifted(const uint8_t *bytes, size_t length, const struct nr_context *context, void *records,
		     size_t capacity, struct nr_progress *progress);

int nr_matches(const struct nr_flow *flow, const struct nr_filter *filter);

static inline uint16_t nr_load_u16(const uint8_t *at)
{
	return (uint16_t)(at[0] << 8 | at[1]);
}

static inline uint32_t nr_load_u32(const uint8_t *at)
{
	uint32_t value;

	memcpy(&value, at, sizeof(value));
	return __builtin_bswap32(value);
}

static inline uint64_t nr_load_u64(const uint8_t *at)
{
	return (uint64_t)nr_load_u32(at) << 32 | nr_load_u32(at + 4);
}

/* Take the next attribute off the rest. Returns an enum nr_problem; found->value is NULL at the end. */
static inline int nr_next_attribute(struct nr_rest *rest, struct nr_attribute *found)
{
	size_t left = (size_t)(rest->end - rest->at), padded;
	struct nlattr header;

	found->value = NULL;
	if (left == 0)
		return NR_OK;
	if (left < NLA_HDRLEN)
		return NR_ATTRIBUTE_CUT;
	memcpy(&header, rest->at, sizeof(header));
	if (header.nla_len < NLA_HDRLEN || header.nla_len > left)
		return NR_ATTRIBUTE_LENGTH;
	found->type = header.nla_type & NLA_TYPE_MASK;
	found->length = header.nla_len - NLA_HDRLEN;
	found->value = rest->at + NLA_HDRLEN;
	/* The last attribute of the last message may lack its padding. */
	padded = NLA_ALIGN((size_t)header.nla_len);
	rest->at += padded < left ? padded : left;
	return NR_OK;
}

static inline struct nr_rest nr_nested(const struct nr_attribute *attribute)
{
	return (struct nr_rest){attribute->value, attribute->value + attribute->length};
}

static inline int nr_read_u8(const struct nr_attribute *attribute, uint8_t *value)
{
	if (attribute->length != 1)
		return NR_ATTRIBUTE_SIZE;
	*value = attribute->value[0];
	return NR_OK;
}

static inline int nr_read_u16(const struct nr_attribute *attribute, uint16_t *value)
{
	if (attribute->length != 2)
		return NR_ATTRIBUTE_SIZE;
	*value = nr_load_u16(attribute->value);
	return NR_OK;
}

static inline int nr_read_u32(const struct nr_attribute *attribute, uint32_t *value)
{
	if (attribute->length != 4)
		return NR_ATTRIBUTE_SIZE;
	*value = nr_load_u32(attribute->value);
	return NR_OK;
}

static inline int nr_read_u64(const struct nr_attribute *attribute, uint64_t *value)
{
	if (attribute->length != 8)
		return NR_ATTRIBUTE_SIZE;
	*value = nr_load_u64(attribute->value);
	return NR_OK;
}

#endif
