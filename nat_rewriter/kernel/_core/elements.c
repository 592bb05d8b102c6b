/* Elements of nf_tables sets. What the kernel writes: net/netfilter/nf_tables_api.c, nf_tables_fill_setelem(). */
#include <arpa/inet.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <netinet/in.h>
#include <stdio.h>

#include "decode.h"
#include "elements.h"

#define LONGEST_LINE 1024 /* eight fields of two IPv6 addresses each, or a chain's name, and counters and times */
#define WIDTH 64	  /* NFT_DATA_VALUE_MAXLEN */

struct element {
	const uint8_t *key, *key_end, *data;
	size_t key_length, data_length;
	uint32_t flags;
	uint64_t timeout_ms, expiration_ms, packets, bytes;
	int has_timeout, has_expiration, has_counter;
	int32_t verdict;
	const char *chain;
	size_t chain_length;
};

struct out {
	char *at;
};

static void put(struct out *out, const char *text, size_t length)
{
	memcpy(out->at, text, length);
	out->at += length;
}

static void put_number(struct out *out, uint64_t number)
{
	char digits[20];
	int left = sizeof(digits);

	do {
		digits[--left] = (char)('0' + number % 10);
		number /= 10;
	} while (number);
	put(out, digits + left, sizeof(digits) - (size_t)left);
}

#define PUT(out, literal) put(out, literal, sizeof(literal) - 1)

static size_t width_of(uint8_t field)
{
	return field == NR_FIELD_IPV6 ? 16 : 4; /* nft pads every field of a concatenation to a register */
}

static size_t used_of(uint8_t field)
{
	switch (field) {
	case NR_FIELD_IPV6: return 16;
	case NR_FIELD_IPV4: return 4;
	case NR_FIELD_NUMBER: return 2;
	default: return 1;
	}
}

static int put_value(struct out *out, uint8_t field, const uint8_t *value)
{
	char text[INET6_ADDRSTRLEN];

	switch (field) {
	case NR_FIELD_IPV4:
		for (int place = 0; place < 4; place++) {
			if (place)
				PUT(out, ".");
			put_number(out, value[place]);
		}
		return NR_ELEMENTS_OK;
	case NR_FIELD_IPV6:
		inet_ntop(AF_INET6, value, text, sizeof(text));
		put(out, text, strlen(text));
		return NR_ELEMENTS_OK;
	case NR_FIELD_NUMBER:
		put_number(out, nr_load_u16(value));
		return NR_ELEMENTS_OK;
	}
	if (*value == IPPROTO_TCP)
		PUT(out, "tcp");
	else if (*value == IPPROTO_UDP)
		PUT(out, "udp");
	else
		return NR_ELEMENTS_UNKNOWN; /* the others have their names in a file: nft may read it */
	return NR_ELEMENTS_OK;
}

/* The prefix length of which the two are the first and last address; -1 where they are of none. */
static int prefix_length(const uint8_t *first, const uint8_t *last, size_t bytes)
{
	int length = 0, bits = (int)bytes * 8;

	while (length < bits && !((first[length / 8] ^ last[length / 8]) & 0x80 >> length % 8))
		length++;
	for (int bit = length; bit < bits; bit++)
		if (first[bit / 8] & 0x80 >> bit % 8 || !(last[bit / 8] & 0x80 >> bit % 8))
			return -1;
	return length;
}

static int put_span(struct out *out, uint8_t field, const uint8_t *first, const uint8_t *last, int always)
{
	size_t used = used_of(field);
	int problem, prefix;

	problem = put_value(out, field, first);
	if (problem || (!always && memcmp(first, last, used) == 0))
		return problem;
	if (field == NR_FIELD_IPV4 || field == NR_FIELD_IPV6) {
		prefix = prefix_length(first, last, used);
		if (prefix >= 0) {
			if (prefix < (int)used * 8) {
				PUT(out, "/");
				put_number(out, (uint64_t)prefix);
			}
			return NR_ELEMENTS_OK;
		}
	}
	PUT(out, "-");
	return put_value(out, field, last);
}

static size_t width_of_all(const uint8_t *fields, uint8_t count)
{
	size_t width = 0;

	for (uint8_t place = 0; place < count; place++)
		width += width_of(fields[place]);
	return width;
}

/* The kernel pads what it dumps of a lone short field as well, or not at all. */
static int fits(size_t length, const uint8_t *fields, uint8_t count)
{
	if (count == 1)
		return length >= used_of(fields[0]) && length <= width_of(fields[0]);
	return length == width_of_all(fields, count);
}

static int put_fields(struct out *out, const uint8_t *fields, uint8_t count, const uint8_t *first, const uint8_t *last,
		      int always)
{
	int problem = NR_ELEMENTS_OK;
	size_t offset = 0;

	for (uint8_t place = 0; place < count && !problem; place++) {
		if (place)
			PUT(out, " . ");
		problem = put_span(out, fields[place], first + offset, last + offset,
				   always && fields[place] == NR_FIELD_NUMBER);
		offset += width_of(fields[place]);
	}
	return problem;
}

static int put_verdict(struct out *out, const struct element *element)
{
	switch (element->verdict) {
	case NFT_GOTO: PUT(out, "goto "); break;
	case NFT_JUMP: PUT(out, "jump "); break;
	case 0: PUT(out, "drop"); return NR_ELEMENTS_OK;   /* NF_DROP */
	case 1: PUT(out, "accept"); return NR_ELEMENTS_OK; /* NF_ACCEPT */
	case NFT_RETURN: PUT(out, "return"); return NR_ELEMENTS_OK;
	default: return NR_ELEMENTS_UNKNOWN;
	}
	if (!element->chain || element->chain_length > NFT_NAME_MAXLEN)
		return NR_ELEMENTS_MALFORMED;
	put(out, element->chain, element->chain_length);
	return NR_ELEMENTS_OK;
}

static void put_state(struct out *out, const struct element *element)
{
	if (element->has_counter) {
		PUT(out, " counter packets ");
		put_number(out, element->packets);
		PUT(out, " bytes ");
		put_number(out, element->bytes);
	}
	if (element->has_timeout) {
		PUT(out, " timeout ");
		put_number(out, element->timeout_ms / 1000);
		PUT(out, "s");
	}
	if (element->has_expiration) {
		PUT(out, " expires ");
		put_number(out, element->expiration_ms / 1000);
		PUT(out, "s");
	}
}

static void put_boundary(struct out *out, const struct nr_set_layout *layout, const struct element *element)
{
	static const char digits[] = "0123456789abcdef";

	for (size_t place = 0; place < used_of(layout->key[0]); place++) {
		*out->at++ = digits[element->key[place] >> 4];
		*out->at++ = digits[element->key[place] & 15];
	}
	if (element->flags & NFT_SET_ELEM_INTERVAL_END)
		PUT(out, "0");
	else
		PUT(out, "1");
}

static int put_data(struct out *out, const struct nr_set_layout *layout, const struct element *element)
{
	size_t half = width_of_all(layout->data, layout->data_fields);

	switch (layout->data_kind) {
	case NR_DATA_VERDICT: return put_verdict(out, element);
	case NR_DATA_FIELDS:
		if (!element->data || !fits(element->data_length, layout->data, layout->data_fields))
			return NR_ELEMENTS_MALFORMED;
		return put_fields(out, layout->data, layout->data_fields, element->data, element->data, 0);
	}
	if (!element->data || element->data_length != 2 * half)
		return NR_ELEMENTS_MALFORMED;
	return put_fields(out, layout->data, layout->data_fields, element->data, element->data + half, 1);
}

static int put_element(struct out *out, const struct nr_set_layout *layout, const struct element *element)
{
	const uint8_t *last = element->key_end ? element->key_end : element->key;
	int problem = NR_ELEMENTS_OK, is_end = layout->sorted && element->flags & NFT_SET_ELEM_INTERVAL_END;

	if (!element->key || !fits(element->key_length, layout->key, layout->key_fields))
		return NR_ELEMENTS_MALFORMED;
	if (layout->sorted)
		put_boundary(out, layout, element);
	else
		problem = put_fields(out, layout->key, layout->key_fields, element->key, last, 0);
	put_state(out, element);
	PUT(out, "\n");
	if (problem || layout->data_kind == NR_DATA_NONE)
		return problem;
	if (!is_end)
		problem = put_data(out, layout, element);
	PUT(out, "\n");
	return problem;
}

static int read_value(struct nr_rest rest, const uint8_t **value, size_t *length)
{
	struct nr_attribute found;

	while (!nr_next_attribute(&rest, &found)) {
		if (!found.value)
			return NR_ELEMENTS_OK;
		if (found.type != NFTA_DATA_VALUE || found.length > WIDTH)
			return NR_ELEMENTS_UNKNOWN;
		*value = found.value;
		*length = found.length;
	}
	return NR_ELEMENTS_MALFORMED;
}

static int read_verdict(struct nr_rest rest, struct element *element)
{
	struct nr_attribute found;

	while (!nr_next_attribute(&rest, &found)) {
		if (!found.value)
			return NR_ELEMENTS_OK;
		if (found.type == NFTA_VERDICT_CODE && found.length == 4)
			element->verdict = (int32_t)nr_load_u32(found.value);
		else if (found.type == NFTA_VERDICT_CHAIN && found.length > 1) {
			element->chain = (const char *)found.value;
			element->chain_length = strnlen(element->chain, found.length);
		} else
			return NR_ELEMENTS_UNKNOWN;
	}
	return NR_ELEMENTS_MALFORMED;
}

static int read_data(struct nr_rest rest, struct element *element)
{
	struct nr_attribute found;

	if (nr_next_attribute(&rest, &found) || !found.value)
		return NR_ELEMENTS_MALFORMED;
	if (found.type == NFTA_DATA_VERDICT)
		return read_verdict(nr_nested(&found), element);
	if (found.type != NFTA_DATA_VALUE || found.length > WIDTH)
		return NR_ELEMENTS_UNKNOWN;
	element->data = found.value;
	element->data_length = found.length;
	return NR_ELEMENTS_OK;
}

static int read_counter(struct nr_rest rest, struct element *element)
{
	struct nr_attribute found;

	element->has_counter = 1;
	while (!nr_next_attribute(&rest, &found)) {
		if (!found.value)
			return NR_ELEMENTS_OK;
		if (found.type == NFTA_COUNTER_BYTES && found.length == 8)
			element->bytes = nr_load_u64(found.value);
		if (found.type == NFTA_COUNTER_PACKETS && found.length == 8)
			element->packets = nr_load_u64(found.value);
	}
	return NR_ELEMENTS_MALFORMED;
}

static int read_expression(struct nr_rest rest, struct element *element)
{
	struct nr_attribute found;
	int is_counter = 0;

	while (!nr_next_attribute(&rest, &found)) {
		if (!found.value)
			return is_counter ? NR_ELEMENTS_OK : NR_ELEMENTS_UNKNOWN;
		if (found.type == NFTA_EXPR_NAME)
			is_counter = found.length == sizeof("counter") && !memcmp(found.value, "counter", found.length);
		else if (found.type == NFTA_EXPR_DATA && is_counter && read_counter(nr_nested(&found), element))
			return NR_ELEMENTS_MALFORMED;
	}
	return NR_ELEMENTS_MALFORMED;
}

static int take_attribute(const struct nr_attribute *found, struct element *element)
{
	size_t end_length = 0;
	int problem;

	switch (found->type) {
	case NFTA_SET_ELEM_KEY: return read_value(nr_nested(found), &element->key, &element->key_length);
	case NFTA_SET_ELEM_KEY_END:
		problem = read_value(nr_nested(found), &element->key_end, &end_length);
		return !problem && end_length != element->key_length ? NR_ELEMENTS_MALFORMED : problem;
	case NFTA_SET_ELEM_DATA: return read_data(nr_nested(found), element);
	case NFTA_SET_ELEM_EXPR: return read_expression(nr_nested(found), element);
	case NFTA_SET_ELEM_PAD: return NR_ELEMENTS_OK;
	case NFTA_SET_ELEM_FLAGS:
		if (found->length != 4)
			return NR_ELEMENTS_MALFORMED;
		element->flags = nr_load_u32(found->value);
		return NR_ELEMENTS_OK;
	case NFTA_SET_ELEM_TIMEOUT:
	case NFTA_SET_ELEM_EXPIRATION:
		if (found->length != 8)
			return NR_ELEMENTS_MALFORMED;
		if (found->type == NFTA_SET_ELEM_TIMEOUT) {
			element->timeout_ms = nr_load_u64(found->value);
			element->has_timeout = 1;
		} else {
			element->expiration_ms = nr_load_u64(found->value);
			element->has_expiration = 1;
		}
		return NR_ELEMENTS_OK;
	}
	return NR_ELEMENTS_UNKNOWN; /* a comment, an object: nft knows how to list it */
}

static int take_element(struct nr_rest rest, const struct nr_set_layout *layout, struct out *out)
{
	struct element element = { 0 };
	struct nr_attribute found;
	int problem;

	while (!nr_next_attribute(&rest, &found)) {
		if (!found.value) {
			if (element.flags & ~(uint32_t)(layout->sorted ? NFT_SET_ELEM_INTERVAL_END : 0))
				return NR_ELEMENTS_UNKNOWN;
			return put_element(out, layout, &element);
		}
		problem = take_attribute(&found, &element);
		if (problem)
			return problem;
	}
	return NR_ELEMENTS_MALFORMED;
}

static int take_list(struct nr_rest rest, const struct nr_set_layout *layout, struct out *out, const char *end)
{
	struct nr_attribute found;
	int problem;

	while (!nr_next_attribute(&rest, &found)) {
		if (!found.value)
			return NR_ELEMENTS_OK;
		if (end - out->at < LONGEST_LINE)
			return NR_ELEMENTS_NO_ROOM;
		problem = take_element(nr_nested(&found), layout, out);
		if (problem)
			return problem;
	}
	return NR_ELEMENTS_MALFORMED;
}

static int take_message(struct nr_rest rest, const struct nr_set_layout *layout, struct out *out, const char *end)
{
	struct nr_attribute found;
	int problem;

	if (rest.end - rest.at < (ptrdiff_t)sizeof(struct nfgenmsg))
		return NR_ELEMENTS_MALFORMED;
	rest.at += sizeof(struct nfgenmsg);
	while (!nr_next_attribute(&rest, &found)) {
		if (!found.value)
			return NR_ELEMENTS_OK;
		problem = found.type == NFTA_SET_ELEM_LIST_ELEMENTS ? take_list(nr_nested(&found), layout, out, end) : 0;
		if (problem)
			return problem;
	}
	return NR_ELEMENTS_MALFORMED;
}

static int is_sound(const struct nr_set_layout *layout)
{
	return layout->key_fields >= 1 && layout->key_fields <= sizeof(layout->key) &&
	       layout->data_fields <= sizeof(layout->data) && width_of_all(layout->key, layout->key_fields) <= WIDTH &&
	       width_of_all(layout->data, layout->data_fields) <= WIDTH;
}

int nr_element_lines(const uint8_t *messages, size_t length, const struct nr_set_layout *layout, char *text, size_t room,
		     size_t *written)
{
	struct nr_rest rest = { messages, messages + length };
	struct out out = { text };
	int problem = is_sound(layout) ? NR_ELEMENTS_OK : NR_ELEMENTS_UNKNOWN;

	while (!problem && rest.at < rest.end) {
		struct nlmsghdr header;
		size_t left = (size_t)(rest.end - rest.at), padded;

		if (left < sizeof(header))
			return NR_ELEMENTS_MALFORMED;
		memcpy(&header, rest.at, sizeof(header));
		if (header.nlmsg_len < sizeof(header) || header.nlmsg_len > left)
			return NR_ELEMENTS_MALFORMED;
		if (header.nlmsg_type == (NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWSETELEM))
			problem = take_message((struct nr_rest){ rest.at + sizeof(header), rest.at + header.nlmsg_len },
					       layout, &out, text + room);
		padded = NLMSG_ALIGN(header.nlmsg_len);
		rest.at += padded < left ? padded : left;
	}
	*written = (size_t)(out.at - text);
	return problem;
}
