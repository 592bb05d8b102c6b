"""An apply whose libnftables crashes, hangs or answers garbage: an error with a name, and a whole table, old or new."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
from operating import lasting, outcomes

from nat_rewriter.cli.main import run
from nat_rewriter.kernel import nft as nft_module
from nat_rewriter.kernel.nft import KernelNft
from netns_lab import Lab

# The real worker, but for one request: there the fault is made, before or after the real answer.
WORKER = """
import os, signal, sys, time
sys.path.insert(0, {directory!r})
import nft_worker
scratch = nft_worker.SCRATCH in sys.argv
loaded = 0

def fault():
    {fault}

def faulty(answer, kind_of):
    def instead(content, *options):
        global loaded
        due = (kind_of(content, *options), scratch) == ({kind!r}, {scratch})
        if due and {before}:
            return fault()
        given = answer(content, *options)
        return fault() if due else given
    return instead

def kind_of_text(text, options):
    global loaded
    main = b"chain " in text  # before it, the guard may be told to look at every packet
    loaded += main
    return "load" if main else "other"

nft_worker.run = faulty(nft_worker.run, kind_of_text)
nft_worker.ask_kernel = faulty(nft_worker.ask_kernel, lambda questions: "read back" if loaded else "read")
if nft_worker.END_WITH in sys.argv:
    nft_worker.end_with(int(sys.argv[sys.argv.index(nft_worker.END_WITH) + 1]))
if scratch:
    nft_worker.leave_network()
nft_worker.serve(sys.stdin.buffer, sys.stdout.buffer)
"""
HANGS_S = 10.0  # beyond what a busy machine takes to answer
FAULTS = {
    "crash": ("os.kill(os.getpid(), signal.SIGSEGV)", r"libnftables was ended by SIGSEGV: .*"),
    "abort": ("os.abort()", r"libnftables was ended by SIGABRT: .*"),
    "hang": ("time.sleep(1000)", r"did not answer within 10 s: .*"),
    "garbage": ("sys.stdout.buffer.write(bytes(range(256))); sys.stdout.flush(); os._exit(0)", r".*"),
    "exit": ("os._exit(3)", r"ended before it answered: .*"),
}


class Moment(NamedTuple):
    """When the fault is made."""

    kind: str
    scratch: bool = False  # in the namespace where rules are tried
    before: bool = True  # the real answer
    table_is_new: bool = False


MOMENTS = {
    "reading": Moment("read"),
    "trying the rules": Moment("load", scratch=True),
    "before the transaction": Moment("load"),
    "after the transaction": Moment("load", before=False, table_is_new=True),
    "reading back": Moment("read back", table_is_new=True),
}


def put_in_place(monkeypatch: pytest.MonkeyPatch, directory: Path, moment: Moment, statement: str) -> None:
    """Let natctl start a worker with a fault, and wait for it for a while."""
    place = str(nft_module.WORKER.parent)
    text = WORKER.format(
        directory=place, kind=moment.kind, scratch=moment.scratch, before=moment.before, fault=statement
    )
    worker = directory / "worker.py"
    worker.write_text(text)
    monkeypatch.setattr(nft_module, "WORKER", worker)
    monkeypatch.setattr(KernelNft.__init__, "__defaults__", (HANGS_S, ()))


# A hang takes as long as it is waited for.
CASES = [("crash", moment) for moment in MOMENTS]
CASES += [("hang", "reading"), *((fault, "after the transaction") for fault in FAULTS if fault != "crash")]


@pytest.mark.parametrize(("fault", "moment"), CASES)
def test_an_apply_that_loses_libnftables(
    fault: str, moment: str, lab: Lab, state: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    statement, told = FAULTS[fault]
    paths = [lab.config(guard=guard) for guard in ("count", "drop")]
    with lab.egress.enter():
        tables = []
        for path in paths:
            assert run(["apply", "-q", "--config", str(path)]) == 0
            tables.append(lasting(lab))
        capfd.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            put_in_place(patch, tmp_path, MOMENTS[moment], statement)
            assert run(["apply", "-q", "--config", str(paths[0])]) == 1
        assert re.fullmatch(rf"natctl: run libnftables: {told}\n", capfd.readouterr().err)
        assert lasting(lab) == tables[0 if MOMENTS[moment].table_is_new else 1]
        assert {outcome for _, _, outcome in outcomes(lab)[2:]} <= {"unfinished"}, "it says more than is known"
        assert run(["apply", "-q", "--config", str(paths[0])]) == 0
        assert lasting(lab) == tables[0]
