/* A fuzzer for where there is no libFuzzer: seeds from files, spoilt in the ways that lengths go wrong, the same ones
 * every time. Usage: mutate EXECUTIONS FILE...
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_SEEDS = 256, MAX_BYTES = 8192 };

struct seed {
	uint8_t bytes[MAX_BYTES];
	size_t length;
};

static struct seed seeds[MAX_SEEDS];
static size_t seed_count;
static uint64_t state = 0x9E3779B97F4A7C15;

/* xorshift64: Marsaglia, "Xorshift RNGs" */
static uint64_t next_number(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static size_t below(size_t limit)
{
	return limit ? (size_t)(next_number() % limit) : 0;
}

static void read_seed(const char *path)
{
	FILE *file = fopen(path, "rb");

	if (!file || seed_count == MAX_SEEDS) {
		fprintf(stderr, "cannot read %s\n", path);
		exit(2);
	}
	seeds[seed_count].length = fread(seeds[seed_count].bytes, 1, MAX_BYTES, file);
	seed_count++;
	fclose(file);
}

static const uint16_t lengths[] = {0, 1, 3, 4, 5, 7, 8, 15, 16, 17, 20, 0x7fff, 0x8000, 0xfffc, 0xffff};

static void set_u16(struct seed *input)
{
	uint16_t value = lengths[below(sizeof(lengths) / sizeof(lengths[0]))];

	if (input->length >= 2)
		memcpy(input->bytes + (below(input->length - 1) & ~(size_t)1), &value, 2);
}

static void nudge_byte(struct seed *input)
{
	if (input->length)
		input->bytes[below(input->length)] += (uint8_t)(below(9) - 4);
}

static void set_byte(struct seed *input)
{
	if (input->length)
		input->bytes[below(input->length)] = (uint8_t)next_number();
}

/* Cut, and let the header of the first message say so: else nothing but that header is ever read. */
static void cut(struct seed *input)
{
	uint32_t length;

	input->length = below(input->length + 1);
	length = (uint32_t)input->length;
	if (input->length >= 4 && below(4))
		memcpy(input->bytes, &length, 4);
}

/* Cut, and let every length around the cut say so: what is wrong then is the size of one attribute at the very end. */
static void cut_consistently(struct seed *input)
{
	size_t at = 20; /* past struct nlmsghdr and struct nfgenmsg */
	uint32_t end;

	if (input->length < 32)
		return;
	end = (uint32_t)(24 + below(input->length - 24));
	input->length = end;
	memcpy(input->bytes, &end, sizeof(end));
	while (at + 4 <= end) {
		uint16_t length, type;

		memcpy(&length, input->bytes + at, sizeof(length));
		memcpy(&type, input->bytes + at + 2, sizeof(type));
		if (length >= 4 && at + length <= end) {
			at += (length + 3u) & ~3u;
			continue;
		}
		length = (uint16_t)(end - at);
		memcpy(input->bytes + at, &length, sizeof(length));
		if (!(type & 0x8000)) /* NLA_F_NESTED */
			return;
		at += 4;
	}
}

static void append_seed(struct seed *input)
{
	const struct seed *other = &seeds[below(seed_count)];
	size_t room = MAX_BYTES - input->length, length = other->length < room ? other->length : room;

	memcpy(input->bytes + input->length, other->bytes, length);
	input->length += length;
}

/* Copy a part of another seed over a part of this one. */
static void splice(struct seed *input)
{
	const struct seed *other = &seeds[below(seed_count)];
	size_t from = below(other->length) & ~(size_t)3, to = below(input->length) & ~(size_t)3;
	size_t length = below(64);

	if (length > other->length - from)
		length = other->length - from;
	if (length > input->length - to)
		length = input->length - to;
	memcpy(input->bytes + to, other->bytes + from, length);
}

static void (*const mutations[])(struct seed *) = {
	set_u16, nudge_byte, set_byte, cut, cut_consistently, append_seed, splice,
};

static void execute_one(void)
{
	static struct seed input;
	const struct seed *from = &seeds[below(seed_count)];

	memcpy(input.bytes, from->bytes, from->length);
	input.length = from->length;
	for (size_t i = below(6) + 1; i > 0; i--)
		mutations[below(sizeof(mutations) / sizeof(mutations[0]))](&input);
	LLVMFuzzerTestOneInput(input.bytes, input.length);
}

int main(int argc, char **argv)
{
	long executions = argc > 2 ? strtol(argv[1], NULL, 10) : 0;

	for (int i = 2; i < argc; i++)
		read_seed(argv[i]);
	if (executions <= 0 || !seed_count) {
		fprintf(stderr, "usage: mutate EXECUTIONS FILE...\n");
		return 2;
	}
	for (size_t i = 0; i < seed_count; i++)
		LLVMFuzzerTestOneInput(seeds[i].bytes, seeds[i].length);
	for (long i = 0; i < executions; i++)
		execute_one();
	printf("%ld executions from %zu seeds\n", executions, seed_count);
	return 0;
}
