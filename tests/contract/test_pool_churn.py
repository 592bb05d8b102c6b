"""Many hosts take and give slices on three members at once: no slice is doubled, none is leaked.

``NATCTL_LONG=1`` runs it at full length: 50 hosts, 10,000 times. What is judged is every change that etcd tells of.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from bench.fleet.audit import Audit, Left
from bench.fleet.churn import churn
from nat_rewriter.pool.etcd_client import Event
from netns_lab.etcd_cluster import Cluster, loopback

HOSTS, TIMES = (50, 200) if os.environ.get("NATCTL_LONG") else (10, 20)


def test_no_slice_is_doubled_and_none_is_leaked(tmp_path: Path) -> None:
    if not shutil.which("etcd"):
        pytest.skip("needs etcd: apt-get install etcd-server")
    with Cluster(tmp_path, loopback(3)) as running:
        done = churn(running, HOSTS, times=TIMES, hold_down_s=900)
    assert done.seen.faults == []
    assert (done.seen.acquired, done.seen.released) == (HOSTS * TIMES, HOSTS * TIMES)
    assert done.seen.left == Left(held=0, resting=HOSTS * TIMES)
    assert done.told_wrong == []


def record(host: str, revision: int, *ports: int) -> Event:
    held = json.dumps({"blocks": [("198.18.0.0", port, 0.0) for port in ports]})
    return Event(f"natctl/host/fleet/{host}", held.encode(), revision)


def taken(port: int, revision: int, *, there: bool = True) -> Event:
    return Event(f"natctl/taken/fleet/198.18.0.0/{port:05d}", b"{}" if there else None, revision)


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([record("a", 1, 1024), taken(1024, 1), record("b", 2, 1024), taken(1024, 2)], "came to b too"),
        ([record("a", 1, 1024), taken(1024, 1), record("a", 2), record("b", 3, 1024)], "came to b while it rested"),
        ([record("a", 1, 1024)], "is not kept from others"),
        ([record("a", 1, 1024), taken(1024, 1), record("a", 2), taken(1024, 3, there=False)], None),
    ],
)
def test_what_must_not_be_is_seen(events: list[Event], told: str | None) -> None:
    found = Audit()
    found.see(events)
    assert any(told in fault for fault in found.faults) if told else found.faults == []
