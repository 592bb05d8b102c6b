/* Ports in use, counted for each (slice, protocol, destination, zone). */
#ifndef NATCTL_USES_H
#define NATCTL_USES_H

#include "core.h"
#include "table.h"

enum { NR_PENDING = 32 };

struct nr_uses {
	uint64_t seed[2];
	struct nr_use *all; /* by number; those without flows are free */
	size_t rows;        /* of `all` that were ever in use */
	size_t room;
	uint32_t *free_numbers;
	size_t free_count;
	struct nr_table numbers; /* the high half of its hash, and its number plus 1 */
	struct nr_table ports;   /* number, port, and how many flows have that port: 32 + 16 + 16 bits */
	/* Ports to be counted in, whose slots are on their way from memory: of a great table none is in a cache. */
	uint64_t pending[NR_PENDING];
	size_t pending_count;
};

int nr_uses_init(struct nr_uses *uses, const uint64_t seed[2]);
void nr_uses_clear(struct nr_uses *uses);
/* Count a flow in or out that leaves from the ports for rewriting of a slice. */
int nr_uses_add(struct nr_uses *uses, const struct nr_flow *flow, int32_t slice);
/* Bring to an end what nr_uses_add() has begun: before anything else is asked of the uses. */
int nr_uses_settle(struct nr_uses *uses);
void nr_uses_subtract(struct nr_uses *uses, const struct nr_flow *flow, int32_t slice);
size_t nr_uses_ports(const struct nr_uses *uses, const int64_t *places, int64_t *ports, size_t capacity);

#endif
