"""The other order: the local socket is first, and NAT walks around it."""

from netns_lab.scenario import scenario
from netns_lab.stage import SLICE, Stage
from netns_lab.topology import CLIENT


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
