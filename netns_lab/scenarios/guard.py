"""The guard: what the way to share a slice does not prevent must not leave the host."""

from netns_lab.scenario import scenario
from netns_lab.stage import SLICE, LocalApp, Stage
from netns_lab.story import Outside
from netns_lab.topology import SERVER, SOFT_ADDRESS


@scenario("guard-drop", "with guard = drop nothing leaves a soft-unicast address outside its slices")
def guard_drop(stage: Stage) -> None:
    """A leak of a collision, and a socket on a port that was never ours."""
    with stage.step("A collision without confine, but with the guard"):
        stage.apply(coexist="off", guard="drop")
        local = _collide(stage)
        stage.expect("port that the upstream sees", local.wire_port, None)
    with stage.step("A socket on port 8999, which is another host's"):
        probe = stage.lab.egress.tcp_start((SERVER, 443), src=(SOFT_ADDRESS, 8999))
        stage.expect("port that getsockname() says", probe.getsockname()[1], 8999)
        stage.expect("packets that left the slice", stage.lab.leaks().total, 0)
    with stage.step("natctl status lists what was caught"):
        caught = {stray["tuple"]["sport"] for stray in stage.strays()}
        stage.expect("the foreign port is among them", 8999 in caught)
        stage.say("What the collision was rewritten to: each retry of a dropped SYN gets another port.")
        for port in sorted(caught - {8999}) or [None]:
            stage.expect("port on the wire, had it got there", port, Outside(SLICE))


@scenario("guard-count", "with guard = count leaks leave the host, and are recorded")
def guard_count(stage: Stage) -> None:
    """The same collision, watched only."""
    with stage.step("A collision without confine, and a guard that only counts"):
        stage.apply(coexist="off", guard="count")
        local = _collide(stage)
        stage.expect("port that the upstream sees", local.wire_port, Outside(SLICE))
        stage.expect("packets that left the slice", stage.lab.leaks().total > 0)
    with stage.step("natctl status lists them"):
        (stray,) = stage.strays()
        stage.expect("port on the wire", stray["tuple"]["sport"], local.wire_port)
        stage.expect("destination", (stray["tuple"]["dst"], stray["tuple"]["dport"]), (SERVER, 443))
        stage.expect("packets", stray["packets"] > 0)


def _collide(stage: Stage) -> LocalApp:
    flow = stage.client_flow()
    stage.expect("the client gets an answer", flow.works)
    local = stage.local_app(flow.wire_port or 0, timeout_s=0.5)
    stage.expect("the local socket gets an answer", local.works, False)
    return local
