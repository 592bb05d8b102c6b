"""What is established stays: NAT lives in conntrack, whatever becomes of the rules."""

from nat_rewriter.model.slices import PortRange
from netns_lab.host import round_trip
from netns_lab.scenario import scenario
from netns_lab.stage import SLICE, TCP_PORT, Stage
from netns_lab.topology import CLIENT, SERVER, SOFT_ADDRESS

KEPT, WITHDRAWN = PortRange(9000, 9004), PortRange(9005, 9009)
# TCP sends again what was dropped, at intervals that double.
RETRANSMITTED_WITHIN_S = 20


def owning(*ranges: PortRange, guard: str = "count") -> str:
    """Return a configuration with a slice for each range, all of them shared by the clients."""
    slices = "".join(
        f'\n[[slice]]\nname = "from-{ports.first}"\naddress = "{SOFT_ADDRESS}"\nports = ["{ports}"]\n'
        for ports in ranges
    )
    names = ", ".join(f'"from-{ports.first}"' for ports in ranges)
    clients = f'\n[[snat]]\nname = "clients"\nsource = ["10.0.0.0/24"]\nslices = [{names}]\n'
    return f'version = 1\n\n[controller]\nguard = "{guard}"\n{slices}{clients}'


@scenario("withdrawn", "the flows of a withdrawn slice stay on it, and natctl names them; guard = drop cuts them off")
def withdrawn(stage: Stage) -> None:
    """A slice is taken away from under an established connection, and given back."""
    with stage.step("A client has a connection on a slice"):
        stage.apply_text(owning(WITHDRAWN))
        flow = stage.client_flow()
        port = flow.wire_port or 0
        stage.expect("port that NAT gave the client", port, WITHDRAWN)
    with stage.step("Another slice takes its place"):
        stage.apply_text(owning(KEPT))
        stage.expect("the old connection still works", flow.talks())
        newer = stage.client_flow()
        stage.expect("a new connection is on the new slice", newer.wire_port, KEPT)
    with stage.step("natctl says what stayed"):
        (finding,) = stage.check("flow-stranded")
        stage.expect("whose flow", finding["holder"]["src"], CLIENT)
        stage.expect("its port on the wire", finding["wire_sport"], port)
        stage.expect("the guard saw it too", [stray["tuple"]["sport"] for stray in stage.strays()], [port])
    with stage.step("guard = drop cuts it off: it leaves from a port that is not ours"):
        stage.apply_text(owning(KEPT, guard="drop"))
        stage.expect("the old connection works", flow.talks(), False)
        stage.expect("the new connection works", newer.talks())
    with stage.step("The slice comes back"):
        stage.apply_text(owning(KEPT, WITHDRAWN, guard="drop"))
        stage.check()
        flow.socket.settimeout(RETRANSMITTED_WITHIN_S)
        stage.expect("both connections work", flow.talks() and newer.talks())


@scenario("switches", "connections of clients and of local sockets go on through every change of mode and guard")
def switches(stage: Stage) -> None:
    """Walk through the modes and back, with traffic after each step."""
    with stage.step("A client and a local socket are connected"):
        stage.apply(coexist="off", guard="off")
        flow = stage.client_flow()
        stage.expect("port that NAT gave the client", flow.wire_port, SLICE)
        free = next(port for port in (9008, 9009) if port != flow.wire_port)
        local = stage.lab.egress.tcp_connect((SERVER, TCP_PORT), src=(SOFT_ADDRESS, free))
        stage.expect("the local socket gets an answer", round_trip(local))
    for coexist in ("confine", "refuse", "split", "refuse", "confine", "off"):
        with stage.step(f"coexist = {coexist}"):
            keys = 'socket_ports = ["9008-9009"]' if coexist == "split" else ""
            stage.apply(coexist=coexist, guard="drop", slice_keys=keys)
            stage.expect("the client's connection works", flow.talks())
            stage.expect("the local socket's connection works", round_trip(local))
    stage.expect("packets that left the slice", stage.lab.leaks().total, 0)
