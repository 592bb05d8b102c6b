"""Policy routing for TPROXY: packets with a mark are this host's own, wherever they are going.

ip-rule(8), and Documentation/networking/tproxy.rst in the kernel's sources.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Set
from types import TracebackType
from typing import Any

from nat_rewriter.errors import KernelError, PermissionNeeded
from nat_rewriter.model.proxies import TPROXY_MARK, TPROXY_TABLE

_PRIORITY = 10_000
_DOING = "route packets to the proxy"
_FAMILIES = {4: 2, 6: 10}
_ALL = {4: "0.0.0.0/0", 6: "::/0"}
_LOCAL = 2  # RTN_LOCAL


class TproxyRoutes:
    """Has marked packets of some IP versions delivered here until the block ends; what a crash left is taken over."""

    def __init__(self) -> None:
        self._covered: set[int] = set()

    def __enter__(self) -> TproxyRoutes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._change(self._covered, "del", "del")

    def cover(self, families: Set[int]) -> None:
        """Begin with those of these IP versions that are not covered yet. Raises PermissionNeeded, KernelError."""
        new = set(families) - self._covered
        self._covered |= new
        self._change(new, "replace", "add")

    def _change(self, families: Set[int], route_verb: str, rule_verb: str) -> None:
        if not families:
            return
        from pyroute2 import IPRoute

        with IPRoute() as route:
            for family in sorted(families):
                _change(route, route_verb, rule_verb, family)


def _change(route: Any, route_verb: str, rule_verb: str, family: int) -> None:
    device = route.link_lookup(ifname="lo")[0]
    number = _FAMILIES[family]
    known = {"family": number, "dst": _ALL[family], "table": TPROXY_TABLE, "type": _LOCAL, "scope": 254}
    _try(lambda: route.route(route_verb, oif=device, **known))
    _try(lambda: route.rule(rule_verb, family=number, fwmark=TPROXY_MARK, table=TPROXY_TABLE, priority=_PRIORITY))


def _try(change: Any) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        change()
    except NetlinkError as error:
        if error.code == errno.EPERM:
            raise PermissionNeeded(_DOING, "CAP_NET_ADMIN") from None
        if error.code not in (errno.EEXIST, errno.ENOENT, errno.ESRCH):
            raise KernelError(_DOING, error.code, os.strerror(error.code)) from None
