"""A listing by its objects, in an order of its own."""

from __future__ import annotations

from nat_rewriter.listing import Name, ordered_listing, parse_listing

LISTING = """table inet t {
	ct timeout tcp4 {
		protocol tcp
		policy = { close : 5 }
	}

	chain b {
		type filter hook output priority filter; policy accept;
		ip saddr { 10.0.0.1, 10.0.0.2 } accept
	}

	set s {
		type ipv4_addr
	}

	chain a {
	}
}
"""


def test_a_listing_by_its_objects() -> None:
    listing = parse_listing(LISTING)
    assert listing.head == "table inet t {\n}"
    assert list(listing.objects) == [("ct timeout", "tcp4"), ("chain", "b"), ("set", "s"), ("chain", "a")]
    assert listing.hook(Name("chain", "b")) == "\t\ttype filter hook output priority filter; policy accept;"
    assert listing.hook(Name("chain", "a")) == ""


def test_one_order_whatever_the_age_of_the_objects() -> None:
    ordered = ordered_listing(LISTING)
    assert [line for line in ordered.splitlines() if line.endswith("{")] == [
        "table inet t {", "\tct timeout tcp4 {", "\tset s {", "\tchain a {", "\tchain b {",
    ]  # fmt: skip
    assert ordered_listing(ordered) == ordered
    assert parse_listing(ordered).objects == parse_listing(LISTING).objects


def test_what_is_said_of_the_table_itself_stays_in_front() -> None:
    text = LISTING.replace("{\n", "{\n\tflags dormant\n", 1)
    assert ordered_listing(text).splitlines()[1] == "\tflags dormant"
    assert parse_listing(text).head == "table inet t {\n\tflags dormant\n}"
