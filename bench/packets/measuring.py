"""The ways that are compared, and their packets taken in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from bench.coexist.settings import apply, configuration
from bench.packets.place import CLIENTS, FIRST_PORT, PORTS_EACH, SLICES_AN_ADDRESS, Place, Shape, place, soft
from netns_lab.topology import CLIENT_LINK

ROUNDS = 12
PLAIN, PLAIN_AGAIN = "plain nft SNAT", "plain nft SNAT again"
# coexist and guard.
WAYS: Mapping[str, tuple[str, str] | None] = {
    PLAIN: None,
    PLAIN_AGAIN: None,
    "off, guard off": ("off", "off"),
    "off": ("off", "drop"),
    "confine, guard off": ("confine", "off"),
    "confine, guard count": ("confine", "count"),
    "confine": ("confine", "drop"),
    "split": ("split", "drop"),
    "refuse": ("refuse", "drop"),
}
# In the order of the columns.
KINDS: Mapping[str, Callable[[Place], float]] = {
    "established, out": lambda at: at.send_out(ROUNDS),
    "established, back": lambda at: at.send_back(ROUNDS),
    "first, UDP": lambda at: at.send_first(),
    "first, TCP": lambda at: at.send_first(tcp=True),
}

Costs = Mapping[str, Mapping[str, float]]


def costs(shape: Shape, times: int, ways: Sequence[str]) -> Costs:
    """Return nanoseconds a packet, by way and kind: the median of repetitions in which all ways take turns."""
    with ExitStack() as stack:
        places = {name: stack.enter_context(_prepared(shape, name)) for name in (PLAIN, *ways)}
        seen: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in KINDS} for name in places}
        for time in range(times):
            # Each goes first at times: what runs after another finds the processor's caches as that has left them.
            for name in _rotated(list(places), time):
                for kind, nanoseconds in _measured(places[name]):
                    seen[name][kind].append(nanoseconds)
    return {name: {kind: statistics.median(all_) for kind, all_ in kinds.items()} for name, kinds in seen.items()}


def _rotated(names: list[str], by: int) -> list[str]:
    return names[by % len(names) :] + names[: by % len(names)]


def _measured(at: Place) -> Iterator[tuple[str, float]]:
    at.establish()
    for kind, send in KINDS.items():
        yield kind, send(at)
        if kind.startswith("first") or kind == "established, back":
            at.forget()


@contextmanager
def _prepared(shape: Shape, name: str) -> Iterator[Place]:
    setting = WAYS[name]
    with place(shape, None if setting else soft(shape.family, 0)) as ready:
        if setting is None:
            _one_rule(ready)
        else:
            rules = [(str(shape.client(number)), [owned]) for number, owned in enumerate(shape.slices)]
            apply(ready.lab, configuration(shape.slices, coexist=setting[0], guard=setting[1], rules=rules))
        yield ready


def _one_rule(at: Place) -> None:
    """One SNAT rule, as anyone would write it."""
    family, last = at.shape.family, FIRST_PORT + SLICES_AN_ADDRESS * PORTS_EACH - 1
    ip, address = ("ip6", f"[{at.wire}]") if family == 6 else ("ip", str(at.wire))
    at.lab.egress.nft(
        f"table {ip} plain {{ chain srcnat {{ type nat hook postrouting priority 100; iifname {CLIENT_LINK}"
        f" {ip} saddr {CLIENTS[family]} meta l4proto {{ tcp, udp }} snat to {address}:{FIRST_PORT}-{last}; }}; }}"
    )
