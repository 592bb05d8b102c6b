"""How often something is done about the same finding: a few times, and then not for a while."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Collection

from nat_rewriter.model.actions import Target
from nat_rewriter.model.findings import Identity

MOST = 3
WITHIN_S = 3600.0
AGAIN_AFTER_S = 10.0


class Verdict(enum.Enum):
    """Whether something is to be done now."""

    GO = "go"
    NOT_NOW = "not-now"  # it was done, or failed a moment ago, or it was said already that it is given up
    GIVE_UP = "give-up"


class Attempts:
    """At most ``most`` attempts for a finding within ``within_s``, whatever comes of them."""

    def __init__(
        self,
        most: int = MOST,
        within_s: float = WITHIN_S,
        again_after_s: float = AGAIN_AFTER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._within_s, self._again_after_s, self._clock = most, within_s, again_after_s, clock
        self._times: dict[Identity, list[float]] = {}
        self._settled: dict[Identity, Target] = {}
        self._failed: dict[Identity, float] = {}
        self._given_up: set[Identity] = set()

    def judge(self, identity: Identity, target: Target) -> Verdict:
        """Tell whether something is to be done about a finding that is open."""
        if self._settled.get(identity) == target:
            return Verdict.NOT_NOW
        if len(self._times.get(identity, [])) >= self._most:
            return self._refuse(identity)
        if self._clock() - self._failed.get(identity, float("-inf")) < self._again_after_s:
            return Verdict.NOT_NOW
        return Verdict.GO

    def note(self, identity: Identity, target: Target, *, settled: bool) -> None:
        """Note an attempt; a settled one is not made again for this target while the finding stays open."""
        self._times.setdefault(identity, []).append(self._clock())
        self._settled.pop(identity, None)
        self._failed.pop(identity, None)
        if settled:
            self._settled[identity] = target
        else:
            self._failed[identity] = self._clock()

    def keep(self, open_now: Collection[Identity]) -> None:
        """Forget what was settled of findings that closed, and all that is long ago."""
        for noted in (self._settled, self._failed):
            for identity in [one for one in noted if one not in open_now]:
                del noted[identity]
        for identity, times in list(self._times.items()):
            recent = [moment for moment in times if self._clock() - moment < self._within_s]
            if recent:
                self._times[identity] = recent
            else:
                del self._times[identity]
            if len(recent) < self._most:
                self._given_up.discard(identity)

    def _refuse(self, identity: Identity) -> Verdict:
        if identity in self._given_up:
            return Verdict.NOT_NOW
        self._given_up.add(identity)
        return Verdict.GIVE_UP
