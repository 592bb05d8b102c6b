"""Faults of a fleet, drawn by chance: which, when they begin, and when they are mended. A seed tells them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from random import Random

from netns_lab.fleet import Fleet
from netns_lab.fleet_judge import Breach
from netns_lab.fleet_settings import TTL_S
from netns_lab.fleet_topology import HOSTS, NODES

_LONG_SHARE = 0.3
_SHORT_S, _LONG_S = (0.1, 2.0), (TTL_S + 0.5, TTL_S + 2.5)
_SECOND_SHARE, _NODE_SHARE = 0.5, 0.3

_FROZEN = "frozen"

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
    _FROZEN: (lambda fleet, node: fleet.node(node).freeze(), lambda fleet, node: fleet.node(node).wake()),
    "cut off from the others": (Fleet.isolate, Fleet.reconnect),
}


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
    """Draw one fault, or two that have nothing to do with each other."""
    hosts = chance.sample(HOSTS, 2)
    first = _draw_node_fault(chance) if chance.random() < _NODE_SHARE else _draw_host_fault(chance, hosts[0])
    second = [_draw_host_fault(chance, hosts[1])] if chance.random() < _SECOND_SHARE else []
    return [first, *second]


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
    if chance.randrange(len(NODE_FAULTS) + 1) == 0:
        lost = chance.sample(NODES, 2)
        return _fault(
            chance, f"majority lost: etcd{lost[0]} and etcd{lost[1]} killed",
            lambda fleet: fleet.lose_majority(lost), lambda fleet: fleet.regain_majority(lost),
        )  # fmt: skip
    node = chance.choice(NODES)
    name, (begin, end) = chance.choice(list(NODE_FAULTS.items()))
    # A leader that is frozen for a term and wakes has leases revoked that its successor has renewed: etcd issue 15247.
    # Nobody who relies on leases is safe from that.
    long_share = 0 if name == _FROZEN else _LONG_SHARE
    return _fault(chance, f"etcd{node} {name}", partial(_at, begin, node), partial(_at, end, node), long_share)


def _at(act: Act, number: int, fleet: Fleet) -> None:
    act(fleet, number)


def _fault(
    chance: Random, name: str, begin: Callable[[Fleet], None], end: Callable[[Fleet], None],
    long_share: float = _LONG_SHARE,
) -> Fault:  # fmt: skip
    begins_s = chance.uniform(0, 1)
    lasts_s = chance.uniform(*(_LONG_S if chance.random() < long_share else _SHORT_S))
    return Fault(name, begin, end, begins_s, begins_s + lasts_s)
