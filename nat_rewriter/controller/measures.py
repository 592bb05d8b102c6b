"""What can be done about a finding, and how it is done: to one entry, one socket or one table, and nothing else."""

from __future__ import annotations

import errno
from collections.abc import Callable
from ipaddress import ip_address

from nat_rewriter.controller.apply import apply_configuration
from nat_rewriter.controller.generations import GenerationLog, Warn
from nat_rewriter.errors import NatctlError, NetlinkError
from nat_rewriter.kernel.confirm_socket import is_waiting
from nat_rewriter.kernel.conntrack import delete_flow, get_flow, insert_flow
from nat_rewriter.kernel.sockets import PROTOCOLS, destroy_socket
from nat_rewriter.model.actions import EntryTarget, Result, SocketTarget, TableTarget, Target, Verb
from nat_rewriter.model.findings import Finding, Kind, SocketParty
from nat_rewriter.model.flows import Status
from nat_rewriter.model.generations import Configuration
from nat_rewriter.model.tuples import FlowTuple

# An entry that is made for an idle socket lives this long; the socket's next packet gives it the usual timeout.
HELD_FOR_S = 3600
# Benchmarking addresses (RFC 2544) and the discard port: nothing has an entry or a socket between them.
_NOBODY = FlowTuple("tcp", ip_address("198.18.0.1"), 9, ip_address("198.19.0.1"), 9)

Came = tuple[Result, str | None]
Measure = tuple[Verb, Target]


def measure_of(finding: Finding, table: str) -> Measure | None:
    """Return what is to be done about a finding, None where there is nothing, or nothing without doing more harm."""
    if finding.kind is Kind.RULESET_DRIFT:
        return Verb.RESTORE_RULESET, TableTarget(table)
    if finding.tuple is None:
        return None
    if finding.kind is Kind.ENTRY_STUCK:
        entry = EntryTarget(finding.tuple, finding.extra.get("zone", 0), finding.extra["entry_id"])
        return Verb.DELETE_ENTRY, entry
    if finding.kind is Kind.SOCKET_UNTRACKED:
        return Verb.INSERT_ENTRY, EntryTarget(finding.tuple)
    if finding.kind is Kind.PORT_LEAKED and isinstance(finding.victim, SocketParty) and finding.victim.cookie:
        return Verb.DESTROY_SOCKET, SocketTarget(finding.tuple, finding.victim, finding.victim.cookie)
    return None


HEALS = frozenset({Verb.DELETE_ENTRY, Verb.INSERT_ENTRY, Verb.RESTORE_RULESET})
ABORTS = frozenset({Verb.DESTROY_SOCKET})


def require_heal() -> None:
    """Raise PermissionNeeded unless entries may be changed."""
    delete_flow(_NOBODY)


def require_abort() -> None:
    """Raise PermissionNeeded or UnsupportedFeature unless sockets can be destroyed."""
    _destroy(SocketTarget(_NOBODY, SocketParty(), 1))


def delete_entry(target: EntryTarget) -> Came:
    """Delete an entry if it is still the one that was found, and still unanswered."""
    flow = get_flow(target.tuple, target.zone)
    if flow is None or flow.original != target.tuple or flow.id != target.id:
        return Result.GONE, "the entry is gone"
    if flow.status & Status.SEEN_REPLY:
        return Result.GONE, "the entry was answered meanwhile"
    return (Result.DONE, None) if delete_flow(target.tuple, target.zone, target.id) else (Result.GONE, None)


def insert_entry(target: EntryTarget) -> Came:
    """Make the entry of a socket, so that NAT keeps off its tuple."""
    try:
        insert_flow(target.tuple, HELD_FOR_S, zone=target.zone)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
        found = get_flow(target.tuple, target.zone)
        if found is not None and found.original == target.tuple:
            return Result.GONE, "the socket has an entry by now"
        return Result.FAILED, "a NAT flow has taken the tuple"
    return Result.DONE, None


def abort_socket(target: SocketTarget) -> Came:
    """End a socket at once: its application gets ECONNABORTED."""
    return (Result.DONE, None) if _destroy(target) else (Result.GONE, "the socket is gone")


def _destroy(target: SocketTarget) -> bool:
    one = target.tuple
    return destroy_socket(
        {
            "family": one.src.version, "protocol": PROTOCOLS[one.protocol], "cookie": target.cookie,
            "ifindex": target.socket.ifindex, "sport": one.sport, "dport": one.dport,
            "src": _halves(int(one.src)), "dst": _halves(int(one.dst)),
        }
    )  # fmt: skip


def _halves(number: int) -> tuple[int, int]:
    return number >> 64, number & (1 << 64) - 1


def restore_ruleset(configuration: Configuration, log: GenerationLog, warn: Warn, dry_run: bool = False) -> Came:
    """Apply a configuration again, if it is the one that was applied last and nothing waits to be confirmed.

    Anything else is a decision, and not a repair: a configuration that nobody applied yet, one that was replaced since,
    or a table that was removed on purpose. Raises what apply_configuration() raises, LockHeld above all.
    """
    current = log.current()
    if current is None or log.configuration_text(current.number) != configuration.text:
        return Result.FAILED, "this configuration is not the one applied last: run natctl apply"
    if is_waiting(configuration.table):
        return Result.FAILED, "a change of the table waits to be confirmed"
    if dry_run:
        return Result.DRY_RUN, None
    changed = apply_configuration(configuration, log, warn).change.transaction
    return (Result.DONE, None) if changed else (Result.GONE, "the table is what it should be")


Restore = Callable[[], Came]


def carry_out(measure: Measure, restore: Restore) -> Came:
    """Do it; what the kernel refuses is a result, as the next finding may be mended all the same."""
    _, target = measure
    try:
        if isinstance(target, TableTarget):
            return restore()
        if isinstance(target, SocketTarget):
            return abort_socket(target)
        return insert_entry(target) if target.id is None else delete_entry(target)
    except NatctlError as error:
        return Result.FAILED, str(error)
