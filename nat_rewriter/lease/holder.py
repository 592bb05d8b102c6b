"""Processes that hold one lease for a command: in the foreground, or detached from it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from nat_rewriter.errors import KernelError, NatctlError, exit_code_of
from nat_rewriter.lease.lease import Lease
from nat_rewriter.lease.lessor import Lessor
from nat_rewriter.lease.records import recorded
from nat_rewriter.model.policy import Policy

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LOOK_EVERY_S = 0.5
Acquire = Callable[[Lessor], Lease]
Record = dict[str, Any]


def record_of(lease: Lease) -> Record:
    """Return what is said of a lease in its record, and by `natctl lease list`."""
    own = lease.tuple
    return {
        "slice": lease.slice.name,
        "protocol": own.protocol,
        "source": own.source,
        "destination": own.destination,
        "tuple": {"src": str(own.src), "sport": own.sport, "dst": str(own.dst), "dport": own.dport},
        "strategy": lease.strategy.name,
        "state": lease.state.value,
        "since": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }


def hold(policy: Policy, acquire: Acquire, seconds: float | None, tell: Callable[[Record], None]) -> bool:
    """Hold a lease until a signal comes, or for some seconds; tell whether it was kept until then."""
    # Blocked before the keeper starts, so that no thread but this one takes them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        with Lessor(policy) as lessor, acquire(lessor) as lease, recorded(record_of(lease)) as record:
            tell(record)
            return _wait(lease, seconds)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hold_detached(policy: Policy, acquire: Acquire, seconds: float | None) -> Record:
    """Hold a lease in a process of its own, which outlives this one; return its record.

    Raises what kept that process from getting the lease.
    """
    told, telling = os.pipe()
    if os.fork() == 0:
        os.close(told)
        _be_holder(policy, acquire, seconds, telling)
    os.close(telling)
    with os.fdopen(told, "rb") as answer:
        said = json.loads(answer.readline() or b"{}")
    if "record" in said:
        return dict(said["record"])
    raise _HolderFailed(said.get("error", "hold lease: its process ended"), said.get("exit_code", 1))


class _HolderFailed(NatctlError):
    """An error of the process that was to hold the lease, with its text and exit code."""

    def __init__(self, text: str, exit_code: int) -> None:
        operation, _, reason = text.partition(": ")
        super().__init__(operation, reason)
        self.exit_code = exit_code


def _be_holder(policy: Policy, acquire: Acquire, seconds: float | None, telling: int) -> None:
    """Hold the lease and end the process."""
    code = 1
    try:
        os.setsid()
        _leave_streams()
        code = int(not hold(policy, acquire, seconds, lambda record: _say(telling, {"record": record})))
    except NatctlError as error:
        _say(telling, {"error": str(error), "exit_code": exit_code_of(error)})
    except OSError as error:
        _say(telling, {"error": str(KernelError("hold lease", error.errno or 0, str(error).lower()))})
    finally:
        os._exit(code)


def _leave_streams() -> None:
    """Give up the streams of the command: whoever reads them does not wait for this process."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    if nowhere > 2:
        os.close(nowhere)


def _say(telling: int, what: dict[str, Any]) -> None:
    os.write(telling, json.dumps(what).encode() + b"\n")
    os.close(telling)


def _wait(lease: Lease, seconds: float | None) -> bool:
    until = float("inf") if seconds is None else time.monotonic() + seconds
    while not lease.lost:
        left = until - time.monotonic()
        if left <= 0 or signal.sigtimedwait(_ENDING, min(left, _LOOK_EVERY_S)) is not None:
            return True
    return False
