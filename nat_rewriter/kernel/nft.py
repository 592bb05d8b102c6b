"""nftables of this network namespace, through libnftables in a process of its own.

Text for writing, JSON for reading. Only the named table is ever listed: sets that a newer nft has written crash an
older one when it lists them, and such a crash, a hang or garbage is an :class:`NftError` here, not the end of natctl.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Protocol, Self

from nat_rewriter.errors import LibraryCrashed, NetlinkError, NftError, PermissionNeeded, UnsupportedFeature
from nat_rewriter.kernel import nft_dumps, nft_listing
from nat_rewriter.listing import ordered_listing
from nat_rewriter.model.ruleset import LiveTable
from nat_rewriter.model.transaction import CreateTable, Transaction
from nat_rewriter.render.transaction import transaction_text

WORKER = Path(__file__).with_name("nft_worker.py")
NO_NAMESPACE = 77  # the worker's exit status: see nft_worker.py
ANSWER_WITHIN_S = 120.0
# What nft_worker.py reads and writes: options and length; code, and lengths of output and error.
_REQUEST, _ANSWER = struct.Struct("<II"), struct.Struct("<iII")
_OPTIONS = {"json": 1, "stateless": 2, "terse": 4, "check": 8}
_RAW = 16


class Nft(Protocol):
    """What natctl needs of nftables; the real one is :class:`KernelNft`, a fake is in ``nat_rewriter.testing``."""

    def check(self, transaction: Transaction) -> None:
        """Raise NftError if the kernel would not take the transaction; change nothing."""

    def run(self, transaction: Transaction) -> None:
        """Make all of the transaction happen, or raise NftError and change nothing."""

    def read(self, table: str) -> LiveTable | None:
        """Return the table as the kernel has it, None where there is none."""

    def listing_of(self, table: str, skeleton: str) -> str:
        """Return how this kernel and nft list a skeleton."""


class _Tried(NamedTuple):
    """A skeleton that was tried out: how nft lists it, and how the kernel holds it."""

    text: str
    skeleton: object


class KernelNft:
    """nftables of the network namespace in which the calling thread is when the object is made.

    ``holding`` are descriptors that the process with libnftables is given, such as that of a lock: when natctl is
    killed, they stay open until a transaction that the kernel is at work on has ended. The object must then be made in
    a thread that lives as long as it does.
    """

    def __init__(self, answer_within_s: float = ANSWER_WITHIN_S, holding: Sequence[int] = ()) -> None:
        self._worker = Worker(["--end-with", str(os.getpid())] if holding else [], answer_within_s, holding)
        self._answer_within_s = answer_within_s
        self._trying = threading.Lock()  # a skeleton may be tried out while the table is read
        self._tried: dict[str, _Tried] = {}
        self._expected = -1  # number of the ruleset, where nobody else changes any

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process that holds libnftables."""
        self._worker.close()

    def check(self, transaction: Transaction) -> None:
        """Raise NftError if the kernel would not take the transaction; change nothing."""
        if transaction:
            self._ask("check ruleset", text=transaction_text(transaction), check=True)

    def run(self, transaction: Transaction) -> None:
        """Make all of the transaction happen, or raise NftError and change nothing."""
        if transaction:
            self._ask("load ruleset", text=transaction_text(transaction))
            self._expected += 1

    def read(self, table: str) -> LiveTable | None:
        """Return the table as the kernel has it, None where there is none.

        The kernel itself is asked, and its answer taken for what nft would list where that is certain: a skeleton equal
        to one that was tried out, elements of known types. nft lists the rest.
        """
        try:
            dumped = nft_dumps.read_table(self._worker.ask_kernel, table)
        except NetlinkError:
            self._skeleton_text(table)  # nft may know what is amiss, such as a kernel without nf_tables
            raise
        if dumped is None:
            return None
        self._expected = dumped.generation
        with self._trying:
            listing = next((tried.text for tried in self._tried.values() if tried.skeleton == dumped.skeleton), None)
        listing = listing or self._skeleton_text(table)
        elements = dumped.elements if dumped.elements is not None else self._elements_by_nft(table, listing)
        return LiveTable(table, listing, elements)

    def undisturbed(self) -> int | None:
        """Return the number of the ruleset, where all changes of any since the last :meth:`read` were made here."""
        found = nft_dumps.read_generation(self._worker.ask_kernel)
        return found if found == self._expected else None

    def listing_of(self, table: str, skeleton: str) -> str:
        """Return how this kernel and nft list a skeleton, tried out in a network namespace that ends at once.

        Raises UnsupportedFeature where no such namespace may be made.
        """
        with self._trying:
            if skeleton not in self._tried:
                self._tried[skeleton] = self._try_out(table, skeleton)
            return self._tried[skeleton].text

    def _skeleton_text(self, table: str) -> str:
        return ordered_listing(self._ask("list ruleset", f"list table inet {table}", stateless=True, terse=True))

    def _elements_by_nft(self, table: str, listing: str) -> dict[str, dict[str, str]]:
        # Stateless would leave out the time an element has left, which a rebuilt table needs.
        found = _parsed(self._ask("list ruleset", f"list table inet {table}", json=True))
        return nft_listing.elements_of(found, nft_listing.range_maps(listing))

    def _try_out(self, table: str, skeleton: str) -> _Tried:
        scratch = Worker(["--scratch"], self._answer_within_s)
        try:
            made = scratch.ask(text=transaction_text(Transaction((CreateTable(table, skeleton),))))
            _raise_for("check ruleset", made)
            listed = scratch.ask(text=f"list table inet {table}", stateless=True, terse=True)
            _raise_for("list ruleset", listed)
            dumped = nft_dumps.read_table(scratch.ask_kernel, table)
            return _Tried(ordered_listing(listed["output"]), dumped.skeleton if dumped else None)
        finally:
            scratch.close()

    def find_listing(self, family: str, table: str) -> str | None:
        """Return how nft lists a table of any family, without counts and elements; None where there is none."""
        answer = self._worker.ask(text=f"list table {family} {table}", stateless=True, terse=True)
        if answer["code"] != 0 and "No such file or directory" in answer["error"]:
            return None
        _raise_for("list ruleset", answer)
        return str(answer["output"])

    def list_objects(self, command: str) -> list[dict[str, Any]]:
        """Return what a list command answers, object by object."""
        return [dict(one) for one in _parsed(self._ask("list ruleset", text=command, json=True))]

    def _ask(self, operation: str, text: str, **options: bool) -> str:
        answer = self._worker.ask(text=text, **options)
        _raise_for(operation, answer)
        return str(answer["output"])


class Worker:
    """A process with libnftables in it, in the network namespace of the thread that made it."""

    def __init__(self, arguments: list[str], answer_within_s: float, holding: Sequence[int] = ()) -> None:
        self._answer_within_s = answer_within_s
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(WORKER), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=holding,
        )

    def close(self) -> None:
        """End the process."""
        _end(self._process)

    def ask(self, *, text: str, **options: bool) -> dict[str, Any]:
        """Send a command with options (json, stateless, terse, check) and return its answer: code, output and error."""
        chosen = sum(_OPTIONS[name] for name, wanted in options.items() if wanted)
        code, output, error = self._exchange(chosen, text.encode())
        try:
            return {"code": code, "output": output.decode(), "error": error.decode()}
        except UnicodeDecodeError:
            raise self._failed("crashed or answered garbage") from None

    def ask_kernel(self, questions: Sequence[bytes]) -> bytes:
        """Send netlink messages to nf_tables, in the network namespace of the process, and return their answers."""
        code, answers, _ = self._exchange(_RAW, b"".join(questions))
        if code:
            raise nft_dumps.refused(code)
        return answers

    def _exchange(self, options: int, content: bytes) -> tuple[int, bytes, bytes]:
        try:
            stream = _stream(self._process.stdin)
            stream.write(_REQUEST.pack(options, len(content)) + content)
            stream.flush()
        except (BrokenPipeError, ValueError):
            raise self._failed("crashed or answered garbage") from None
        code, *lengths = _ANSWER.unpack(self._receive(_ANSWER.size))
        output, error = (self._receive(length) for length in lengths)
        return code, output, error

    def _receive(self, size: int) -> bytes:
        parts: list[bytes] = []
        stream = _stream(self._process.stdout)
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while size:
                if not selector.select(self._answer_within_s):
                    self._process.kill()
                    raise self._failed(f"did not answer within {self._answer_within_s:g} s")
                part = os.read(stream.fileno(), min(size, 1 << 20))
                if not part:
                    raise self._failed("ended before it answered")
                parts.append(part)
                size -= len(part)
        return b"".join(parts)

    def _failed(self, how: str) -> Exception:
        """Return what to raise for a worker that is of no more use; it is ended here."""
        told = _end(self._process)
        if self._process.returncode == NO_NAMESPACE:
            needs = "CAP_SYS_ADMIN, or user namespaces that any user may make"
            return UnsupportedFeature("compare rulesets in a network namespace", needs, "neither")
        return _worker_error(self._process.returncode, how, told)


def _worker_error(status: int, how: str, told: str) -> Exception:
    if "libnftables.so" in told or "No module named 'nftables'" in told:
        return UnsupportedFeature("nftables", "libnftables 1.0.6 or newer (Debian: libnftables1)", "no library")
    if status < 0 and status != -signal.SIGKILL:
        how = f"libnftables was ended by {signal.Signals(-status).name}"
    last_line = told.strip().splitlines()[-1:] or [f"exit status {status}"]
    return LibraryCrashed("run libnftables", errno.EIO, f"{how}: {last_line[0]!r}")


def _end(process: subprocess.Popen[bytes]) -> str:
    """End a worker and return what it wrote to standard error."""
    if process.stdin and process.stdin.closed:
        return ""
    try:
        _, told = process.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        _, told = process.communicate()
    return told.decode(errors="replace")


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "the worker was started with pipes"
    return stream


def _parsed(output: str) -> list[Mapping[str, Any]]:
    try:
        return list(json.loads(output)["nftables"])
    except (ValueError, KeyError, TypeError):
        raise NftError("list ruleset", errno.EPROTO, f"nft answered what is no listing: {output[:80]!r}") from None


def _raise_for(operation: str, answer: Mapping[str, Any]) -> None:
    if answer["code"] == 0:
        return
    told = str(answer["error"]).strip()
    if "Operation not permitted" in told:
        raise PermissionNeeded(operation, "CAP_NET_ADMIN")
    if "Protocol not supported" in told or "cache initialization failed: Invalid argument" in told:
        raise UnsupportedFeature("nf_tables", "a kernel with CONFIG_NF_TABLES", told.splitlines()[0])
    if "Message too long" in told:
        # SO_SNDBUFFORCE: only CAP_NET_ADMIN of the initial user namespace gets a buffer beyond net.core.wmem_max.
        needs = "CAP_NET_ADMIN outside of user namespaces, or a larger net.core.wmem_max"
        raise UnsupportedFeature("transaction of this size", needs, "a smaller socket buffer")
    if "Could not resolve protocol name" in told:
        raise UnsupportedFeature("names of protocols in nft", "/etc/protocols (Debian: netbase)", "no such file")
    first_lines = "; ".join(told.splitlines()[:2])
    raise NftError(operation, errno.EINVAL, first_lines or "refused without a word")
