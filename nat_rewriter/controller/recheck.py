"""Rechecking: the table compared with the kernel's once in a while, a part at a time, where events do not tell all."""

from __future__ import annotations

import time
from collections.abc import Iterator

from nat_rewriter.errors import NetlinkError
from nat_rewriter.flowtable import Records, ResyncResult, TableState
from nat_rewriter.kernel.conntrack import dump_batches
from nat_rewriter.kernel.flow_table import FlowTable

# Comparing may take this share of the time.
_SHARE = 0.04
_EVERY_S = 10.0


class Recheck:
    """Dumps the table beside the events, for as long as it has entries that no event has told of.

    Entries that came while nobody on the machine listened may end without an event (see EventStream). How large the
    table is does not matter to what else is to be done: a step takes in one part of the dump.
    """

    def __init__(self, table: FlowTable, *, always: bool = False) -> None:
        self._table, self._always = table, always
        self._parts: Iterator[Records] | None = None
        self._began = self._took = 0.0
        self._next = time.monotonic() + _EVERY_S

    @property
    def under_way(self) -> bool:
        """Whether there is more to be done at once."""
        return self._parts is not None

    def advance(self) -> ResyncResult | None:
        """Do the next part, if one is due; return what a whole dump showed. Events queued so far have to be applied."""
        if self._parts is None and not self._is_due():
            return None
        started = time.monotonic()
        if self._parts is None:
            self._table.begin_resync()
            self._parts, self._began, self._took = dump_batches(), started, 0.0
        result = self._take_part(self._parts)
        self._took += time.monotonic() - started
        return result

    def abandon(self) -> None:
        """Stop, as the table is about to be dumped for another reason."""
        self._parts = None
        self._next = time.monotonic() + max(_EVERY_S, self._took / _SHARE)

    def _is_due(self) -> bool:
        if time.monotonic() < self._next or self._table.state is not TableState.LIVE:
            return False
        if self._always or self._table.count_untold():
            return True
        self._next = time.monotonic() + _EVERY_S
        return False

    def _take_part(self, parts: Iterator[Records]) -> ResyncResult | None:
        try:
            part = next(parts, None)
        except NetlinkError:  # the table was resized meanwhile: the dump may lack entries
            self._table.abandon_resync()
            self.abandon()
            return None
        if part is not None:
            self._table.take_dump(part)
            return None
        self.abandon()
        return self._table.finish_resync()
