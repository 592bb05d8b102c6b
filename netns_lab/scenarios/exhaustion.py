"""Ten ports are ten connections to one server: the eleventh is dropped without a word."""

from netns_lab.scenario import scenario
from netns_lab.stage import SLICE, TCP_PORT, Stage
from netns_lab.topology import SERVER


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
