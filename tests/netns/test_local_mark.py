"""The bit of the conntrack mark that says that a flow comes from a soft-unicast address: set, used, and given back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from own_network import connection, own_network, run

from nat_rewriter.config import read_policy
from nat_rewriter.controller.gathering import marked_addresses
from nat_rewriter.controller.intent import apply
from nat_rewriter.controller.observation import look_once
from nat_rewriter.kernel.conntrack import get_flow, insert_flow
from nat_rewriter.kernel.nft import KernelNft
from nat_rewriter.model.findings import Kind
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.tuples import FlowTuple

BIT, OTHERS = 0x100, 0x7
SOFT = [f"198.51.100.{10 + number}" for number in range(6)]
SOFT6, CLIENT, SERVER, SERVER6 = "2001:db8::10", "10.0.0.2", "203.0.113.1", "2001:db8:1::1"
LOCAL = (Kind.PORT_LEAKED, Kind.PORT_REMAPPED)
LEAKING, OUTSIDE = 9000, 33000
TRACKING = """
table inet tracking {
    chain sent {
        type filter hook output priority 0
        ct state new counter
    }
}
"""


def text(addresses: list[str], *, bit: bool = True) -> str:
    slices = [
        f'[[slice]]\nname = "s{number}"\naddress = "{address}"\nports = ["9000-9009"]\n'
        for number, address in enumerate(addresses)
    ]
    lent = f"local_mark = {BIT}\n" if bit else ""
    return f'version = 1\n[controller]\nguard = "off"\ncoexist = "off"\n{lent}{"".join(slices)}'


def policy(addresses: list[str], *, bit: bool = True) -> Policy:
    return read_policy(text(addresses, bit=bit).encode())


def put_in_force(wanted: Policy) -> None:
    with KernelNft() as nft:
        apply(wanted, nft)


def flow_from(source: str) -> FlowTuple:
    server = SERVER6 if ":" in source else SERVER
    return FlowTuple("tcp", ip_address(source), LEAKING, ip_address(server), 443)


def mark_of(source: str) -> int | None:
    flow = get_flow(flow_from(source))
    assert flow
    return flow.mark


def insert(source: str, mark: int = 0, wire: str | None = None) -> None:
    """Insert a flow whose source port NAT has moved to one outside of every slice."""
    insert_flow(flow_from(source), 600, mark=mark, source_nat=(ip_address(wire or source), OUTSIDE))


@pytest.fixture
def network() -> Iterator[None]:
    addresses = [f"{each}/32" for each in (*SOFT, SERVER)] + [f"{each}/128" for each in (SOFT6, SERVER6)]
    with own_network(*addresses):
        run("nft -f -", TRACKING)
        yield


def test_flows_that_were_there_before_and_flows_that_come_are_marked(network: None) -> None:
    insert(SOFT[0], OTHERS)
    insert(SOFT6)
    insert(CLIENT, OTHERS, wire=SOFT[1])
    put_in_force(policy([*SOFT, SOFT6]))
    assert mark_of(SOFT[0]) == BIT | OTHERS
    assert mark_of(SOFT6) == BIT
    assert mark_of(CLIENT) == OTHERS
    for source, server in ((SOFT[2], SERVER), (SOFT6, SERVER6)):
        with connection(source, server, 80, 9001):
            came = get_flow(FlowTuple("tcp", ip_address(source), 9001, ip_address(server), 80))
            assert came
            assert came.mark == BIT
    with connection(SERVER, SOFT[2], 80, 9001):
        other = get_flow(FlowTuple("tcp", ip_address(SERVER), 9001, ip_address(SOFT[2]), 80))
        assert other
        assert not other.mark


def test_a_look_for_marked_flows_finds_what_a_look_at_all_finds(network: None) -> None:
    wanted = policy([*SOFT, SOFT6])
    for source in (SOFT[0], SOFT[5], SOFT6):
        insert(source)
    put_in_force(wanted)
    assert marked_addresses(wanted.controller) == {each.address for each in wanted.slices}
    found = look_once(wanted, LOCAL)
    assert len(found) == 3
    assert found == look_once(policy([*SOFT, SOFT6], bit=False), LOCAL)
    assert found == [each for each in look_once(wanted) if each.kind in LOCAL]
    # It is by the bit that they were found.
    run(f"conntrack -U -s {SOFT[0]} -m 0")
    assert len(look_once(wanted, LOCAL)) == 2


def test_without_the_table_nothing_is_taken_for_marked(network: None) -> None:
    wanted = policy([*SOFT, SOFT6])
    for source in (SOFT[0], SOFT6):
        insert(source)
    assert not marked_addresses(wanted.controller)
    assert len(look_once(wanted, LOCAL)) == 2
    put_in_force(policy(SOFT[:5]))
    assert len(look_once(wanted, LOCAL)) == 2


def test_an_address_that_goes_and_comes_back_is_marked_again(network: None) -> None:
    put_in_force(policy(SOFT))
    put_in_force(policy(SOFT[1:]))
    assert ip_address(SOFT[0]) not in marked_addresses(policy(SOFT).controller)
    insert(SOFT[0])
    put_in_force(policy(SOFT))
    assert mark_of(SOFT[0]) == BIT
    assert ip_address(SOFT[0]) in marked_addresses(policy(SOFT).controller)


def test_the_bit_is_given_back_when_it_is_lent_no_more(network: None) -> None:
    insert(SOFT[0], OTHERS)
    put_in_force(policy(SOFT))
    assert mark_of(SOFT[0]) == BIT | OTHERS
    put_in_force(policy(SOFT, bit=False))
    assert mark_of(SOFT[0]) == OTHERS


def test_remove_gives_the_bit_back(network: None, tmp_path: Path) -> None:
    insert(SOFT[0], OTHERS)
    config = tmp_path / "natctl.toml"
    config.write_text(text(SOFT))
    for command in ("apply", "remove"):
        natctl = [sys.executable, "-m", "nat_rewriter", command, "--config", config, "--state", tmp_path / "state"]
        subprocess.run(natctl, check=True, capture_output=True, timeout=60)
        assert mark_of(SOFT[0]) == (BIT | OTHERS if command == "apply" else OTHERS)
