"""Which destinations, clients or slices have the most flows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nat_rewriter.detect.keys import group_rows, mix
from nat_rewriter.detect.observation import Rows
from nat_rewriter.detect.parties import PORTLESS, original_tuple
from nat_rewriter.detect.placement import Placement
from nat_rewriter.model.flow_views import Rank, Ranked
from nat_rewriter.model.flows import Present


def rank_flows(flows: Rows, rows: Rows, placement: Placement, by: Ranked, most: int) -> list[Rank]:
    """Return up to ``most`` of them, those with the most flows first; ``rows`` says which flows count."""
    if by is Ranked.SLICES:
        rows = rows[placement.slices[rows] >= 0]
    first, numbers = group_rows(_keys(flows, rows, placement, by))
    counts = np.bincount(numbers, minlength=len(first))
    fullest = np.argsort(-counts, kind="stable")[:most]
    volumes = _volumes(flows, rows, numbers, len(first))
    return [_rank(flows, rows[first[group]], placement, by, int(counts[group]), volumes[group]) for group in fullest]


def _keys(flows: Rows, rows: Rows, placement: Placement, by: Ranked) -> Rows:
    if by is Ranked.SLICES:
        return placement.slices[rows].astype(np.uint64)
    if by is Ranked.CLIENTS:
        clients = flows["orig_src"][rows]
        return mix(clients[:, 0], clients[:, 1], flows["family"][rows])
    servers, protocols = flows["orig_dst"][rows], flows["protocol"][rows]
    # An echo id is no part of a destination.
    ports = np.where(np.isin(protocols, PORTLESS), 0, flows["orig_dport"][rows])
    return mix(servers[:, 0], servers[:, 1], ports, protocols)


def _volumes(flows: Rows, rows: Rows, numbers: Rows, groups: int) -> Sequence[int | None]:
    counted = (flows["present"][rows] & Present.COUNTERS) != 0
    if not counted.any():
        return [None] * groups
    sums = np.zeros(groups, dtype=np.uint64)
    np.add.at(sums, numbers[counted], flows["bytes"][rows[counted]].sum(axis=1))
    totals: list[int] = sums.tolist()
    return totals


def _rank(flows: Rows, row: int, placement: Placement, by: Ranked, count: int, volume: int | None) -> Rank:
    one = original_tuple(flows[row])
    if by is Ranked.SLICES:
        return Rank(placement.slice_of(row) or "", count, bytes=volume)
    if by is Ranked.CLIENTS:
        return Rank(str(one.src), count, bytes=volume)
    return Rank(one.destination, count, one.protocol, volume)
