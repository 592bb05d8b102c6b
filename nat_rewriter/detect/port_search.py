"""How likely the kernel finds a free port: its search is bounded, so that a free port is not always a findable one.

nf_nat_l4proto_unique_tuple() in net/netfilter/nf_nat_core.c tries 128 ports in a row from a random place of the range,
then 64 from another place, 32, 16 and 8; a range of up to 128 ports it tries whole. So many free ports that lie side by
side are missed more often than the same number scattered over the range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nat_rewriter.model.slices import Slice

Column = NDArray[Any]

MOST_ATTEMPTS = 128
WINDOWS = (128, 64, 32, 16, 8)


class PortSearch:
    """The search in the ranges that packet rewriting may use, for many destinations at a time.

    One of a slice's ranges is chosen for each flow, by its size; then that range is searched.
    """

    def __init__(self, slices: Sequence[Slice]) -> None:
        ranges = [
            (number << 16 | ports.first, len(ports))
            for number, each in enumerate(slices)
            for ports in sorted(each.rewrite_ranges)
        ]
        columns = np.array(ranges, dtype=np.int64).reshape(-1, 2)
        self._starts, self._sizes = columns[:, 0], columns[:, 1]
        totals = np.bincount(self._starts >> 16, self._sizes, len(slices))
        self._weights = self._sizes / totals[self._starts >> 16]

    def chances(self, slices: Column, places: Column, ports: Column) -> Column:
        """Return for each destination the probability that the next new flow finds a port, 0 to 1.

        ``slices``: the slice number of each destination. ``places`` (ascending) and ``ports`` (ascending for each
        place): the ports in use, each once; a place is an index into ``slices``, a port lies in its slice.
        """
        missed = np.zeros(len(slices))
        if not len(places):
            return 1.0 - missed
        positions = slices[places] << 16 | ports
        ranges = np.searchsorted(self._starts, positions, side="right") - 1
        firsts, lengths = _runs(places, ranges, ports)
        searched = _first_of_equals(places[firsts], ranges[firsts])
        _join_around(lengths, searched, positions[firsts], self._starts[ranges[firsts]], self._sizes[ranges[firsts]])
        misses = self._misses(np.flatnonzero(searched), lengths, ranges[firsts])
        np.add.at(missed, places[firsts][searched], misses * self._weights[ranges[firsts][searched]])
        return np.clip(1.0 - missed, 0.0, 1.0)

    def _misses(self, searched: Column, lengths: Column, ranges: Column) -> Column:
        """Return for each searched range the probability that every window lies within a run of used ports.

        A window of w ports can begin at length - w + 1 places of a run without meeting a free port.
        """
        sizes = self._sizes[ranges[searched]]
        full = np.maximum.reduceat(lengths, searched) >= sizes
        misses = np.ones(len(searched))
        for window in WINDOWS:
            blind = np.add.reduceat(np.maximum(0, lengths - window + 1), searched)
            misses *= blind / sizes
        return np.where(full, 1.0, np.where(sizes <= MOST_ATTEMPTS, 0.0, misses))


def _runs(places: Column, ranges: Column, ports: Column) -> tuple[Column, Column]:
    """Return where each run of neighbouring ports in one range begins, and how long it is."""
    begins = _first_of_equals(places, ranges)
    begins[1:] |= ports[1:] != ports[:-1] + 1
    firsts = np.flatnonzero(begins)
    return firsts, np.diff(np.append(firsts, len(ports)))


def _join_around(lengths: Column, searched: Column, positions: Column, starts: Column, sizes: Column) -> None:
    """Add the run at the end of a range to the one at its beginning: the search goes on from there."""
    first = np.flatnonzero(searched)
    last = np.append(first[1:], len(lengths)) - 1
    around = (first != last) & (positions[first] == starts[first])
    around &= positions[last] + lengths[last] == starts[last] + sizes[last]
    lengths[first[around]] += lengths[last[around]]
    lengths[last[around]] = 0


def _first_of_equals(*columns: Column) -> Column:
    """Tell of each row whether it differs from the row before."""
    first = np.ones(len(columns[0]), dtype=bool)
    first[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return first
