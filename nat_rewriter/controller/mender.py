"""Acting on findings, where somebody asked for it: what is to be done, once, and not too often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType

from nat_rewriter.controller.attempts import Attempts, Verdict
from nat_rewriter.controller.measures import (
    ABORTS,
    HEALS,
    Came,
    Measure,
    Restore,
    carry_out,
    measure_of,
    require_abort,
    require_heal,
)
from nat_rewriter.controller.observation import name_socket
from nat_rewriter.model.actions import Action, Result, SocketTarget, Verb
from nat_rewriter.model.findings import Finding

ActionCounts = Counter[tuple[Verb, Result]]
_TOO_OFTEN = "it came back after each of the last attempts: natctl leaves it alone for an hour"


@dataclass(frozen=True, slots=True)
class Powers:
    """What natctl may do by itself. Nothing, unless it is told to."""

    heal: bool = False  # entries and the ruleset
    abort: bool = False  # sockets
    dry_run: bool = False  # only say what would be done

    @property
    def verbs(self) -> frozenset[Verb]:
        """What it may do."""
        return (HEALS if self.heal else frozenset()) | (ABORTS if self.abort else frozenset())

    def require(self) -> None:
        """Raise PermissionNeeded or UnsupportedFeature where this process or kernel cannot do it."""
        if self.dry_run:
            return
        if self.heal:
            require_heal()
        if self.abort:
            require_abort()


@dataclass(slots=True)
class _Restoring:
    measure: Measure
    finding: Finding
    came: Future[Came]


class Mender:
    """Does something about findings, each action at most a few times for the same finding.

    Entries and sockets are dealt with at once. Restoring the ruleset takes longer than events may wait, so it is done
    in a thread of its own, in the network namespace of the caller, and told by a later call. ``restore`` minds a dry
    run by itself.
    """

    def __init__(self, table: str, powers: Powers, restore: Restore, attempts: Attempts | None = None) -> None:
        self._table, self._powers, self._restore = table, powers, restore
        self._attempts = attempts or Attempts()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="restore")
        self._restoring: _Restoring | None = None
        self.counts: ActionCounts = Counter()

    def __enter__(self) -> Mender:
        self._powers.require()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def mend(self, found: Iterable[Finding]) -> list[Action]:
        """Act on findings that are open; return what was done, and what was begun earlier and has ended."""
        return self._told(self._restored() + [action for one in found for action in self._act(one)])

    def keep(self, open_now: Sequence[Finding]) -> None:
        """Learn which findings are open: those that closed may be acted on again when they come back."""
        self._attempts.keep({finding.identity for finding in open_now})

    def finish(self) -> list[Action]:
        """Wait for what is under way, and return what came of it."""
        if self._restoring:
            self._restoring.came.exception()
        return self._told(self._restored())

    def _act(self, finding: Finding) -> list[Action]:
        measure = measure_of(finding, self._table)
        if measure is None or measure[0] not in self._powers.verbs:
            return []
        verdict = self._attempts.judge(finding.identity, measure[1])
        if verdict is Verdict.NOT_NOW or (self._restoring and measure[0] is Verb.RESTORE_RULESET):
            return []
        if verdict is Verdict.GIVE_UP:
            return [Action(*measure, finding, Result.GIVEN_UP, _TOO_OFTEN)]
        if measure[0] is Verb.RESTORE_RULESET:
            self._restoring = _Restoring(measure, finding, self._thread.submit(carry_out, measure, self._restore))
            return []
        return [self._settle(_named(measure), finding, self._came_of(measure))]

    def _came_of(self, measure: Measure) -> Came:
        return (Result.DRY_RUN, None) if self._powers.dry_run else carry_out(measure, self._restore)

    def _restored(self) -> list[Action]:
        under_way = self._restoring
        if under_way is None or not under_way.came.done():
            return []
        self._restoring = None
        return [self._settle(under_way.measure, under_way.finding, under_way.came.result())]

    def _settle(self, measure: Measure, finding: Finding, came: Came) -> Action:
        self._attempts.note(finding.identity, measure[1], settled=came[0] is not Result.FAILED)
        return Action(*measure, finding, *came)

    def _told(self, actions: list[Action]) -> list[Action]:
        self.counts.update((action.verb, action.result) for action in actions)
        return actions


def _named(measure: Measure) -> Measure:
    """Return a measure with the process of its socket: once the socket is destroyed nothing tells it any more."""
    verb, target = measure
    if not isinstance(target, SocketTarget) or target.socket.pid is not None:
        return measure
    return verb, replace(target, socket=name_socket(target.socket))
