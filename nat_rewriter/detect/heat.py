"""Which ports of a slice are in use towards which destinations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nat_rewriter.detect.keys import distinct, group_rows, mix
from nat_rewriter.detect.observation import Observation, Rows
from nat_rewriter.detect.parties import PORTLESS, reply_tuple
from nat_rewriter.model.flow_views import HeatMap, HeatRow
from nat_rewriter.model.slices import PortRange, merge_ranges


def heat_map(observation: Observation, number: int, most_pieces: int, most_rows: int) -> HeatMap:
    """Return the map of a slice (by number) with at most so many pieces and destinations, the fullest first."""
    each = observation.slices[number]
    owned = _OwnedPorts(each.ranges)
    size = owned.piece_size(most_pieces)
    rows, flows = observation.wire_rows, observation.flows
    owners = observation.index.owners(observation.wire_numbers, flows["protocol"][rows], flows["reply_dport"][rows])
    rows = rows[owners == number]
    first, numbers = group_rows(_destination_keys(flows, rows))
    pairs = distinct(numbers << 16 | owned.places(flows["reply_dport"][rows]))
    used = np.bincount(pairs >> 16, minlength=len(first))
    fullest = np.argsort(-used, kind="stable")[:most_rows]
    shares = _shares(pairs, fullest, owned.capacity, size)
    shown = tuple(
        _row(flows[rows[first[one]]], int(used[one]), share) for one, share in zip(fullest, shares, strict=True)
    )
    return HeatMap(each, owned.capacity, size, owned.pieces(size), shown, len(first) - len(shown))


class _OwnedPorts:
    """The ports of a slice in one row, range after range; a port's place in it is where it stands."""

    def __init__(self, ranges: Sequence[PortRange]) -> None:
        ordered = merge_ranges(ranges)
        self._starts = np.array([ports.first for ports in ordered], dtype=np.int64)
        sizes = np.array([len(ports) for ports in ordered], dtype=np.int64)
        self._ends = np.cumsum(sizes)
        self._shifts = self._starts - (self._ends - sizes)  # of a port against its place
        self.capacity = int(self._ends[-1])

    def places(self, ports: Rows) -> Rows:
        """Return the place of each port; all are in the slice."""
        found: Rows = ports - self._shifts[np.searchsorted(self._starts, ports, side="right") - 1]
        return found

    def piece_size(self, most: int) -> int:
        """Return how many ports a piece must have so that there are no more than ``most``."""
        return -(-self.capacity // most)

    def pieces(self, size: int) -> tuple[PortRange, ...]:
        """Return the first and the last port of each piece; between them may be ports of others."""
        firsts = np.arange(0, self.capacity, size)
        lasts = np.minimum(firsts + size, self.capacity) - 1
        ends = (places + self._shifts[np.searchsorted(self._ends, places, side="right")] for places in (firsts, lasts))
        return tuple(PortRange(first, last) for first, last in zip(*(end.tolist() for end in ends), strict=True))


def _destination_keys(flows: Rows, rows: Rows) -> Rows:
    protocols, servers = flows["protocol"][rows], flows["reply_src"][rows]
    # An echo id is no part of a destination.
    ports = np.where(np.isin(protocols, PORTLESS), 0, flows["reply_sport"][rows])
    return mix(servers[:, 0], servers[:, 1], ports, protocols)


def _shares(pairs: Rows, chosen: Rows, capacity: int, size: int) -> Rows:
    """Return for each chosen destination the share of each piece in use; pairs are (destination, place of a port)."""
    lines = np.full(int(pairs[-1] >> 16) + 1 if len(pairs) else 0, -1)
    lines[chosen] = np.arange(len(chosen))
    shown = pairs[lines[pairs >> 16] >= 0]
    sizes = np.diff(np.append(np.arange(0, capacity, size), capacity))
    counts = np.zeros((len(chosen), len(sizes)), dtype=np.int64)
    np.add.at(counts, (lines[shown >> 16], (shown & 0xFFFF) // size), 1)
    shares: Rows = counts / sizes
    return shares


def _row(flow: np.void, used: int, shares: Rows) -> HeatRow:
    towards = reply_tuple(flow).reversed()
    return HeatRow(towards.protocol, towards.destination, used, tuple(shares.tolist()))
