"""Ports of slices that others may use: sockets that ask for no port, and those that ask for one that is not theirs."""

from __future__ import annotations

from collections.abc import Iterator

from nat_rewriter.controller.observation import name_processes
from nat_rewriter.controller.socket_ports import keep_apart, rewritten_ports
from nat_rewriter.detect import HostSettings, Observation, SliceIndex
from nat_rewriter.detect.host import find_ephemeral_overlap
from nat_rewriter.detect.sockets import find_foreign_bind
from nat_rewriter.errors import NatctlError
from nat_rewriter.kernel.sockets import list_sockets
from nat_rewriter.model.checkup import Answer, Check, Weight
from nat_rewriter.model.findings import Finding, SocketParty
from nat_rewriter.model.policy import Coexist, Policy

_TOLD = 3  # of many slices
_LONGEST_COMMAND = 4000  # sysctl(8) writes a value at once, and the kernel takes a page
_NAME, _WEIGHT = "foreign-binds", Weight.RECOMMENDED
_PURPOSE = 'coexist = "split": ports for rewriting are free of sockets'


def check_ephemeral_ports(policy: Policy, host: HostSettings) -> Check:
    """Check that the kernel gives no port of a slice to a socket that asks for none; one command mends it for all."""
    name, purpose = "ephemeral-ports", "ports of a slice go to those alone who ask for them"
    observation = Observation(SliceIndex(policy.slices), coexist=policy.controller.coexist, host=host)
    overlaps = find_ephemeral_overlap(observation)
    if not overlaps:
        found = f"none of the slices' in ip_local_port_range ({host.ephemeral}) that is not reserved"
        return Check(name, Answer.YES, Weight.RECOMMENDED, purpose, found)
    told = " ".join(finding.message for finding in overlaps[:_TOLD])
    more = f" The same with {len(overlaps) - _TOLD} other slices." if len(overlaps) > _TOLD else ""
    return Check(name, Answer.NO, Weight.RECOMMENDED, purpose, told + more, apart_command(policy, host))


def apart_command(policy: Policy, host: HostSettings) -> str:
    """Return the command that keeps the kernel from giving ports of slices to sockets, or what to do without one."""
    assert host.ephemeral is not None  # nothing overlaps it then
    apart = keep_apart(host.ephemeral, host.reserved, rewritten_ports(policy.slices))
    if apart is None:
        return "bind the sockets of this host to other addresses: slices leave no range of ports for them"
    value = apart.value.replace("\t", " ")
    if len(value) > _LONGEST_COMMAND:
        return "natctl apply --sysctls"
    return f"sysctl -w {apart.sysctl}=" + (f'"{value}"' if " " in value else value)


def check_foreign_binds(policy: Policy) -> Iterator[Check]:
    """Yield each socket on ports that a split slice keeps for rewriting, with its process; or that there is none."""
    try:
        observation = Observation(SliceIndex(policy.slices), sockets=list_sockets(), coexist=Coexist.SPLIT)
    except NatctlError as error:
        yield Check(_NAME, Answer.UNKNOWN, _WEIGHT, _PURPOSE, str(error))
        return
    found = name_processes(find_foreign_bind(observation))
    for finding in found:
        told, remedy = f"{finding.message}{_of_process(finding)}", finding.remedy
        yield Check(_NAME, Answer.NO, _WEIGHT, _PURPOSE, told, remedy, finding.slice or "")
    if not found:
        yield Check(_NAME, Answer.YES, _WEIGHT, _PURPOSE, "no socket is bound to them")


def _of_process(finding: Finding) -> str:
    holder = finding.holder
    if not isinstance(holder, SocketParty) or not holder.pid:
        return ""
    return f" It is of process {holder.pid} ({holder.command})."
