"""Short connections of many clients through few ports to one server port, which closes first.

The server still has the last connection of a port in TIME_WAIT when another client gets that port, and takes the new
SYN for an old one: the other client's timestamps look older.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.coexist.load import Outcome, connects, serve
from bench.coexist.reuse import CLIENTS, SLICE, short_connections
from bench.coexist.settings import apply, configuration
from netns_lab import Lab
from netns_lab.topology import CLIENT, SERVER, SOFT_ADDRESS

LabFactory = Callable[..., Lab]
SECONDS = 3.0
OTHER_SERVER = "203.0.113.2"


def measured(lab_factory: LabFactory, timestamps: str) -> Outcome:
    lab = lab_factory(slices=[f"{SOFT_ADDRESS}:{SLICE}"], clients=CLIENTS)
    serve(lab.server)
    apply(lab, configuration(lab.slices, timestamps=timestamps))
    return short_connections(lab, SECONDS)


def test_without_timestamps_ports_are_used_again_at_once(lab_factory: LabFactory) -> None:
    kept, stripped = (measured(lab_factory, timestamps) for timestamps in ("keep", "strip"))
    assert (stripped.hung, stripped.broken, stripped.worked) == (0, 0, stripped.begun)
    # Plain rewriting waits for the clients' timers. What is compared with it depends on the processor alone: 40 to 100
    # times as much, on a machine with nothing else to do.
    assert stripped.per_second > 10 * kept.per_second
    assert stripped.slow * 100 < stripped.worked


@pytest.mark.parametrize(("timestamps", "present"), [("keep", True), ("strip", False)])
def test_the_option_is_taken_from_forwarded_syns_alone(lab: Lab, timestamps: str, present: bool) -> None:
    serve(lab.server)
    apply(lab, configuration(lab.slices, timestamps=timestamps))
    option = "tcp flags syn / syn,ack tcp option timestamp exists"
    lab.upstream.nft(
        "table inet seen { counter forwarded { }; counter local { }; chain c { type filter hook forward priority 0;"
        f" ip daddr {SERVER} {option} counter name forwarded;"
        f" ip daddr {OTHER_SERVER} {option} counter name local; }}; }}"
    )
    connects(lab.client, CLIENT, SERVER).outcome()
    connects(lab.egress, SOFT_ADDRESS, OTHER_SERVER, ports="9009-9009").outcome()
    listing = lab.upstream.run(["nft", "list", "counters", "table", "inet", "seen"]).stdout
    packets = [int(line.split()[1]) for line in listing.splitlines() if "packets" in line]
    assert packets == [int(present), 1]
