"""Plain tables read at once mean what they mean when they are read key by key."""

from __future__ import annotations

import json
from unittest.mock import patch

import pytest
import rtoml
from hypothesis import given, settings
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


FRAGMENTS = st.sampled_from(
    [
        "[[slice]]\n", "[[slice]]\r\n", "[[snat]]\n", "[[slice]] # one\n", " [[slice]]\n", "[[slice.sub]]\n",
        "[slice]\n",
        "[slice.sub]\n", "[controller]\n", "[controller.timeouts]\n", "[[dnat]]\n", "[snat.inner]\n", '["slice"]\n',
        'name = "a"\n', 'b = """\n', '"""\n', "c = '''\n", "'''\n", "d = [\n", "]\n", "[[slice]],\n", "slice = []\n",
        "slice = [{ e = 1 }]\n", "snat = 1\n", "slice.x = 1\n", "f = { g = 1 }\n", "# [[slice]]\n", "\n", "h = 1",
    ]
)  # fmt: skip


@given(st.lists(FRAGMENTS, max_size=14).map("".join))
@settings(max_examples=1000)
def test_a_document_read_in_pieces_is_the_whole(text: str) -> None:
    """Compared with the standard library's reader, which reads it at once."""
    with patch("nat_rewriter.config.source._PIECE", 1):
        in_pieces = parsed(text)
    with patch.dict("sys.modules", {"rtoml": None}):
        assert parsed(text) == in_pieces


def test_a_long_document_is_read_in_pieces() -> None:
    text = "version = 1\n" + "".join(f'[[slice]]\nname = "s{number}"\n' for number in range(5000)) + "[controller]\n"
    with patch("rtoml.loads", side_effect=rtoml.loads) as load:
        assert len(parse_document(text.encode(), "file")["slice"]) == 5000
    assert load.call_count == 3  # what comes before the first slice, and two times 64 Ki


def parsed(text: str) -> object:
    try:
        return json.dumps(parse_document(text.encode(), "file"), sort_keys=True)
    except ConfigError as error:
        return error.problems
