"""The conntrack table against the slices: room for a flow on every port, and how long a dead flow holds its port."""

from __future__ import annotations

from nat_rewriter.kernel.sysctls import is_writable, read_sysctl
from nat_rewriter.model.checkup import Answer, Check, Weight
from nat_rewriter.model.policy import Policy, Timeouts
from nat_rewriter.model.slices import Slice
from nat_rewriter.render.parts import Parts

ALMOST_FULL = 0.9
MOST = "net.netfilter.nf_conntrack_max"
ESTABLISHED = "net.netfilter.nf_conntrack_tcp_timeout_established"
TIME_WAIT = "net.netfilter.nf_conntrack_tcp_timeout_time_wait"
# RFC 5382, REQ-5: an established connection is kept for two hours and four minutes at least.
LEAST_ESTABLISHED_S = 7440
# What the kernel's defaults are made for: five days, and the ports of ip_local_port_range.
USUAL_S_PER_PORT = 432_000 / 28_232


def check_table_size(policy: Policy) -> Check:
    """Check that the conntrack table holds a flow for every port of the slices, and is not almost full."""
    name, purpose = "conntrack-size", "a flow on every port of the slices"
    most, now = read_sysctl(MOST), read_sysctl("net.netfilter.nf_conntrack_count")
    if most is None or now is None:
        return Check(name, Answer.UNKNOWN, Weight.RECOMMENDED, purpose, "conntrack is not loaded yet: apply loads it")
    ports = sum(len(ports) * len(each.protocols) for each in policy.slices for ports in each.ranges)
    found = f"{now} of {most} entries, {ports} ports and echo ids in slices"
    if int(now) < ALMOST_FULL * int(most) and ports <= int(most):
        return Check(name, Answer.YES, Weight.RECOMMENDED, purpose, found)
    remedy = f"sysctl -w {MOST}={2 * max(int(most), ports)}"
    if not is_writable(MOST):
        remedy += "  # in the first network namespace of the host; others may only read it"
    return Check(name, Answer.NO, Weight.RECOMMENDED, purpose, found, remedy)


def check_timeouts(policy: Policy) -> Check:
    """Check that connections which died unnoticed give their ports back in time, in the slice with the fewest ports.

    A host that has an address to itself keeps them for five days and has 28,232 ports: fifteen seconds a port. With
    fewer ports the time is to be shorter, down to what RFC 5382 asks for.
    """
    name, purpose = "conntrack-timeouts", "ports whose connections have died are free again in time"
    own = Parts.of(policy).timeouts
    established, time_wait = _seconds(own, ESTABLISHED), _seconds(own, TIME_WAIT)
    least = min((each for each in policy.slices if _ports(each)), key=_ports, default=None)
    if least is None:
        return Check(name, Answer.YES, Weight.OPTIONAL, purpose, "no slice has ports for rewriting")
    if established is None or time_wait is None:
        return Check(name, Answer.UNKNOWN, Weight.OPTIONAL, purpose, "conntrack is not loaded yet: apply loads it")
    ports = _ports(least)
    found = (
        f"of the {ports} ports of slice {least.name}, a connection that is closed holds one for {time_wait} s "
        f"towards its destination, and one that has died unnoticed for {established} s"
    )
    wanted = max(LEAST_ESTABLISHED_S, int(ports * USUAL_S_PER_PORT))
    if established <= wanted:
        return Check(name, Answer.YES, Weight.OPTIONAL, purpose, found)
    remedy = f"sysctl -w {ESTABLISHED}={wanted}"
    if own:
        remedy = f"tcp_established = {wanted} in [controller.timeouts], and natctl apply"
    return Check(name, Answer.NO, Weight.OPTIONAL, purpose, found, remedy)


def _seconds(own: Timeouts | None, sysctl: str) -> int | None:
    """Return the timeout of a state: of the policy where it has timeouts, else of the network namespace."""
    if own:
        return own.tcp_established if sysctl == ESTABLISHED else own.tcp_time_wait
    value = read_sysctl(sysctl)
    return None if value is None else int(value)


def _ports(owned: Slice) -> int:
    return sum(map(len, owned.rewrite_ranges))
