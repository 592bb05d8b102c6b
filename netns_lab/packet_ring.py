"""Packets that arrive at an interface, from a ring that the kernel fills: read in batches, none lost unnoticed.

The layout is that of linux/if_packet.h, TPACKET_V2; packet(7), Documentation/networking/packet_mmap.rst.
"""

from __future__ import annotations

import ctypes
import mmap
import socket
import struct
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network
from typing import NamedTuple

_ETH_P_IP = 0x0800
_SOL_PACKET = 263
_PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION, _PACKET_IGNORE_OUTGOING = 5, 6, 10, 23
_TPACKET_V2, _TP_STATUS_KERNEL, _TP_STATUS_USER = 1, 0, 1
_BLOCK, _BLOCKS, _FRAME = 1 << 16, 64, 256
_SNAP = 64  # IPv4 header with options, and ports
_SO_ATTACH_FILTER = 26
_HEADER = struct.Struct("=IIIHHII")  # status, length, snapped, link, network, seconds, nanoseconds
_SENDER = 32 + 12  # in the sockaddr_ll behind the header of 32 bytes
_TRANSPORTS = (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
# struct sock_filter: load an address, keep the network's bits of it, compare.
_LD_W_ABS, _ALU_AND_K, _JEQ_K, _RET_K = 0x20, 0x54, 0x15, 0x06


class Arrival(NamedTuple):
    """A TCP or UDP packet: when the kernel got it, the hardware address that sent it, its source address and port.

    ``kind`` is the protocol, and for TCP the flags, as in ``tcp 0x02``.
    """

    time: float
    mac: str
    address: str
    port: int
    kind: str


class PacketRing:
    """The IPv4 packets between two networks that arrive at an interface of this thread's namespace, from now on."""

    def __init__(self, interface: str, source: str, destination: str) -> None:
        self.lost = 0
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V2)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        frames = _BLOCK * _BLOCKS // _FRAME
        self._socket.setsockopt(_SOL_PACKET, _PACKET_RX_RING, struct.pack("=IIII", _BLOCK, _BLOCKS, _FRAME, frames))
        self._attach([*_matching(12, IPv4Network(source), 6), *_matching(16, IPv4Network(destination), 3)])
        self._ring = mmap.mmap(self._socket.fileno(), _BLOCK * _BLOCKS)
        self._frames, self._next = frames, 0
        self._socket.bind((interface, _ETH_P_IP))

    def close(self) -> None:
        """Stop."""
        self._ring.close()
        self._socket.close()

    def read(self) -> Iterator[Arrival]:
        """Yield what has come since the last call, in order; ``lost`` counts what found no room."""
        for _ in range(self._frames):
            start = self._next * _FRAME
            status, _, _, _, network, seconds, nanoseconds = _HEADER.unpack_from(self._ring, start)
            if not status & _TP_STATUS_USER:
                break
            packet = self._ring[start + network : start + network + _SNAP]
            mac = self._ring[start + _SENDER : start + _SENDER + 6].hex(":")
            struct.pack_into("=I", self._ring, start, _TP_STATUS_KERNEL)
            self._next = (self._next + 1) % self._frames
            first_fragment = not (packet[6] & 0x1F or packet[7])
            if packet[9] in _TRANSPORTS and first_fragment:
                transport = packet[(packet[0] & 0x0F) * 4 :]
                kind = f"tcp {transport[13]:#04x}" if packet[9] == socket.IPPROTO_TCP else "udp"
                port = int.from_bytes(transport[:2], "big")
                yield Arrival(seconds + nanoseconds / 1e9, mac, socket.inet_ntoa(packet[12:16]), port, kind)
        _, lost = struct.unpack("=II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        self.lost += lost

    def _attach(self, conditions: Sequence[tuple[int, int, int, int]]) -> None:
        program = [*conditions, (_RET_K, 0, 0, _SNAP), (_RET_K, 0, 0, 0)]
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
        described = struct.pack("@HP", len(program), ctypes.addressof(code))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)


def _matching(offset: int, network: IPv4Network, to_refusal: int) -> list[tuple[int, int, int, int]]:
    """Return the steps that go on where the address there is of a network, and otherwise leap over so many."""
    return [
        (_LD_W_ABS, 0, 0, offset),
        (_ALU_AND_K, 0, 0, int(network.netmask)),
        (_JEQ_K, 0, to_refusal - 2, int(network.network_address)),
    ]
