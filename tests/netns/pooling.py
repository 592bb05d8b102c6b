"""What tests of agents share: who talks to whom through the slices of a pool."""

from __future__ import annotations

from netns_lab import Lab
from netns_lab.host import round_trip

SERVER, SOFT, CLIENT = "203.0.113.1", "198.51.100.10", "10.0.0.2"
WEB = (SERVER, 443)


def works(lab: Lab) -> bool:
    """Tell whether the client reaches the server with a connection of its own."""
    try:
        with lab.client.tcp_connect(WEB, timeout_s=0.5) as sock:
            return round_trip(sock)
    except OSError:
        return False
