"""The devices and addresses by which hosts of a fleet reach each other: made anew, or none of this host's."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

import pytest

from nat_rewriter.kernel.inbound import Handover
from nat_rewriter.model.inbound import Inbound
from nat_rewriter.model.pools import Pool
from nat_rewriter.model.slices import PortRange
from netns_lab.segment import SEGMENT_LINK, SHARED, cable, configure, hosts_of_their_own, peer_address

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
            handover.raise_up([pool], inbound, {})
            assert handover.stands()
            host.run(["ip", "link", "delete", SEGMENT_LINK])
            assert not handover.stands()
            cable(host, SEGMENT_LINK, other, "far0")
            assert not handover.stands()
            handover.raise_up([pool], inbound, {})
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
