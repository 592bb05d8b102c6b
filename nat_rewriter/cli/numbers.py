"""Numbers on the command line."""

from __future__ import annotations

import math
from typing import Any

import click

LONGEST_S = 2_000_000  # 23 days: poll(2) counts milliseconds in 31 bits


class FiniteRange(click.FloatRange):
    """Numbers from one to another; nan, which float() reads too and which is in every range, is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; raises click.BadParameter for anything else."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a valid number.", param, ctx)
        return number


def seconds(least: float = 0, *, min_open: bool = False) -> FiniteRange:
    """Return the type of an option that says how long to wait: from ``least`` on, as long as the kernel can wait."""
    return FiniteRange(least, LONGEST_S, min_open=min_open)
