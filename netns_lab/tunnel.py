"""A tunnel on a host of the lab: a process behind a TUN device that talks from soft-unicast addresses."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, NamedTuple

from nat_rewriter.errors import NatctlError, UnsupportedFeature
from netns_lab import tunnel_service
from netns_lab.host import Host, end_process
from netns_lab.servers import Endpoint

DEVICE = "soft0"


class Answer(NamedTuple):
    """Whether an echo server answered, and why not."""

    works: bool
    error: str


class Tunnel:
    """A running service behind a TUN device of a host; it, and its device, end with the lab at the latest.

    Raises UnsupportedFeature where no TUN device can be had.
    """

    def __init__(self, host: Host, device: str = DEVICE) -> None:
        self.device = device
        self._process: subprocess.Popen[str] = host.popen(
            [sys.executable, "-I", tunnel_service.__file__, device], stdin=subprocess.PIPE
        )
        if not self._line():
            self._raise_ended()

    def open(self, src: Endpoint, dst: Endpoint, protocol: str = "tcp", timeout_s: float = 2.0) -> Answer:
        """Greet an echo server from a tuple; what is open stays so."""
        return self._ask("open", src, dst, protocol, timeout_s)

    def talk(self, src: Endpoint, dst: Endpoint, protocol: str = "tcp", timeout_s: float = 2.0) -> Answer:
        """Greet again on what is open."""
        return self._ask("talk", src, dst, protocol, timeout_s)

    def reset(self, src: Endpoint, dst: Endpoint, protocol: str = "tcp") -> None:
        """End what is open with a reset."""
        self._ask("close", src, dst, protocol, 0.0)

    def close(self) -> None:
        """End the service; its device goes with it."""
        end_process(self._process)

    def _ask(self, verb: str, src: Endpoint, dst: Endpoint, protocol: str, timeout_s: float) -> Answer:
        request = {"verb": verb, "protocol": protocol, "timeout_s": timeout_s}
        request |= {"src": src[0], "sport": src[1], "dst": dst[0], "dport": dst[1]}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        said = json.loads(self._line() or "null")
        if said is None:
            self._raise_ended()
        return Answer(said["works"], said["error"])

    def _line(self) -> Any:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def _raise_ended(self) -> None:
        _, told = self._process.communicate()
        reason = told.strip().splitlines()[-1:] or ["it ended without a word"]
        if self._process.returncode == tunnel_service.NO_TUN:
            raise UnsupportedFeature("TUN device", f"{tunnel_service.TUN}, and CAP_NET_ADMIN", reason[0])
        raise NatctlError("start tunnel", reason[0])
