"""What the scenarios of a fleet are written in: a fleet, and somebody who tells what was expected and what was seen."""

from __future__ import annotations

import time
from collections.abc import Callable

from nat_rewriter.model.slices import PortRange
from netns_lab.fleet import RECOVERY_S, Fleet
from netns_lab.fleet_settings import HOLD_DOWN_S, TTL_S
from netns_lab.fleet_topology import HOSTS
from netns_lab.narrator import Narrator
from netns_lab.running_agent import wait_until
from netns_lab.story import Story

LEASE_ENDS_S = TTL_S + HOLD_DOWN_S + 30.0  # at the latest, on a busy machine
_JUDGED_AFTER_S = 3.5


class FleetStage(Story):
    """A fleet whose hosts all work, and the verbs of its scenarios."""

    def __init__(self, fleet: Fleet, narrator: Narrator) -> None:
        super().__init__(narrator)
        self.fleet = fleet
        with self.step("Five hosts share nine slices"):
            self.expect_work()

    def finish(self) -> None:
        """Look at what the upstream saw to the end: it is what the whole lab is for."""
        with self.step("What the upstream saw"):
            self.fleet.watch_for(_JUDGED_AFTER_S)
            self.say(self.fleet.account())
            self.expect(
                "uses of a slice by two hosts, or outside the holder's lease", len(self.fleet.judge.breaches), 0
            )

    def held_by(self, host: int) -> int:
        """Return how many slices a host holds, by etcd's word."""
        return len(self.fleet.judge.holders().get(f"host{host}", ()))

    def free(self) -> int:
        """Return how many slices nobody holds, by etcd's word; some of them may rest."""
        return self.fleet.slices - sum(map(self.held_by, HOSTS))

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
