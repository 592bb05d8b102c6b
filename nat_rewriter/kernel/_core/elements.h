/* Elements of nf_tables sets: what the kernel dumps of them, as text in nft's spelling. */
#ifndef NATCTL_ELEMENTS_H
#define NATCTL_ELEMENTS_H

#include <stddef.h>
#include <stdint.h>

/* What a field of a key, or of data, is. */
enum nr_field { NR_FIELD_IPV4 = 1, NR_FIELD_IPV6, NR_FIELD_PROTOCOL, NR_FIELD_NUMBER };

enum nr_set_data { NR_DATA_NONE, NR_DATA_FIELDS, NR_DATA_RANGES, NR_DATA_VERDICT };

/* How the elements of a set are laid out. sorted: one field, and each element a boundary of an interval. */
struct nr_set_layout {
	uint8_t key[8];
	uint8_t key_fields;
	uint8_t data[8];
	uint8_t data_fields;
	uint8_t data_kind;
	uint8_t sorted;
};

/* What became of the messages: text was written, or why there is none. */
enum nr_elements_problem { NR_ELEMENTS_OK, NR_ELEMENTS_NO_ROOM, NR_ELEMENTS_MALFORMED, NR_ELEMENTS_UNKNOWN };

/*
 * Write the elements in netlink messages as lines: a key, and for maps its data on the next line. Of a sorted set a
 * line is the bytes of the boundary in hexadecimal and "0" for an end, "1" for a start. Pure: no allocation, no state.
 * Returns an enum nr_elements_problem; *written is the length of the text.
 */
int nr_element_lines(const uint8_t *messages, size_t length, const struct nr_set_layout *layout, char *text, size_t room,
		     size_t *written);

#endif
