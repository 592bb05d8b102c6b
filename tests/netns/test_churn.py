"""Local sockets and NAT flows come and go at once in a slice of 2048 ports: nothing leaks, nothing hangs.

``NATCTL_LONG=1`` runs it at full length: 10,000 connections of each kind in 60 seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from bench.coexist.churn import churn
from bench.coexist.load import serve
from bench.coexist.settings import apply, configuration, socket_half
from nat_rewriter.model.slices import PortRange
from netns_lab import Lab
from netns_lab.topology import SOFT_ADDRESS, SOFT_ADDRESS_6

LabFactory = Callable[..., Lab]
SLICE = PortRange(10240, 12287)
EACH, SECONDS = (10_000, 60) if os.environ.get("NATCTL_LONG") else (1_500, 10)


@pytest.mark.parametrize("coexist", ["confine", "refuse", "split"])
@pytest.mark.parametrize("family", [4, 6])
def test_nothing_leaks_and_nothing_hangs(lab_factory: LabFactory, coexist: str, family: int) -> None:
    lab = lab_factory(slices=[f"{SOFT_ADDRESS}:{SLICE}", f"[{SOFT_ADDRESS_6}]:{SLICE}"], clients=50)
    serve(lab.server)
    apply(lab, configuration(lab.slices, coexist=coexist))
    seen = churn(lab, socket_half(SLICE) if coexist == "split" else SLICE, each=EACH, seconds=SECONDS, family=family)
    assert seen.leaked == 0
    assert (seen.total("hung"), seen.total("gave_up"), seen.total("broken")) == (0, 0, 0)
    assert seen.total("worked") == 2 * EACH
    assert sum(outcome.refused_free for outcome in seen.sockets) < EACH / 1000
