"""How NAT finds a port: each destination has all of the slice, and the search gives up early in a large one."""

from collections.abc import Collection, Iterable
from contextlib import closing

from nat_rewriter.model.slices import PortRange
from netns_lab.scenario import scenario
from netns_lab.stage import SLICE, TCP_PORT, UDP_PORT, Stage
from netns_lab.topology import CLIENT, SERVER, SERVER_6, SOFT_ADDRESS

LARGE = PortRange(20000, 22047)
FREE, ASKING = 48, 30
CLIENTS = "10.0.0.{}"
PINGS = (("icmp", SERVER, "10.0.0.{}"), ("icmpv6", SERVER_6, "2001:db8:10::{}"))
# An unanswered datagram holds its port for as long as the scenario takes.
PATIENT = """
[controller.timeouts]
udp_unreplied = 300
"""


@scenario("exhaustion", "a full slice drops new connections to that server in silence; another server still works")
def exhaustion(stage: Stage) -> None:
    """Fill the slice towards one server, then ask for one more, here and elsewhere."""
    with stage.step("Ten connections fill the slice"):
        stage.apply(coexist="confine", guard="drop")
        flows = [stage.client_flow() for _ in range(len(SLICE))]
        stage.expect("connections that work", sum(flow.works for flow in flows), len(SLICE))
        ports = sorted({flow.wire_port or 0 for flow in flows})
        stage.expect("ports in use", ports, list(range(SLICE.first, SLICE.last + 1)))
    with stage.step("One more to the same server"):
        stage.expect("it gets an answer", stage.client_flow(timeout_s=0.5).works, False)
    with stage.step("One more to another server"):
        stage.expect("it gets an answer", stage.client_flow(server="203.0.113.2").works)
    with stage.step("natctl says so"):
        (finding,) = stage.check("slice-exhausted")
        stage.expect("the full destination", finding["destination"], f"{SERVER}:{TCP_PORT}")


@scenario(
    "search-contiguous",
    "of 48 free ports in a row among 2048, most new flows find none: the kernel stops looking",
    slices=[f"{SOFT_ADDRESS}:{LARGE}"],
)
def search_contiguous(stage: Stage) -> None:
    """The search starts anywhere, and gives up after at most 128 ports in a row, a few times."""
    found = _ask_for_ports(stage, "in a row", range(LARGE.first + 1000, LARGE.first + 1000 + FREE))
    stage.expect("that find a port", found, PortRange(0, ASKING // 2))
    stage.say("A port that is free is not always found: see slice-pressure.")


@scenario(
    "search-scattered",
    "of 48 free ports scattered over 2048, nearly every new flow finds one",
    slices=[f"{SOFT_ADDRESS}:{LARGE}"],
)
def search_scattered(stage: Stage) -> None:
    """As many ports are free as in search-contiguous, and a free one is never far."""
    found = _ask_for_ports(stage, "scattered", range(LARGE.first, LARGE.last, len(LARGE) // FREE)[:FREE])
    stage.expect("that find a port", found, PortRange(ASKING * 4 // 5, ASKING))


@scenario("icmp-ids", "pings of several clients get ids of the slice, and their answers", clients=3)
def icmp_ids(stage: Stage) -> None:
    """Three clients ping with the same id, in both IP versions."""
    with stage.step("A slice is shared, echo ids included"):
        stage.apply(coexist="confine", guard="drop")
    for protocol, server, clients in PINGS:
        with stage.step(f"Three clients ping {server} with id 77"):
            ids = [_wire_id(stage, protocol, server, clients.format(number)) for number in (2, 3, 4)]
            stage.expect("different ids", len(set(ids)), 3)
    stage.expect("packets that left the slice", stage.lab.leaks().total, 0)


def _ask_for_ports(stage: Stage, how: str, free: Collection[int]) -> int:
    """Hold all ports but the free ones towards one server; return how many of some new flows find one."""
    with stage.step(f"{len(LARGE) - len(free)} flows to one server leave {len(free)} ports free, {how}"):
        stage.apply(coexist="confine", guard="drop", extra=PATIENT)
        stage.say("Each client port lies in the slice and is free, so NAT keeps it: the flows are where we want them.")
        taken = sorted(set(range(LARGE.first, LARGE.last + 1)) - set(free))
        _send_from(stage, taken)
        stage.expect("ports in use", _used(stage), len(taken))
        (finding,) = stage.check("slice-pressure")
        stage.expect("the destination under pressure", finding["destination"], f"{SERVER}:{UDP_PORT}")
    with stage.step(f"{ASKING} new flows to that server"):
        _send_from(stage, range(40001, 40001 + ASKING))
        stage.expect("packets that left the slice", stage.lab.leaks().total, 0)
        return _used(stage) - len(taken)


def _send_from(stage: Stage, ports: Iterable[int]) -> None:
    """Send a datagram to the server from each of these ports of the client."""
    for port in ports:
        with closing(stage.lab.client.udp_connect((SERVER, UDP_PORT), src=(CLIENT, port))) as sock:
            sock.send(b"natctl")


def _used(stage: Stage) -> int:
    (use,) = stage.status()["busiest"]
    return int(use["used"])


def _wire_id(stage: Stage, protocol: str, server: str, client: str) -> int | None:
    seen = len(stage.wire.packets())
    stage.expect(f"{client} gets an answer", stage.lab.client.ping(server, src=client, ident=77))
    ident = stage.wire_port(protocol, server, after=seen)
    stage.expect("id that the upstream sees", ident, SLICE)
    return ident
