"""Local sockets, as the kernel's sock_diag lists them, in bulk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# One record as the C core packs it (struct nr_socket in kernel/_core/core.h). Addresses as in FLOW_FIELDS.
SOCKET_FIELDS: list[Any] = [
    ("src", "u8", 2),
    ("dst", "u8", 2),
    ("cookie", "u8"),
    ("inode", "u4"),
    ("uid", "u4"),
    ("ifindex", "u4"),
    ("sport", "u2"),
    ("dport", "u2"),
    ("family", "u1"),  # 4 or 6; an IPv4-mapped IPv6 socket counts as 4
    ("protocol", "u1"),
    ("state", "u1"),  # TCP_* of include/net/tcp_states.h
    ("reserved", "u1"),
    ("reserved2", "u4"),
]

SOCKET_STATES = (
    "NONE",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
)


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that holds a socket."""

    pid: int
    command: str
