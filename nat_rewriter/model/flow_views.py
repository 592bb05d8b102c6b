"""Flows summed up: rankings, and maps of a slice's ports."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from nat_rewriter.model.slices import PortRange, Slice


class Ranked(enum.Enum):
    """What flows are counted by: where they go, who began them, or the slice they belong to."""

    DESTINATIONS = "destinations"
    CLIENTS = "clients"
    SLICES = "slices"


@dataclass(frozen=True, slots=True)
class Rank:
    """A destination, client or slice with its flows. ``bytes``, both ways, is None where the kernel does not count."""

    name: str
    flows: int
    protocol: str | None = None  # of a destination
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class HeatRow:
    """One destination: how many of the slice's ports are in use towards it, and what share of each piece, 0 to 1."""

    protocol: str
    destination: str
    used: int
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """The ports of a slice, cut into pieces, and the destinations that use most of them.

    ``capacity`` ports are in pieces of ``piece_size``, the last may have fewer; ``pieces`` tells the first and last
    port of each. ``others`` counts the destinations that are not shown.
    """

    slice: Slice
    capacity: int
    piece_size: int
    pieces: tuple[PortRange, ...]
    rows: tuple[HeatRow, ...]
    others: int
