"""What the scenarios of a fleet are written in: a fleet, and somebody who tells what was expected and what was seen."""

from __future__ import annotations

import time
from collections.abc import Callable

from nat_rewriter.model.slices import PortRange
from netns_lab.fleet import RECOVERY_S, Fleet
from netns_lab.fleet_settings import HOLD_DOWN_S, TTL_S
from netns_lab.fleet_topology import HOSTS, VERSIONS
from netns_lab.narrator import Narrator
from netns_lab.running_agent import wait_until
from netns_lab.story import Story

LEASE_ENDS_S = TTL_S + HOLD_DOWN_S + 30.0  # at the latest, on a busy machine
_SETTLED_S = 4.0


class FleetStage(Story):
    """A fleet whose hosts all work, and the verbs of its scenarios."""

    def __init__(self, fleet: Fleet, narrator: Narrator) -> None:
        super().__init__(narrator)
        self.fleet = fleet
        with self.step("Five hosts share nine slices of IPv4, and nine of IPv6"):
            self.expect_work()

    def finish(self) -> None:
        """Look at what the upstream saw to the end: it is what the whole lab is for."""
        with self.step("What the upstream saw"):
            self.fleet.hear_out()
            self.say(self.fleet.account())
            self.expect(
                "uses of a slice by two hosts, or outside the holder's lease", len(self.fleet.judge.breaches), 0
            )

    def held_by(self, host: int, version: int | None = None) -> int:
        """Return how many slices a host holds, by etcd's word; of one IP version, or of both."""
        return len(self.fleet.held_by(host, version))

    def free(self, version: int) -> int:
        """Return how many slices nobody holds, by etcd's word; some of them may rest."""
        return self.fleet.slices - sum(self.held_by(host, version) for host in HOSTS)

    def most_are_held(self) -> bool:
        """Tell whether no more than one slice of each pool is free: four hosts hold all that they want."""
        return all(self.free(version) <= 1 for version in VERSIONS)

    def expect_answers(self) -> None:
        """Expect that all that is sent for a while is answered, within a bound: the fleet has settled.

        What had no slice to go by when it was sent is told as lost only when it is given up.
        """

        def settled() -> bool:
            return not self.fleet.traffic.lost(time.time() - _SETTLED_S)

        self.expect_soon(f"nothing that was sent in {_SETTLED_S:.0f} s is lost", settled)

    def expect_work(self, *hosts: int) -> None:
        """Expect that new flows through these hosts, or all, are answered, within a bound."""
        chosen = hosts or HOSTS
        idle = self.fleet.wait_for_work(chosen)
        names = ", ".join(f"host{host}" for host in chosen) if hosts else "all hosts"
        self.expect(f"{names}: a slice is held, and new flows get answers", not idle)

    def expect_soon(self, what: str, met: Callable[[], bool], patience_s: float = RECOVERY_S) -> None:
        """Expect something within a bound, while the judge goes on listening."""

        def look() -> bool:
            self.fleet.breaches()
            return met()

        self.expect(what, wait_until(look, patience_s))

    def expect_end_of_term(self, host: int) -> None:
        """Expect that a host that cannot renew loses what it holds, within a bound, and uses it no more."""
        self.expect_soon("it holds nothing", lambda: self.held_by(host) == 0, LEASE_ENDS_S)
        self.expect_silence(host)

    def expect_silence(self, *hosts: int) -> None:
        """Expect that hosts whose terms have ended send nothing from a shared address for a second."""
        time.sleep(0.5)  # what was sent before
        self.fleet.breaches()
        before = self.fleet.sent(hosts)
        self.fleet.watch_for(1)
        self.expect("packets from shared addresses in a second", self.fleet.sent(hosts) - before, 0)

    def expect_traffic(self, *hosts: int) -> None:
        """Expect that hosts go on sending from shared addresses."""
        self.fleet.breaches()
        before = self.fleet.sent(hosts)
        self.fleet.watch_for(1)
        self.expect("packets from shared addresses in a second", self.fleet.sent(hosts) - before, PortRange(1, 65535))
