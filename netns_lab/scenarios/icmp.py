"""Echo ids are numbers of the slice like ports."""

from nat_rewriter.model.slices import PortRange
from netns_lab.scenario import scenario
from netns_lab.stage import SLICE, Stage
from netns_lab.topology import SERVER, SERVER_6

VERSIONS = (("icmp", SERVER, "10.0.0.{}"), ("icmpv6", SERVER_6, "2001:db8:10::{}"))


@scenario("icmp-ids", "pings of several clients get ids of the slice, and their answers", clients=3)
def icmp_ids(stage: Stage) -> None:
    """Three clients ping with the same id, in both IP versions."""
    with stage.step("A slice is shared, echo ids included"):
        stage.apply(coexist="confine", guard="drop")
    for protocol, server, clients in VERSIONS:
        with stage.step(f"Three clients ping {server} with id 77"):
            ids = [_wire_id(stage, protocol, server, clients.format(number)) for number in (2, 3, 4)]
            stage.expect("different ids", len(set(ids)), 3)
    stage.expect("packets that left the slice", stage.lab.leaks().total, 0)


def _wire_id(stage: Stage, protocol: str, server: str, client: str) -> int | None:
    seen = len(stage.wire.packets())
    stage.expect(f"{client} gets an answer", stage.lab.client.ping(server, src=client, ident=77))
    ident = stage.wire_port(protocol, server, after=seen)
    stage.expect("id that the upstream sees", ident, PortRange(SLICE.first, SLICE.last))
    return ident
