"""Where natctl starts: a look at everything begins before the command line is read as a whole, which takes longer."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

_FLAGS = frozenset({"--json", "-q", "--quiet", "-v", "--verbose", "--heal", "--abort", "--dry-run"})
_WITH_VALUE = frozenset({"--config", "--state", "--pressure"})


def looks_at_everything(arguments: Sequence[str]) -> bool:
    """Tell whether these words ask for a whole ``check`` of this network namespace; not, when in doubt."""
    words = iter(arguments)
    if next(words, None) != "check":
        return False
    for word in words:
        if word in _WITH_VALUE:
            next(words, None)
        elif word not in _FLAGS and word.partition("=")[0] not in _WITH_VALUE:
            return False
    return True


def main() -> None:
    """Entry point of the ``natctl`` script."""
    arguments, begun = sys.argv[1:], None
    if looks_at_everything(arguments):
        from nat_rewriter.kernel.head_start import HeadStart

        begun = HeadStart()
    from nat_rewriter.cli.main import run

    code = run(arguments, begun)
    if arguments[:1] in (["check"], ["apply"]):
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> None:
    """End the process at once: to take the interpreter apart piece by piece takes longer than much of the work."""
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except (OSError, ValueError):  # whoever read it is gone: the interpreter tells, in the ordinary way
        return
    os._exit(code)
