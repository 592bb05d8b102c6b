"""What a flow table says of itself, and of what became of the records it took in. The table: kernel/flow_table.py."""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import numpy as np

Records = np.ndarray[Any, np.dtype[np.void]]


class TableState(enum.Enum):
    """How far the table can be trusted."""

    SYNCING = "syncing"  # a dump is under way
    LIVE = "live"  # equals the kernel's, but for events not yet read
    STALE = "stale"  # events were lost


class Applied(NamedTuple):
    """What a batch of events did: entries as they are after it; those removed as they were last.

    ``seen``: of those added, the ones that the table's judge wants to be seen.
    """

    added: Records
    removed: Records
    seen: Records


class ResyncResult(NamedTuple):
    """What the dump showed that no event had told: entries as the dump has them; those removed as they were last."""

    added: Records
    removed: Records
    changed: Records
