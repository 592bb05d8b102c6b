"""Unsolicited connections to ports of the slice go to a client."""

from netns_lab.host import round_trip
from netns_lab.scenario import scenario
from netns_lab.stage import Stage
from netns_lab.topology import CLIENT, SERVER, SOFT_ADDRESS

INBOUND = f"""
[[dnat]]
name = "inbound"
slice = "ams-1"
ports = ["9000-9004"]
to = "{CLIENT}"
"""


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


def _refusal(stage: Stage) -> str:
    try:
        stage.lab.server.tcp_connect((SOFT_ADDRESS, 9005), timeout_s=1)
    except ConnectionRefusedError:
        return "connection refused"
    except TimeoutError:
        return "nothing"
    return "a connection"
