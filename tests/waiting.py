"""How tests wait: for what happens in its own time, and not for ever."""

from __future__ import annotations

import time
from collections.abc import Callable

WITHIN_S = 40.0


def wait_until(condition: Callable[[], object], what: str = "", within_s: float = WITHIN_S) -> None:
    """Return once a condition holds; fail when it does not in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.02)
