"""``./dev bench history engines|recording|scale``: the figures of docs/history.md, measured again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import click

from bench.history import engines, recording, scale
from bench.history.flows import Traffic

Row = tuple[str, str]


@click.group()
def main() -> None:
    """History measured: engines side by side, events recorded, a large history asked."""


def _place(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path:
    return Path(tempfile.mkdtemp(prefix="natctl-history-", dir=value))


place = click.option(
    "--place", metavar="PATH", type=click.Path(path_type=Path), callback=_place,
    help="Where to work; what is made there is deleted afterwards.",
)  # fmt: skip


def records(default: int) -> click.decorators.FC:
    return click.option("--records", type=click.IntRange(20_000), default=default, show_default=True)


@main.command("engines")
@records(1_000_000)
@place
def compare(records: int, place: Path) -> None:
    """SQLite in three ways, DuckDB, LMDB and RocksDB; those that are not installed are left out."""
    try:
        for found in engines.run(records, place):
            _print(found.rows())
    finally:
        shutil.rmtree(place)


@main.command("recording")
@records(2_000_000)
@place
def record(records: int, place: Path) -> None:
    """How many events a second are recorded."""
    _measure(recording.run(records, place), place)


@main.command("scale")
@records(100_000_000)
@place
def ask(records: int, place: Path) -> None:
    """How fast a large history answers. It takes 100 bytes a flow."""
    directory = place / "history"
    _measure(scale.run(directory, records, Traffic()), place)


def _measure(rows: Iterable[Row], place: Path) -> None:
    try:
        _print(rows)
    finally:
        shutil.rmtree(place)


def _print(rows: Iterable[Row]) -> None:
    for name, text in rows:
        click.echo(f"{name:32} {text}")


main()
