"""The C decoder under AddressSanitizer and UBSan, on captured messages spoilt in a great many ways.

``NATCTL_FUZZ_EXECUTIONS`` sets how many (by default some seconds' worth); before a release it is ten million.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CORE = HERE.parents[1] / "nat_rewriter" / "kernel" / "_core"
MESSAGES = HERE.parent / "unit" / "messages"
DECODERS = [CORE / name for name in ("decode.c", "flows.c", "filter.c", "sockets.c")]
FLAGS = ["-g", "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fno-sanitize-recover=all", f"-I{CORE}"]
EXECUTIONS = os.environ.get("NATCTL_FUZZ_EXECUTIONS", "100000")
# A decoder that stands still must not keep the tests from ending: they do some 30,000 executions a second.
TIMEOUT_S = 60 + int(EXECUTIONS) / 500


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    """A directory of the captured messages as plain bytes."""
    directory = tmp_path / "seeds"
    directory.mkdir()
    for source in MESSAGES.glob("*.hex"):
        lines = [line for line in source.read_text(encoding="ascii").splitlines() if not line.startswith("#")]
        (directory / source.stem).write_bytes(bytes.fromhex("".join(lines)))
    return directory


def build(compiler: str, sanitizers: str, target: Path, *sources: Path) -> None:
    command = [compiler, *FLAGS, f"-fsanitize={sanitizers}", "-o", str(target), *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def execute(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_spoilt_messages_give_records_or_a_problem(tmp_path: Path, seeds: Path) -> None:
    program = tmp_path / "mutate"
    build("gcc", "address,undefined", program, *DECODERS, HERE / "decode.c", HERE / "mutate.c")
    printed = execute(str(program), EXECUTIONS, *(str(seed) for seed in sorted(seeds.iterdir())))
    assert f"{EXECUTIONS} executions" in printed


if shutil.which("clang"):  # a large package that nobody needs otherwise: no test where it is not

    def test_libfuzzer_finds_nothing(tmp_path: Path, seeds: Path) -> None:
        program = tmp_path / "fuzz"
        build("clang", "fuzzer,address,undefined", program, *DECODERS, HERE / "decode.c")
        limits = (f"-runs={EXECUTIONS}", "-max_len=8192", f"-artifact_prefix={tmp_path}/")
        assert f"Done {EXECUTIONS} runs" in execute(str(program), *limits, str(seeds))
