"""Placeholder sockets: they have a tuple, so that no other socket gets it, and have sent nothing."""

from __future__ import annotations

import socket

from netns_lab.host import Host, family_of
from netns_lab.servers import Endpoint

KINDS = ("fast-open", "tcp-repair")
# include/uapi/linux/tcp.h
_TCP_REPAIR, _TCP_FASTOPEN_CONNECT, _TCP_FASTOPEN_NO_COOKIE = 19, 30, 34


def open_placeholder(host: Host, kind: str, src: Endpoint, dst: Endpoint, device: str = "") -> socket.socket:
    """Return a placeholder of a host: ``fast-open`` is in SYN-SENT, ``tcp-repair`` in ESTABLISHED.

    ``device``: what it is bound to, so that early demux passes it over for packets that come from elsewhere.
    """
    sock = host.open_socket(socket.SOCK_STREAM, family_of(src[0]))
    if kind == "fast-open":
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_NO_COOKIE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_CONNECT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    sock.bind(src)
    sock.connect(dst)
    if device:  # not before: IPv6 finds no route by that device
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    return sock
