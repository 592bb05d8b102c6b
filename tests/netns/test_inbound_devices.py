"""The devices and addresses by which hosts of a fleet reach each other: made anew, or none of this host's."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

import pytest

from nat_rewriter.kernel.inbound import Handover, link_address
from nat_rewriter.model.inbound import Holders, Inbound, Peer
from nat_rewriter.model.pools import Block, Pool
from nat_rewriter.model.slices import PortRange
from netns_lab.host import Host
from netns_lab.segment import (
    SEGMENT_LINK,
    SERVER,
    SHARED,
    cable,
    configure,
    hosts_of_their_own,
    peer_address,
    segment,
)

CONFIG = """version = 1
[[pool]]
name = "four"
addresses = ["{shared}"]
slice_size = 1024
[store]
url = "sqlite:{store}"
[inbound]
device = "{device}"
addresses = ["{peer}"]
"""


def test_rules_for_a_device_that_was_made_anew() -> None:
    pool = Pool("four", (ip_address(SHARED),), PortRange(8192, 16383), 1024)
    inbound = Inbound(SEGMENT_LINK, (), (SEGMENT_LINK,))
    with ExitStack() as resources:
        host, other = hosts_of_their_own(resources, "host", "other")
        cable(host, SEGMENT_LINK, other, "far0")
        with host.enter(), Handover("natctl") as handover:
            handover.raise_up([pool], inbound, Holders())
            assert handover.stands()
            host.run(["ip", "link", "delete", SEGMENT_LINK])
            assert not handover.stands()
            cable(host, SEGMENT_LINK, other, "far0")
            assert not handover.stands()
            handover.raise_up([pool], inbound, Holders())
            assert handover.stands()
            handover.take_down()
            assert not handover.stands()


@pytest.mark.parametrize(
    ("device", "peer", "told"),
    [
        ("seg9", peer_address(0), "read link-layer address: no such device: 'seg9'"),
        ("lo", peer_address(0), "read link-layer address: not an Ethernet device: 'lo'"),
        (SEGMENT_LINK, "192.0.2.99", "tell where this host is: not one of its addresses: '192.0.2.99'"),
    ],
)
def test_what_an_agent_cannot_tell_others(tmp_path: Path, device: str, peer: str, told: str) -> None:
    path = tmp_path / "natctl.toml"
    path.write_text(CONFIG.format(shared=SHARED, store=tmp_path / "pools", device=device, peer=peer))
    command = [sys.executable, "-m", "nat_rewriter"]
    with ExitStack() as resources:
        host, other = hosts_of_their_own(resources, "host", "other")
        cable(host, SEGMENT_LINK, other, "far0")
        configure(host, SEGMENT_LINK, f"{peer_address(0)}/24")
        host.run([*command, "pool", "init", "--config", str(path)])
        words = ["agent", "--config", str(path), "--state", str(tmp_path / "state")]
        done = host.run([*command, *words], check=False)
        assert done.returncode == 1
        assert told in done.stderr


def test_a_vxlan_between_the_hosts() -> None:
    """Hosts that are on several segments reach each other by a device that makes one of them."""
    pool = Pool("four", (ip_address(SHARED),), PortRange(8192, 16383), 1024)
    block = Block(ip_address(SHARED), 9216, 1024)
    with segment(2) as lab, ExitStack() as tables:
        lab.server.tcp_server(443)
        for number, host in enumerate(lab.hosts):
            _overlay(host, number)
        peers = {f"h{number}": _peer(host, number) for number, host in enumerate(lab.hosts)}
        for number, host in enumerate(lab.hosts):
            with host.enter():
                handover = tables.enter_context(Handover("natctl", f"h{number}"))
            handover.raise_up([pool], Inbound("vx0", (), (SEGMENT_LINK,)), Holders.of({block: "h0"}, peers))
        lab.deal_to([1])
        with lab.hosts[0].tcp_connect((SERVER, 443), src=(SHARED, 9300), timeout_s=10) as sock:
            sock.sendall(b"x" * 50_000)
            back = 0
            while back < 50_000 and (part := sock.recv(65536)):
                back += len(part)
        assert back == 50_000


def _overlay(host: Host, number: int) -> None:
    words = f"vxlan id 7 dstport 4789 local {peer_address(number)} dev {SEGMENT_LINK}"
    host.run(["ip", "link", "add", "vx0", "type", *words.split()])
    configure(host, "vx0", f"192.168.7.{11 + number}/24")
    words = f"fdb append 00:00:00:00:00:00 dev vx0 dst {peer_address(1 - number)}"
    host.run(["bridge", *words.split()])


def _peer(host: Host, number: int) -> Peer:
    with host.enter():
        return Peer(f"h{number}", (ip_address(f"192.168.7.{11 + number}"),), link_address("vx0"))
