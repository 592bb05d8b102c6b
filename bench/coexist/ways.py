"""The ways to share a slice that are compared."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.coexist.load import PORT
from bench.coexist.settings import apply, configuration
from nat_rewriter.model.slices import PortRange
from netns_lab import Lab
from netns_lab.topology import CLIENT_LINK, CLIENT_NETWORKS, SERVER, SOFT_ADDRESS

PROXY_PORT = 8443
PROXY_STARTS_WITHIN_S = 10
PLAIN = "plain nft SNAT"
HAPROXY = "HAProxy"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to share a slice; ``set_up`` makes a lab's egress host follow it and returns processes it started."""

    name: str
    set_up: Callable[[Lab, PortRange], list[int]]
    splits: bool = False


def contended_ways() -> list[Way]:
    """Return all ways that can be had here; HAProxy only where it is installed."""
    ways = [
        Way(PLAIN, plain),
        Way("off", natctl("off")),
        Way("confine", natctl("confine")),
        Way("refuse", natctl("refuse")),
        Way("split", natctl("split"), splits=True),
    ]
    return [*ways, Way(HAPROXY, haproxy)] if shutil.which("haproxy") else ways


def plain(lab: Lab, ports: PortRange) -> list[int]:
    """One SNAT rule, as anyone would write it."""
    lab.egress.nft(
        f"table ip plain {{ chain srcnat {{ type nat hook postrouting priority 100;"
        f" iifname {CLIENT_LINK} ip saddr {CLIENT_NETWORKS[4]} meta l4proto {{ tcp, udp }}"
        f" snat to {SOFT_ADDRESS}:{ports}; }}; }}"
    )
    return []


def natctl(coexist: str) -> Callable[[Lab, PortRange], list[int]]:
    """Return what applies a configuration in which all clients share the slice, with the guard."""

    def set_up(lab: Lab, ports: PortRange) -> list[int]:
        apply(lab, configuration(lab.slices, coexist=coexist))
        return []

    return set_up


def haproxy(lab: Lab, ports: PortRange) -> list[int]:
    """A proxy on the egress host that takes the clients' connections and connects on from ports of the slice."""
    lab.egress.nft(
        f"table ip proxy {{ chain dstnat {{ type nat hook prerouting priority -100;"
        f" iifname {CLIENT_LINK} tcp dport {PORT} redirect to :{PROXY_PORT}; }}; }}"
    )
    settings = lab.config().with_name("haproxy.cfg")
    settings.write_text(
        "global\n maxconn 5000\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n"
        f"frontend clients\n bind 0.0.0.0:{PROXY_PORT}\n default_backend server\n"
        f"backend server\n server one {SERVER}:{PORT} source {SOFT_ADDRESS}:{ports}\n"
    )
    process = lab.egress.popen(["haproxy", "-q", "-db", "-f", settings])
    deadline = time.monotonic() + PROXY_STARTS_WITHIN_S
    while not lab.egress.run(["ss", "-Hltn", f"sport = :{PROXY_PORT}"]).stdout:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("haproxy does not listen")
        time.sleep(0.05)
    return [process.pid]
