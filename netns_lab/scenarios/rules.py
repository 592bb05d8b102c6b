"""Which packets are rewritten, and where to: rules in file order, what is excluded, options, and the way in."""

from nat_rewriter.model.slices import PortRange
from netns_lab.capture import SYN
from netns_lab.host import round_trip
from netns_lab.scenario import scenario
from netns_lab.stage import SLICE, TCP_PORT, Stage
from netns_lab.topology import CLIENT, SERVER, SOFT_ADDRESS

OTHER_SERVER, OTHER_CLIENT = "203.0.113.2", "10.0.0.3"
FIRST, SECOND = PortRange(9000, 9004), PortRange(9005, 9009)
TWO_SLICES = f"""
version = 1

[[slice]]
name = "ams-1"
address = "{SOFT_ADDRESS}"
ports = ["{FIRST}"]

[[slice]]
name = "ams-2"
address = "{SOFT_ADDRESS}"
ports = ["{SECOND}"]
"""
ONE_CLIENT = f"""
[[snat]]
name = "one"
source = ["{OTHER_CLIENT}"]
slices = ["ams-2"]
"""
ALL_CLIENTS = """
[[snat]]
name = "all"
iifname = "fish0"
slices = ["ams-1"]
"""
INBOUND = f"""
[[dnat]]
name = "inbound"
slice = "ams-1"
ports = ["9000-9004"]
to = "{CLIENT}"
"""
INBOUND_TO_80 = INBOUND.replace(CLIENT, f"{CLIENT}:80")


@scenario("first-match", "the first rule that matches decides, in the order of the file", clients=2)
def first_match(stage: Stage) -> None:
    """A rule for one client before, and then after, a rule for all of them."""
    with stage.step(f"A rule for {OTHER_CLIENT}, then one for all clients"):
        stage.apply_text(TWO_SLICES + ONE_CLIENT + ALL_CLIENTS)
        stage.expect(f"port of {CLIENT}", _wire_port(stage, CLIENT, 5000), FIRST)
        stage.expect(f"port of {OTHER_CLIENT}", _wire_port(stage, OTHER_CLIENT, 5000), SECOND)
    with stage.step("The same rules the other way round"):
        stage.apply_text(TWO_SLICES + ALL_CLIENTS + ONE_CLIENT)
        stage.expect(f"port of {OTHER_CLIENT}", _wire_port(stage, OTHER_CLIENT, 5001), FIRST)


@scenario("exclude", "packets to an excluded destination keep their source address")
def exclude(stage: Stage) -> None:
    """Two servers, one of them excluded."""
    with stage.step(f"{OTHER_SERVER} is excluded"):
        stage.apply(coexist="confine", guard="drop", snat_keys=f'exclude = ["{OTHER_SERVER}"]')
    with stage.step("A client talks to both servers"):
        stage.expect(f"source towards {SERVER}", _seen_source(stage, CLIENT, SERVER), SOFT_ADDRESS)
        stage.expect(f"source towards {OTHER_SERVER}", _seen_source(stage, CLIENT, OTHER_SERVER), CLIENT)


@scenario("exclude-source", "packets of an excluded source keep their source address", clients=2)
def exclude_source(stage: Stage) -> None:
    """Two clients, one of them excluded."""
    with stage.step(f"{OTHER_CLIENT} is excluded"):
        stage.apply(coexist="confine", guard="drop", snat_keys=f'exclude_source = ["{OTHER_CLIENT}"]')
    with stage.step("Each client talks to a server"):
        stage.expect(f"source of {CLIENT}", _seen_source(stage, CLIENT, SERVER), SOFT_ADDRESS)
        stage.expect(f"source of {OTHER_CLIENT}", _seen_source(stage, OTHER_CLIENT, OTHER_SERVER), OTHER_CLIENT)


@scenario("timestamps", "timestamps = strip takes the TCP timestamp option from forwarded SYNs, and from no others")
def timestamps(stage: Stage) -> None:
    """Look at SYNs on the wire."""
    with stage.step("As usual"):
        stage.apply(coexist="confine", guard="drop", snat_keys='timestamps = "keep"')
        flow = stage.client_flow()
        stage.expect("the client's SYN has a timestamp", _timestamp(stage, flow.wire_port))
    with stage.step("Stripped"):
        stage.apply(coexist="confine", guard="drop", snat_keys='timestamps = "strip"')
        flow = stage.client_flow()
        stage.expect("the client gets an answer", flow.works)
        stage.expect("the client's SYN has a timestamp", _timestamp(stage, flow.wire_port), False)
    with stage.step("A local socket is not concerned"):
        free = next(port for port in range(9000, 9010) if port not in stage.wire.sources(SOFT_ADDRESS))
        local = stage.local_app(free)
        stage.expect("the local socket gets an answer", local.works)
        stage.expect("its SYN has a timestamp", _timestamp(stage, local.wire_port))


@scenario("dnat", "a connection from outside to a port of the slice reaches the client behind it")
def dnat(stage: Stage) -> None:
    """Half of the slice is open to the world, the other half is not."""
    service = stage.lab.client.tcp_server(9000)
    with stage.step("Ports 9000-9004 go to the client"):
        stage.apply(coexist="confine", guard="drop", extra=INBOUND)
        visitor = stage.lab.server.tcp_connect((SOFT_ADDRESS, 9000))
        stage.expect("the visitor gets an answer", round_trip(visitor))
        stage.expect("the client sees the visitor", service.wait_for_peers(1)[0], (SERVER, visitor.getsockname()[1]))
    with stage.step("Port 9005 does not"):
        stage.expect("what the visitor gets", _refusal(stage), "connection refused")
    stage.expect("packets that left the slice", stage.lab.leaks().total, 0)


@scenario("dnat-port", "connections from outside to several ports of the slice reach one port of the client")
def dnat_port(stage: Stage) -> None:
    """A web server behind five ports."""
    service = stage.lab.client.tcp_server(80)
    with stage.step("Ports 9000-9004 go to port 80 of the client"):
        stage.apply(coexist="confine", guard="drop", extra=INBOUND_TO_80)
        for number, port in enumerate((9000, 9004), 1):
            visitor = stage.lab.server.tcp_connect((SOFT_ADDRESS, port))
            stage.expect(f"the visitor to port {port} gets an answer", round_trip(visitor))
            stage.expect("visitors on port 80", len(service.wait_for_peers(number)), number)
    with stage.step("The client may use the slice as well"):
        flow = stage.client_flow()
        stage.expect("the client gets an answer", flow.works)
        stage.expect("port that NAT gave the client", flow.wire_port, SLICE)
    stage.expect("packets that left the slice", stage.lab.leaks().total, 0)


def _wire_port(stage: Stage, client: str, port: int) -> int | None:
    flow = stage.client_flow(src=(client, port))
    stage.expect(f"{client} gets an answer", flow.works)
    return flow.wire_port


def _seen_source(stage: Stage, client: str, server: str) -> str:
    """Let a client begin a connection, and return the source address that the upstream sees."""
    stage.lab.client.tcp_start((server, TCP_PORT), src=(client, 0))
    arrived = stage.wire.wait_for(lambda packet: packet.tuple.protocol == "tcp" and str(packet.tuple.dst) == server)
    return str(arrived.tuple.src) if arrived else "nothing"


def _timestamp(stage: Stage, port: int | None) -> bool:
    """Tell whether the SYN from a port of the slice had a timestamp on the wire."""
    syns = [
        packet for packet in stage.wire.packets()
        if packet.flags & SYN and (str(packet.tuple.src), packet.tuple.sport) == (SOFT_ADDRESS, port)
    ]  # fmt: skip
    return syns[-1].timestamp


def _refusal(stage: Stage) -> str:
    try:
        stage.lab.server.tcp_connect((SOFT_ADDRESS, 9005), timeout_s=1)
    except ConnectionRefusedError:
        return "connection refused"
    except TimeoutError:
        return "nothing"
    return "a connection"
