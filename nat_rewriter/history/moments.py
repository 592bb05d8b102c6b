"""Moments as people write them: ISO 8601, `2026-11-21 19:24`, `10m ago`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import NamedTuple

from nat_rewriter.errors import UsageError

_EXPECTED = "expected ISO 8601, '2026-11-21 19:24', '19:24' or '10m ago'"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_AGO = re.compile(r"(\d+)\s*([smhdw]) ago")
_CLOCK = re.compile(r"\d\d:\d\d(:\d\d(\.\d+)?)?")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_MINUTE = re.compile(r".*[T ]\d\d:\d\d(Z|[+-]\d\d:?\d\d)?|\d\d:\d\d")
_FRACTION = re.compile(r"\.\d+")


class Moment(NamedTuple):
    """A time as exact as it was written: `19:24` is that whole minute. Both ends belong to it."""

    first_ns: int
    last_ns: int


def read_moment(text: str, zone: tzinfo | None, now: datetime) -> Moment:
    """Return what a time means; one that names no zone is in ``zone`` (None: the host's). Raises UsageError."""
    if ago := _AGO.fullmatch(text):
        begin = now.replace(microsecond=0) - timedelta(seconds=int(ago[1]) * _UNITS[ago[2]])
        return _span(begin, timedelta(seconds=1))
    return _span(_read_datetime(text, zone, now), _width(text))


def read_age_ns(text: str) -> int:
    """Return a length of time, `30d`, in nanoseconds. Raises UsageError."""
    match = re.fullmatch(r"(\d+)([smhdw])", text)
    if not match or not int(match[1]):
        raise UsageError("read age", "expected a number and one of s, m, h, d, w, like 30d", text)
    return int(match[1]) * _UNITS[match[2]] * 1_000_000_000


def read_size(text: str) -> int:
    """Return a size, `20G`, in bytes; units are powers of 1024. Raises UsageError."""
    match = re.fullmatch(r"(\d+)([KMGT]?)", text.upper())
    if not match or not int(match[1]):
        raise UsageError("read size", "expected a number and one of K, M, G, T, like 20G", text)
    return int(match[1]) * _SIZES[match[2]]


def _read_datetime(text: str, zone: tzinfo | None, now: datetime) -> datetime:
    here = now.astimezone(zone)
    try:
        found = datetime.fromisoformat(f"{here:%Y-%m-%d} {text}" if _CLOCK.fullmatch(text) else text)
    except ValueError:
        raise UsageError("read time", _EXPECTED, text) from None
    return found if found.tzinfo else _in_zone(found, zone, text)


def _in_zone(naive: datetime, zone: tzinfo | None, text: str) -> datetime:
    """Return a time of a zone's clock, which shows some times twice in autumn and skips some in spring."""
    early, late = (naive.replace(fold=fold, tzinfo=zone).astimezone(UTC) for fold in (0, 1))
    if early > late:
        raise UsageError(
            "read time", "the clock was put forward over it then; give it with an offset, like +02:00", text
        )
    if early < late:
        raise UsageError("read time", "the clock showed it twice; give it with an offset, like +02:00", text)
    return early


def _width(text: str) -> timedelta:
    if _DAY.fullmatch(text):
        return timedelta(days=1)
    if _MINUTE.fullmatch(text):
        return timedelta(minutes=1)
    return timedelta(microseconds=1) if _FRACTION.search(text) else timedelta(seconds=1)


def _span(begin: datetime, width: timedelta) -> Moment:
    return Moment(_ns(begin), _ns(begin + width) - 1)


def _ns(moment: datetime) -> int:
    since = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000
