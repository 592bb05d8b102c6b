"""Routing policy rules and the routes of natctl's table, over rtnetlink.

What natctl makes has a protocol number of its own, so that it is found again whatever else is forgotten.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Self

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError as RouteError

from nat_rewriter.errors import NetlinkError, PermissionNeeded
from nat_rewriter.model.routing import FAMILIES, Rule, TunnelRoute

# RTPROT_*, include/uapi/linux/rtnetlink.h: numbers above 4 are for user space; no routing daemon uses this one.
PROTOCOL = 222
RTPROT_KERNEL = 2
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_TO_TABLE = 1  # FR_ACT_TO_TBL
_INVERTED = 2  # FIB_RULE_INVERT
# Attributes of a rule that selects no packets, or does so by its mark: include/uapi/linux/fib_rules.h.
_PLAIN = frozenset({"FRA_TABLE", "FRA_PRIORITY", "FRA_PROTOCOL", "FRA_SUPPRESS_PREFIXLEN", "FRA_FWMARK", "FRA_FWMASK"})
_NO_PREFIX_SUPPRESSED = 0xFFFFFFFF
_ALL_BITS = 0xFFFFFFFF
_GONE = (errno.ENOENT, errno.ESRCH, errno.ENODEV)


class RouteSocket:
    """A connection to the kernel's routing tables, in the network namespace of the thread that made it."""

    def __init__(self) -> None:
        self._route = IPRoute()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._route.close()

    def list_rules(self) -> list[Rule]:
        """Return the rules of both families, in the order in which the kernel goes through them."""
        with _told("list rules"):
            return [_rule(family, one) for family in FAMILIES for one in self._dump(self._route.get_rules, family)]

    def add_rule(self, rule: Rule) -> None:
        """Make a rule; one that is there already is no error."""
        with _told(f"add rule {rule.priority}", ignoring=(errno.EEXIST,)):
            self._route.rule("add", protocol=PROTOCOL if rule.own else RTPROT_KERNEL, **_rule_fields(rule))

    def delete_rule(self, rule: Rule) -> None:
        """Take a rule away; one that is gone already is no error."""
        with _told(f"delete rule {rule.priority}", ignoring=_GONE):
            self._route.rule("del", **_rule_fields(rule))

    def list_routes(self) -> list[TunnelRoute]:
        """Return the routes that natctl has made, in all tables."""
        with _told("list routes"):
            found = [one for family in FAMILIES for one in self._dump(self._route.get_routes, family)]
        return [_tunnel_route(one) for one in found if one["proto"] == PROTOCOL]

    def add_route(self, route: TunnelRoute) -> None:
        """Make a route, in place of one that the address has in that table."""
        with _told(f"add route {route.address} table {route.table}"):
            self._route.route("replace", proto=PROTOCOL, **_route_fields(route))

    def delete_route(self, route: TunnelRoute) -> None:
        """Take a route away; one that is gone already, or whose device is, is no error."""
        if device_index(route.device) is None:
            return
        with _told(f"delete route {route.address} table {route.table}", ignoring=_GONE):
            self._route.route("del", **_route_fields(route))

    def _dump(self, ask: Any, family: int) -> list[Any]:
        try:
            return list(ask(family=_FAMILY[family]))
        except RouteError as error:
            if error.code in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):  # a kernel without IPv6
                return []
            raise


def device_index(name: str) -> int | None:
    """Return the index of a device of this network namespace, None where there is none of that name."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def _rule(family: int, message: Any) -> Rule:
    attributes = dict(message["attrs"])
    plain = (
        message["action"] == _TO_TABLE
        and not message["flags"] & _INVERTED
        and not message["tos"]
        and set(attributes) <= _PLAIN
        and attributes.get("FRA_SUPPRESS_PREFIXLEN", _NO_PREFIX_SUPPRESSED) == _NO_PREFIX_SUPPRESSED
    )
    mark = attributes.get("FRA_FWMARK", 0)
    return Rule(
        family,
        attributes.get("FRA_PRIORITY", 0),
        attributes.get("FRA_TABLE", message["table"]),
        mark,
        attributes.get("FRA_FWMASK", _ALL_BITS if mark else 0),
        plain,
        attributes.get("FRA_PROTOCOL") == PROTOCOL,
    )


def _rule_fields(rule: Rule) -> dict[str, Any]:
    fields: dict[str, Any] = {"family": _FAMILY[rule.family], "priority": rule.priority, "table": rule.table}
    return fields | ({"fwmark": rule.mark, "fwmask": rule.mask} if rule.mask else {})


def _tunnel_route(message: Any) -> TunnelRoute:
    attributes = dict(message["attrs"])
    via = attributes.get("RTA_GATEWAY")
    return TunnelRoute(
        attributes.get("RTA_TABLE", message["table"]),
        ip_address(attributes["RTA_DST"]),
        _device_name(attributes.get("RTA_OIF", 0)),
        ip_address(via) if via else None,
    )


def _route_fields(route: TunnelRoute) -> dict[str, Any]:
    index = device_index(route.device)
    if index is None:
        raise NetlinkError("change route", errno.ENODEV, f"there is no such device: {route.device!r}")
    fields: dict[str, Any] = {
        "family": _FAMILY[route.address.version],
        "table": route.table,
        "dst": f"{route.address}/{route.address.max_prefixlen}",
        "oif": index,
    }
    return fields | ({"gateway": str(route.via)} if route.via else {})


def _device_name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return str(index)


@contextmanager
def _told(operation: str, ignoring: tuple[int, ...] = ()) -> Iterator[None]:
    try:
        yield
    except RouteError as error:
        if error.code in ignoring:
            return
        if error.code == errno.EPERM:
            raise PermissionNeeded(operation, "CAP_NET_ADMIN") from None
        raise NetlinkError(operation, error.code, os.strerror(error.code).lower()) from None
