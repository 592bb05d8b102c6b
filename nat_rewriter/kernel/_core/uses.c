/* Ports in use, counted for each (slice, protocol, destination, zone): a port serves one flow for each destination. */
#include <netinet/in.h>
#include <string.h>

#include "siphash.h"
#include "uses.h"

/* There is always room for the ports that are pending. */
enum { FIRST_SLOTS = 4 * NR_PENDING, FIRST_ROOM = 16 };

static uint64_t hash_of_number_word(uint64_t word, const void *with)
{
	(void)with;
	return word >> 32;
}

/* Whoever chooses ports does not choose the numbers they are paired with; the seed keeps even that from mattering. */
static uint64_t hash_of_port_word(uint64_t word, const void *with)
{
	const struct nr_uses *uses = with;
	uint64_t hash = ((word >> 16) ^ uses->seed[0]) * 0x9E3779B97F4A7C15ULL;

	return hash >> 24;
}

static uint64_t port_word(uint32_t number, uint16_t port)
{
	return (uint64_t)number << 32 | (uint64_t)port << 16;
}

int nr_uses_init(struct nr_uses *uses, const uint64_t seed[2])
{
	memset(uses, 0, sizeof(*uses));
	memcpy(uses->seed, seed, sizeof(uses->seed));
	uses->room = FIRST_ROOM;
	uses->all = calloc(uses->room, sizeof(*uses->all));
	uses->free_numbers = calloc(uses->room, sizeof(*uses->free_numbers));
	if (!uses->all || !uses->free_numbers || nr_table_init(&uses->numbers, FIRST_SLOTS) ||
	    nr_table_init(&uses->ports, FIRST_SLOTS)) {
		nr_uses_clear(uses);
		return -1;
	}
	return 0;
}

void nr_uses_clear(struct nr_uses *uses)
{
	free(uses->all);
	free(uses->free_numbers);
	free(uses->numbers.words);
	free(uses->ports.words);
	memset(uses, 0, sizeof(*uses));
}

/* What tells uses apart. An echo id is no part of a destination. */
static struct nr_use use_of(const struct nr_flow *flow, int32_t slice)
{
	int portless = flow->protocol == IPPROTO_ICMP || flow->protocol == IPPROTO_ICMPV6;

	return (struct nr_use){
		.server = {flow->reply_src[0], flow->reply_src[1]},
		.slice = (uint32_t)slice,
		.port = portless ? 0 : flow->reply_sport,
		.zone = flow->zone,
		.family = flow->family,
		.protocol = flow->protocol,
	};
}

static uint32_t hash_of_use(const struct nr_uses *uses, const struct nr_use *use)
{
	const uint64_t words[4] = {
		use->server[0],
		use->server[1],
		(uint64_t)use->slice << 32 | (uint64_t)use->zone << 16 | use->port,
		use->protocol,
	};

	return (uint32_t)(nr_siphash(uses->seed, words, 4) >> 32);
}

static int is_same(const struct nr_use *one, const struct nr_use *other)
{
	return one->server[0] == other->server[0] && one->server[1] == other->server[1] &&
	       one->slice == other->slice && one->port == other->port && one->zone == other->zone &&
	       one->protocol == other->protocol;
}

/* Return the slot of a use, or the empty one where it would be. */
static size_t find_use(const struct nr_uses *uses, const struct nr_use *use, uint32_t hash)
{
	size_t at = hash & uses->numbers.mask;

	for (; uses->numbers.words[at]; at = (at + 1) & uses->numbers.mask) {
		uint64_t word = uses->numbers.words[at];

		if (word >> 32 == hash && is_same(&uses->all[(uint32_t)word - 1], use))
			break;
	}
	return at;
}

static int grow_rows(struct nr_uses *uses)
{
	struct nr_use *all = realloc(uses->all, 2 * uses->room * sizeof(*all));
	uint32_t *numbers;

	if (!all)
		return -1;
	uses->all = all;
	numbers = realloc(uses->free_numbers, 2 * uses->room * sizeof(*numbers));
	if (!numbers)
		return -1;
	uses->free_numbers = numbers;
	uses->room *= 2;
	return 0;
}

/* Return the number of a use that is not there yet, or -1. */
static int64_t enter_use(struct nr_uses *uses, const struct nr_use *use, uint32_t hash)
{
	uint32_t number;

	if (nr_table_reserve(&uses->numbers, 1, hash_of_number_word, NULL))
		return -1;
	if (uses->free_count) {
		number = uses->free_numbers[--uses->free_count];
	} else {
		if (uses->rows == uses->room && grow_rows(uses))
			return -1;
		number = (uint32_t)uses->rows++;
	}
	uses->all[number] = *use;
	uses->all[number].number = number;
	nr_table_put(&uses->numbers, (uint64_t)hash << 32 | (number + 1), hash);
	return number;
}

/* Return the slot of a port of a use, or the empty one where it would be. */
static size_t find_port(const struct nr_uses *uses, uint64_t wanted)
{
	size_t at = hash_of_port_word(wanted, uses) & uses->ports.mask;

	while (uses->ports.words[at] && (uses->ports.words[at] ^ wanted) >> 16)
		at = (at + 1) & uses->ports.mask;
	return at;
}

static void add_port(struct nr_uses *uses, uint64_t wanted)
{
	struct nr_use *use = &uses->all[wanted >> 32];
	size_t at = find_port(uses, wanted);

	if (uses->ports.words[at]) {
		uses->ports.words[at]++;
		return;
	}
	use->used++;
	uses->ports.words[at] = wanted | 1;
	uses->ports.used++;
}

int nr_uses_settle(struct nr_uses *uses)
{
	for (size_t i = 0; i < uses->pending_count; i++)
		add_port(uses, uses->pending[i]);
	uses->pending_count = 0;
	return nr_table_reserve(&uses->ports, NR_PENDING, hash_of_port_word, uses);
}

/* Have a port counted in once its slot has come from memory. */
static int begin_port(struct nr_uses *uses, struct nr_use *use, uint16_t port)
{
	uint64_t wanted = port_word(use->number, port);

	if (uses->pending_count == NR_PENDING && nr_uses_settle(uses))
		return -1;
	use->flows++;
	__builtin_prefetch(&uses->ports.words[hash_of_port_word(wanted, uses) & uses->ports.mask], 1);
	uses->pending[uses->pending_count++] = wanted;
	return 0;
}

int nr_uses_add(struct nr_uses *uses, const struct nr_flow *flow, int32_t slice)
{
	struct nr_use use = use_of(flow, slice);
	uint32_t hash = hash_of_use(uses, &use);
	uint64_t word = uses->numbers.words[find_use(uses, &use, hash)];
	int64_t number = word ? (int64_t)(uint32_t)word - 1 : enter_use(uses, &use, hash);

	return number < 0 ? -1 : begin_port(uses, &uses->all[number], flow->reply_dport);
}

static void leave_use(struct nr_uses *uses, size_t at, uint32_t number)
{
	nr_table_delete(&uses->numbers, at, hash_of_number_word, NULL);
	uses->free_numbers[uses->free_count++] = number;
}

void nr_uses_subtract(struct nr_uses *uses, const struct nr_flow *flow, int32_t slice)
{
	struct nr_use asked = use_of(flow, slice), *use;
	size_t at = find_use(uses, &asked, hash_of_use(uses, &asked)), port_at;
	uint64_t word = uses->numbers.words[at];

	if (!word)
		return;
	use = &uses->all[(uint32_t)word - 1];
	port_at = find_port(uses, port_word(use->number, flow->reply_dport));
	if (!uses->ports.words[port_at])
		return;
	use->flows--;
	if ((--uses->ports.words[port_at] & 0xffff) == 0) {
		nr_table_delete(&uses->ports, port_at, hash_of_port_word, uses);
		use->used--;
	}
	if (!use->flows)
		leave_use(uses, at, use->number);
}

size_t nr_uses_ports(const struct nr_uses *uses, const int64_t *places, int64_t *ports, size_t capacity)
{
	size_t found = 0;

	for (size_t at = 0; at <= uses->ports.mask; at++) {
		uint64_t word = uses->ports.words[at];
		int64_t place = word ? places[word >> 32] : -1;

		if (place < 0)
			continue;
		if (found < capacity)
			ports[found] = place << 16 | (int64_t)(word >> 16 & 0xffff);
		found++;
	}
	return found;
}
