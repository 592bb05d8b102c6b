"""The process that tries what a kernel can do, in a network namespace that no one else is in and that ends with it.

Started by :mod:`nat_rewriter.kernel.features`; writes one JSON list ``[name, answer, found]`` a line.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from nat_rewriter.errors import KernelError, NatctlError, UnsupportedFeature

if TYPE_CHECKING:
    from nat_rewriter.kernel.nft import Worker
    from nat_rewriter.model.tuples import FlowTuple

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
NOBODY = 65534
NFT_ANSWER_WITHIN_S = 20.0
EVENT_WITHIN_S = 1.0

_RANGES = "type ipv4_addr . inet_proto . inet_service : interval ipv4_addr . inet_service"
_VERDICTS = "type ipv6_addr . inet_proto . inet_service : verdict"
_NAT = "type nat hook postrouting priority 100"
_TUPLE = "meta l4proto . ip saddr . th sport . ip daddr . th dport"

# Name of a feature -> the table that needs it, in the forms that nft_templates uses.
NFT_FORMS = {
    "nf-tables": "",
    "source-nat": f"chain c {{ {_NAT}\n meta l4proto tcp snat ip to 192.0.2.1:1-2\n }}",
    "range-maps": (
        f"map m {{ {_RANGES}\n flags interval\n elements = {{ 192.0.2.1 . tcp . 1-2 : 192.0.2.1 . 1-2 }}\n }}\n"
        f"chain c {{ {_NAT}\n meta l4proto {{ tcp, udp }} snat ip to ip saddr . meta l4proto . th sport map @m\n }}"
    ),
    "ipv6-nat": (
        "chain k { meta l4proto { tcp, udp, ipv6-icmp } snat ip6 to ip6 saddr : 1-2\n }\n"
        f"map m {{ {_VERDICTS}\n flags interval\n elements = {{ 2001:db8::1 . tcp . 1-2 : goto k }}\n }}\n"
        f"chain c {{ {_NAT}\n meta l4proto {{ tcp, udp }} ip6 saddr . meta l4proto . th sport vmap @m\n }}"
    ),
    "dynamic-sets": (
        "set s { type inet_proto . ipv4_addr . inet_service . ipv4_addr . inet_service\n size 16\n"
        " flags dynamic,timeout\n counter\n timeout 1d\n }\n"
        "chain c { type filter hook postrouting priority 300\n"
        f" meta l4proto {{ tcp, udp }} update @s {{ {_TUPLE} }}\n }}"
    ),
    "spreading": (
        f"chain c {{ {_NAT}\n"
        " meta l4proto tcp snat ip to jhash ip saddr mod 2 seed 0x1 map { 0 : 192.0.2.1 . 1-2, 1 : 192.0.2.1 . 5-6 }\n"
        " meta l4proto udp snat ip to numgen random mod 2 map { 0 : 192.0.2.1 . 1-2, 1 : 192.0.2.1 . 5-6 }\n }"
    ),
    "reject": (
        "chain c { type filter hook output priority -150\n meta l4proto tcp reject with tcp reset\n"
        " reject with icmpx port-unreachable\n }"
    ),
    "ct-timeouts": (
        "ct timeout t { protocol tcp\n l3proto ip\n policy = { established : 60 }\n }\n"
        'chain c { type filter hook prerouting priority -150\n ct status ! confirmed ct timeout set "t"\n }'
    ),
    "strip-timestamps": (
        "chain c { type filter hook forward priority -150\n"
        " tcp flags & (syn|ack) == syn reset tcp option timestamp\n }"
    ),
}  # fmt: skip


def tell(name: str, answer: str, found: str) -> None:
    """Write one answer."""
    print(json.dumps([name, answer, found]), flush=True)


def try_out(name: str, attempt: Callable[[], str]) -> None:
    """Write yes with what an attempt returns; no where the kernel lacks something, unknown where the attempt failed."""
    try:
        tell(name, "yes", attempt())
    except UnsupportedFeature as error:
        tell(name, "no", error.found)
    except KernelError as error:
        tell(name, "no", error.detail)
    except (NatctlError, OSError) as error:
        tell(name, "unknown", str(error))


def leave_network() -> str | None:
    """Move into a new network namespace, without privilege inside a new user namespace; return why not, if not."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) == 0 or libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0:
        return None
    return os.strerror(ctypes.get_errno()).lower()


def try_user_namespace() -> str:
    """Make a user and a network namespace as an ordinary user would, in a child; raise KernelError where that fails."""
    child = os.fork()  # this process has one thread only, so far
    if child == 0:
        _end_as_ordinary_user()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise KernelError("create user namespace", code, os.strerror(code).lower() if code > 0 else "ended")
    return "an ordinary user can make one"


def _end_as_ordinary_user() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError:
        pass  # a user namespace without other users: root there is the ordinary user
    os._exit(0 if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0 else ctypes.get_errno())


def start_nftables() -> Worker | None:
    """Start the process with libnftables, in a network namespace of its own as where apply tries rulesets out.

    That is for this process to do before it leaves: without privilege, what it started then would have no rights there.
    """
    from nat_rewriter.kernel.nft import Worker

    try:
        return Worker(["--scratch"], NFT_ANSWER_WITHIN_S)
    except OSError as error:
        tell("libnftables", "unknown", f"cannot be started: {error.strerror}".lower())
        return None


def try_nftables(worker: Worker) -> None:
    """Load every form into a table of its own, and take it away again."""
    try:
        try_out("libnftables", lambda: _version(worker))
        for name, text in NFT_FORMS.items():
            try_out(name, lambda text=text: _load(worker, text))  # type: ignore[misc]
    finally:
        worker.close()


def _version(worker: Worker) -> str:
    answer = worker.ask(text="list tables", json=True)
    if answer["code"]:
        return "loaded, and refused by the kernel"
    return str(json.loads(answer["output"])["nftables"][0]["metainfo"]["version"])


def _load(worker: Worker, text: str) -> str:
    answer = worker.ask(text=f"table inet probe {{\n{text}\n}}\n")
    if answer["code"]:
        lines = str(answer["error"]).strip().splitlines() or ["refused without a word"]
        raise UnsupportedFeature("nftables", "", lines[0].partition("Error: ")[2] or lines[0])
    worker.ask(text="delete table inet probe")
    return "loads"


def try_conntrack() -> None:
    """Make an entry, see its event, and delete it."""
    from nat_rewriter.kernel import conntrack

    try_out("ctnetlink", lambda: _insert_and_delete(conntrack.insert_flow, conntrack.delete_flow))
    try_out("conntrack-events", _event_of_an_entry)


def _probe_tuple() -> FlowTuple:
    from ipaddress import IPv4Address

    from nat_rewriter.model.tuples import FlowTuple

    return FlowTuple("udp", IPv4Address("192.0.2.1"), 1, IPv4Address("192.0.2.2"), 2)


def _insert_and_delete(insert: Callable[[FlowTuple, int], None], delete: Callable[[FlowTuple], bool]) -> str:
    probe = _probe_tuple()
    insert(probe, 60)
    if not delete(probe):
        raise UnsupportedFeature("ctnetlink", "", "an entry was made and could not be found")
    return "entries can be listed, made and deleted"


def _event_of_an_entry() -> str:
    from nat_rewriter.kernel import conntrack

    with conntrack.EventStream(buffer_bytes=1 << 16) as events:
        _insert_and_delete(conntrack.insert_flow, conntrack.delete_flow)
        if not len(events.read(EVENT_WITHIN_S).records):
            raise UnsupportedFeature("conntrack events", "", "an entry was made without an event")
    return "events arrive"


def try_sockets() -> None:
    """List a socket, and destroy it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        try_out("sock-diag", lambda: _list(listener))
        try_out("sock-destroy", _destroy)


def _list(listener: socket.socket) -> str:
    from nat_rewriter.kernel.sockets import list_sockets

    port = listener.getsockname()[1]
    if port not in list_sockets(("tcp",), (4,))["sport"]:
        raise UnsupportedFeature("sock_diag", "", "a socket is not listed")
    return "sockets can be listed"


def _destroy() -> str:
    from nat_rewriter.kernel.sockets import destroy_socket, list_sockets

    (record, *_) = list_sockets(("tcp",), (4,))
    if not destroy_socket(record):
        raise UnsupportedFeature("SOCK_DESTROY", "", "a socket could not be found")
    return "sockets can be destroyed"


def main() -> None:
    """Try everything. User namespaces come first: a process with more than one thread cannot make one."""
    try_out("user-namespaces", try_user_namespace)
    nftables = start_nftables()
    if refused := leave_network():
        tell("scratch-namespace", "no", refused)
        return
    tell("scratch-namespace", "yes", "this process can make one")
    if nftables:
        try_nftables(nftables)
    try_conntrack()
    try_sockets()


if __name__ == "__main__":
    main()
