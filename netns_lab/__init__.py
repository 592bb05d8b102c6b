"""Network namespaces to try natctl in, by hand and in tests: client, egress host, upstream and server."""

from netns_lab.host import Host, round_trip
from netns_lab.lab import Lab, Outcome
from netns_lab.upstream import Leaks

__all__ = ["Host", "Lab", "Leaks", "Outcome", "round_trip"]
