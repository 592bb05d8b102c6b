/* What must hold for any bytes: decoding gives records or a problem, reads nothing beyond the bytes, writes nothing
 * beyond the records it was given room for, and gives the same records however small the room is.
 *
 * The entry point is libFuzzer's; mutate.c calls it as well.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "require.h"

enum { ROOM = 64, GUARD = 0xA5 };

/* One of the two decoders, and the size of its records. */
struct decoder {
	int (*decode)(const uint8_t *, size_t, const struct nr_context *, void *, size_t, struct nr_progress *);
	size_t record_bytes;
};

static int flows(const uint8_t *bytes, size_t length, const struct nr_context *context, void *records, size_t capacity,
		 struct nr_progress *progress)
{
	return nr_decode_flows(bytes, length, context, records, capacity, progress);
}

static int sockets(const uint8_t *bytes, size_t length, const struct nr_context *context, void *records,
		   size_t capacity, struct nr_progress *progress)
{
	return nr_decode_sockets(bytes, length, context, records, capacity, progress);
}

static void check_progress(int problem, size_t length, const struct nr_progress *progress, size_t capacity)
{
	REQUIRE(problem >= 0 && problem < NR_PROBLEMS);
	REQUIRE(nr_problem_text(problem) != NULL);
	REQUIRE(progress->offset <= length);
	REQUIRE(progress->records <= capacity);
	REQUIRE(progress->error >= 0);
}

static void check_guard(const uint8_t *guard, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++)
		REQUIRE(guard[i] == GUARD);
}

/* Decode all at once, into room of exactly the size that is told. */
static int decode_whole(struct decoder decoder, const uint8_t *bytes, size_t length, const struct nr_context *context,
			uint8_t *records, struct nr_progress *progress)
{
	int problem;

	memset(records, GUARD, (ROOM + 1) * decoder.record_bytes);
	problem = decoder.decode(bytes, length, context, records, ROOM, progress);
	check_progress(problem, length, progress, ROOM);
	check_guard(records + ROOM * decoder.record_bytes, decoder.record_bytes);
	return problem;
}

/* Decode the same with room for one record at a time: the same records have to come, in the same order. */
static void check_piecewise(struct decoder decoder, const uint8_t *bytes, size_t length,
			    const struct nr_context *context, const uint8_t *records, int problem,
			    const struct nr_progress *whole)
{
	uint8_t *one = malloc(decoder.record_bytes);
	struct nr_progress progress = {0};
	int found = NR_OK;

	REQUIRE(one != NULL);
	for (uint64_t i = 0; i < whole->records; i++) {
		progress.records = 0;
		found = decoder.decode(bytes, length, context, one, 1, &progress);
		REQUIRE(found == NR_OK && progress.records == 1);
		REQUIRE(memcmp(one, records + i * decoder.record_bytes, decoder.record_bytes) == 0);
	}
	if (whole->records < ROOM && !(progress.flags & (NR_DONE | NR_ANSWERED))) {
		progress.records = 0;
		found = decoder.decode(bytes, length, context, one, 1, &progress);
		REQUIRE(found == problem && progress.records == 0 && progress.offset == whole->offset);
	}
	free(one);
}

static void check(struct decoder decoder, const uint8_t *bytes, size_t length, const struct nr_context *context)
{
	uint8_t *records = malloc((ROOM + 1) * decoder.record_bytes);
	struct nr_progress progress = {0};
	int problem;

	REQUIRE(records != NULL);
	problem = decode_whole(decoder, bytes, length, context, records, &progress);
	check_piecewise(decoder, bytes, length, context, records, problem, &progress);
	free(records);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct nr_filter filter = {.fields = NR_MATCH_FAMILY, .wanted = {.family = 4}};
	const struct nr_context everything = {.seed = {1, 2}, .families = 1 << 4 | 1 << 6};
	const struct nr_context some = {.seed = {1, 2}, .filter = &filter, .events = 1, .families = 1 << 4};
	const struct decoder both[] = {{flows, sizeof(struct nr_flow)}, {sockets, sizeof(struct nr_socket)}};
	/* Memory of exactly this size, so that the sanitizer sees a read of one byte too many. */
	uint8_t *bytes = malloc(size ? size : 1);

	REQUIRE(bytes != NULL);
	memcpy(bytes, data, size);
	for (size_t i = 0; i < sizeof(both) / sizeof(both[0]); i++) {
		check(both[i], bytes, size, &everything);
		check(both[i], bytes, size, &some);
	}
	free(bytes);
	return 0;
}
