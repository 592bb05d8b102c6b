"""The story of the article, told on a real kernel: a port is rewritten in silence, natctl names it, and prevents it."""

from __future__ import annotations

from netns_lab.scenario import Scenario
from netns_lab.stage import SLICE, TCP_PORT, Flow, LocalApp, Stage
from netns_lab.story import Outside
from netns_lab.topology import CLIENT, SERVER, SOFT_ADDRESS


def tell(stage: Stage) -> None:
    """Tell the story; NotAsExpected if any part of it does not happen."""
    stage.say(f"This host owns {SOFT_ADDRESS}:{SLICE}: ten ports of an address that it shares with other hosts.")
    stage.say("The upstream router brings back packets to these ports, and no others.")
    with stage.step("1. The slice is applied, with all protection off"):
        stage.apply(coexist="off", guard="off")
    flow = _client_gets_a_port(stage)
    leaked = _local_socket_is_rewritten(stage, flow)
    _check_names_it(stage, flow, leaked)
    _confine_prevents_it(stage, flow)
    with stage.step("6. All of it is taken out again"):
        stage.remove()
        tables = stage.lab.egress.run(["nft", "list", "tables"]).stdout.split()
        stage.expect("nft tables left on this host", len(tables), 0)
        stage.say("Every step happened as told.")


def _client_gets_a_port(stage: Stage) -> Flow:
    with stage.step("2. A client behind this host connects to the server"):
        flow = stage.client_flow(src=(CLIENT, SLICE.first))
        stage.expect(f"{CLIENT} gets an answer", flow.works)
        stage.expect(f"the server sees {SOFT_ADDRESS}, port", flow.wire_port, SLICE)
        stage.expect("connections that the server has accepted", len(stage.tcp_server.peers), 1)
    return flow


def _local_socket_is_rewritten(stage: Stage, flow: Flow) -> LocalApp:
    port = flow.wire_port or 0
    with stage.step(f"3. A local application binds {SOFT_ADDRESS}:{port} and connects to the same server"):
        stage.say(f"local-app: bind({SOFT_ADDRESS}:{port}), connect({SERVER}:{TCP_PORT}) ... waits 2 seconds at most")
        app = stage.local_app(port)
        stage.expect("the application sees: getsockname() says port", app.port, port)
        stage.expect("the upstream sees: a SYN from port", app.wire_port, Outside(SLICE))
        stage.expect("the application sees: connect()", app.error, "timed out")
        stage.expect("the server sees: connections accepted", len(stage.tcp_server.peers), 1)
        lost = stage.lab.leaks().lost["tcp4"]
        stage.expect("the upstream sees: answers that belong to another host", lost > 0)
        stage.say("No error, no log line: the kernel rewrote the port, and nobody was told.")
    return app


def _check_names_it(stage: Stage, flow: Flow, app: LocalApp) -> None:
    with stage.step("4. natctl check names it"):
        (finding,) = stage.check("port-leaked")
        stage.expect("victim", finding["victim"]["pid"], app.pid)
        stage.expect("its port on the wire", finding["wire_sport"], app.wire_port)
        stage.expect("holder", finding["holder"]["src"], CLIENT)
        stage.expect("holder's port", finding["holder"]["sport"], flow.socket.getsockname()[1])
    app.end()


def _confine_prevents_it(stage: Stage, flow: Flow) -> None:
    port = flow.wire_port or 0
    with stage.step("5. natctl apply with coexist = confine, and the same traffic again"):
        stage.apply(coexist="confine", guard="drop")
        stage.say(
            "The failed attempt left an entry in conntrack, with its wrong port; it goes, or it would be used again."
        )
        stage.forget("tcp", SOFT_ADDRESS, port)
        stage.lab.reset_leaks()
        app = stage.local_app(port)
        stage.expect("the application sees: getsockname() says port", app.port, port)
        stage.expect("the application gets an answer", app.works)
        stage.expect("the upstream sees: port", app.wire_port, SLICE)
        stage.expect("the server sees: connections accepted", len(stage.tcp_server.peers), 2)
        stage.expect("packets that left the slice", stage.lab.leaks().total, 0)
        stage.expect("the client's connection still works", flow.talks())
        (finding,) = stage.check("port-remapped")
        stage.expect("victim", finding["victim"]["pid"], app.pid)


DEMO = Scenario("demo", "two users of one slice: packet rewriting and sockets", tell, {})
