"""A process that stays, and is told one policy after another: what a change of one slice costs it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from nat_rewriter.config import read_policy
from nat_rewriter.controller.resident import Resident
from nat_rewriter.kernel.nft import KernelNft


def main() -> None:
    """Print the milliseconds of each change between two configurations, which are in force in turns."""
    first, second, times = read_policy(Path(sys.argv[1])), read_policy(Path(sys.argv[2])), int(sys.argv[3])
    with KernelNft() as nft:
        resident = Resident(nft)
        resident.apply(first)
        for number in range(times):
            began = time.perf_counter()
            applied = resident.apply(first if number % 2 else second)
            took_s = time.perf_counter() - began
            if not applied.transaction:
                raise SystemExit("a change of a slice that changes nothing")
            print(f"{took_s * 1000:.3f}", flush=True)


if __name__ == "__main__":
    main()
