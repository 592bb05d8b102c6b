/* SipHash-1-3 over 64-bit words: short, keyed, and good enough that nobody outside can make two flows collide.
 * Aumasson and Bernstein, "SipHash: a fast short-input PRF"; the kernel's own tables use the same (lib/siphash.c). */
#ifndef NATCTL_SIPHASH_H
#define NATCTL_SIPHASH_H

#include <stddef.h>
#include <stdint.h>

static inline uint64_t nr_rotate(uint64_t value, int bits)
{
	return value << bits | value >> (64 - bits);
}

static inline void nr_sip_round(uint64_t v[4])
{
	v[0] += v[1];
	v[1] = nr_rotate(v[1], 13) ^ v[0];
	v[0] = nr_rotate(v[0], 32);
	v[2] += v[3];
	v[3] = nr_rotate(v[3], 16) ^ v[2];
	v[0] += v[3];
	v[3] = nr_rotate(v[3], 21) ^ v[0];
	v[2] += v[1];
	v[1] = nr_rotate(v[1], 17) ^ v[2];
	v[2] = nr_rotate(v[2], 32);
}

static inline uint64_t nr_siphash(const uint64_t seed[2], const uint64_t *words, size_t count)
{
	uint64_t v[4] = {
		seed[0] ^ 0x736f6d6570736575ULL,
		seed[1] ^ 0x646f72616e646f6dULL,
		seed[0] ^ 0x6c7967656e657261ULL,
		seed[1] ^ 0x7465646279746573ULL,
	};
	uint64_t length = (uint64_t)(count * sizeof(*words)) << 56;

	for (size_t i = 0; i <= count; i++) {
		uint64_t word = i < count ? words[i] : length;

		v[3] ^= word;
		nr_sip_round(v);
		v[0] ^= word;
	}
	v[2] ^= 0xff;
	nr_sip_round(v);
	nr_sip_round(v);
	nr_sip_round(v);
	return v[0] ^ v[1] ^ v[2] ^ v[3];
}

#endif
