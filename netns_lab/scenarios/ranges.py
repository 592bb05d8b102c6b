"""Slices of several ranges: all of them are used, and a colliding socket may move to another one of its slice."""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing

from nat_rewriter.model.slices import PortRange, PortSet
from netns_lab.scenario import scenario
from netns_lab.stage import Stage
from netns_lab.story import Within
from netns_lab.topology import CLIENT, CLIENT_6, SERVER, SERVER_6, SOFT_ADDRESS, SOFT_ADDRESS_6

RANGES = tuple(PortRange(first, first + 99) for first in (9000, 9200, 9400, 9600))
PAIRS = tuple(PortRange(first, first + 1) for first in range(9000, 9080, 10))
PORT_SET = PortSet(offset=6, length=8, psid=52)
CLIENTS = [f"10.0.0.{number}" for number in range(2, 42)]
CLIENTS_6 = [f"2001:db8:10::{number:x}" for number in range(2, 42)]
FLOWS = 80
# Of 80 flows 20 are expected in each range; fewer than 4 happen once in a million runs.
SHARE = PortRange(4, 50)
MOST = PortRange(FLOWS * 3 // 4, FLOWS)
ANOTHER_SLICE = """
[[slice]]
name = "another"
address = "198.51.100.99"
ports = ["7000-7009"]
"""
PSID = f"""
version = 1

[controller]
coexist = "confine"

[[slice]]
name = "map-e"
address = "{SOFT_ADDRESS}"
psid = {{ offset = {PORT_SET.offset}, length = {PORT_SET.length}, id = {PORT_SET.psid} }}

[[snat]]
name = "clients"
source = ["10.0.0.0/24"]
slices = ["map-e"]
spread = "random"
"""


def spec(address: str, ranges: Iterable[PortRange]) -> str:
    """Return a slice as the lab wants it described."""
    return f"{address}:{','.join(map(str, ranges))}"


FOUR_RANGES = [spec(SOFT_ADDRESS, RANGES)]
FOUR_RANGES_6 = [spec(f"[{SOFT_ADDRESS_6}]", RANGES)]


@scenario(
    "spread-client",
    "with spread = client every range is used, and a client keeps its range, whatever else changes",
    slices=FOUR_RANGES,
    clients=len(CLIENTS),
)
def spread_client(stage: Stage) -> None:
    """Forty clients, two servers, and an apply that does not concern them."""
    spread_by_client(stage, SERVER, CLIENTS)


@scenario(
    "ipv6-spread-client",
    "the ranges of an IPv6 slice are all used, and a client keeps its own",
    slices=FOUR_RANGES_6,
    clients=len(CLIENTS_6),
)
def ipv6_spread_client(stage: Stage) -> None:
    """The same for IPv6."""
    spread_by_client(stage, SERVER_6, CLIENTS_6)


@scenario("spread-flow", "with spread = flow one client uses every range", slices=FOUR_RANGES)
def spread_flow(stage: Stage) -> None:
    """A hash of addresses and ports decides."""
    spread_one_client(stage, "flow", SERVER, CLIENT)


@scenario("ipv6-spread-flow", "with spread = flow one client uses every range of an IPv6 slice", slices=FOUR_RANGES_6)
def ipv6_spread_flow(stage: Stage) -> None:
    """The same for IPv6."""
    spread_one_client(stage, "flow", SERVER_6, CLIENT_6)


@scenario("spread-random", "with spread = random one client uses every range", slices=FOUR_RANGES)
def spread_random(stage: Stage) -> None:
    """Chance decides."""
    spread_one_client(stage, "random", SERVER, CLIENT)


@scenario(
    "spill", "confine moves a local socket to another range of its slice when its own is full",
    slices=[spec(SOFT_ADDRESS, PAIRS)],
)  # fmt: skip
def spill(stage: Stage) -> None:
    """Eight ranges of two ports each; NAT flows fill the one that the socket is in."""
    move_to_other_range(stage, SERVER, CLIENT)


@scenario(
    "ipv6-spill", "confine does so in an IPv6 slice as well", slices=[spec(f"[{SOFT_ADDRESS_6}]", PAIRS)]
)  # fmt: skip
def ipv6_spill(stage: Stage) -> None:
    """The same for IPv6."""
    move_to_other_range(stage, SERVER_6, CLIENT_6)


@scenario(
    "psid", "a slice given as a port set of RFC 7597 stays in its set", slices=[spec(SOFT_ADDRESS, PORT_SET.ranges())]
)
def psid(stage: Stage) -> None:
    """63 ranges of 4 ports each."""
    owned = Within(PORT_SET.ranges())
    with stage.step("A slice is shared that is given as offset, length and id"):
        stage.apply_text(PSID)
    with stage.step(f"A client sends {FLOWS} datagrams, each from another port"):
        ports = _wire_ports(stage, SERVER, [(CLIENT, 40000 + number) for number in range(FLOWS)])
        left = [port for port in ports if port is not None]
        stage.expect("datagrams that leave: all but those that draw a range that is full", len(left), MOST)
        stage.expect("their ports in the set", sum(port in owned for port in left), len(left))
        used = sum(any(port in ports_of for port in ports) for ports_of in owned.ranges)
        stage.expect(f"ranges used, of {len(owned.ranges)}", used, PortRange(20, len(owned.ranges)))
    with stage.step("A local socket wants the port of one of them"):
        flow = stage.client_flow()
        local = stage.local_app(flow.wire_port or 0)
        stage.expect("the local socket gets an answer", local.works)
        stage.expect("port that the upstream sees is in the set", local.wire_port in owned)
        stage.expect("which is another one", local.wire_port != flow.wire_port)
        stage.expect("packets that left the slice", stage.lab.leaks().total, 0)


def spread_by_client(stage: Stage, server: str, clients: Sequence[str]) -> None:
    """Compare the ranges that clients are given at three times."""
    other_server = server[:-1] + "2"
    with stage.step(f"A slice of four ranges is shared by {len(clients)} clients"):
        stage.apply(coexist="confine", guard="drop", snat_keys='spread = "client"')
        before = _ranges(stage, server, [(client, 5000) for client in clients])
        _expect_shares(stage, before, PortRange(1, len(clients)))
    with stage.step("The same clients talk to another server"):
        again = _ranges(stage, other_server, [(client, 5001) for client in clients])
        stage.expect("clients that kept their range", _same(before, again), len(clients))
    with stage.step("Something else changes: another slice, and another way to share"):
        stage.apply(coexist="refuse", guard="drop", snat_keys='spread = "client"', extra=ANOTHER_SLICE)
        after = _ranges(stage, other_server, [(client, 5002) for client in clients])
        stage.expect("clients that kept their range", _same(before, after), len(clients))
        stage.expect("packets that left the slice", stage.lab.leaks().total, 0)


def spread_one_client(stage: Stage, spread: str, server: str, client: str) -> None:
    """Count the flows of one client in each range."""
    with stage.step("A slice of four ranges is shared"):
        stage.apply(coexist="confine", guard="drop", snat_keys=f'spread = "{spread}"')
    with stage.step(f"One client sends {FLOWS} datagrams, each from another port"):
        used = _ranges(stage, server, [(client, 40000 + number) for number in range(FLOWS)])
        _expect_shares(stage, used, SHARE)
        stage.expect("packets that left the slice", stage.lab.leaks().total, 0)


def move_to_other_range(stage: Stage, server: str, client: str) -> None:
    """Fill a range with the flows of a client, which keeps its range; then let a socket want a port of it."""
    with stage.step(f"A slice of {len(PAIRS)} ranges of two ports each is shared"):
        stage.apply(coexist="confine", guard="drop", snat_keys='spread = "client"')
    with stage.step("Two connections of one client fill one range"):
        ports = sorted(stage.client_flow(server=server, src=(client, 0)).wire_port or 0 for _ in range(2))
        own = next(ports_of for ports_of in PAIRS if ports[0] in ports_of)
        stage.expect("ports in use", ports, [own.first, own.last])
    with stage.step(f"A local socket binds port {own.first} and talks to the same server"):
        others = tuple(ports_of for ports_of in PAIRS if ports_of != own)
        # A range is drawn for each SYN; one that draws the full range is dropped, and sent again 1, 3 and 7 s later.
        local = stage.local_app(own.first, server=server, timeout_s=10)
        stage.expect("the local socket gets an answer", local.works)
        stage.expect("port that the upstream sees", local.wire_port, Within(others))
        stage.expect("packets that left the slice", stage.lab.leaks().total, 0)


def _expect_shares(stage: Stage, used: Sequence[PortRange | None], share: PortRange) -> None:
    counts = Counter(used)
    for ports in RANGES:
        stage.expect(f"of {len(used)}, in range {ports}", counts[ports], share)
    stage.expect("in no range", counts[None], 0)


def _same(before: Sequence[PortRange | None], after: Sequence[PortRange | None]) -> int:
    return sum(one == other for one, other in zip(before, after, strict=True))


def _ranges(stage: Stage, server: str, sources: Iterable[tuple[str, int]]) -> list[PortRange | None]:
    """Return the range in which the upstream sees each source."""
    ports = _wire_ports(stage, server, sources)
    return [next((ports_of for ports_of in RANGES if port in ports_of), None) for port in ports]


def _wire_ports(stage: Stage, server: str, sources: Iterable[tuple[str, int]]) -> list[int | None]:
    """Send a datagram from each source; return the port that each has on the wire."""
    flows = [stage.client_flow("udp", server=server, src=source, timeout_s=0.5) for source in sources]
    for flow in flows:
        with closing(flow.socket):
            pass
    return [flow.wire_port for flow in flows]
