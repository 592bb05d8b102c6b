/* Hash tables of 64-bit words: open addressing, linear probing, deletion by moving back. A word of 0 is an empty slot. */
#ifndef NATCTL_TABLE_H
#define NATCTL_TABLE_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

struct nr_table {
	uint64_t *words;
	size_t mask; /* slots less one */
	size_t used;
};

/* Where a word would like to be, by its table's own rule; and whether it is the one with a key. */
typedef uint64_t nr_hash_word(uint64_t word, const void *with);

static inline int nr_table_init(struct nr_table *table, size_t slots)
{
	table->words = calloc(slots, sizeof(*table->words));
	table->mask = slots - 1;
	table->used = 0;
	return table->words ? 0 : -1;
}

static inline void nr_table_put(struct nr_table *table, uint64_t word, uint64_t hash)
{
	size_t at = hash & table->mask;

	while (table->words[at])
		at = (at + 1) & table->mask;
	table->words[at] = word;
	table->used++;
}

/* Make room for `more` words at a load of at most 3/4. */
static inline int nr_table_reserve(struct nr_table *table, size_t more, nr_hash_word *hash, const void *with)
{
	size_t slots = table->mask + 1;
	struct nr_table larger;

	while ((table->used + more) * 4 > slots * 3)
		slots *= 2;
	if (slots == table->mask + 1)
		return 0;
	if (nr_table_init(&larger, slots))
		return -1;
	for (size_t at = 0; at <= table->mask; at++)
		if (table->words[at])
			nr_table_put(&larger, table->words[at], hash(table->words[at], with));
	free(table->words);
	*table = larger;
	return 0;
}

/* Empty a slot, and move back those that had to go past it. */
static inline void nr_table_delete(struct nr_table *table, size_t hole, nr_hash_word *hash, const void *with)
{
	size_t at = hole;

	for (;;) {
		size_t wanted;

		at = (at + 1) & table->mask;
		if (!table->words[at])
			break;
		wanted = hash(table->words[at], with) & table->mask;
		if (((at - wanted) & table->mask) >= ((at - hole) & table->mask)) {
			table->words[hole] = table->words[at];
			hole = at;
		}
	}
	table->words[hole] = 0;
	table->used--;
}

#endif
