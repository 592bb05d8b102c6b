/* Which entries of a dump are wanted, whatever the kernel has or has not filtered already. */
#include "decode.h"

static int same_address(const uint64_t one[2], const uint64_t other[2])
{
	return one[0] == other[0] && one[1] == other[1];
}

int nr_matches(const struct nr_flow *flow, const struct nr_filter *filter)
{
	const struct nr_flow *wanted = &filter->wanted;
	uint32_t fields = filter->fields;

	if ((flow->status & filter->status_mask) != wanted->status || (flow->mark & filter->mark_mask) != wanted->mark)
		return 0;
	return (!(fields & NR_MATCH_FAMILY) || flow->family == wanted->family) &&
	       (!(fields & NR_MATCH_PROTOCOL) || flow->protocol == wanted->protocol) &&
	       (!(fields & NR_MATCH_ZONE) || flow->zone == wanted->zone) &&
	       (!(fields & NR_MATCH_ORIG_SRC) || same_address(flow->orig_src, wanted->orig_src)) &&
	       (!(fields & NR_MATCH_ORIG_DST) || same_address(flow->orig_dst, wanted->orig_dst)) &&
	       (!(fields & NR_MATCH_ORIG_SPORT) || flow->orig_sport == wanted->orig_sport) &&
	       (!(fields & NR_MATCH_ORIG_DPORT) || flow->orig_dport == wanted->orig_dport) &&
	       (!(fields & NR_MATCH_REPLY_SRC) || same_address(flow->reply_src, wanted->reply_src)) &&
	       (!(fields & NR_MATCH_REPLY_DST) || same_address(flow->reply_dst, wanted->reply_dst)) &&
	       (!(fields & NR_MATCH_REPLY_SPORT) || flow->reply_sport == wanted->reply_sport) &&
	       (!(fields & NR_MATCH_REPLY_DPORT) || flow->reply_dport == wanted->reply_dport);
}
