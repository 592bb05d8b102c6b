"""A process that stays, and is told to apply one configuration after another: what a change of one slice costs it."""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path

from nat_rewriter.cli.state import warn
from nat_rewriter.config import read_policy
from nat_rewriter.controller.apply import apply_configuration
from nat_rewriter.controller.edit import Editor
from nat_rewriter.controller.generations import GenerationLog, place_of
from nat_rewriter.model.generations import Configuration


def main() -> None:
    """Print the milliseconds of each change between two files, in force in turns: applied and kept; guard settled."""
    paths, state, times = (Path(sys.argv[1]), Path(sys.argv[2])), Path(sys.argv[3]), int(sys.argv[4])
    text = paths[0].read_bytes()
    policy = read_policy(text)
    log = GenerationLog(place_of(state, policy.controller.table))
    apply_configuration(Configuration(text, str(paths[0]), policy), log, warn)
    editor = Editor(log, warn)
    for number in range(1, times + 2):
        path = paths[number % 2]
        began = time.perf_counter()
        text = path.read_bytes()
        if editor.apply(text, str(path)) is None:  # a change of rules
            apply_configuration(Configuration(text, str(path), read_policy(text)), log, warn)
        in_force_s = time.perf_counter() - began
        editor.settle()
        settled_s = time.perf_counter() - began
        editor.prepare()
        gc.collect()  # as Applier does
        gc.freeze()
        if number > 1:  # the first one reads what is in force
            print(f"{in_force_s * 1000:.3f} {settled_s * 1000:.3f}", flush=True)


if __name__ == "__main__":
    main()
