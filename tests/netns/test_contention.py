"""Half of a slice of 100 ports is held by NAT flows to one server, and 45 local sockets want ports of it, at random.

The upstream drops what leaves the slice, and counts it: nothing here is what natctl says of itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from bench.coexist.load import Connects, Outcome, connects, serve
from bench.coexist.settings import apply, configuration, socket_half
from nat_rewriter.model.slices import PortRange
from netns_lab import Lab
from netns_lab.topology import CLIENT, CLIENT_6, SERVER, SERVER_6, SOFT_ADDRESS, SOFT_ADDRESS_6

LabFactory = Callable[..., Lab]
SLICE = PortRange(9000, 9099)
HELD = 50
WANTED = 45
FAMILIES = pytest.mark.parametrize("family", [4, 6])
PROTOCOLS = pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
ADDRESSES = {4: (CLIENT, SERVER, SOFT_ADDRESS), 6: (CLIENT_6, SERVER_6, SOFT_ADDRESS_6)}


@dataclass(frozen=True, slots=True)
class Contention:
    """What both sides saw: the NAT flows, the local sockets, and the packets outside the slice."""

    flows: Outcome
    sockets: Outcome
    leaked: int


@pytest.fixture
def lab(lab_factory: LabFactory) -> Lab:
    lab = lab_factory(slices=[f"{SOFT_ADDRESS}:{SLICE}", f"[{SOFT_ADDRESS_6}]:{SLICE}"])
    serve(lab.server)
    return lab


def contend(lab: Lab, family: int, *, udp: bool, held: int = HELD, ports: PortRange = SLICE) -> Contention:
    client, server, soft = ADDRESSES[family]
    flows = connects(lab.client, client, server, count=held, at_once=held, hold=-1, udp=udp)
    went = flows.outcome()
    sockets = local_sockets(lab, soft, server, ports, udp=udp)
    result = Contention(went, sockets.outcome(), lab.leaks().total)
    sockets.close()
    flows.close()
    return result


def local_sockets(lab: Lab, soft: str, server: str, ports: PortRange, *, udp: bool) -> Connects:
    return connects(
        lab.egress, soft, server, count=WANTED, at_once=WANTED, rate=2000, hold=-1, retries=1000, patience=2,
        ports=f"{ports.first}-{ports.last}", udp=udp, ask_conntrack=True,
    )  # fmt: skip


@FAMILIES
@PROTOCOLS
def test_plain_rewriting_leaves_local_sockets_hanging(lab: Lab, family: int, udp: bool) -> None:
    apply(lab, configuration(lab.slices, coexist="off", guard="off"))
    seen = contend(lab, family, udp=udp)
    assert seen.flows.worked == HELD
    assert seen.sockets.hung > 0
    assert seen.leaked > 0


@FAMILIES
@PROTOCOLS
@pytest.mark.parametrize("coexist", ["confine", "refuse"])
def test_every_local_socket_gets_a_connection(lab: Lab, coexist: str, family: int, udp: bool) -> None:
    apply(lab, configuration(lab.slices, coexist=coexist))
    seen = contend(lab, family, udp=udp)
    assert seen.flows.worked == HELD
    assert (seen.sockets.worked, seen.sockets.hung, seen.sockets.broken, seen.leaked) == (WANTED, 0, 0, 0)
    assert seen.sockets.refused_free == 0
    assert (seen.sockets.refused > 0) == (coexist == "refuse")
    assert seen.sockets.p99_ms < 1000


@FAMILIES
@PROTOCOLS
def test_split_keeps_both_sides_apart(lab: Lab, family: int, udp: bool) -> None:
    apply(lab, configuration(lab.slices, coexist="split"))
    # Each side asks for 45 of its own 50 ports.
    seen = contend(lab, family, udp=udp, held=WANTED, ports=socket_half(SLICE))
    assert seen.flows.worked == WANTED
    assert (seen.sockets.worked, seen.sockets.hung, seen.sockets.refused, seen.leaked) == (WANTED, 0, 0, 0)


@PROTOCOLS
def test_split_refuses_local_sockets_the_ports_that_are_for_rewriting(lab: Lab, udp: bool) -> None:
    apply(lab, configuration(lab.slices, coexist="split"))
    seen = connects(lab.egress, SOFT_ADDRESS, SERVER, ports="9000-9049", retries=20, patience=2, udp=udp).outcome()
    assert (seen.gave_up, seen.refused, seen.worked) == (1, 21, 0)


@FAMILIES
def test_with_the_guard_alone_nothing_leaks_but_sockets_hang(lab: Lab, family: int) -> None:
    apply(lab, configuration(lab.slices, coexist="off", guard="drop"))
    seen = contend(lab, family, udp=False)
    assert seen.leaked == 0
    assert seen.sockets.hung > 0
