"""A NAT flow holds a port of the slice; then a local socket wants the same port to the same server."""

from netns_lab.scenario import scenario
from netns_lab.stage import AT_ONCE_S, REFUSAL, SLICE, Stage
from netns_lab.story import Outside
from netns_lab.topology import CLIENT, SERVER, SERVER_6


@scenario("collision-tcp-off", "without protection a local TCP connection leaves the slice, unnoticed, and hangs")
def tcp_off(stage: Stage) -> None:
    """Show the silent rewrite for TCP."""
    collide_unprotected(stage, "tcp")


@scenario("collision-udp-off", "without protection local UDP datagrams leave the slice, and the answers are lost")
def udp_off(stage: Stage) -> None:
    """Show the silent rewrite for UDP."""
    collide_unprotected(stage, "udp")


@scenario("collision-tcp-confine", "with confine the local TCP connection works, on another port of the slice")
def tcp_confine(stage: Stage) -> None:
    """Show the answer for TCP."""
    collide_confined(stage, "tcp", SERVER)


@scenario("collision-udp-confine", "with confine the local UDP socket works, on another port of the slice")
def udp_confine(stage: Stage) -> None:
    """Show the answer for UDP."""
    collide_confined(stage, "udp", SERVER)


@scenario("ipv6-confine", "confine keeps an IPv6 slice whole as well")
def ipv6_confine(stage: Stage) -> None:
    """Show the answer for TCP over IPv6."""
    collide_confined(stage, "tcp", SERVER_6)


@scenario("collision-tcp-refuse", "with refuse the local TCP connection fails at once, and wins with another port")
def tcp_refuse(stage: Stage) -> None:
    """Show the refusal for TCP."""
    collide_refused(stage, "tcp", SERVER)


@scenario("collision-udp-refuse", "with refuse the first UDP datagram fails at once, and another port works")
def udp_refuse(stage: Stage) -> None:
    """Show the refusal for UDP."""
    collide_refused(stage, "udp", SERVER)


@scenario("ipv6-refuse", "refuse tells sockets of an IPv6 slice as well")
def ipv6_refuse(stage: Stage) -> None:
    """Show the refusal for TCP over IPv6."""
    collide_refused(stage, "tcp", SERVER_6)


@scenario("socket-first", "a connected local socket keeps its port: NAT takes another for the client")
def socket_first(stage: Stage) -> None:
    """A client whose own port is 9000 would keep it, were it free."""
    with stage.step("A local socket connects from port 9000"):
        stage.apply(coexist="confine", guard="drop")
        local = stage.local_app(9000)
        stage.expect("the local socket gets an answer", local.works)
        stage.expect("port that the upstream sees", local.wire_port, 9000)
    with stage.step("A client connects to the same server, from port 9000 of its own"):
        flow = stage.client_flow(src=(CLIENT, 9000))
        stage.expect("the client gets an answer", flow.works)
        stage.expect("port that NAT gave the client", flow.wire_port, SLICE)
        stage.expect("which is another one", flow.wire_port != 9000)
    with stage.step("natctl finds nothing wrong"):
        stage.check()


def collide_unprotected(stage: Stage, protocol: str) -> None:
    """Let a local socket collide with a NAT flow, and lose."""
    with stage.step("A slice is shared without protection"):
        stage.apply(coexist="off", guard="off")
        flow = stage.client_flow(protocol)
        stage.expect("port that NAT gave the client", flow.wire_port, SLICE)
        stage.expect("the client gets an answer", flow.works)
    with stage.step(f"A local socket binds port {flow.wire_port} too, and talks to the same server"):
        local = stage.local_app(flow.wire_port or 0, protocol, timeout_s=1)
        stage.expect("port that getsockname() says", local.port, flow.wire_port)
        stage.expect("port that the upstream sees", local.wire_port, Outside(SLICE))
        stage.expect("the local socket gets an answer", local.works, False)
        stage.expect("packets that left the slice", stage.lab.leaks().total > 0)
    with stage.step("natctl says so"):
        (finding,) = stage.check("port-leaked")
        stage.expect("victim's process id", finding["victim"]["pid"], local.pid)
        stage.expect("port on the wire", finding["wire_sport"], local.wire_port)


def collide_confined(stage: Stage, protocol: str, server: str) -> None:
    """Let a local socket collide with a NAT flow, and be moved inside the slice."""
    with stage.step("A slice is shared with coexist = confine"):
        stage.apply(coexist="confine", guard="drop")
        flow = stage.client_flow(protocol, server=server)
        stage.expect("port that NAT gave the client", flow.wire_port, SLICE)
    with stage.step(f"A local socket binds port {flow.wire_port} too, and talks to the same server"):
        local = stage.local_app(flow.wire_port or 0, protocol, server=server)
        stage.expect("the local socket gets an answer", local.works)
        stage.expect("port that getsockname() says", local.port, flow.wire_port)
        stage.expect("port that the upstream sees", local.wire_port, SLICE)
        stage.expect("which is another one", local.wire_port != flow.wire_port)
        stage.expect("packets that left the slice", stage.lab.leaks().total, 0)
    with stage.step("natctl says so"):
        (finding,) = stage.check("port-remapped")
        stage.expect("victim's process id", finding["victim"]["pid"], local.pid)
        stage.expect("port on the wire", finding["wire_sport"], local.wire_port)


def collide_refused(stage: Stage, protocol: str, server: str) -> None:
    """Let a local socket collide with a NAT flow, be told, and choose another port."""
    with stage.step("A slice is shared with coexist = refuse"):
        stage.apply(coexist="refuse", guard="drop")
        flow = stage.client_flow(protocol, server=server)
        stage.expect("port that NAT gave the client", flow.wire_port, SLICE)
        taken = flow.wire_port or 0
    with stage.step(f"A local socket binds port {taken} too, and talks to the same server"):
        local = stage.local_app(taken, protocol, server=server)
        stage.expect("what the local socket is told", local.error, REFUSAL[protocol])
        stage.expect("at once", local.seconds < AT_ONCE_S)
        stage.expect("port that the upstream sees", local.wire_port, None)
        local.end()
    with stage.step("It tries the next port"):
        other = SLICE.first + (taken + 1 - SLICE.first) % len(SLICE)
        local = stage.local_app(other, protocol, server=server)
        stage.expect("the local socket gets an answer", local.works)
        stage.expect("port that getsockname() says", local.port, other)
        stage.expect("port that the upstream sees", local.wire_port, other)
        stage.expect("the client still gets answers", flow.talks())
        stage.expect("packets that left the slice", stage.lab.leaks().total, 0)
    with stage.step("natctl finds nothing wrong"):
        stage.check()
