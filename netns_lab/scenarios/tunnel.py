"""A tunnel: a service writes packets whose source is a soft-unicast address, as a local socket could have it."""

from __future__ import annotations

from netns_lab.placeholders import KINDS, open_placeholder
from netns_lab.scenario import scenario
from netns_lab.servers import Endpoint
from netns_lab.stage import TCP_PORT, Stage
from netns_lab.topology import SERVER, SERVER_6, SOFT_ADDRESS, SOFT_ADDRESS_6, UPLINK
from netns_lab.tunnel import Tunnel

_ENDS = {"IPv4": (SOFT_ADDRESS, SERVER), "IPv6": (SOFT_ADDRESS_6, SERVER_6)}
_PORTS = dict(zip(KINDS, (9002, 9003), strict=True))
_ORDINARY = 9007


@scenario("tunnel-captured", "a placeholder takes the replies to the tunnel, and natctl check names it")
def tunnel_captured(stage: Stage) -> None:
    """Early demux finds the placeholder before the packet is routed."""
    tunnel = _begin(stage, "off")
    with stage.step("A service behind a TUN device talks from port 9001 of the slice"):
        for ends in _all_ends(9001):
            stage.expect(f"answer to {ends[0][0]} port 9001", tunnel.open(*ends).works)
    with stage.step("Sockets of this host hold ports 9002 and 9003 towards the same server"):
        for kind, port in _PORTS.items():
            open_placeholder(stage.lab.egress, kind, (SOFT_ADDRESS, port), (SERVER, TCP_PORT))
            answer = tunnel.open((SOFT_ADDRESS, port), (SERVER, TCP_PORT), timeout_s=0.7)
            stage.expect(f"answer to the tunnel where a {kind} placeholder has its tuple", answer.error, "timed out")
        found = {finding["tuple"]["sport"] for finding in stage.check("reply-captured", "reply-captured")}
        stage.expect("ports that natctl check names", sorted(found), sorted(_PORTS.values()))


@scenario("tunnel-ingress", "replies are handed to the tunnel where they arrive, past every socket")
def tunnel_ingress(stage: Stage) -> None:
    """Early demux stays on; ordinary sockets are left alone."""
    _cured(stage, "ingress", device="", setting="1")


@scenario("tunnel-device", "placeholders that are bound to a device are passed over")
def tunnel_device(stage: Stage) -> None:
    """Early demux stays on; whoever holds tuples has to take part."""
    _cured(stage, "device", device="lo", setting="1")


@scenario("tunnel-sysctl", "without early demux replies are routed, past every socket")
def tunnel_sysctl(stage: Stage) -> None:
    """Early demux is off for every socket of the host."""
    _cured(stage, "sysctl", device="", setting="0")


def _begin(stage: Stage, answer: str) -> Tunnel:
    tunnel = Tunnel(stage.lab.egress)  # where there is no TUN device this is told as it is, and not as a failed step
    with stage.step(f"natctl route, early_demux = {answer}"):
        keys = (
            f'tunnel = "{tunnel.device}"\nouter = ["{UPLINK}"]\nslices = ["ams-1", "ams-2"]\nearly_demux = "{answer}"'
        )
        stage.apply(coexist="off", extra=f"[route]\n{keys}")
        stage.natctl("route", "apply")
    return tunnel


def _cured(stage: Stage, answer: str, device: str, setting: str) -> None:
    tunnel = _begin(stage, answer)
    with stage.step("Placeholders have the tuples of the tunnel"):
        for name, (soft, server) in _ENDS.items():
            for kind, port in _PORTS.items():
                open_placeholder(stage.lab.egress, kind, (soft, port), (server, TCP_PORT), device)
                answered = tunnel.open((soft, port), (server, TCP_PORT))
                stage.expect(f"{name}: answer to the tunnel past a {kind} placeholder", answered.works)
        value = stage.lab.egress.run(["sysctl", "-n", "net.ipv4.tcp_early_demux"]).stdout.strip()
        stage.expect("net.ipv4.tcp_early_demux", value, setting)
    with stage.step("Ordinary sockets of the same slice"):
        stage.expect("a local connection works", stage.local_app(_ORDINARY).works)
        packets = stage.natctl("route", "show", "--json").json()["packets"]
        stage.expect("packets left to sockets are counted", packets["passed4"] > 0)
        stage.say(f"counted: {', '.join(f'{name} {count}' for name, count in packets.items())}")
    with stage.step("natctl route remove"):
        stage.natctl("route", "remove")
        stage.expect(
            "answer to the tunnel", tunnel.open((SOFT_ADDRESS, 9008), (SERVER, 443), timeout_s=0.5).works, False
        )


def _all_ends(port: int) -> list[tuple[Endpoint, Endpoint]]:
    return [((soft, port), (server, TCP_PORT)) for soft, server in _ENDS.values()]
