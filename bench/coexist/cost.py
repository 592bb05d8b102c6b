"""What a new flow and a packet of an established flow cost the egress host, with a hundred slices."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.coexist.load import packets
from bench.coexist.settings import apply, configuration
from bench.coexist.ways import PLAIN, plain
from nat_rewriter.model.slices import PortRange
from netns_lab import Lab
from netns_lab.topology import CLIENT, CLIENT_LINK, DOWNLINK, SERVER

SLICES = 100
PORTS_EACH = 2048
FIRST_PORTS = [10_240 + number * PORTS_EACH for number in range(10)]
REPETITIONS = 7
FRAMES = 12_000
# In the order of the columns.
KINDS: Mapping[str, Mapping[str, object]] = {
    "UDP, from the client's socket": {"socket": True},
    "UDP": {},
    "TCP SYN": {"tcp": True},
    "established": {"one_flow": True},
}


@dataclass(frozen=True, slots=True)
class Costed:
    """A lab that is ready to be measured, and the Ethernet address that its client sends to."""

    lab: Lab
    gateway: str


def costs() -> dict[str, dict[str, float]]:
    """Return nanoseconds per packet, by way and kind: the median of repetitions that take turns."""
    with ExitStack() as stack:
        labs = {name: stack.enter_context(_prepared(set_up)) for name, set_up in _ways().items()}
        seen: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in KINDS} for name in labs}
        for _ in range(REPETITIONS):
            for kind, options in KINDS.items():
                for name, ready in labs.items():
                    seen[name][kind].append(_measured(ready, options))
    return {name: {kind: statistics.median(all_) for kind, all_ in kinds.items()} for name, kinds in seen.items()}


def _ways() -> dict[str, Callable[[Lab], None]]:
    modes = {mode: _hundred_slices(mode, "drop") for mode in ("off", "confine", "refuse", "split")}
    return {
        PLAIN: _one_rule,
        "off, guard off": _hundred_slices("off", "off"),
        **modes,
    }


def _one_rule(lab: Lab) -> None:
    plain(lab, PortRange(FIRST_PORTS[0], FIRST_PORTS[0] + PORTS_EACH - 1))


def _hundred_slices(coexist: str, guard: str) -> Callable[[Lab], None]:
    """Return what gives each of a hundred clients a slice of its own."""

    def set_up(lab: Lab) -> None:
        rules = [(f"10.0.0.{2 + number}", [piece]) for number, piece in enumerate(lab.slices)]
        apply(lab, configuration(lab.slices, coexist=coexist, guard=guard, rules=rules))

    return set_up


@contextmanager
def _prepared(set_up: Callable[[Lab], None]) -> Iterator[Costed]:
    slices = [
        f"198.51.100.{last}:{first}-{first + PORTS_EACH - 1}"
        for last in range(10, 10 + SLICES // len(FIRST_PORTS))
        for first in FIRST_PORTS
    ]
    with Lab(slices=slices, clients=SLICES) as lab:
        set_up(lab)
        # What comes after the egress host is left out.
        drop = f"chain c {{ type filter hook ingress device {DOWNLINK} priority 0; drop; }}"
        lab.upstream.nft(f"table netdev sink {{ {drop}; }}")
        found = re.search(r"link/ether (\S+)", lab.egress.run(["ip", "link", "show", CLIENT_LINK]).stdout)
        assert found, f"no Ethernet address of {CLIENT_LINK}"
        lab.client.ping("10.0.0.1")  # so that the client knows its gateway
        yield Costed(lab, found[1])


def _measured(ready: Costed, options: Mapping[str, object]) -> float:
    nanoseconds = packets(
        ready.lab.client, device="eth0", gateway=ready.gateway, source=CLIENT, sources=SLICES, to=SERVER,
        destinations=9, count=FRAMES, cpu=0, **options,
    )  # fmt: skip
    # Conntrack's hash table is shared by all namespaces: what one leaves there, the others pay for.
    ready.lab.egress.run(["conntrack", "-F"])
    ready.lab.egress.run(["nft", "flush", "set", "inet", "natctl", "claims4"], check=False)
    return nanoseconds
