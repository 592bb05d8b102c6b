"""With coexist = split, socket_ports are for sockets and the rest of the slice is for rewriting."""

from nat_rewriter.model.slices import PortRange
from netns_lab.scenario import scenario
from netns_lab.stage import AT_ONCE_S, REFUSAL, Flow, Stage
from netns_lab.topology import CLIENT, CLIENT_6, SERVER, SERVER_6

FOR_REWRITING, FOR_SOCKETS = PortRange(9000, 9007), PortRange(9008, 9009)
SOCKET_PORTS = f'socket_ports = ["{FOR_SOCKETS}"]'


@scenario("split-tcp", "split keeps TCP sockets and NAT flows apart")
def split_tcp(stage: Stage) -> None:
    """Show both sides for TCP."""
    keep_apart(stage, "tcp", SERVER, CLIENT)


@scenario("split-udp", "split keeps UDP sockets and NAT flows apart")
def split_udp(stage: Stage) -> None:
    """Show both sides for UDP."""
    keep_apart(stage, "udp", SERVER, CLIENT)


@scenario("ipv6-split", "split divides an IPv6 slice as well")
def ipv6_split(stage: Stage) -> None:
    """Show both sides for TCP over IPv6."""
    keep_apart(stage, "tcp", SERVER_6, CLIENT_6)


def keep_apart(stage: Stage, protocol: str, server: str, client: str) -> None:
    """Let each side want the ports of the other."""
    with stage.step(f"Ports {FOR_SOCKETS} are for sockets"):
        stage.apply(coexist="split", guard="drop", slice_keys=SOCKET_PORTS)
    with stage.step("NAT flows: as many as there are ports for them, and one more"):
        stage.say("The first client asks for a port of the sockets: it sends from port 9008.")
        flows = [_flow(stage, protocol, server, (client, port)) for port in (FOR_SOCKETS.first, *[0] * 7)]
        ports = sorted({flow.wire_port or 0 for flow in flows})
        stage.expect("ports in use", ports, list(range(FOR_REWRITING.first, FOR_REWRITING.last + 1)))
        stage.expect("one more gets an answer", _flow(stage, protocol, server, (client, 0)).works, False)
    with stage.step("Local sockets on their own ports"):
        for port in range(FOR_SOCKETS.first, FOR_SOCKETS.last + 1):
            local = stage.local_app(port, protocol, server=server)
            stage.expect(f"the socket on port {port} gets an answer", local.works)
            stage.expect("port that the upstream sees", local.wire_port, port)
    with stage.step("A local socket on a port for rewriting"):
        local = stage.local_app(FOR_REWRITING.first, protocol, server=server)
        stage.expect("what it is told", local.error, REFUSAL[protocol])
        stage.expect("at once", local.seconds < AT_ONCE_S)
        local.end()
        stage.expect("the clients still get answers", sum(flow.talks() for flow in flows), len(flows))
        stage.expect("packets that left the slice", stage.lab.leaks().total, 0)


def _flow(stage: Stage, protocol: str, server: str, src: tuple[str, int]) -> Flow:
    return stage.client_flow(protocol, server=server, src=src, timeout_s=0.5)
