"""Tuples as single numbers, so that tables of flows and sockets can be joined by sorting."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[Any]

# Odd and drawn at start: whoever chooses addresses and ports cannot aim at equal keys.
_MULTIPLIERS = np.frombuffer(os.urandom(48), dtype=np.uint64) | np.uint64(1)
_FOLD = np.uint64(32)


def mix(*columns: Column) -> Column:
    """Return one 64-bit key for each row of up to six columns of numbers; equal rows have equal keys."""
    key = np.zeros(len(columns[0]), dtype=np.uint64)
    for column, multiplier in zip(columns, _MULTIPLIERS, strict=False):
        key = (key ^ column.astype(np.uint64)) * multiplier
        key ^= key >> _FOLD
    return key


def tuple_keys(protocol: Column, src: Column, sport: Column, dst: Column, dport: Column) -> Column:
    """Return the key of each tuple; addresses are columns of halves."""
    ends = (sport.astype(np.uint64) << np.uint64(24)) | (dport.astype(np.uint64) << np.uint64(8)) | protocol
    # 16 + 16 + 8 bits: the two ports and the protocol fit in one number.
    return mix(ends, src[:, 0], src[:, 1], dst[:, 0], dst[:, 1])


def original_keys(flows: Column) -> Column:
    """Return the key of the original tuple of each flow."""
    return tuple_keys(flows["protocol"], flows["orig_src"], flows["orig_sport"], flows["orig_dst"], flows["orig_dport"])


def reply_keys(flows: Column) -> Column:
    """Return the key of the reply tuple of each flow, read backwards: from the wire's source to the server."""
    return tuple_keys(
        flows["protocol"], flows["reply_dst"], flows["reply_dport"], flows["reply_src"], flows["reply_sport"]
    )


def socket_keys(sockets: Column) -> Column:
    """Return the key of the tuple of each connected socket, from the socket to its peer."""
    return tuple_keys(sockets["protocol"], sockets["src"], sockets["sport"], sockets["dst"], sockets["dport"])


def first_of_equals(ordered: Column) -> Column:
    """Tell of each row of an ordered column whether it is the first of its value."""
    first = np.ones(len(ordered), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return first


def group_rows(keys: Column) -> tuple[Column, Column]:
    """Return the first row of each distinct key, and for each row the number of its key; numbers are as keys ascend.

    This is what numpy.unique does, without the hundredth of a second that its first call takes to import numpy.ma.
    """
    order = np.argsort(keys, kind="stable")
    begins = first_of_equals(keys[order])
    numbers = np.empty(len(keys), dtype=np.int64)
    numbers[order] = np.cumsum(begins) - 1
    return order[begins], numbers


def distinct(values: Column) -> Column:
    """Return each value once, in order."""
    ordered = np.sort(values)
    once: Column = ordered[first_of_equals(ordered)]
    return once


def byte_flags(numbers: Iterable[int]) -> Column:
    """Return a table of 256 that tells of each number whether it is one of these.

    Asked with a column, it does what numpy.isin does, without the time that numpy.isin takes to import numpy.ma.
    """
    flags = np.zeros(256, dtype=bool)
    flags[list(numbers)] = True
    return flags


def is_among(keys: Column, wanted: Column) -> Column:
    """Tell of each key whether it is one of the wanted: fast where few are wanted of many."""
    if not len(wanted):
        return np.zeros(len(keys), dtype=bool)
    ordered = np.sort(wanted)
    place = np.searchsorted(ordered, keys)
    place[place == len(ordered)] = 0
    among: Column = ordered[place] == keys
    return among


def first_match(wanted: Column, keys: Column) -> Column:
    """Return for each wanted key the first row of ``keys`` that equals it, -1 where there is none."""
    rows = np.flatnonzero(is_among(keys, wanted))
    if not len(rows):
        return np.full(len(wanted), -1, dtype=np.int64)
    candidates = keys[rows]
    order = np.argsort(candidates, kind="stable")
    place = np.searchsorted(candidates, wanted, sorter=order)
    place[place == len(order)] = 0
    found = order[place]
    return np.where(candidates[found] == wanted, rows[found], -1)
