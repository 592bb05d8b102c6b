"""A slice that goes from one host of a fleet to another with its flows, and what becomes of them."""

from __future__ import annotations

import re
import subprocess
import time
from contextlib import suppress

from nat_rewriter.errors import EXIT_DONE, EXIT_FOUND
from nat_rewriter.model.slices import PortRange
from netns_lab.host import Host, end_process
from netns_lab.servers import Endpoint
from netns_lab.traffic import Flow, Traffic

_MOST_S = 30.0
# conntrack(8): the original tuple, and then that of the answers.
_ENTRY = re.compile(r"src=(\S+) dst=\S+ sport=(\d+) dport=\d+ .*src=\S+ dst=(\S+) sport=\d+ dport=(\d+)")


class Transfer:
    """``natctl pool transfer`` under way; once it is done, packets of the flows that stay go by the taker.

    ``flows`` are those; ``moved_at`` is when that was, None before. ``outcome`` is what the command said, nothing until
    it has ended; ``lost`` is how many of the flows had no answer before the look at them ended.
    """

    def __init__(self, giver: int, taker: int, address: str, ports: PortRange) -> None:
        self.giver, self.taker, self.address, self.ports = giver, taker, address, ports
        self.flows: list[Flow] = []
        self.moved_at: float | None = None
        self.outcome = ""
        self.lost = 0

    def __str__(self) -> str:
        flows = f"; {len(self.flows)} of them stay, {self.lost} lost" if self.flows else ""
        return f"host{self.giver} to host{self.taker}: {self.outcome or 'under way'}{flows}"

    def begin(self, process: subprocess.Popen[str]) -> None:
        """Take note of the command that has been started."""
        self._process, self._began = process, time.monotonic()

    def follow(self, taker: Host, traffic: Traffic) -> None:
        """Look whether the command has ended; if so, and the slice was moved, send the flows by its taker."""
        if self.outcome or (self._process.poll() is None and time.monotonic() < self._began + _MOST_S):
            return
        with suppress(subprocess.TimeoutExpired):
            told, complaint = self._process.communicate(timeout=1)
            self.outcome = (told or complaint).strip()
        end_process(self._process)
        self.outcome = self.outcome or "it came to no end"
        if self._process.returncode in (EXIT_DONE, EXIT_FOUND):
            self.flows = traffic.staying(clients_of(taker, self.address, self.ports))
            self.moved_at = time.time()
            for flow in self.flows:
                flow.send_by(self.taker)

    def unanswered(self) -> int:
        """Return how many flows have had no answer since they go by the taker."""
        return sum(flow.last < self.moved_at for flow in self.flows) if self.moved_at else 0

    def end(self) -> None:
        """Look at the flows no longer: what is unanswered now is lost."""
        self.lost = self.unanswered()


def clients_of(host: Host, address: str, ports: PortRange) -> set[Endpoint]:
    """Return the clients' addresses and ports of the flows in a slice, by a host's conntrack."""
    listed = host.run(["conntrack", "-L", "-f", "ipv6" if ":" in address else "ipv4"]).stdout
    return {
        (client, int(port))
        for client, port, shared, shared_port in _ENTRY.findall(listed)
        if shared == address and int(shared_port) in ports
    }
