/* Which flows detection has to see one by one. The rest, however many, are counted. */
#include <linux/netfilter/nf_conntrack_common.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "slices.h"
#include "uses.h"

enum { ZONE_BYTES = 8192 };

struct nr_sieve {
	struct nr_slices slices;
	struct nr_uses uses;
	uint64_t flows;
	uint64_t *slice_flows;
	size_t slice_count;
	uint64_t seed[2];
	uint8_t zones[ZONE_BYTES];
};

/* A flow that was addressed to a soft-unicast address and not sent on: a socket here accepted it. */
static int is_accepted(const struct nr_sieve *sieve, const struct nr_flow *flow)
{
	return !(flow->status & IPS_DST_NAT) &&
	       nr_find_address(&sieve->slices, flow->orig_dst, flow->family) != NR_NOBODY;
}

static int count_wire(struct nr_sieve *sieve, const struct nr_flow *flow, int32_t address, int32_t owner, int sign)
{
	int32_t rewriter;

	if (owner != NR_NOBODY)
		sieve->slice_flows[owner] += (uint64_t)(int64_t)sign;
	sieve->zones[flow->zone >> 3] |= (uint8_t)(1 << (flow->zone & 7));
	rewriter = nr_find_slice(&sieve->slices.rewriters, address, flow->protocol, flow->reply_dport);
	if (rewriter == NR_NOBODY)
		return 0;
	if (sign > 0)
		return nr_uses_add(&sieve->uses, flow, rewriter);
	nr_uses_subtract(&sieve->uses, flow, rewriter);
	return 0;
}

/* Count one flow. Returns whether detection has to see it, or -1 where memory is lacking. */
static int take(struct nr_sieve *sieve, const struct nr_flow *flow, int sign)
{
	int32_t source = nr_find_address(&sieve->slices, flow->orig_src, flow->family);
	int32_t wire = nr_find_address(&sieve->slices, flow->reply_dst, flow->family);
	int stranded = 0;

	sieve->flows += (uint64_t)(int64_t)sign;
	if (wire != NR_NOBODY) {
		int32_t owner = nr_find_slice(&sieve->slices.owners, wire, flow->protocol, flow->reply_dport);

		stranded = owner == NR_NOBODY && flow->status & IPS_SRC_NAT;
		if (count_wire(sieve, flow, wire, owner, sign))
			return -1;
	}
	return source != NR_NOBODY || stranded || is_accepted(sieve, flow);
}

int nr_sieve_count(struct nr_sieve *sieve, const struct nr_flow *records, size_t count, int sign, uint8_t *kept)
{
	for (size_t i = 0; i < count; i++) {
		int seen = take(sieve, &records[i], sign);

		if (seen < 0)
			return -1;
		if (kept)
			kept[i] = (uint8_t)seen;
	}
	return nr_uses_settle(&sieve->uses);
}

int64_t nr_sieve_sift(struct nr_sieve *sieve, struct nr_flow *records, size_t count)
{
	int64_t front = 0;

	for (size_t i = 0; i < count; i++) {
		int seen = take(sieve, &records[i], 1);

		if (seen < 0)
			return -1;
		if (seen)
			records[front++] = records[i];
	}
	return nr_uses_settle(&sieve->uses) ? -1 : front;
}

void nr_sieve_free(struct nr_sieve *sieve)
{
	if (!sieve)
		return;
	nr_slices_clear(&sieve->slices);
	nr_uses_clear(&sieve->uses);
	free(sieve->slice_flows);
	free(sieve);
}

struct nr_sieve *nr_sieve_new(const struct nr_soft *addresses, size_t address_count, const struct nr_owned *owned,
			      size_t owned_count, const struct nr_owned *rewritten, size_t rewritten_count,
			      size_t slice_count)
{
	struct nr_sieve *sieve = calloc(1, sizeof(*sieve));

	if (!sieve)
		return NULL;
	sieve->slice_count = slice_count;
	sieve->slice_flows = calloc(slice_count + 1, sizeof(*sieve->slice_flows));
	if (!sieve->slice_flows ||
	    getrandom(sieve->seed, sizeof(sieve->seed), 0) != (ssize_t)sizeof(sieve->seed) ||
	    nr_slices_init(&sieve->slices, addresses, address_count, owned, owned_count, rewritten, rewritten_count) ||
	    nr_uses_init(&sieve->uses, sieve->seed)) {
		nr_sieve_free(sieve);
		return NULL;
	}
	return sieve;
}

int nr_sieve_reset(struct nr_sieve *sieve)
{
	struct nr_uses fresh;

	if (nr_uses_init(&fresh, sieve->seed))
		return -1;
	nr_uses_clear(&sieve->uses);
	sieve->uses = fresh;
	sieve->flows = 0;
	memset(sieve->slice_flows, 0, sieve->slice_count * sizeof(*sieve->slice_flows));
	memset(sieve->zones, 0, sizeof(sieve->zones));
	return 0;
}

uint64_t nr_sieve_flows(const struct nr_sieve *sieve)
{
	return sieve->flows;
}

void nr_sieve_slices(const struct nr_sieve *sieve, uint64_t *flows)
{
	memcpy(flows, sieve->slice_flows, sieve->slice_count * sizeof(*flows));
}

size_t nr_sieve_uses(const struct nr_sieve *sieve, struct nr_use *uses, size_t capacity)
{
	size_t found = 0;

	for (size_t i = 0; i < sieve->uses.rows; i++) {
		if (!sieve->uses.all[i].flows)
			continue;
		if (found < capacity)
			uses[found] = sieve->uses.all[i];
		found++;
	}
	return found;
}

size_t nr_sieve_numbers(const struct nr_sieve *sieve)
{
	return sieve->uses.rows;
}

size_t nr_sieve_ports(const struct nr_sieve *sieve, const int64_t *places, int64_t *ports, size_t capacity)
{
	return nr_uses_ports(&sieve->uses, places, ports, capacity);
}

void nr_sieve_zones(const struct nr_sieve *sieve, uint8_t *bits)
{
	memcpy(bits, sieve->zones, sizeof(sieve->zones));
}
