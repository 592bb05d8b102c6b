"""Whether any block was ever used by two, judged by every change that etcd tells of: natctl's own answers play no part.

A transaction is the unit: after each one no block is in the records of two hosts, every block in a record is kept from
others by its key, and a block that came into a record had no such key before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

from nat_rewriter.pool import etcd_requests as etcd
from nat_rewriter.pool.etcd_client import EtcdClient, Event

Place = tuple[str, int]  # address, first port


class Left(NamedTuple):
    """What is there when the hosts have given everything back."""

    held: int
    resting: int


class Audit:
    """Follows the changes of one pool; ``faults`` is what must not be."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.acquired = self.released = self.transactions = 0
        self._users: dict[Place, str] = {}
        self._of_host: dict[str, set[Place]] = {}
        self._taken: set[Place] = set()

    @property
    def left(self) -> Left:
        """What is held, and what rests, after all that was seen."""
        return Left(len(self._users), len(self._taken - self._users.keys()))

    def see(self, events: Iterable[Event]) -> None:
        """Take in changes, in the order of their revisions."""
        for _, some in groupby(events, key=lambda event: event.revision):
            self._transaction(list(some))
            self.transactions += 1

    def _transaction(self, events: list[Event]) -> None:
        free_before = self._take_keys(events)
        gone, come = set[Place](), dict[Place, str]()
        for event in events:
            kind, host = _kind(event), event.key.rpartition("/")[2]
            if kind == "host":
                before, after = self._of_host.get(host, set()), _places(event)
                self._of_host[host] = after
                gone |= before - after
                come |= dict.fromkeys(after - before, host)
        for place in gone:
            del self._users[place]
        self.released += len(gone)
        self.acquired += len(come)
        for place, host in come.items():
            self._come(place, host, place in free_before, events[0].revision)

    def _take_keys(self, events: list[Event]) -> set[Place]:
        """Follow the keys that keep blocks from others; return those that there was none of before."""
        new = set[Place]()
        for event in events:
            if _kind(event) == "taken":
                _, address, first = event.key.rsplit("/", 2)
                place = (address, int(first))
                if event.value is None:
                    self._taken.discard(place)
                elif place not in self._taken:
                    self._taken.add(place)
                    new.add(place)
        return new

    def _come(self, place: Place, host: str, was_free: bool, revision: int) -> None:
        if place in self._users:
            self.faults.append(f"{revision}: {place} of {self._users[place]} came to {host} too")
        if not was_free:
            self.faults.append(f"{revision}: {place} came to {host} while it rested")
        if place not in self._taken:
            self.faults.append(f"{revision}: {place} of {host} is not kept from others")
        self._users[place] = host


def audit(client: EtcdClient, prefix: str, since: int, until: int) -> Audit:
    """Return what is found in every change under a prefix between two revisions."""
    found = Audit()
    for events in client.watch(etcd.under(f"{prefix}/"), since):
        found.see(event for event in events if event.revision <= until)
        if events and events[-1].revision >= until:
            return found
    return found


def _kind(event: Event) -> str:
    return event.key.split("/", 2)[1]


def _places(event: Event) -> set[Place]:
    if event.value is None:
        return set()
    return {(address, first) for address, first, *_ in json.loads(event.value)["blocks"]}
