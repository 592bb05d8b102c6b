"""Plain tables read at once mean what they mean when they are read key by key."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat_rewriter.config import check_document
from nat_rewriter.config.source import parse_document
from nat_rewriter.errors import ConfigError

NAMES = st.sampled_from(["a", "b", "c", "9", "a b", "", 7, None])
ADDRESSES = st.sampled_from(
    [
        "198.51.100.10",
        "198.51.100.11",
        "2001:db8::1",
        "2001:DB8:0::1",
        "127.0.0.1",
        "::",
        "1",
        "10.0.0.1%x",
        7,
        None,
        [],
    ]
)
PORTS = st.sampled_from(
    [
        ["9000-9009"],
        ["9000"],
        ["9005-9020"],
        ["0-3"],
        ["9-5"],
        ["65536"],
        [9000],
        "9000",
        [],
        None,
        ["1", "3-4"],
        ["\u0661"],
    ]
)
PROTOCOLS = st.sampled_from([["tcp"], ["udp", "tcp"], ["icmp", "udp"], ["tcp", "tcp"], ["sctp"], [], "tcp", [7], None])
SOURCES = st.sampled_from(
    [
        ["10.0.0.1"],
        ["10.0.0.0/24"],
        ["10.0.0.1/24"],
        ["2001:db8::/64"],
        ["::ffff:1.2.3.4"],
        "10.0.0.1",
        [],
        ["x"],
        [7],
        None,
    ]
)
SLICES = st.sampled_from([["a"], ["b"], ["a", "b"], ["nobody"], [], "a", [7], None])
INTERFACES = st.sampled_from(["eth0", "a/b", "*", ["eth0"], ["eth0", "eth0"], 7, None])


def tables(**keys: st.SearchStrategy[object]) -> st.SearchStrategy[list[dict[str, object]]]:
    one = st.fixed_dictionaries(keys).map(
        lambda table: {key: value for key, value in table.items() if value is not None}
    )
    return st.lists(one, max_size=3)


DOCUMENTS = st.builds(
    lambda slices, rules: {"version": 1, "slice": slices, **({"snat": rules} if rules else {})},
    tables(name=NAMES, address=ADDRESSES, ports=PORTS, protocols=PROTOCOLS, unknown=st.sampled_from([None, None, 1])),
    tables(name=NAMES, source=SOURCES, slices=SLICES, iifname=INTERFACES, mark=st.sampled_from([None, None, 1])),
)


def meaning(document: dict[str, object]) -> object:
    try:
        return check_document(document, "file")
    except ConfigError as error:
        return error.problems


@given(DOCUMENTS)
def test_a_table_read_at_once_means_what_it_means_key_by_key(document: dict[str, object]) -> None:
    at_once = meaning(document)
    with (
        patch("nat_rewriter.config.slices.plain_slice", return_value=None),
        patch("nat_rewriter.config.slices.share_ports", return_value=True),
        patch("nat_rewriter.config.snat.plain_rule", return_value=None),
    ):
        assert meaning(document) == at_once


@pytest.mark.parametrize("text", [b"a = 1e400", b"a = [[1], {b = 'c'}]\r\n[d.e]\nf = 2020-01-01", b"x = -0\ny = nan"])
def test_either_parser_gives_the_same_document(text: bytes) -> None:
    fast = parse_document(text, "file")
    with patch.dict("sys.modules", {"rtoml": None}):
        assert repr(parse_document(text, "file")) == repr(fast)
