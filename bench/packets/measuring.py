"""The ways that are compared, and their packets taken in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.coexist.settings import apply, configuration
from bench.packets.place import CLIENTS, FIRST_PORT, PORTS_EACH, SLICES_AN_ADDRESS, Place, Shape, place, soft
from netns_lab.topology import CLIENT_LINK

ROUNDS = 8
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

LAST_ESTABLISHED = "established, back"


@dataclass(frozen=True, slots=True)
class Cost:
    """Nanoseconds a packet, and how many times those of plain SNAT measured just before and after: medians."""

    nanoseconds: float
    ratio: float


Costs = Mapping[str, Mapping[str, Cost]]


def costs(shape: Shape, times: int, ways: Sequence[str]) -> Costs:
    """Return what a packet costs, by way and kind.

    The processor's speed changes by the second where others use it too: each measurement is compared with those of the
    plain rule right before and after it.
    """
    seen: dict[str, dict[str, list[Cost]]] = {name: {kind: [] for kind in KINDS} for name in ways}
    with ExitStack() as stack:
        places = {name: stack.enter_context(_prepared(shape, name)) for name in (PLAIN, *ways)}
        for _ in range(times):
            for at in places.values():
                at.establish()
            for kind in KINDS:
                for name, cost in _in_turns(kind, places):
                    seen[name][kind].append(cost)
                if kind == LAST_ESTABLISHED:
                    for at in places.values():
                        at.forget()
    return {name: {kind: _median(all_) for kind, all_ in kinds.items()} for name, kinds in seen.items()}


def _in_turns(kind: str, places: Mapping[str, Place]) -> Iterator[tuple[str, Cost]]:
    before = _measured(kind, places[PLAIN])
    for name, at in places.items():
        if name != PLAIN:
            this, after = _measured(kind, at), _measured(kind, places[PLAIN])
            yield name, Cost(this, 2 * this / (before + after))
            before = after


def _measured(kind: str, at: Place) -> float:
    nanoseconds = KINDS[kind](at)
    if kind.startswith("first"):
        at.forget()
    return nanoseconds


def _median(seen: Sequence[Cost]) -> Cost:
    return Cost(statistics.median(one.nanoseconds for one in seen), statistics.median(one.ratio for one in seen))


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
