"""A first apply in a process that has loaded its modules: read, check, render, try out, transaction, read back."""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path

import jinja2  # noqa: F401  # what rendering loads late
import rtoml  # noqa: F401  # and reading

from nat_rewriter.cli.state import warn
from nat_rewriter.config import read_policy
from nat_rewriter.controller.apply import apply_configuration
from nat_rewriter.controller.generations import GenerationLog, place_of
from nat_rewriter.kernel import conntrack_dumps  # noqa: F401  # and settling
from nat_rewriter.model.generations import Configuration


def main() -> None:
    """Print the seconds from the bytes of a file until they are in force, compared and kept."""
    path, state = Path(sys.argv[1]), Path(sys.argv[2])
    gc.disable()  # as natctl apply does
    began = time.perf_counter()
    text = path.read_bytes()
    policy = read_policy(text)
    log = GenerationLog(place_of(state, policy.controller.table))
    apply_configuration(Configuration(text, str(path), policy), log, warn)
    print(f"{time.perf_counter() - began:.4f}")


if __name__ == "__main__":
    main()
