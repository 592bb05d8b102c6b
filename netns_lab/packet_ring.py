"""Packets that arrive at an interface, from a ring that the kernel fills: read in batches, none lost unnoticed.

The layout is that of linux/if_packet.h, TPACKET_V2; packet(7), Documentation/networking/packet_mmap.rst.
"""

from __future__ import annotations

import ctypes
import mmap
import socket
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import NamedTuple

_SOL_PACKET = 263
_PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION, _PACKET_IGNORE_OUTGOING = 5, 6, 10, 23
_TPACKET_V2, _TP_STATUS_KERNEL, _TP_STATUS_USER = 1, 0, 1
_BLOCK, _BLOCKS, _FRAME = 1 << 16, 64, 256
_SNAP = 80  # IP header, that of IPv4 with options, and as much of TCP's as has the flags
_SO_ATTACH_FILTER, _SO_TIMESTAMPNS = 26, 35
_HEADER = struct.Struct("=IIIHHII")  # status, length, snapped, link, network, seconds, nanoseconds
_SENDER = 32 + 12  # in the sockaddr_ll behind the header of 32 bytes
_TRANSPORTS = (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
# struct sock_filter: load a word, keep the network's bits of it, compare.
_LD_W_ABS, _ALU_AND_K, _JEQ_K, _RET_K = 0x20, 0x54, 0x15, 0x06


class _Layout(NamedTuple):
    """Where things are in packets of an IP version."""

    ethertype: int
    family: int
    protocol: int
    source: int
    destination: int
    length: int  # of an address


_LAYOUTS = {
    4: _Layout(0x0800, socket.AF_INET, 9, 12, 16, 4),
    6: _Layout(0x86DD, socket.AF_INET6, 6, 8, 24, 16),
}


class Arrival(NamedTuple):
    """A TCP or UDP packet: when it was there, the hardware address that sent it, its source address and port.

    ``kind`` is the protocol, and for TCP the flags, as in ``tcp 0x02``.
    """

    time: float
    mac: str
    address: str
    port: int
    kind: str


class PacketRing:
    """The packets between two networks that arrive at an interface of this thread's namespace, from now on.

    A UDP packet has the time at which it was put on the cable of a veth pair, however long the kernel took to bring it
    here (netif_rx(), once a socket asks for times). TCP of this kernel carries another clock's, and gets the time of
    its arrival here. IPv6 packets with extension headers are left out.
    """

    def __init__(self, interface: str, source: str, destination: str) -> None:
        self.lost = 0
        networks = ip_network(source), ip_network(destination)
        self._layout = _LAYOUTS[networks[0].version]
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V2)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        frames = _BLOCK * _BLOCKS // _FRAME
        self._socket.setsockopt(_SOL_PACKET, _PACKET_RX_RING, struct.pack("=IIII", _BLOCK, _BLOCKS, _FRAME, frames))
        self._attach(zip((self._layout.source, self._layout.destination), networks, strict=True))
        self._ring = mmap.mmap(self._socket.fileno(), _BLOCK * _BLOCKS)
        self._frames, self._next = frames, 0
        self._socket.bind((interface, self._layout.ethertype))

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
            if packet[self._layout.protocol] in _TRANSPORTS and (transport := _transport(packet)):
                yield Arrival(seconds + nanoseconds / 1e9, mac, *self._sender(packet, transport))
        _, lost = struct.unpack("=II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        self.lost += lost

    def _sender(self, packet: bytes, transport: bytes) -> tuple[str, int, str]:
        """Return source address and port, and the kind of a packet."""
        address = packet[self._layout.source :][: self._layout.length]
        tcp = packet[self._layout.protocol] == socket.IPPROTO_TCP
        kind = f"tcp {transport[13]:#04x}" if tcp else "udp"
        return socket.inet_ntop(self._layout.family, address), int.from_bytes(transport[:2], "big"), kind

    def _attach(self, conditions: Iterable[tuple[int, IPv4Network | IPv6Network]]) -> None:
        words = [word for offset, network in conditions for word in _words(offset, network)]
        program = list[tuple[int, int, int, int]]()
        for number, (offset, mask, value) in enumerate(words):
            to_refusal = 3 * (len(words) - 1 - number) + 1
            program += [(_LD_W_ABS, 0, 0, offset), (_ALU_AND_K, 0, 0, mask), (_JEQ_K, 0, to_refusal, value)]
        program += [(_RET_K, 0, 0, _SNAP), (_RET_K, 0, 0, 0)]
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
        described = struct.pack("@HP", len(program), ctypes.addressof(code))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)


def _transport(packet: bytes) -> bytes:
    """Return what follows the IP header; nothing for a fragment that is not the first."""
    if packet[0] >> 4 == 6:
        return packet[40:]
    first_fragment = not (packet[6] & 0x1F or packet[7])
    return packet[(packet[0] & 0x0F) * 4 :] if first_fragment else b""


def _words(offset: int, network: IPv4Network | IPv6Network) -> Iterator[tuple[int, int, int]]:
    """Yield where a word of an address is, its bits that are the network's, and what they have to be."""
    for start in range(0, network.max_prefixlen // 8, 4):
        mask, value = (
            int.from_bytes(each.packed[start : start + 4], "big") for each in (network.netmask, network.network_address)
        )
        if mask:
            yield offset + start, mask, value
