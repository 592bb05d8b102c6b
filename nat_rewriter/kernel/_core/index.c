/* Which row of a table has the entry of which key. Keys are hashes under a secret seed already. */
#include <stdlib.h>
#include <string.h>

#include "core.h"

enum { FIRST_SLOTS = 64 };

/* Open addressing, linear probing, deletion by moving back. A row of 0 marks an empty slot: rows count from 1 here. */
struct slots {
	uint64_t *keys;
	uint32_t *rows;
	size_t mask, used;
};

struct nr_index {
	struct slots entries;
	struct slots ended; /* since the journal began; its rows say nothing */
	int journaling, overflown;
	size_t most, rows;
	uint32_t *free_rows;
	size_t free_count, free_room;
};

static int init_slots(struct slots *slots, size_t size)
{
	slots->keys = malloc(size * sizeof(*slots->keys));
	slots->rows = calloc(size, sizeof(*slots->rows));
	slots->mask = size - 1;
	slots->used = 0;
	if (slots->keys && slots->rows)
		return 0;
	free(slots->keys);
	free(slots->rows);
	return -1;
}

static void clear_slots(struct slots *slots)
{
	free(slots->keys);
	free(slots->rows);
	memset(slots, 0, sizeof(*slots));
}

/* Return the slot of a key, or the empty one where it would be. */
static size_t find_slot(const struct slots *slots, uint64_t key)
{
	size_t at = key & slots->mask;

	while (slots->rows[at] && slots->keys[at] != key)
		at = (at + 1) & slots->mask;
	return at;
}

static void put(struct slots *slots, uint64_t key, uint32_t row)
{
	size_t at = find_slot(slots, key);

	slots->used += slots->rows[at] == 0;
	slots->keys[at] = key;
	slots->rows[at] = row;
}

/* Make room for `more` at a load of at most 2/3. */
static int reserve(struct slots *slots, size_t more)
{
	size_t size = slots->mask + 1;
	struct slots larger;

	while ((slots->used + more) * 3 > size * 2)
		size *= 2;
	if (size == slots->mask + 1)
		return 0;
	if (init_slots(&larger, size))
		return -1;
	for (size_t at = 0; at <= slots->mask; at++)
		if (slots->rows[at])
			put(&larger, slots->keys[at], slots->rows[at]);
	clear_slots(slots);
	*slots = larger;
	return 0;
}

static void delete_slot(struct slots *slots, size_t hole)
{
	size_t at = hole;

	for (;;) {
		at = (at + 1) & slots->mask;
		if (!slots->rows[at])
			break;
		if (((at - slots->keys[at]) & slots->mask) >= ((at - hole) & slots->mask)) {
			slots->keys[hole] = slots->keys[at];
			slots->rows[hole] = slots->rows[at];
			hole = at;
		}
	}
	slots->rows[hole] = 0;
	slots->used--;
}

void nr_index_free(struct nr_index *index)
{
	if (!index)
		return;
	clear_slots(&index->entries);
	clear_slots(&index->ended);
	free(index->free_rows);
	free(index);
}

struct nr_index *nr_index_new(size_t most)
{
	struct nr_index *index = calloc(1, sizeof(*index));

	if (!index)
		return NULL;
	index->most = most;
	if (init_slots(&index->entries, FIRST_SLOTS) || init_slots(&index->ended, FIRST_SLOTS)) {
		nr_index_free(index);
		return NULL;
	}
	return index;
}

size_t nr_index_count(const struct nr_index *index)
{
	return index->entries.used;
}

size_t nr_index_rows(const struct nr_index *index)
{
	return index->rows;
}

int64_t nr_index_find(const struct nr_index *index, uint64_t key)
{
	return (int64_t)index->entries.rows[find_slot(&index->entries, key)] - 1;
}

static void note_end(struct nr_index *index, uint64_t key)
{
	if (!index->journaling)
		return;
	if (index->ended.used < index->most)
		put(&index->ended, key, 1);
	else
		index->overflown = 1;
}

static void forget_end(struct nr_index *index, uint64_t key)
{
	size_t at = find_slot(&index->ended, key);

	if (index->ended.rows[at])
		delete_slot(&index->ended, at);
}

static void enter(struct nr_index *index, uint64_t key, size_t at, struct nr_steps *steps)
{
	uint32_t row;

	if (index->entries.used >= index->most) {
		steps->refused++;
		return;
	}
	row = index->free_count ? index->free_rows[--index->free_count] : (uint32_t)index->rows++;
	put(&index->entries, key, row + 1);
	steps->new_rows[steps->new_count] = row;
	steps->new_at[steps->new_count++] = (int64_t)at;
}

static void note_old(struct nr_steps *steps, int64_t row, size_t at)
{
	steps->old_rows[steps->old_count] = row;
	steps->old_at[steps->old_count++] = (int64_t)at;
}

static void apply_one(struct nr_index *index, const struct nr_flow *record, size_t at, struct nr_steps *steps)
{
	size_t slot = find_slot(&index->entries, record->key);
	int64_t row = (int64_t)index->entries.rows[slot] - 1;

	if (record->event == NR_EVENT_DESTROY)
		note_end(index, record->key);
	if (row >= 0 && record->event == NR_EVENT_UPDATE) {
		note_old(steps, row, at);
		return;
	}
	if (row >= 0) { /* else its end was not told, or the dump was faster than its beginning */
		delete_slot(&index->entries, slot);
		steps->gone_rows[steps->gone_count++] = row;
	}
	if (record->event == NR_EVENT_DESTROY) {
		if (row >= 0) /* its last event has the final counters */
			note_old(steps, row, at);
		return;
	}
	if (index->journaling)
		forget_end(index, record->key);
	enter(index, record->key, at, steps);
}

int nr_index_apply(struct nr_index *index, const struct nr_flow *records, size_t count, struct nr_steps *steps)
{
	if (reserve(&index->entries, count) || (index->journaling && reserve(&index->ended, count)))
		return -1;
	for (size_t at = 0; at < count; at++)
		apply_one(index, &records[at], at, steps);
	return 0;
}

int nr_index_dump(struct nr_index *index, const struct nr_flow *records, size_t count, struct nr_steps *steps)
{
	if (reserve(&index->entries, count))
		return -1;
	for (size_t at = 0; at < count; at++) {
		int64_t row = nr_index_find(index, records[at].key);

		if (row >= 0)
			note_old(steps, row, at);
		else if (!index->ended.rows[find_slot(&index->ended, records[at].key)])
			enter(index, records[at].key, at, steps);
	}
	return 0;
}

int nr_index_release(struct nr_index *index, const int64_t *rows, size_t count)
{
	size_t room = index->free_room ? index->free_room : 1024;

	while (room < index->free_count + count)
		room *= 2;
	if (room != index->free_room) {
		uint32_t *larger = realloc(index->free_rows, room * sizeof(*larger));

		if (!larger)
			return -1;
		index->free_rows = larger;
		index->free_room = room;
	}
	for (size_t i = 0; i < count; i++)
		index->free_rows[index->free_count++] = (uint32_t)rows[i];
	return 0;
}

void nr_index_remove(struct nr_index *index, const uint64_t *keys, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		size_t at = find_slot(&index->entries, keys[i]);

		if (index->entries.rows[at])
			delete_slot(&index->entries, at);
	}
}

void nr_index_journal(struct nr_index *index, int wanted)
{
	struct slots fresh;

	index->journaling = wanted;
	index->overflown = 0;
	if (!index->ended.used)
		return;
	if (init_slots(&fresh, FIRST_SLOTS) == 0) {
		clear_slots(&index->ended);
		index->ended = fresh;
	} else { /* keep the memory, forget what is in it */
		memset(index->ended.rows, 0, (index->ended.mask + 1) * sizeof(*index->ended.rows));
		index->ended.used = 0;
	}
}

int nr_index_overflown(const struct nr_index *index)
{
	return index->overflown;
}
