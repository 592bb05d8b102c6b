"""What only a kernel can show: it takes what is rendered, lists it back equal, and fails without a trace."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from nat_rewriter.config import read_policy
from nat_rewriter.controller import intent
from nat_rewriter.errors import DecodeError, NftError, UnsupportedFeature
from nat_rewriter.kernel import nft as nft_module
from nat_rewriter.kernel.nft import KernelNft
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.transaction import AddElements, CreateTable, DeleteElements, Step, Transaction
from nat_rewriter.plan import plan
from nat_rewriter.render import render, ruleset_text

GOLDEN = Path(__file__).parents[1] / "unit" / "golden"
CONFIGURATIONS = sorted(path.stem for path in GOLDEN.glob("*.toml"))
FOREIGN = """
table ip foreign {
	set seen {
		type ipv4_addr
		flags dynamic,timeout
		timeout 1h
		elements = { 192.0.2.1, 192.0.2.2 }
	}
	chain postrouting {
		type nat hook postrouting priority 110; policy accept;
		ip saddr 192.0.2.0/24 masquerade
	}
}
table inet natctl_other { }
"""


def nft(*arguments: str, text: str | None = None) -> str:
    """Run the nft command in the namespace of this thread."""
    done = subprocess.run(["nft", *arguments], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stderr}\n{text}"
    return done.stdout


def assert_in_kernel(policy: Policy, kernel_nft: KernelNft) -> None:
    """Fail if anything is left to change for a policy."""
    change = intent.read_change(policy, kernel_nft)
    assert not change.transaction, "\n".join(intent.drift_lines(change))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_golden_ruleset_loads_and_reads_back_equal(name: str, kernel_nft: KernelNft) -> None:
    """The file that the nft command loads, and the transaction that apply runs, give the same table."""
    policy = read_policy(GOLDEN / f"{name}.toml")
    for _ in range(2):  # the second time it replaces what is there
        nft("-f", "-", text=ruleset_text(policy))
        assert_in_kernel(policy, kernel_nft)
    from_file = nft("list", "ruleset")
    assert intent.remove(policy.controller.table, kernel_nft)
    assert nft("list", "ruleset") == ""
    intent.apply(policy, kernel_nft)
    # What an apply says of conntrack beside, no file can say.
    of_conntrack = r"(\tset (?:settled|marked[46]_\d+) \{\n\t\ttype \w+\n)\t\telements = .*\n"
    assert re.sub(of_conntrack, r"\1", nft("list", "ruleset")) == from_file


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("before", ["minimal", "every-key", "both-families"])
def test_any_configuration_can_follow_another(before: str, name: str, kernel_nft: KernelNft) -> None:
    policy = read_policy(GOLDEN / f"{name}.toml")
    intent.apply(read_policy(GOLDEN / f"{before}.toml"), kernel_nft)
    intent.apply(policy, kernel_nft)
    assert_in_kernel(policy, kernel_nft)


def test_other_tables_stay_as_they_are(kernel_nft: KernelNft) -> None:
    nft("-f", "-", text=FOREIGN)
    before = nft("-s", "list", "ruleset")
    for name in ("every-key", "minimal"):
        policy = read_policy(GOLDEN / f"{name}.toml")
        intent.apply(policy, kernel_nft)
        assert nft("-s", "list", "ruleset").startswith(before)
        intent.remove(policy.controller.table, kernel_nft)
        assert nft("-s", "list", "ruleset") == before


# Destination NAT where packets leave: nft knows the words, and the kernel does not take them.
REFUSED_BY_KERNEL = """
table inet natctl {
	chain c {
		type nat hook postrouting priority 0;
		dnat ip to 192.0.2.1
	}
}
"""
FAILING: dict[str, Step] = {
    "an element that is not there": DeleteElements("natctl", "soft4", ("192.0.2.1",)),
    "a set that is not there": AddElements("natctl", "no_such", {"192.0.2.1": ""}),
    "a rule that nft does not know": CreateTable("natctl", "table inet natctl { chain c { frobnicate; }\n}\n"),
    "a rule that the kernel refuses": CreateTable("natctl", REFUSED_BY_KERNEL),
    "a map with other data": AddElements("natctl", "confine4_8", {"9000 . 198.51.100.10": "192.0.2.1 . 1-2"}),
    "text that is no element": AddElements("natctl", "soft4", {"}; flush ruleset": ""}),
}


@pytest.mark.parametrize("step", FAILING.values(), ids=FAILING)
def test_a_failed_transaction_leaves_the_listing_byte_equal(step: Step, kernel_nft: KernelNft) -> None:
    nft("-f", "-", text=FOREIGN)
    intent.apply(read_policy(GOLDEN / "minimal.toml"), kernel_nft)
    before = nft("-s", "list", "ruleset")
    transaction = Transaction((AddElements("natctl", "soft4", {"192.0.2.9": ""}), step))
    for verb in (kernel_nft.check, kernel_nft.run):
        with pytest.raises(NftError):
            verb(transaction)
        assert nft("-s", "list", "ruleset") == before
    assert_in_kernel(read_policy(GOLDEN / "minimal.toml"), kernel_nft)  # and the process goes on


def test_what_was_read_back_is_compared(kernel_nft: KernelNft, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that takes a transaction and holds something else is an error, not a success."""
    policy = read_policy(GOLDEN / "minimal.toml")
    send = KernelNft.run

    def run_and_lose(self: KernelNft, transaction: Transaction) -> None:
        send(self, transaction)
        nft("delete", "element", "inet", "natctl", "soft4", "{ 198.51.100.10 }")

    monkeypatch.setattr(KernelNft, "run", run_and_lose)
    with pytest.raises(NftError, match="read back ruleset: the kernel holds something else"):
        intent.apply(policy, kernel_nft)


def worker_pid(kernel_nft: KernelNft) -> int:
    return kernel_nft._worker._process.pid


def test_a_crash_of_libnftables_is_an_error_of_its_own(kernel_nft: KernelNft) -> None:
    os.kill(worker_pid(kernel_nft), signal.SIGSEGV)
    with pytest.raises(NftError, match="run libnftables: libnftables was ended by SIGSEGV"):
        kernel_nft.read("natctl")


def test_a_crash_while_it_works_is_an_error_of_its_own(kernel_nft: KernelNft) -> None:
    os.kill(worker_pid(kernel_nft), signal.SIGSTOP)
    crash = subprocess.Popen(
        ["sh", "-c", f"sleep 0.2; kill -SEGV {worker_pid(kernel_nft)}; kill -CONT {worker_pid(kernel_nft)}"]
    )
    with pytest.raises(NftError, match="SIGSEGV"):
        kernel_nft.read("natctl")
    crash.wait()


def test_a_library_that_hangs_is_given_up(namespace: str) -> None:
    with KernelNft() as hanging:
        assert hanging.read("natctl") is None
        hanging._worker._answer_within_s = 0.2
        os.kill(worker_pid(hanging), signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(NftError, match=r"run libnftables: did not answer within 0\.2 s"):
            hanging.read("natctl")
        assert time.monotonic() - began < 4
        assert hanging._worker._process.returncode is not None


GARBAGE = {
    "no length": 'sys.stdout.write("ab")',
    "no json": 'sys.stdout.write("\\x05\\0\\0\\0hello")',
    "no object": 'sys.stdout.write("\\x02\\0\\0\\0[]")',
    "a number": 'sys.stdout.write("\\x01\\0\\0\\x007")',
    "no fields": 'sys.stdout.write("\\x02\\0\\0\\0{}")',
    "not text": 'sys.stdout.buffer.write(b"\\x02\\0\\0\\0\\xff\\xfe")',
    "a length beyond reason": 'sys.stdout.buffer.write(b"\\xff\\xff\\xff\\xff{")',
    "nothing": "",
    "an early end": "sys.exit(3)",
    "an exception": 'raise RuntimeError("no memory")',
}


@pytest.mark.parametrize("program", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_an_error_of_its_own(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(f"import sys\nsys.stdin.buffer.read(4)\n{program}\n")
    monkeypatch.setattr(nft_module, "WORKER", worker)
    with KernelNft() as broken, pytest.raises(NftError, match=r"^run libnftables: "):
        broken.read("natctl")


@pytest.mark.parametrize("output", [b"", b"{}", b"<html>, and more of it", b"\xff" * 40, b"\x10" + bytes(15)])
def test_a_listing_that_is_none_is_an_error_of_its_own(
    output: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import struct, sys\n"
        "while head := sys.stdin.buffer.read(8):\n"
        "    sys.stdin.buffer.read(struct.unpack('<II', head)[1])\n"
        f"    sys.stdout.buffer.write(struct.pack('<iII', 0, {len(output)}, 0) + {output!r})\n"
        "    sys.stdout.flush()\n"
    )
    monkeypatch.setattr(nft_module, "WORKER", worker)
    with KernelNft() as broken, pytest.raises(DecodeError, match=r"^list ruleset: "):
        broken.read("natctl")


def test_a_host_without_the_library_is_told_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("raise OSError('libnftables.so.1: cannot open shared object file')\n")
    monkeypatch.setattr(nft_module, "WORKER", worker)
    with KernelNft() as missing, pytest.raises(UnsupportedFeature, match="libnftables1"):
        missing.read("natctl")


def test_the_listing_of_a_skeleton_leaves_no_trace(kernel_nft: KernelNft) -> None:
    ruleset = render(read_policy(GOLDEN / "every-key.toml"))
    listing = kernel_nft.listing_of("edge", ruleset.skeleton)
    assert listing.startswith("table inet edge {\n")
    assert nft("list", "ruleset") == ""


def test_a_new_table_is_one_step_from_an_old_one(kernel_nft: KernelNft) -> None:
    """An empty table of the same name, as an operator might have left it, is replaced like any other."""
    nft("add", "table", "inet", "natctl")
    policy = read_policy(GOLDEN / "minimal.toml")
    ruleset = render(policy)
    live = kernel_nft.read("natctl")
    kernel_nft.run(plan(ruleset, kernel_nft.listing_of("natctl", ruleset.skeleton), live))
    assert_in_kernel(policy, kernel_nft)
