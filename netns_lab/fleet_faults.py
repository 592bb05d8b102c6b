"""Faults of a fleet, drawn by chance: which, when they begin, and when they are mended. A seed tells them all.

A slice that is handed over to another host is drawn like a fault, alone or while one of the two hosts fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from random import Random

from netns_lab.fleet import Fleet
from netns_lab.fleet_judge import Breach
from netns_lab.fleet_settings import MOST_HELD, TTL_S
from netns_lab.fleet_topology import HOSTS, NODES, VERSIONS

_LONG_SHARE, _LONG_FREEZE_SHARE = 0.3, 0.7
_SHORT_S, _LONG_S = (0.1, 2.0), (TTL_S + 0.5, TTL_S + 2.5)
_SECOND_SHARE, _NODE_SHARE, _TRANSFER_SHARE = 0.5, 0.3, 0.2
# A side of a transfer fails up to a second later than that: before anything is done, in the midst of it, or after.
_TRANSFER_BEGINS_S, _TRANSFER_LASTS_S = 0.2, 3.0
_TRANSFER_PATIENCE_S = 15.0

Act = Callable[[Fleet, int], None]

HOST_FAULTS: dict[str, tuple[Act, Act]] = {
    "agent frozen": (Fleet.freeze, Fleet.wake),
    "agent killed": (Fleet.kill, Fleet.revive),
    "host started anew": (Fleet.wipe, Fleet.revive),
    "cut off from the store": (Fleet.cut_off, Fleet.join),
    "left": (Fleet.dismiss, Fleet.employ),
}
NODE_FAULTS: dict[str, tuple[Act, Act]] = {
    "killed": (lambda fleet, node: fleet.node(node).kill(), lambda fleet, node: fleet.node(node).start()),
    "cut off from the others": (Fleet.isolate, Fleet.reconnect),
}
FREEZES: dict[str, Act] = {"etcd{} frozen": Fleet.freeze_node, "leader of etcd frozen": Fleet.freeze_leader}


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong: with whom, what begins and what ends it, and when, in seconds of its round."""

    name: str
    begin: Callable[[Fleet], None]
    end: Callable[[Fleet], None]
    begins_s: float
    ends_s: float

    def __str__(self) -> str:
        return f"{self.name} from {self.begins_s:.1f} to {self.ends_s:.1f} s"


def draw_round(chance: Random) -> list[Fault]:
    """Draw a fault, or two that have nothing to do with each other; or a transfer, which may have one of its own."""
    hosts = chance.sample(HOSTS, 2)
    what, second = chance.random(), chance.random() < _SECOND_SHARE
    if what < _TRANSFER_SHARE:
        return _draw_transfer(chance, hosts[0], alone=not second)
    node = what < _TRANSFER_SHARE + _NODE_SHARE
    faults = [_draw_node_fault(chance) if node else _draw_host_fault(chance, hosts[0])]
    return [*faults, _draw_host_fault(chance, hosts[1])] if second else faults


def play_round(fleet: Fleet, faults: Iterable[Fault]) -> list[Breach]:
    """Let faults begin and end at their times; return what was not allowed meanwhile."""
    acts = sorted(
        [(fault.begins_s, fault.begin) for fault in faults] + [(fault.ends_s, fault.end) for fault in faults],
        key=lambda act: act[0],
    )
    breaches, began = list[Breach](), time.monotonic()
    for at, act in acts:
        breaches += fleet.watch_for(began + at - time.monotonic())
        act(fleet)
    return breaches


def _draw_host_fault(chance: Random, host: int) -> Fault:
    name, (begin, end) = chance.choice(list(HOST_FAULTS.items()))
    return _fault(chance, f"host{host} {name}", partial(_at, begin, host), partial(_at, end, host))


def _draw_node_fault(chance: Random) -> Fault:
    kind, node = chance.randrange(4), chance.choice(NODES)
    if kind == 0:
        lost = chance.sample(NODES, 2)
        return _fault(
            chance, f"majority lost: etcd{lost[0]} and etcd{lost[1]} killed",
            lambda fleet: fleet.lose_majority(lost), lambda fleet: fleet.regain_majority(lost),
        )  # fmt: skip
    if kind == 1:
        name, freeze = chance.choice(list(FREEZES.items()))
        return _fault(chance, name.format(node), partial(_at, freeze, node), Fleet.wake_nodes, _LONG_FREEZE_SHARE)
    name, (begin, end) = chance.choice(list(NODE_FAULTS.items()))
    return _fault(chance, f"etcd{node} {name}", partial(_at, begin, node), partial(_at, end, node))


def _draw_transfer(chance: Random, host: int, *, alone: bool) -> list[Fault]:
    """Draw a slice that is handed over: with nothing else, or while its giver or its taker fails."""
    version, begins_s = chance.choice(VERSIONS), chance.uniform(0, 1)
    begin, end = partial(_hand_over, host, version), partial(_finish_transfer, _TRANSFER_PATIENCE_S if alone else 0)
    transfer = Fault(f"slice of IPv{version} handed over", begin, end, begins_s, begins_s + _TRANSFER_LASTS_S)
    if alone:
        return [transfer]
    side = chance.choice(("giver", "taker"))
    what, (fail, mend) = chance.choice(list(HOST_FAULTS.items()))
    fails, mends = partial(_at_side, fail, side), partial(_at_side, mend, side)
    return [transfer, _fault(chance, f"its {side}: {what}", fails, mends, after_s=begins_s + _TRANSFER_BEGINS_S)]


def _at(act: Act, number: int, fleet: Fleet) -> None:
    act(fleet, number)


def _hand_over(host: int, version: int, fleet: Fleet) -> None:
    """Have a slice handed over by that host, or by the next that has all it may: then there is one with room."""
    order = sorted(HOSTS, key=lambda each: (each - host) % len(HOSTS))
    giver = next((each for each in order if len(fleet.held_by(each, version)) == MOST_HELD), host)
    fleet.hand_over(giver, version)


def _finish_transfer(patience_s: float, fleet: Fleet) -> None:
    fleet.finish_transfer(patience_s)


def _at_side(act: Act, side: str, fleet: Fleet) -> None:
    act(fleet, getattr(fleet.transfers[-1], side))


def _fault(
    chance: Random, name: str, begin: Callable[[Fleet], None], end: Callable[[Fleet], None],
    long_share: float = _LONG_SHARE, after_s: float = 0.0,
) -> Fault:  # fmt: skip
    begins_s = after_s + chance.uniform(0, 1)
    lasts_s = chance.uniform(*(_LONG_S if chance.random() < long_share else _SHORT_S))
    return Fault(name, begin, end, begins_s, begins_s + lasts_s)
