"""Withdrawing slices: no new flows, a time for those that are there, and an end to exactly what is left then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nat_rewriter.controller.apply import generation_ruleset, held_table
from nat_rewriter.controller.generations import GenerationLog, Warn
from nat_rewriter.controller.intent import Change, read_change, run_change
from nat_rewriter.controller.record import Record
from nat_rewriter.detect.keys import is_among, original_keys, socket_keys, tuple_keys
from nat_rewriter.detect.observation import Rows, no_flows
from nat_rewriter.detect.ownership import NOBODY, SliceIndex
from nat_rewriter.detect.placement import place_flows
from nat_rewriter.errors import Interrupted, LockHeld, NatctlError, UnsupportedFeature
from nat_rewriter.kernel import sockets
from nat_rewriter.kernel.confirm_socket import is_waiting
from nat_rewriter.kernel.conntrack import delete_flow, dump
from nat_rewriter.kernel.nft import KernelNft
from nat_rewriter.model.flows import TCP_STATES, flow_from_record
from nat_rewriter.model.generations import Configuration, Outcome
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.slices import Address, PortRange, Protocol, Slice, subtract_ranges
from nat_rewriter.model.sockets import SOCKET_STATES

TCP = 6
LOOK_EVERY_S = 0.25
# The afterlife of a connection: nobody waits for it.
_OVER = np.isin(np.arange(256), [TCP_STATES.index(name) for name in ("TIME_WAIT", "CLOSE")])
_TALKING = [SOCKET_STATES.index(name) for name in SOCKET_STATES if name not in ("NONE", "TIME_WAIT", "CLOSE", "LISTEN")]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a withdrawal is: the slices, the flows that still use them, and the seconds that they have."""

    names: tuple[str, ...]
    flows: int
    seconds_left: float


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """What a withdrawal did: the change of the table, the slices, and the flows that had to be ended, as records.

    ``sockets`` is how many of the flows were those of local sockets, which were told.
    """

    change: Change
    slices: tuple[Slice, ...]
    ended: Rows
    sockets: int

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the slices."""
        return _names(self.slices)


def withdraw(
    configuration: Configuration,
    log: GenerationLog,
    warn: Warn,
    seconds: float,
    tell: Callable[[Progress], None],
    wait_s: float = 0.0,
) -> Withdrawn:
    """Apply a configuration; the flows of what it withdraws have ``seconds`` to end before they are ended.

    The lock of the table is held all the time. When it is interrupted while it waits, withdrawn slices take no new
    flows and keep their old ones, and the error says how to go on. Raises NatctlError, with nothing changed, where it
    is not known what was applied.
    """
    policy = configuration.policy
    with held_table(configuration.table, wait_s) as nft:
        if is_waiting(configuration.table):
            raise LockHeld("drain", "another change waits to be confirmed", configuration.table)
        change = read_change(policy, nft)
        leaving = _leaving(change, policy, log)
        record = Record(log, warn)
        record.begin(configuration, change.action)
        with record.failing(), _interruptible(leaving, record):
            with record.keeping_ruleset(lambda: generation_ruleset(change.wanted)):
                _stop_new_flows(policy, leaving, nft)
            if leaving:
                record.finish(Outcome.DRAINING)
                _wait(leaving, seconds, tell)
            ended, told = end_flows(list_flows(leaving), warn) if leaving else (no_flows(), 0)
            run_change(read_change(policy, nft), policy, nft)
        record.finish(Outcome.APPLIED)
    return Withdrawn(change, leaving, ended, told)


def withdrawn_slices(before: Policy, after: Policy) -> tuple[Slice, ...]:
    """Return what is owned before and not after, range by range, under the names of the slices before."""
    kept: dict[tuple[Address, Protocol], list[PortRange]] = {}
    for owned in after.slices:
        for protocol in owned.protocols:
            kept.setdefault((owned.address, protocol), []).extend(owned.ranges)
    return tuple(
        Slice(owned.name, owned.address, (ports,), (protocol,))
        for owned in before.slices
        for protocol in owned.protocols
        for ports in subtract_ranges(owned.ranges, kept.get((owned.address, protocol), ()))
    )


def draining_policy(after: Policy, leaving: tuple[Slice, ...]) -> Policy:
    """Return the policy in between: what is withdrawn is owned still, no rule leads to it, and nothing new may use it.

    No name of a slice matters there, but that it is like no other.
    """
    owned = tuple(one._replace(name=f"draining-{number}") for number, one in enumerate(leaving))
    return replace(after, slices=(*after.slices, *owned), draining=owned)


def list_flows(leaving: tuple[Slice, ...]) -> Rows:
    """Return the live flows that use withdrawn slices, at either end, as records of FLOW_FIELDS."""
    flows = dump()
    found: Rows = flows[place_flows(flows, SliceIndex(leaving)).slices != NOBODY]
    return found


def end_flows(flows: Rows, warn: Warn) -> tuple[Rows, int]:
    """End flows: local sockets are told, then the entries are deleted. Return those that were there, and the sockets.

    Sockets first, so that their resets still find the way to the far end.
    """
    told = _end_sockets(flows, warn)
    there = np.fromiter((_end_entry(flow) for flow in flows), dtype=bool, count=len(flows))
    return flows[there], told


def _names(slices: tuple[Slice, ...]) -> tuple[str, ...]:
    """Return the names of slices, each once."""
    return tuple(dict.fromkeys(owned.name for owned in slices))


def _leaving(change: Change, policy: Policy, log: GenerationLog) -> tuple[Slice, ...]:
    if change.live is None:
        return ()
    before = log.current_policy()
    if before is None:
        raise NatctlError(
            "drain", "no generation says what is applied now: natctl apply withdraws slices without a drain"
        )
    return withdrawn_slices(before, policy)


def _stop_new_flows(policy: Policy, leaving: tuple[Slice, ...], nft: KernelNft) -> None:
    if leaving:
        between = draining_policy(policy, leaving)
        run_change(read_change(between, nft), between, nft)


@contextmanager
def _interruptible(leaving: tuple[Slice, ...], record: Record) -> Iterator[None]:
    """Say how to go on when the block is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        if not leaving:
            raise
        record.finish(Outcome.DRAINING)
        raise Interrupted(
            "drain",
            f"interrupted: no new flows begin on {', '.join(_names(leaving))}, flows left: {len(list_flows(leaving))}. "
            "natctl apply --drain SECONDS goes on, natctl apply withdraws it now and lets them strand, natctl apply "
            "--rollback gives it back",
        ) from None


def _wait(leaving: tuple[Slice, ...], seconds: float, tell: Callable[[Progress], None]) -> None:
    """Return when no flow is left, or the time is over."""
    for left, seconds_left in _looks(leaving, seconds):
        tell(Progress(_names(leaving), left, seconds_left))


def _looks(leaving: tuple[Slice, ...], seconds: float) -> Iterator[tuple[int, float]]:
    """Yield the number of flows left and the seconds that they have, again and again until either is none."""
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        flows = list_flows(leaving)
        over = (flows["protocol"] == TCP) & _OVER[flows["tcp_state"]]
        left, seconds_left = int(np.count_nonzero(~over)), max(0.0, deadline - time.monotonic())
        yield left, seconds_left
        if not left or not seconds_left:
            return
        # A table so large that a look takes long is not looked at all the time.
        time.sleep(min(seconds_left, max(LOOK_EVERY_S, 2 * (time.monotonic() - began))))


def _end_sockets(flows: Rows, warn: Warn) -> int:
    """Destroy the sockets that the flows belong to; return how many."""
    listed = sockets.list_sockets()
    talking = listed[np.isin(listed["state"], _TALKING)]
    # A flow begun here has the socket's tuple, one that was accepted here has it backwards.
    backwards = tuple_keys(
        flows["protocol"], flows["orig_dst"], flows["orig_dport"], flows["orig_src"], flows["orig_sport"]
    )
    theirs = talking[is_among(socket_keys(talking), np.concatenate((original_keys(flows), backwards)))]
    try:
        return sum(sockets.destroy_socket(one) for one in theirs)
    except UnsupportedFeature as error:
        warn(f"sockets are not told that their flows end: {error}")
        return 0


def _end_entry(record: Any) -> bool:
    flow = flow_from_record(record)
    return delete_flow(flow.original, flow.zone, flow.id)
