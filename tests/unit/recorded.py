"""Hand-made flows as a recorder takes them, and what it makes of them."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
from tables import AMS, AMS6, CLIENT, SERVER, SOFT, flow, flows

from nat_rewriter.detect import SliceIndex
from nat_rewriter.history.journaling import Retention
from nat_rewriter.history.reader import Question, find
from nat_rewriter.history.recorder import Recorder
from nat_rewriter.history.records import Records, Sighting
from nat_rewriter.history.sightings import sightings_of
from nat_rewriter.model.flows import Event, Present

NOW = 1_790_000_000_000_000_000
SECOND = 1_000_000_000
WEB = (SERVER, 443)
OUT = flow(((CLIENT, 39064), WEB), (SOFT, 9003))


def sight(*rows: dict[str, Any], kind: Sighting = Sighting.OPENED) -> Records:
    table = flows(*rows)
    kinds, times = np.full(len(table), kind, np.uint8), np.full(len(table), NOW, np.uint64)
    return sightings_of(table, SliceIndex((AMS, AMS6)), kinds, times)


def opened(number: int, **fields: Any) -> dict[str, Any]:
    row = flow(((CLIENT, 1000 + number), WEB), (SOFT, 9000 + number % 10), **fields)
    return row | {"key": 1 + number, "id": 1 + number, "event": Event.NEW}


def closed(number: int) -> dict[str, Any]:
    return opened(number) | {"event": Event.DESTROY, "packets": (5, 4), "present": OUT["present"] | Present.COUNTERS}


def record_into(path: Path, *parts: list[dict[str, Any]], retention: Retention | None = None) -> None:
    for rows in parts:
        with Recorder(path, (AMS, AMS6), retention) as one:
            one.events(flows(*rows))


def asked(path: Path, **words: Any) -> list[Any]:
    question = Question(**{"end": "wire", "address": ip_address(SOFT)} | words)
    return [record for found in find(path, question) for record in found.records]
