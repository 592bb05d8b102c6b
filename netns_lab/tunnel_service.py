"""A service behind a TUN device: it writes packets whose source is a soft-unicast address, and reads the replies.

``python tunnel_service.py DEVICE`` makes the device, says ``{"ready": true}``, and then answers requests, a JSON
object a line: ``{"verb": "open", "protocol": "tcp", "src": …, "sport": …, "dst": …, "dport": …, "timeout_s": …}``
greets an echo server from that tuple, ``talk`` does so again on what is open, ``close`` ends it with a reset. Each
answer is ``{"works": true or false, "error": why not}``. The TCP here is just enough for a lab: no loss, no window,
one segment at a time. It uses the standard library alone, so that it starts at once.
"""

import fcntl
import ipaddress
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

TUN = "/dev/net/tun"
NO_TUN = 69  # exit status where the device cannot be had (EX_UNAVAILABLE)
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_FIN, _SYN, _RST, _PSH, _ACK = 0x01, 0x02, 0x04, 0x08, 0x10
_NUMBERS = {"tcp": 6, "udp": 17}
_WINDOW = 65535
_AGAIN_AFTER_S = 0.3
_GREETING = b"natctl"
_MODULO = 1 << 32


def open_tunnel(name: str) -> int:
    """Make the device, set it up, and return its descriptor."""
    tunnel = os.open(TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(tunnel, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        request = struct.pack("16sH22x", name.encode(), 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(asker, _SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(asker, _SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags | _IFF_UP))
    return tunnel


def checksum(content: bytes) -> int:
    """Return the Internet checksum of RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(content) // 2}H", content[: len(content) & ~1]))
    total += content[-1] << 8 if len(content) % 2 else 0
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


Key = tuple[Any, ...]


class Segment(NamedTuple):
    """What came back: TCP flags, the numbers of sequence and acknowledgement, and the content."""

    flags: int
    sequence: int
    acknowledged: int
    content: bytes


class Flow:
    """One tuple that the service talks from."""

    def __init__(self, tunnel: int, request: dict[str, Any]) -> None:
        self.tunnel = tunnel
        self.number = _NUMBERS[request["protocol"]]
        self.src, self.dst = ipaddress.ip_address(request["src"]), ipaddress.ip_address(request["dst"])
        self.sport, self.dport = request["sport"], request["dport"]
        self.sent = int.from_bytes(os.urandom(4), "big")  # the next sequence number
        self.received = 0  # what is acknowledged

    def open(self, timeout_s: float) -> str:
        """Begin, and greet; return why that failed, or nothing."""
        if self.number == 6:
            syn, self.sent = self.sent, (self.sent + 1) % _MODULO
            answer = self._ask(_SYN, b"", timeout_s, self._answers_syn, syn)
            if answer is None:
                return "timed out"
            if answer.flags & _RST:
                return "reset"
            self.received = (answer.sequence + 1) % _MODULO
            self._send(_ACK)
        return self.talk(timeout_s)

    def talk(self, timeout_s: float) -> str:
        """Greet on what is open; return why that failed, or nothing."""
        answer = self._ask(_PSH | _ACK, _GREETING, timeout_s, lambda one: one.flags & _RST or one.content)
        if answer is None:
            return "timed out"
        if answer.flags & _RST:
            return "reset"
        self.sent = (self.sent + len(_GREETING)) % _MODULO
        self.received = (answer.sequence + len(answer.content)) % _MODULO
        if self.number == 6:
            self._send(_ACK)
        return "" if answer.content == _GREETING else "another answer"

    def close(self) -> None:
        """End it with a reset."""
        if self.number == 6:
            self._send(_RST | _ACK)

    def _answers_syn(self, one: Segment) -> bool:
        # Not one that answers an earlier SYN of the same tuple.
        return bool(one.flags & (_SYN | _RST)) and one.acknowledged == self.sent

    def _ask(
        self,
        flags: int,
        content: bytes,
        timeout_s: float,
        wanted: Callable[[Segment], object],
        number: int | None = None,
    ) -> Segment | None:
        """Send until a wanted packet comes, and return that; None when none comes in time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self._send(flags, content, number)
            again = min(deadline, time.monotonic() + _AGAIN_AFTER_S)
            while (left := again - time.monotonic()) > 0:
                if not select.select([self.tunnel], [], [], left)[0]:
                    break
                answer = self._parsed(os.read(self.tunnel, 1 << 16))
                if answer and wanted(answer):
                    return answer
        return None

    def _send(self, flags: int, content: bytes = b"", number: int | None = None) -> None:
        ends = struct.pack("!HH", self.sport, self.dport)
        if self.number == 6:
            sequence = self.sent if number is None else number
            rest = struct.pack("!IIBBHHH", sequence, self.received, 5 << 4, flags, _WINDOW, 0, 0)
        else:
            rest = struct.pack("!HH", 8 + len(content), 0)
        segment = bytearray(ends + rest + content)
        pseudo = self.src.packed + self.dst.packed + struct.pack("!II", len(segment), self.number)
        place = 16 if self.number == 6 else 6
        segment[place : place + 2] = struct.pack("!H", checksum(pseudo + bytes(segment)) or 0xFFFF)
        os.write(self.tunnel, self._header(len(segment)) + segment)

    def _header(self, length: int) -> bytes:
        if self.src.version == 6:
            return struct.pack("!IHBB", 6 << 28, length, self.number, 64) + self.src.packed + self.dst.packed
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0x4000, 64, self.number, 0)
        header += self.src.packed + self.dst.packed
        return header[:10] + struct.pack("!H", checksum(header)) + header[12:]

    def _parsed(self, packet: bytes) -> Segment | None:
        """Return what a packet of this flow carries; None for any other."""
        version = packet[0] >> 4
        if version == 4:
            start, end = (packet[0] & 0xF) * 4, struct.unpack_from("!H", packet, 2)[0]
            number, src, dst = packet[9], packet[12:16], packet[16:20]
        else:
            start, end, number, src, dst = 40, 40 + struct.unpack_from("!H", packet, 4)[0], *_ends_6(packet)
        if (number, src, dst) != (self.number, self.dst.packed, self.src.packed):
            return None
        sport, dport = struct.unpack_from("!HH", packet, start)
        if (sport, dport) != (self.dport, self.sport):
            return None
        if number == 17:
            return Segment(0, 0, 0, packet[start + 8 : end])
        sequence, acknowledged, offset, flags = struct.unpack_from("!4xIIBB", packet, start)
        return Segment(flags, sequence, acknowledged, packet[start + (offset >> 4) * 4 : end])


def _ends_6(packet: bytes) -> tuple[int, bytes, bytes]:
    return packet[6], packet[8:24], packet[24:40]


def answer(tunnel: int, flows: dict[Key, Flow], request: dict[str, Any]) -> str:
    """Do what a request says, and return why that failed, or nothing."""
    key = tuple(request[name] for name in ("protocol", "src", "sport", "dst", "dport"))
    if request["verb"] == "open":
        flows[key] = Flow(tunnel, request)
        return flows[key].open(request["timeout_s"])
    if key not in flows:
        return "not open"
    if request["verb"] == "talk":
        return flows[key].talk(request["timeout_s"])
    flows.pop(key).close()
    return ""


def main(name: str) -> None:
    """Do what the module says."""
    try:
        tunnel = open_tunnel(name)
    except OSError as error:
        print(f"{TUN}: {error.strerror}", file=sys.stderr)
        sys.exit(NO_TUN)
    print(json.dumps({"ready": True}), flush=True)
    flows: dict[Key, Flow] = {}
    for line in sys.stdin:
        failed = answer(tunnel, flows, json.loads(line))
        print(json.dumps({"works": not failed, "error": failed}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
