"""The rules by which packets for shared addresses are handed over: what is in them, for whom, and how it changes."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_address

import pytest

from nat_rewriter.config import read_policy
from nat_rewriter.errors import ConfigError
from nat_rewriter.model.inbound import Holders, Inbound, Peer
from nat_rewriter.model.pools import Block, Holding, Pool
from nat_rewriter.model.slices import PortRange, Protocol
from nat_rewriter.render.inbound import (
    SLOTS,
    given_text,
    inbound_changes,
    inbound_elements,
    render_inbound,
    router_text,
)
from nat_rewriter.report.inbound import mapping_object

FOUR, OTHER, SIX = map(ip_address, ("198.51.100.10", "198.51.100.11", "2001:db8:100::10"))
TCP_UDP = (Protocol.TCP, Protocol.UDP)
POOLS = [
    Pool("four", (FOUR,), PortRange(8192, 16383), 1024, (*TCP_UDP, Protocol.ICMP)),
    Pool("other", (OTHER,), PortRange(8192, 16383), 64, TCP_UDP),
    Pool("six", (SIX,), PortRange(8192, 16383), 512, TCP_UDP),
]
PEERS = {
    f"h{number}": Peer(
        f"h{number}", (ip_address(f"192.0.2.{number}"), ip_address(f"2001:db8::{number}")), f"02::{number}"
    )
    for number in (1, 2, 3)
}
MINE, THEIRS, SIXTH = Block(FOUR, 8192, 1024), Block(OTHER, 8256, 64), Block(SIX, 9216, 512)
BLOCKS = {MINE: "h1", THEIRS: "h2", SIXTH: "h3"}
HOLDERS = Holders.of(BLOCKS, PEERS)
INBOUND = Inbound("seg0", (), ("up0", "up1"))


def test_each_block_of_others_is_handed_to_its_owner() -> None:
    found = inbound_elements(POOLS, HOLDERS, "h1")
    assert found["owners4"] == found["senders4"] == {"198.51.100.11 . 8256": "192.0.2.2"}
    assert found["owners6"] == {"2001:db8:100::10 . 9216": "2001:db8::3"}
    assert found["own4"] == {"198.51.100.10 . 8192": ""}
    assert found["own6"] == {}
    assert found["peers"] == {"02::2": "", "02::3": ""}


def test_a_router_has_no_blocks_of_its_own() -> None:
    found = inbound_elements(POOLS, HOLDERS, None)
    assert found["owners4"] == {"198.51.100.10 . 8192": "192.0.2.1", "198.51.100.11 . 8256": "192.0.2.2"}
    assert found.keys() == {"owners4", "owners6", "senders4", "senders6", "slots4", "slots6"}
    assert len(found["slots4"]) == SLOTS


def test_nothing_goes_to_a_host_that_did_not_say_where_it_is() -> None:
    silent = Holders(HOLDERS.held, {"h1": PEERS["h1"], "h3": Peer("h3", (ip_address("192.0.2.3"),), "02::3")})
    found = inbound_elements(POOLS, silent, "h1")
    assert found["owners4"] == {}
    assert found["owners6"] == {}
    assert set(found["slots4"].values()) == {"192.0.2.3"}
    assert len(found["mine6"]) == SLOTS


def test_hosts_agree_on_whose_a_slot_is() -> None:
    slots = {host: inbound_elements(POOLS, HOLDERS, host) for host in PEERS}
    for host, peer in PEERS.items():
        mine = slots[host]["mine4"]
        assert 40 < len(mine) < 130
        for other in PEERS.keys() - {host}:
            assert {key for key, to in slots[other]["slots4"].items() if to == str(peer.addresses[0])} == set(mine)


def test_a_host_that_goes_moves_its_slots_alone() -> None:
    fewer = Holders(HOLDERS.held, {name: peer for name, peer in PEERS.items() if name != "h3"})
    before, after = (inbound_elements(POOLS, holders, None)["slots4"] for holders in (HOLDERS, fewer))
    assert {key for key in before if before[key] != after[key]} == {
        key for key, to in before.items() if to == "192.0.2.3"
    }


def test_changes_are_elements_alone() -> None:
    moved = Holders.of({**BLOCKS, THEIRS: "h3"}, PEERS)
    text = inbound_changes("natctl", POOLS, HOLDERS, moved, "h1")
    assert text.splitlines() == [
        f"{verb} element {family} natctl_inbound {name} {{ 198.51.100.11 . 8256{data} }}"
        for verb, data in (("delete", ""), ("add", " : 192.0.2.3"))
        for name in ("owners4", "senders4")
        for family in ("netdev", "ip")
    ]
    assert not inbound_changes("natctl", POOLS, HOLDERS, Holders.of(BLOCKS, PEERS), "h1")


def test_a_host_that_falls_silent_is_still_known_for_one_of_the_fleet() -> None:
    gone = Holders(
        {host: some for host, some in HOLDERS.held.items() if host != "h2"}, {"h1": PEERS["h1"], "h3": PEERS["h3"]}
    )
    text = inbound_changes("natctl", POOLS, HOLDERS, gone, "h1")
    assert "delete element netdev natctl_inbound owners4 { 198.51.100.11 . 8256 }" in text
    assert " peers " not in text


def test_what_was_given_away_is_known_for_a_while() -> None:
    text = given_text("natctl", {SIXTH: PEERS["h2"].addresses[1]}, 30)
    assert text.splitlines()[-1] == (
        "add element netdev natctl_inbound given6 { 2001:db8:100::10 . 9216 timeout 30s : 2001:db8::2 }"
    )


def test_masks_follow_the_address_where_sizes_differ() -> None:
    rules = render_inbound("natctl", POOLS, INBOUND, host=True)
    assert (
        'ip daddr { 198.51.100.11 } ip ttl > 1 fwd ip to ip daddr . (th dport & 0xffc0) map @owners4 device "seg0"'
        in rules
    )
    assert "ip daddr { 198.51.100.10 } ip ttl > 1 fwd ip to ip daddr . (th dport & 0xfc00) map @owners4" in rules
    assert "\t\tip6 hoplimit > 1 fwd ip6 to ip6 daddr . (th dport & 0xfe00) map @owners6" in rules
    assert 'devices = { "up0", "up1", "seg0" }' in rules
    assert "icmpv6 type echo-reply" not in rules  # the pool has no echo ids


def test_a_router_looks_at_what_arrives_alone() -> None:
    text = router_text("natctl", POOLS, HOLDERS, INBOUND)
    assert text.startswith("table netdev natctl_inbound\ndelete table netdev natctl_inbound\n")
    assert 'devices = { "up0", "up1" }' in text
    assert "peers" not in text
    assert "table ip " not in text


def test_the_mapping_as_json() -> None:
    now = datetime(2026, 11, 22, tzinfo=UTC)
    held = [Holding(MINE, "h1", now, 12.5), Holding(Block(FOUR, 9216, 1024), "h9", now, 60, resting=True)]
    told = mapping_object({POOLS[0]: held, POOLS[2]: [Holding(SIXTH, "h7", now, 5)]}, PEERS, now)
    assert told["slices"] == [
        {
            "pool": "four", "address": "198.51.100.10", "ports": "8192-9215", "first": 8192, "mask": 0xFC00,
            "protocols": ["tcp", "udp", "icmp"], "host": "h1", "to": "192.0.2.1",
            "until": "2026-11-22T00:00:12.500000Z",
        },
        {
            "pool": "six", "address": "2001:db8:100::10", "ports": "9216-9727", "first": 9216, "mask": 0xFE00,
            "protocols": ["tcp", "udp"], "host": "h7", "until": "2026-11-22T00:00:05.000000Z",
        },
    ]  # fmt: skip
    assert told["hosts"][0] == {"host": "h1", "addresses": ["192.0.2.1", "2001:db8::1"], "link": "02::1"}


CONFIG = """version = 1
[[pool]]
name = "fleet"
addresses = ["198.51.100.10"]
slice_size = 1024
[inbound]
"""


def test_the_configuration() -> None:
    policy = read_policy(f'{CONFIG}device = "seg0"\naddresses = ["192.0.2.1"]\n'.encode())
    assert policy.inbound == Inbound("seg0", (ip_address("192.0.2.1"),), ("seg0",))
    policy = read_policy(f'{CONFIG}device = "seg0"\naddresses = "192.0.2.1"\narrival = ["up0", "up1"]\n'.encode())
    assert policy.inbound
    assert policy.inbound.devices == ("up0", "up1", "seg0")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("", "inbound.device: missing"),
        ('device = "seg0"', "inbound.addresses: missing"),
        ('device = "seg0"\naddresses = ["192.0.2.1", "192.0.2.2"]', "expected one address of each IP version"),
        ('device = "seg0"\naddresses = ["2001:db8::1"]', "expected an IPv4 address too"),
        ('device = "a/b"\naddresses = ["192.0.2.1"]', "inbound.device"),
        ('device = "seg0"\naddresses = ["192.0.2.1"]\nvia = "x"', "inbound.via"),
    ],
)
def test_what_the_configuration_cannot_say(keys: str, told: str) -> None:
    with pytest.raises(ConfigError) as failure:
        read_policy((CONFIG + keys + "\n").encode())
    assert told in str(failure.value)


def test_there_is_nothing_to_hand_over_without_a_pool() -> None:
    text = 'version = 1\n[[slice]]\nname = "a"\naddress = "198.51.100.1"\nports = ["9000"]\n'
    with pytest.raises(ConfigError, match=r"expected a \[\[pool\]\] beside \[inbound\]"):
        read_policy(f'{text}[inbound]\ndevice = "x"\naddresses = "192.0.2.1"\n'.encode())
