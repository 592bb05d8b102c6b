/* The slices as the core sees them: numbers of soft-unicast addresses, and the slice that has a port. */
#ifndef NATCTL_SLICES_H
#define NATCTL_SLICES_H

#include "core.h"

enum { NR_NOBODY = -1 };

struct nr_ranges {
	struct nr_owned *ranges;
	uint32_t *starts; /* of each place, and one more */
};

struct nr_slices {
	struct nr_soft *addresses;
	int32_t *slots;
	size_t mask;
	struct nr_ranges owners, rewriters;
};

int nr_slices_init(struct nr_slices *slices, const struct nr_soft *addresses, size_t address_count,
		   const struct nr_owned *owned, size_t owned_count, const struct nr_owned *rewritten,
		   size_t rewritten_count);
void nr_slices_clear(struct nr_slices *slices);
int32_t nr_find_address(const struct nr_slices *slices, const uint64_t address[2], uint8_t family);
int32_t nr_find_slice(const struct nr_ranges *ranges, int32_t address, uint8_t protocol, uint16_t port);

#endif
