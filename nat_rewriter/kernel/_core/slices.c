/* Which slice has an address and a port. */
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "slices.h"

enum { CLASSES = 3 };

/* Soft-unicast addresses are the operator's: nobody else can make them collide. */
static size_t slot_of(const struct nr_slices *slices, const uint64_t address[2])
{
	uint64_t hash = (address[1] ^ address[0] * 0x9E3779B97F4A7C15ULL) * 0x9E3779B97F4A7C15ULL;

	return (hash >> 32) & slices->mask;
}

static int copy_ranges(struct nr_ranges *to, const struct nr_owned *ranges, size_t count, size_t places)
{
	size_t at = 0;

	to->ranges = calloc(count + 1, sizeof(*to->ranges));
	to->starts = calloc(places + 1, sizeof(*to->starts));
	if (!to->ranges || !to->starts)
		return -1;
	if (count)
		memcpy(to->ranges, ranges, count * sizeof(*ranges));
	for (size_t place = 0; place <= places; place++) {
		while (at < count && ranges[at].place < place)
			at++;
		to->starts[place] = (uint32_t)at;
	}
	return 0;
}

static int copy_addresses(struct nr_slices *slices, const struct nr_soft *addresses, size_t count)
{
	size_t size = 16;

	while (size < count * 4)
		size *= 2;
	slices->mask = size - 1;
	slices->addresses = calloc(count + 1, sizeof(*addresses));
	slices->slots = malloc(size * sizeof(*slices->slots));
	if (!slices->addresses || !slices->slots)
		return -1;
	memset(slices->slots, 0xff, size * sizeof(*slices->slots)); /* NR_NOBODY */
	for (size_t i = 0; i < count; i++) {
		size_t slot = slot_of(slices, addresses[i].address);

		while (slices->slots[slot] != NR_NOBODY)
			slot = (slot + 1) & slices->mask;
		slices->slots[slot] = (int32_t)i;
		slices->addresses[i] = addresses[i];
	}
	return 0;
}

int nr_slices_init(struct nr_slices *slices, const struct nr_soft *addresses, size_t address_count,
		   const struct nr_owned *owned, size_t owned_count, const struct nr_owned *rewritten,
		   size_t rewritten_count)
{
	if (copy_addresses(slices, addresses, address_count) ||
	    copy_ranges(&slices->owners, owned, owned_count, address_count * CLASSES) ||
	    copy_ranges(&slices->rewriters, rewritten, rewritten_count, address_count * CLASSES)) {
		nr_slices_clear(slices);
		return -1;
	}
	return 0;
}

void nr_slices_clear(struct nr_slices *slices)
{
	free(slices->addresses);
	free(slices->slots);
	free(slices->owners.ranges);
	free(slices->owners.starts);
	free(slices->rewriters.ranges);
	free(slices->rewriters.starts);
	memset(slices, 0, sizeof(*slices));
}

int32_t nr_find_address(const struct nr_slices *slices, const uint64_t address[2], uint8_t family)
{
	for (size_t slot = slot_of(slices, address);; slot = (slot + 1) & slices->mask) {
		int32_t number = slices->slots[slot];
		const struct nr_soft *soft = &slices->addresses[number < 0 ? 0 : number];

		if (number == NR_NOBODY || (soft->address[1] == address[1] && soft->address[0] == address[0] &&
					    soft->family == family))
			return number;
	}
}

static int class_of(uint8_t protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
		return 0;
	case IPPROTO_UDP:
		return 1;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return 2;
	default:
		return NR_NOBODY;
	}
}

int32_t nr_find_slice(const struct nr_ranges *ranges, int32_t address, uint8_t protocol, uint16_t port)
{
	int class = class_of(protocol);
	uint32_t low, high;

	if (address < 0 || class < 0)
		return NR_NOBODY;
	low = ranges->starts[address * CLASSES + class];
	high = ranges->starts[address * CLASSES + class + 1];
	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		const struct nr_owned *range = &ranges->ranges[middle];

		if (port < range->first)
			high = middle;
		else if (port > range->last)
			low = middle + 1;
		else
			return range->slice;
	}
	return NR_NOBODY;
}
