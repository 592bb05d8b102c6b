"""What the fuzzers share: built under AddressSanitizer and UBSan, and run as often as asked.

``NATCTL_FUZZ_EXECUTIONS`` sets how often (by default some seconds' worth); before a release it is ten million.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FLAGS = ["-g", "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fno-sanitize-recover=all"]
EXECUTIONS = os.environ.get("NATCTL_FUZZ_EXECUTIONS", "100000")
# What stands still must not keep the tests from ending: there are some 30,000 executions a second.
TIMEOUT_S = 60 + int(EXECUTIONS) / 500
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
has_clang = shutil.which("clang") is not None  # a large package that nobody needs otherwise: no test where it is not


@dataclass(frozen=True)
class Target:
    """A libFuzzer entry point of this directory, and the sources of the project that it is about."""

    entry: str
    core: Path
    sources: Sequence[str]
    options: Sequence[str] = ()

    def mutate(self, directory: Path, seeds: Mapping[str, bytes]) -> None:
        """Run it on seeds that are spoilt in the ways of mutate.c, the same ones every time."""
        program = self._build("gcc", "address,undefined", directory / "mutate", "mutate.c")
        printed = _execute(program, EXECUTIONS, *_written(directory / "seeds", seeds))
        assert f"{EXECUTIONS} executions" in printed

    def search(self, directory: Path, seeds: Mapping[str, bytes]) -> None:
        """Let libFuzzer look for input that leads elsewhere."""
        program = self._build("clang", "fuzzer,address,undefined", directory / "fuzz")
        _written(directory / "seeds", seeds)
        limits = (f"-runs={EXECUTIONS}", "-max_len=9000", f"-artifact_prefix={directory}/")
        assert f"Done {EXECUTIONS} runs" in _execute(program, *limits, str(directory / "seeds"))

    def _build(self, compiler: str, sanitizers: str, program: Path, *more: str) -> str:
        sources = [*(self.core / name for name in self.sources), *(HERE / name for name in (self.entry, *more))]
        command = [compiler, *FLAGS, f"-I{self.core}", f"-fsanitize={sanitizers}", *self.options, "-o", str(program)]
        done = subprocess.run([*command, *map(str, sources)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return str(program)


def _written(directory: Path, seeds: Mapping[str, bytes]) -> list[str]:
    directory.mkdir()
    for name, content in seeds.items():
        (directory / name).write_bytes(content)
    return sorted(map(str, directory.iterdir()))


def _execute(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr
