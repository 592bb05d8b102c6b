"""Established flows with data in flight while other slices change: no byte lost, none reset.

``NATCTL_LONG=1`` does it with 1,000 flows through 200 applies. The throughput is printed (``pytest -s``), not judged.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from netns_lab import Lab
from netns_lab.topology import SERVER, SOFT_ADDRESS

LabFactory = Callable[..., Lab]
FLOWS, APPLIES = (1000, 200) if os.environ.get("NATCTL_LONG") else (40, 8)
STREAMS = [sys.executable, str(Path(__file__).parents[2] / "bench" / "apply" / "streams.py")]
PORT = 5201
OTHERS = 20
QUIET_S = 2.0


def configuration(lab: Lab, step: int) -> Path:
    """Return a configuration in which the slice of the flows stays, and others differ from step to step."""
    text = Path(lab.config()).read_text()
    for number in range(OTHERS):
        first = 20_000 + 100 * number
        last = first + 50 + (step if number == step % OTHERS else 0) % 40
        # Every tenth step a slice of two ranges comes or goes, and with it rules: the table is made anew.
        ports = f'"{first}-{last}"' + (f', "{first + 95}"' if number == 0 and step // 10 % 2 else "")
        text += f'\n[[slice]]\nname = "other-{number}"\naddress = "{SOFT_ADDRESS}"\nports = [{ports}]\n'
    return lab.config_file(text)


def last_object(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def test_no_byte_is_lost_and_no_flow_reset(lab_factory: LabFactory, state: Path) -> None:
    lab = lab_factory(slices=[f"{SOFT_ADDRESS}:9000-{9000 + 2 * FLOWS}"], clients=1)
    lab.natctl("apply", "--config", configuration(lab, 0), expect=0)
    options = {"stdin": subprocess.PIPE}
    receiver = lab.server.popen([*STREAMS, "serve", SERVER, str(PORT), str(FLOWS)], **options)
    assert receiver.stdout is not None
    assert receiver.stdout.readline() == "ready\n"
    sender = lab.client.popen([*STREAMS, "send", SERVER, str(PORT), str(FLOWS)], **options)
    assert receiver.stdout.readline() == "connected\n"
    time.sleep(QUIET_S)
    moments = list(applies(lab))
    time.sleep(QUIET_S)
    assert sender.stdin is not None
    sender.stdin.close()
    sent, received = last_object(sender), last_object(receiver)
    print(throughput(received["slots"], moments))
    assert (sent["resets"], received["resets"], received["wrong"]) == (0, 0, 0)
    assert received["bytes"] == sent["bytes"]
    assert min(received["bytes"]) > 0
    assert lab.leaks().total == 0


def applies(lab: Lab) -> Iterator[tuple[float, float]]:
    """Apply one configuration after another; yield when each began and ended."""
    for step in range(1, APPLIES + 1):
        config = configuration(lab, step)
        began = time.monotonic()
        outcome = lab.natctl("apply", "--config", config, expect=0)
        assert "up to date" not in outcome.stdout
        yield began, time.monotonic()


def throughput(slots: list[list[int]], moments: list[tuple[float, float]]) -> str:
    """Return the bytes in a tenth of a second before, during and in the worst moment of the applies, as a sentence."""
    begun, ended = moments[0][0] * 10, moments[-1][1] * 10
    quiet = [count for slot, count in slots if slot < begun - 1][5:]
    during = [count for slot, count in slots if begun <= slot <= ended]
    before, meanwhile, worst = statistics.median(quiet), statistics.median(during), min(during)
    return (
        f"{before * 80 / 1e9:.2f} Gbit/s before, {meanwhile * 80 / 1e9:.2f} ({meanwhile / before:.0%}) during applies, "
        f"{worst * 80 / 1e9:.2f} ({worst / before:.0%}) in the worst tenth of a second"
    )
