"""The host against the configuration: sysctls, privileges, and others who use the same packets, ports or addresses."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator

from nat_rewriter.controller.conntrack_checks import check_table_size, check_timeouts
from nat_rewriter.controller.nat_order import check_earlier_nat
from nat_rewriter.controller.observation import read_host_settings
from nat_rewriter.controller.pool_checks import check_store
from nat_rewriter.controller.port_checks import check_ephemeral_ports, check_foreign_binds
from nat_rewriter.controller.routing_checks import check_route
from nat_rewriter.errors import NatctlError, UnsupportedFeature
from nat_rewriter.kernel.features import list_features, list_privileges
from nat_rewriter.kernel.nft import KernelNft
from nat_rewriter.kernel.sysctls import read_sysctl
from nat_rewriter.model.checkup import Answer, Check, Weight
from nat_rewriter.model.policy import Coexist, Policy
from nat_rewriter.model.slices import Address, Slice
from nat_rewriter.render import render

_YES, _NO, _UNKNOWN = Answer.YES, Answer.NO, Answer.UNKNOWN


def check_host(policy: Policy | None) -> list[Check]:
    """Return everything that natctl needs here, and whether it is there. Without a policy, what depends on none."""
    checks = [*list_features(), *list_privileges(), *check_sysctls(policy), check_earlier_nat(policy)]
    if policy is not None:
        checks += check_policy(policy)
    return checks


def check_policy(policy: Policy) -> Iterator[Check]:
    """Yield what the slices of a configuration need of this host."""
    yield check_ruleset(policy)
    yield check_table_size(policy)
    yield check_timeouts(policy)
    yield check_ephemeral_ports(policy, read_host_settings())
    yield from check_addresses(policy.slices)
    if policy.controller.coexist is Coexist.SPLIT:
        yield from check_foreign_binds(policy)
    if policy.route is not None:
        yield from check_route(policy)
    if policy.pools and policy.store and policy.store.kind == "etcd":
        yield check_store(policy.store)


def verdict(checks: Iterable[Check]) -> Weight | None:
    """Return the gravest weight that a no has among the checks, leaving out conveniences; None where all is fine."""
    missing = {check.weight for check in checks if check.answer is Answer.NO}
    return next((weight for weight in (Weight.REQUIRED, Weight.RECOMMENDED) if weight in missing), None)


def check_sysctls(policy: Policy | None) -> Iterator[Check]:
    """Yield the sysctls of this network namespace that matter, those of forwarding where a rule forwards."""
    for version, name in ((4, "net.ipv4.ip_forward"), (6, "net.ipv6.conf.all.forwarding")):
        if policy is None or any(each.address.version == version for each in policy.slices):
            forwards = policy is not None and bool(policy.snat or policy.dnat)
            weight = Weight.RECOMMENDED if forwards else Weight.OPTIONAL
            yield _sysctl(f"ipv{version}-forwarding", name, "1", weight, "packets of clients behind this host")
    events = "net.netfilter.nf_conntrack_events"
    yield _sysctl("conntrack-events-sent", events, "1", Weight.RECOMMENDED, "watch", "2")
    purpose = "watch and history: the end of flows that began while nobody listened"
    yield _sysctl("conntrack-events-of-all", events, "1", Weight.OPTIONAL, purpose)
    acct, stamp = "net.netfilter.nf_conntrack_acct", "net.netfilter.nf_conntrack_timestamp"
    yield _sysctl("conntrack-accounting", acct, "1", Weight.OPTIONAL, "packets and bytes of new flows")
    yield _sysctl("conntrack-timestamps", stamp, "1", Weight.OPTIONAL, "the age of new flows")
    demux = "forwarded replies past sockets that hold their tuple"
    yield _sysctl("tcp-early-demux-off", "net.ipv4.tcp_early_demux", "0", Weight.OPTIONAL, demux)


def _sysctl(name: str, sysctl: str, wanted: str, weight: Weight, purpose: str, as_good: str = "") -> Check:
    value = read_sysctl(sysctl)
    if value is None:
        return Check(name, _UNKNOWN, weight, purpose, f"there is no {sysctl} here: is its module loaded?")
    found = f"{sysctl} = {value}"
    if value in (wanted, as_good):
        return Check(name, _YES, weight, purpose, found)
    return Check(name, _NO, weight, purpose, found, f"sysctl -w {sysctl}={wanted}")


def check_ruleset(policy: Policy) -> Check:
    """Check that this kernel and nft take the rules of the configuration."""
    name, purpose = "ruleset", "apply: the rules that this configuration means"
    wanted = render(policy)
    try:
        with KernelNft() as nft:
            nft.listing_of(wanted.table, wanted.skeleton)
    except UnsupportedFeature as error:
        return Check(name, _UNKNOWN, Weight.REQUIRED, purpose, str(error))
    except (NatctlError, OSError) as error:
        return Check(name, _NO, Weight.REQUIRED, purpose, str(error), "natctl render | nft -c -f -")
    return Check(name, _YES, Weight.REQUIRED, purpose, "loads")


def check_addresses(slices: Iterable[Slice]) -> Iterator[Check]:
    """Yield for each soft-unicast address whether a socket of this host can be bound to it."""
    for address in dict.fromkeys(each.address for each in slices):
        yield check_address(address)


def check_address(address: Address, bind: Callable[[Address], None] | None = None) -> Check:
    """Check that a socket of this host can be bound to an address; packet rewriting works without."""
    name, purpose = "socket-address", "local sockets on the address of a slice"
    try:
        (bind or _bind_and_close)(address)
    except OSError as error:
        remedy = f"ip address add {address}/{address.max_prefixlen} dev lo"
        found = f"a socket cannot be bound to it: {(error.strerror or str(error)).lower()}"
        return Check(name, _NO, Weight.OPTIONAL, purpose, found, remedy, str(address))
    return Check(name, _YES, Weight.OPTIONAL, purpose, "a socket can be bound to it", subject=str(address))


def _bind_and_close(address: Address) -> None:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as trial:
        trial.bind((str(address), 0))
