"""What passes an interface, read with a packet socket: what is on the wire, whatever anyone says about it."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from nat_rewriter.model.slices import Address
from nat_rewriter.model.tuples import FlowTuple, protocol_name

_ETH_P_ALL = 0x0003
_ETHERNET = 14
_IPV4, _IPV6 = 0x0800, 0x86DD
_ICMP_ECHO = {1: (8, 0), 58: (128, 129)}
_TCP_HEADER = 20
_END, _NOP, _TIMESTAMP = 0, 1, 8
SYN = 0x02


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet: its tuple (for an echo, both ports are the id); for TCP flags, and whether it has a timestamp."""

    tuple: FlowTuple
    flags: int = 0
    timestamp: bool = False


class Capture:
    """Packets of one interface since the capture was opened; a context manager."""

    def __init__(self, interface: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._socket.bind((interface, _ETH_P_ALL))
        self._packets: list[Packet] = []

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop; what was recorded stays."""
        if self._socket.fileno() >= 0:
            self.packets()
            self._socket.close()

    def packets(self) -> list[Packet]:
        """Return all TCP, UDP and echo packets so far, both directions, in order."""
        while self._socket.fileno() >= 0:
            try:
                frame = self._socket.recv(65536, socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                break
            if packet := parse(frame):
                self._packets.append(packet)
        return list(self._packets)

    def wait_for(self, wanted: Callable[[Packet], bool], timeout_s: float = 2.0) -> Packet | None:
        """Return the first packet, past or to come, that is wanted; None when none comes in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            for packet in self.packets():
                if wanted(packet):
                    return packet
            if time.monotonic() > deadline:
                return None
            time.sleep(0.005)

    def sources(self, address: str, protocol: str = "tcp") -> list[int]:
        """Return the source ports, or echo ids, that an address was seen with, each once, in order."""
        tuples = [packet.tuple for packet in self.packets()]
        return list(dict.fromkeys(t.sport for t in tuples if str(t.src) == address and t.protocol == protocol))


def parse(frame: bytes) -> Packet | None:
    """Return what an Ethernet frame carries; None if that is neither TCP, UDP nor an echo, or is cut short."""
    try:
        (kind,) = struct.unpack_from("!H", frame, 12)
        if kind == _IPV4:
            start = _ETHERNET + (frame[_ETHERNET] & 0x0F) * 4
            source, destination = frame[_ETHERNET + 12 : _ETHERNET + 16], frame[_ETHERNET + 16 : _ETHERNET + 20]
            return _transport(frame[_ETHERNET + 9], IPv4Address(source), IPv4Address(destination), frame[start:])
        if kind == _IPV6:
            source, destination = frame[_ETHERNET + 8 : _ETHERNET + 24], frame[_ETHERNET + 24 : _ETHERNET + 40]
            start = _ETHERNET + 40
            return _transport(frame[_ETHERNET + 6], IPv6Address(source), IPv6Address(destination), frame[start:])
    except (struct.error, IndexError, ValueError):
        return None
    return None


def _transport(number: int, source: Address, destination: Address, payload: bytes) -> Packet | None:
    protocol = protocol_name(number)
    if number in _ICMP_ECHO:
        if payload[0] not in _ICMP_ECHO[number]:
            return None
        (ident,) = struct.unpack_from("!H", payload, 4)
        return Packet(FlowTuple(protocol, source, ident, destination, ident))
    if protocol not in ("tcp", "udp"):
        return None
    sport, dport = struct.unpack_from("!HH", payload)
    flow = FlowTuple(protocol, source, sport, destination, dport)
    if protocol == "udp":
        return Packet(flow)
    return Packet(flow, payload[13], _TIMESTAMP in _options(payload[_TCP_HEADER : (payload[12] >> 4) * 4]))


def _options(options: bytes) -> Iterator[int]:
    """Yield the kind of each TCP option."""
    place = 0
    while place < len(options) and (kind := options[place]) != _END:
        yield kind
        place += 1 if kind == _NOP else max(2, options[place + 1])
