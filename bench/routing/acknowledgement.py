"""An acknowledgement that an established socket takes again and again without an answer, as an Ethernet frame."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

from netns_lab.tunnel_service import checksum

# include/uapi/linux/tcp.h
_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ = 19, 20, 21
_RECEIVED, _SENT = 1, 2
_OFF_WITHOUT_PROBE = -1
_ACK, _WINDOW = 0x10, 65535


def acknowledgement(sock: socket.socket, own: str, gateway: str) -> bytes:
    """Return the frame that a peer would send who has nothing to say: what the socket has sent is received.

    ``own`` and ``gateway`` are the Ethernet addresses of the host with the socket and of the one that sends.
    """
    expected, sent = _numbers(sock)
    src, dst = sock.getpeername(), sock.getsockname()
    ends = ip_address(src[0]).packed + ip_address(dst[0]).packed
    segment = bytearray(struct.pack("!HHIIBBHHH", src[1], dst[1], expected, sent, 5 << 4, _ACK, _WINDOW, 0, 0))
    segment[16:18] = struct.pack("!H", checksum(ends + struct.pack("!II", len(segment), 6) + bytes(segment)))
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0x4000, 64, 6, 0) + ends
    header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    ethernet = bytes.fromhex((own + gateway).replace(":", "")) + b"\x08\x00"
    return ethernet + header + bytes(segment)


def _numbers(sock: socket.socket) -> tuple[int, int]:
    """Return the next number that the socket expects, and the next that it sends."""
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    found = []
    for queue in (_RECEIVED, _SENT):
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, queue)
        found.append(sock.getsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ) & 0xFFFFFFFF)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _OFF_WITHOUT_PROBE)
    return found[0], found[1]
