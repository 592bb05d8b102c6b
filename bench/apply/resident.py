"""A process that stays, and is told to apply one configuration after another: what a change of one slice costs it."""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path

from nat_rewriter.cli.state import warn
from nat_rewriter.config import read_policy
from nat_rewriter.controller.apply import apply_configuration
from nat_rewriter.controller.edit import apply_edit
from nat_rewriter.controller.generations import GenerationLog, place_of
from nat_rewriter.model.generations import Configuration


def main() -> None:
    """Print the milliseconds of each change between two files, in force in turns: read, applied and logged."""
    paths, state, times = (Path(sys.argv[1]), Path(sys.argv[2])), Path(sys.argv[3]), int(sys.argv[4])
    text = paths[0].read_bytes()
    policy = read_policy(text)
    log = GenerationLog(place_of(state, policy.controller.table))
    apply_configuration(Configuration(text, str(paths[0]), policy), log, warn)
    known = None
    gc.freeze()
    for number in range(1, times + 2):
        path = paths[number % 2]
        began = time.perf_counter()
        text = path.read_bytes()
        edited = apply_edit(text, str(path), log, warn, known=known)
        if edited is None:  # a change of rules
            apply_configuration(Configuration(text, str(path), read_policy(text)), log, warn)
        took_s = time.perf_counter() - began
        known = edited.in_force if edited else None
        if number > 1:  # the first one reads what is in force
            print(f"{took_s * 1000:.3f}", flush=True)


if __name__ == "__main__":
    main()
