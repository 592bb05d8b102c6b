"""The option that chooses kinds of findings."""

from __future__ import annotations

import click

from nat_rewriter.cli.numbers import FiniteRange
from nat_rewriter.model.findings import Kind

_NAMES = {kind.value: kind for kind in Kind}


def _read_kinds(context: click.Context, parameter: click.Parameter, value: str | None) -> frozenset[Kind]:
    """Return the kinds named with commas between them, all where none is named."""
    if value is None:
        return frozenset(Kind)
    names = [name.strip() for name in value.split(",")]
    unknown = [name for name in names if name not in _NAMES]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r}: expected some of {', '.join(_NAMES)}", context, parameter)
    return frozenset(_NAMES[name] for name in names)


only_option = click.option(
    "--only",
    "kinds",
    callback=_read_kinds,
    metavar="KINDS",
    help="Look for these kinds alone, with commas between them.",
)
pressure_option = click.option(
    "--pressure",
    type=FiniteRange(0.0, 1.0, min_open=True),
    default=0.8,
    show_default=True,
    help="Share of a slice's ports in use to one destination above which slice-pressure is found.",
)
