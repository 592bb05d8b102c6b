"""The difference between live table and configuration, read again every few seconds, beside the events."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

from nat_rewriter.controller.gathering import read_differences
from nat_rewriter.model.policy import Policy

READ_EVERY_S = 3.0


class DriftPoll:
    """Reads the difference in a thread of its own: listing a ruleset takes longer than events may wait.

    The thread is in the network namespace that the caller of ``latest`` is in when it first asks.
    """

    def __init__(self, policy: Policy, *, wanted: bool) -> None:
        self._policy, self._wanted = policy, wanted
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="drift")
        self._pending: Future[list[str]] | None = None
        self._latest: tuple[str, ...] = ()
        self._next_read = 0.0

    def latest(self) -> tuple[str, ...]:
        """Return the difference as last read, waiting for none but the first; raise what reading it raised."""
        first = self._wanted and not self._next_read
        if self._wanted and self._pending is None and time.monotonic() >= self._next_read:
            self._pending = self._thread.submit(read_differences, self._policy)
            self._next_read = time.monotonic() + READ_EVERY_S
        if self._pending is not None and (first or self._pending.done()):
            self._latest = tuple(self._pending.result())
            self._pending = None
        return self._latest

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)
