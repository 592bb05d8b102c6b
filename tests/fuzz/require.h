/* What has to hold for any input: where it does not, the fuzzer ends with the condition, and the input that led there. */
#ifndef NATCTL_FUZZ_REQUIRE_H
#define NATCTL_FUZZ_REQUIRE_H

#include <stdio.h>
#include <stdlib.h>

#define REQUIRE(condition)                                                  \
	do {                                                                \
		if (!(condition)) {                                         \
			fprintf(stderr, "does not hold: %s\n", #condition); \
			abort();                                            \
		}                                                           \
	} while (0)

#endif
