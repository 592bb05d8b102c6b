/* The messages of a datagram, one after the other, and those that belong to netlink itself. */
#include "decode.h"

static const char *const problem_texts[NR_PROBLEMS] = {
	[NR_OK] = "nothing is wrong",
	[NR_HEADER_CUT] = "fewer bytes than a message header",
	[NR_MESSAGE_LENGTH] = "length of a message does not fit its datagram",
	[NR_FAMILY_HEADER_CUT] = "message without its address family header",
	[NR_ATTRIBUTE_CUT] = "fewer bytes than an attribute header",
	[NR_ATTRIBUTE_LENGTH] = "length of an attribute does not fit what holds it",
	[NR_ATTRIBUTE_SIZE] = "attribute of the wrong size for its type",
	[NR_TUPLE_MISSING] = "entry without original and reply tuple",
	[NR_ADDRESS_MISSING] = "tuple without source and destination address",
	[NR_PROTOCOL_MISSING] = "tuple without protocol",
	[NR_FAMILY_MISMATCH] = "address of another family than its message",
	[NR_ANSWER_CUT] = "answer without an error number",
	[NR_SOCKET_CUT] = "fewer bytes than a socket",
	[NR_DATAGRAM_CUT] = "datagram larger than the receive buffer",
};

const char *nr_problem_text(int problem)
{
	return problem >= 0 && problem < NR_PROBLEMS ? problem_texts[problem] : "unknown problem";
}

/* NLMSG_DONE and NLMSG_ERROR both begin with an int: 0 or a negative errno. NLMSG_DONE of old kernels has none. */
static int take_answer(struct nr_rest payload, uint32_t flag, struct nr_progress *progress)
{
	int32_t error = 0;
	size_t left = (size_t)(payload.end - payload.at);

	if (left >= sizeof(error))
		memcpy(&error, payload.at, sizeof(error));
	else if (flag == NR_ANSWERED || left != 0)
		return NR_ANSWER_CUT;
	progress->flags |= flag;
	/* An errno is small; what is not one must not overflow when its sign is turned. */
	progress->error = error < 0 && error > -4096 ? -error : 0;
	return NR_OK;
}

static int take_any(const struct nlmsghdr *header, struct nr_rest payload, nr_take_message *take,
		    const struct nr_context *context, void *records, struct nr_progress *progress)
{
	if (header->nlmsg_flags & NLM_F_DUMP_INTR)
		progress->flags |= NR_INTERRUPTED;
	switch (header->nlmsg_type) {
	case NLMSG_NOOP:
		return NR_OK;
	case NLMSG_OVERRUN:
		progress->flags |= NR_OVERRUN;
		return NR_OK;
	case NLMSG_DONE:
		return take_answer(payload, NR_DONE, progress);
	case NLMSG_ERROR:
		return take_answer(payload, NR_ANSWERED, progress);
	default:
		return take(header, payload, context, records, progress);
	}
}

int nr_walk(const uint8_t *bytes, size_t length, nr_take_message *take, const struct nr_context *context, void *records,
	    size_t capacity, struct nr_progress *progress)
{
	while (progress->offset < length && progress->records < capacity) {
		size_t left = length - progress->offset, padded;
		const uint8_t *at = bytes + progress->offset;
		struct nlmsghdr header;
		int problem;

		if (left < sizeof(header))
			return NR_HEADER_CUT;
		memcpy(&header, at, sizeof(header));
		if (header.nlmsg_len < sizeof(header) || header.nlmsg_len > left)
			return NR_MESSAGE_LENGTH;
		problem = take_any(&header, (struct nr_rest){at + sizeof(header), at + header.nlmsg_len}, take, context,
				   records, progress);
		if (problem != NR_OK)
			return problem;
		progress->messages++;
		/* The last message of a datagram may lack its padding. */
		padded = NLMSG_ALIGN((size_t)header.nlmsg_len);
		progress->offset += padded < left ? padded : left;
		if (progress->flags & (NR_DONE | NR_ANSWERED))
			break;
	}
	return NR_OK;
}
