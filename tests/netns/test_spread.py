"""Ten thousand flows over the ranges of a slice: each range gets the share that its ports are of all."""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from bench.coexist.load import packets
from bench.coexist.settings import apply, configuration
from nat_rewriter.kernel import conntrack
from nat_rewriter.model.slices import PortRange
from netns_lab import Lab
from netns_lab.topology import CLIENT, CLIENT_LINK, DOWNLINK, SERVER, SERVER_6, SOFT_ADDRESS, SOFT_ADDRESS_6

LabFactory = Callable[..., Lab]
FLOWS = 10_016  # whole batches of 32, as frames are sent
RANGES = (PortRange(10_000, 12_047), PortRange(14_000, 16_047), PortRange(20_000, 24_095), PortRange(30_000, 38_191))
# More than this is seen once in a million runs: the quantile of chi-square with three degrees of freedom.
CHI_SQUARE = 30.66
NETWORKS = {4: "10.0.0.0/16", 6: "2001:db8:10::/48"}


@pytest.fixture
def lab(lab_factory: LabFactory) -> Lab:
    ranges = ",".join(map(str, RANGES))
    lab = lab_factory(slices=[f"{SOFT_ADDRESS}:{ranges}", f"[{SOFT_ADDRESS_6}]:{ranges}"])
    # Nobody answers, and nobody is told so.
    drop = f"chain c {{ type filter hook ingress device {DOWNLINK} priority 0; drop; }}"
    lab.upstream.nft(f"table netdev sink {{ {drop}; }}")
    return lab


def client_addresses(family: int) -> Iterator[str]:
    for number in range(2, 2 + FLOWS):
        yield f"10.0.{number >> 8}.{number & 0xFF}" if family == 4 else f"2001:db8:10::{number:x}"


def flows_of(spread: str, family: int) -> str:
    """Return the ends of the flows: of a client each where the client decides, else of one client."""
    server = SERVER if family == 4 else SERVER_6
    if spread == "client":
        return "".join(f"{address} 5000 {server} 53\n" for address in client_addresses(family))
    client = CLIENT if family == 4 else "2001:db8:10::2"
    return "".join(f"{client} {port} {server} 53\n" for port in range(40_000, 40_000 + FLOWS))


def begin(lab: Lab, flows: str) -> None:
    lab.client.ping("10.0.0.1")  # so that both ends of the link know each other
    gateway = re.search(r"link/ether (\S+)", lab.egress.run(["ip", "link", "show", CLIENT_LINK]).stdout)
    assert gateway
    packets(lab.client, flows, device="eth0", gateway=gateway[1])


def chi_square(seen: Counter[PortRange]) -> float:
    ports = sum(map(len, RANGES))
    expected = {each: FLOWS * len(each) / ports for each in RANGES}
    return sum((seen[each] - expected[each]) ** 2 / expected[each] for each in RANGES)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("spread", ["client", "flow", "random"])
def test_every_range_gets_its_share(lab: Lab, spread: str, family: int) -> None:
    shared = configuration(lab.slices, rules=[(NETWORKS[family], [lab.slices[0 if family == 4 else 1]])])
    apply(lab, shared.replace("timestamps =", f'spread = "{spread}"\ntimestamps ='))
    begin(lab, flows_of(spread, family))
    with lab.egress.enter():
        records = conntrack.dump()
    ports = records[records["protocol"] == socket.IPPROTO_UDP]["reply_dport"].tolist()
    seen = Counter(each for port in ports for each in RANGES if port in each)
    assert (len(ports), seen.total()) == (FLOWS, FLOWS)
    assert chi_square(seen) < CHI_SQUARE, seen
