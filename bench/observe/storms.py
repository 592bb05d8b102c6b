"""Storms of events with the reader stopped in the middle: what was lost, and whether the table was right afterwards."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

READER = Path(__file__).with_name("storm_reader.py")
_BEFORE_S, _STOPPED_S = 1.0, 2.0


def storms(flood: str, config: Path, events: int, kept: int, times: int) -> Iterator[dict[str, Any]]:
    """Yield what the reader said after each storm, and the seconds that the storm took."""
    for _ in range(times):
        command = [sys.executable, str(READER), str(config), str(32 << 20)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
            try:
                yield _one(reader, [flood, "storm", str(events), str(kept)])
            finally:
                reader.kill()
        subprocess.run(["conntrack", "-F"], check=True, capture_output=True)


def _one(reader: subprocess.Popen[str], storm: list[str]) -> dict[str, Any]:
    assert reader.stdin
    assert reader.stdout
    reader.stdout.readline()
    blowing = subprocess.Popen(storm, stdout=subprocess.PIPE, text=True)
    time.sleep(_BEFORE_S)
    reader.send_signal(signal.SIGSTOP)
    time.sleep(_STOPPED_S)
    reader.send_signal(signal.SIGCONT)
    made = json.loads(blowing.communicate()[0])
    reader.stdin.write("compare\n")
    reader.stdin.flush()
    found: dict[str, Any] = json.loads(reader.stdout.readline())
    return found | {"made": made["made"], "seconds": made["seconds"]}
