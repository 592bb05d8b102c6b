"""Short connections of many clients through few ports to one server port, which closes first."""

from __future__ import annotations

from collections.abc import Callable

from bench.coexist.load import Outcome, connects, serve
from bench.coexist.settings import apply, configuration
from bench.coexist.ways import PLAIN, plain
from nat_rewriter.model.slices import PortRange
from netns_lab import Lab
from netns_lab.topology import CLIENT, CLIENT_NETWORKS, SERVER, SOFT_ADDRESS, UPLINK

CLIENTS = 50
AT_ONCE = 64
SLICE = PortRange(10_000, 10_999)
SECONDS = 3.0
PATIENCE_S = 4.0


def short_connections(lab: Lab, seconds: float) -> Outcome:
    """Use every port of the slice once, then make short connections for some seconds; return how those went."""
    shape = {"sources": CLIENTS, "at_once": AT_ONCE, "server_closes": True, "patience": PATIENCE_S}
    connects(lab.client, CLIENT, SERVER, count=len(SLICE), **shape).outcome()
    return connects(lab.client, CLIENT, SERVER, count=1_000_000, seconds=seconds, **shape).outcome()


def measure_reuse() -> dict[str, Outcome]:
    """Measure what there is to choose from, each in a lab of its own."""
    ways: dict[str, Callable[[Lab], object]] = {
        PLAIN: lambda lab: plain(lab, SLICE),
        'timestamps = "keep"': lambda lab: natctl(lab, "keep"),
        'timestamps = "strip"': lambda lab: natctl(lab, "strip"),
        "only where a port is used again": only_reused,
        "clients without timestamps": without_timestamps,
        "fully-random instead": fully_random,
    }
    return {name: _measured(set_up) for name, set_up in ways.items()}


def natctl(lab: Lab, timestamps: str) -> None:
    """Let natctl rewrite, with one value of ``timestamps``."""
    apply(lab, configuration(lab.slices, timestamps=timestamps))


def only_reused(lab: Lab) -> None:
    """Take the option only from SYNs whose tuple on the wire belonged to a connection that ended not long ago."""
    natctl(lab, "keep")
    key = "ip saddr . tcp sport . ip daddr . tcp dport"
    back = "ip daddr . tcp dport . ip saddr . tcp sport"
    lab.egress.nft(f"""table inet reused {{
        set ended {{ type ipv4_addr . inet_service . ipv4_addr . inet_service; size 65536; flags dynamic,timeout; }}
        chain arriving {{ type filter hook prerouting priority -150;
            iifname {UPLINK} tcp flags fin,rst update @ended {{ {back} timeout 2m }}; }}
        chain leaving {{ type filter hook postrouting priority 101;
            oifname {UPLINK} tcp flags & (syn|ack) == syn ct status snat {key} @ended reset tcp option timestamp; }}
    }}""")


def without_timestamps(lab: Lab) -> None:
    """Let the clients send no timestamps at all."""
    natctl(lab, "keep")
    lab.client.sysctl("net.ipv4.tcp_timestamps", 0)


def fully_random(lab: Lab) -> None:
    """Choose ports by chance, without looking at the client's."""
    lab.egress.nft(
        f"table ip plain {{ chain srcnat {{ type nat hook postrouting priority 100; oifname {UPLINK}"
        f" ip saddr {CLIENT_NETWORKS[4]} meta l4proto tcp snat to {SOFT_ADDRESS}:{SLICE} fully-random; }}; }}"
    )


def _measured(set_up: Callable[[Lab], object], seconds: float = SECONDS) -> Outcome:
    with Lab(slices=[f"{SOFT_ADDRESS}:{SLICE}"], clients=CLIENTS) as lab:
        serve(lab.server)
        set_up(lab)
        return short_connections(lab, seconds)
