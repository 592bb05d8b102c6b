"""The guard: what confine does not prevent must not leave the host."""

from netns_lab.scenario import scenario
from netns_lab.stage import Stage
from netns_lab.topology import SERVER, SOFT_ADDRESS


@scenario("guard-drop", "with guard = drop nothing leaves a soft-unicast address outside its slices")
def guard_drop(stage: Stage) -> None:
    """A leak of a collision, and a socket on a port that was never ours."""
    with stage.step("A collision without confine, but with the guard"):
        stage.apply(coexist="off", guard="drop")
        flow = stage.client_flow()
        stage.expect("the client gets an answer", flow.works)
        local = stage.local_app(flow.wire_port or 0, timeout_s=0.5)
        stage.expect("the local socket gets an answer", local.works, False)
        stage.expect("port that the upstream sees", local.wire_port, None)
    with stage.step("A socket on port 8999, which is another host's"):
        probe = stage.lab.egress.tcp_start((SERVER, 443), src=(SOFT_ADDRESS, 8999))
        stage.expect("port that getsockname() says", probe.getsockname()[1], 8999)
        stage.expect("packets that left the slice", stage.lab.leaks().total, 0)
