"""Journaling: sightings go to the live part; full parts are sealed, and old ones deleted, beside it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nat_rewriter.errors import StateError
from nat_rewriter.history.directory import list_parts, live_path, remove_drafts
from nat_rewriter.history.merging import Batch
from nat_rewriter.history.parts import READ, LivePart, carry_into, session_of
from nat_rewriter.history.records import empty
from nat_rewriter.history.sealing import Carry, remove_expired, seal

_PART_SIGHTINGS = 1 << 19  # merging them takes some 200 MiB for a moment
_PART_SPAN_NS = 3600 * 1_000_000_000
_PARTS_KEPT = 10  # at least, of what retention allows: that much of it is deleted at a time
_TEND_EVERY_S = 30.0
_RETRY_S = 5.0
_BACKLOG = 2  # parts that wait to be sealed; the live one grows instead of a third

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Retention:
    """How long, and how much, is kept; None: without end."""

    keep_ns: int | None = None
    keep_bytes: int | None = None


class Journaling:
    """The live part of a history, and the thread that seals those before it and deletes what is not kept.

    ``tell`` gets a sentence when that fails. Raises StateError where nothing can be written.
    """

    def __init__(self, directory: Path, slices: Sequence[str], retention: Retention, session: str, tell: Tell) -> None:
        self._directory, self._slices, self._retention = directory, slices, retention
        self._session, self._tell, self._told = session, tell, ""
        remove_drafts(directory)
        parts = list_parts(directory)
        self._number = parts[-1].number if parts else 0
        # What a recorder that was killed has left.
        self._full: deque[Path] = deque(part.path for part in parts if part.live)
        self._live = self._begin(time.time_ns())
        self._open_flows = 0
        self._work, self._stopping = threading.Condition(), False
        self._thread = threading.Thread(target=self._tend, name="natctl-history-sealer", daemon=True)
        self._thread.start()

    def append(self, batches: Sequence[Batch]) -> None:
        """Write sightings; they are on disk when this returns. Raises StateError."""
        self._live.append(batches)

    def turn(self, now_ns: int) -> None:
        """Begin a new part when this one is full. Raises StateError."""
        if len(self._full) >= _BACKLOG or not self._is_full(now_ns):
            return
        before, self._live = self._live, self._begin(now_ns)
        before.close()
        with self._work:
            self._full.append(before.path)
            self._work.notify()

    def close(self) -> None:
        """Seal what is left; what is open now was not watched any further."""
        with self._work:
            self._stopping = True
            self._work.notify()
        self._thread.join()
        try:
            self._live.append([Batch(empty(), time.time_ns())])  # until then it was watched
        except StateError as error:
            self._tell_once(str(error))
        self._live.close()
        self._full.append(self._live.path)
        self._seal_all()

    def _begin(self, now_ns: int) -> LivePart:
        part = LivePart(live_path(self._directory, self._number + 1), self._session, self._slices, now_ns)
        self._number += 1
        return part

    def _is_full(self, now_ns: int) -> bool:
        part, keep_bytes = self._live, self._retention.keep_bytes
        if not part.sightings:
            return False
        # Open flows are carried into each live part anew: the more of them, the longer it has to last.
        if part.sightings >= max(_PART_SIGHTINGS, self._open_flows):
            return True
        return now_ns - part.since_ns >= self._span_ns() or (
            keep_bytes is not None and part.written_bytes >= keep_bytes // _PARTS_KEPT
        )

    def _span_ns(self) -> int:
        keep_ns = self._retention.keep_ns
        return _PART_SPAN_NS if keep_ns is None else min(_PART_SPAN_NS, keep_ns // _PARTS_KEPT)

    # the sealer's thread

    def _tend(self) -> None:
        pause_s = min(_TEND_EVERY_S, self._span_ns() / 1e9)
        while not self._stopping:
            done = self._seal_all()
            with self._work:
                if not self._stopping and not (done and self._full):
                    self._work.wait(pause_s if done else _RETRY_S)

    def _seal_all(self) -> bool:
        """Seal what is full and delete what is not kept; tell whether all of it could be done."""
        try:
            self._remove_expired()
            while self._full:
                self._seal_first()
            self._remove_expired()
        except StateError as error:
            self._tell_once(str(error))
            return False
        self._told = ""
        return True

    def _seal_first(self) -> None:
        try:
            self._open_flows = seal(self._full[0], self._carry_from(self._full[0]))
        except StateError as error:
            if error.operation != READ:
                raise
            self._tell_once(str(error))  # it stays where it is, for someone to look at
        self._full.popleft()

    def _carry_from(self, part: Path) -> Carry | None:
        """Return what takes the flows that a part leaves open: the part after it, if the same recorder wrote that."""
        after = [*self._full, self._live.path][1]
        if after == part or session_of(after) != session_of(part):
            return None
        return partial(carry_into, after)

    def _remove_expired(self) -> None:
        remove_expired(self._directory, time.time_ns(), self._retention.keep_ns, self._retention.keep_bytes)

    def _tell_once(self, problem: str) -> None:
        if problem != self._told:
            self._told = problem
            self._tell(f"history: {problem}")
