"""Options of `natctl watch` that keep a history."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nat_rewriter.errors import UsageError

if TYPE_CHECKING:
    from nat_rewriter.history.recorder import Recorder
    from nat_rewriter.model.policy import Policy


@dataclass(frozen=True, slots=True)
class Recording:
    """Where a history is to be kept, and for how long."""

    path: Path
    keep_ns: int | None = None
    keep_bytes: int | None = None

    def begin(self, policy: Policy) -> Recorder:
        """Return the recorder, to be entered; its problems go to standard error."""
        from nat_rewriter.history.journaling import Retention
        from nat_rewriter.history.owners import OwnerNames
        from nat_rewriter.history.recorder import Recorder

        return Recorder(
            self.path, policy.slices, Retention(self.keep_ns, self.keep_bytes), name_processes=OwnerNames(),
            tell=lambda sentence: click.echo(f"natctl: {sentence}", err=True),
        )  # fmt: skip


def recording_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --record and what goes with it; the command gets ``recording``, a Recording or None."""

    @functools.wraps(function)
    def command(
        *args: Any, record: Path | None = None, keep: str | None = None, keep_size: str | None = None, **options: Any
    ) -> Any:
        return function(*args, recording=_recording(record, keep, keep_size), **options)

    for option in (
        click.option("--keep-size", metavar="SIZE", help="Delete the oldest of what is recorded beyond, like 20G."),
        click.option("--keep", metavar="AGE", help="Delete what was recorded longer ago, like 30d."),
        click.option(
            "--record", metavar="PATH", type=click.Path(path_type=Path),
            help="Keep who had which tuple in this directory, for natctl history.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def _recording(path: Path | None, keep: str | None, keep_size: str | None) -> Recording | None:
    if path is None:
        if keep or keep_size:
            raise UsageError("watch", "--keep and --keep-size go with --record", keep or keep_size)
        return None
    from nat_rewriter.history.moments import read_age_ns, read_size

    return Recording(path, read_age_ns(keep) if keep else None, read_size(keep_size) if keep_size else None)
