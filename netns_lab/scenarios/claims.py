"""With coexist = refuse a tuple is refused as long as a NAT flow's conntrack entry holds it, and no longer."""

import time

from netns_lab.scenario import scenario
from netns_lab.stage import AT_ONCE_S, REFUSAL, SLICE, Stage

# Long enough to look around in, short enough to wait for.
CLOSED_FOR_S = 8
SHORT_TIME_WAIT = f"""
[controller.timeouts]
tcp_time_wait = {CLOSED_FOR_S}
"""


@scenario("claim-ends", "a tuple is refused while its flow lives or is in TIME_WAIT, and free once the entry is gone")
def claim_ends(stage: Stage) -> None:
    """A client connects and closes; a local socket asks for its port three times."""
    with stage.step(f"Closed connections hold their port for {CLOSED_FOR_S} seconds"):
        stage.apply(coexist="refuse", guard="drop", extra=SHORT_TIME_WAIT)
        flow = stage.client_flow()
        stage.expect("port that NAT gave the client", flow.wire_port, SLICE)
        port = flow.wire_port or 0
    with stage.step("While the connection lives"):
        stage.expect("its entry", _states(stage, port), "ESTABLISHED")
        _refused(stage, port)
    with stage.step("After the client has closed it"):
        flow.socket.close()
        _refused(stage, port)
        stage.expect("its entry", _states(stage, port), "TIME_WAIT")
    with stage.step("When conntrack has forgotten it"):
        _wait_until_forgotten(stage, port)
        local = stage.local_app(port)
        stage.expect("the local socket gets an answer", local.works)
        stage.expect("port that the upstream sees", local.wire_port, port)
        stage.expect("packets that left the slice", stage.lab.leaks().total, 0)


@scenario("claims-seeded", "a switch from off to refuse knows the NAT flows that are there already")
def claims_seeded(stage: Stage) -> None:
    """The table that refuses is younger than the flow."""
    with stage.step("A client connects without protection"):
        stage.apply(coexist="off", guard="off")
        flow = stage.client_flow()
        stage.expect("port that NAT gave the client", flow.wire_port, SLICE)
    with stage.step("The way to share the slice is changed"):
        stage.apply(coexist="refuse", guard="drop")
        stage.expect("the client still gets answers", flow.talks())
        _refused(stage, flow.wire_port or 0)
        stage.expect("packets that left the slice", stage.lab.leaks().total, 0)


@scenario("claims-lost", "without its claim a tuple is not refused: confine stands behind, nothing leaks or hangs")
def claims_lost(stage: Stage) -> None:
    """Claims can be lost: by hand, or because their set is full."""
    with stage.step("A client connects, and its claim is deleted by hand"):
        stage.apply(coexist="refuse", guard="drop")
        flow = stage.client_flow()
        stage.expect("port that NAT gave the client", flow.wire_port, SLICE)
        time.sleep(0.2)  # the client's last acknowledgement, were it late, would claim the tuple anew
        stage.run("nft", "flush", "set", "inet", "natctl", "claims4")
    with stage.step("A local socket wants its port"):
        local = stage.local_app(flow.wire_port or 0)
        stage.expect("the local socket gets an answer", local.works)
        stage.expect("port that the upstream sees", local.wire_port, SLICE)
        stage.expect("which is another one", local.wire_port != flow.wire_port)
        stage.expect("packets that left the slice", stage.lab.leaks().total, 0)


def _refused(stage: Stage, port: int) -> None:
    local = stage.local_app(port)
    stage.expect(f"what a local socket on port {port} is told", local.error, REFUSAL["tcp"])
    stage.expect("at once", local.seconds < AT_ONCE_S)
    local.end()


def _states(stage: Stage, port: int, *, told: bool = True) -> str:
    flows = stage.flows("--port", str(port), "--origin", "forwarded", told=told)
    return ", ".join(flow["state"] for flow in flows) or "none"


def _wait_until_forgotten(stage: Stage, port: int) -> None:
    deadline = time.monotonic() + 4 * CLOSED_FOR_S
    while _states(stage, port, told=False) != "none" and time.monotonic() < deadline:
        time.sleep(0.2)
    stage.expect("its entry", _states(stage, port), "none")
