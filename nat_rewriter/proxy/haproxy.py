"""The same job as a configuration for HAProxy, for those who want that engine."""

from __future__ import annotations

from collections.abc import Iterator

from nat_rewriter.model.policy import Coexist, Policy
from nat_rewriter.model.proxies import Proxy, ProxyMode, ProxyProtocol
from nat_rewriter.model.slices import Address, PortRange

_SEND = {ProxyProtocol.OFF: "", ProxyProtocol.V1: " send-proxy", ProxyProtocol.V2: " send-proxy-v2"}
_UNABLE = "HAProxy does not speak this protocol with applications"


def left_out(policy: Policy) -> list[str]:
    """Return the names of the proxies that HAProxy cannot be."""
    return [proxy.name for proxy in policy.proxies if proxy.mode.is_asked]


def render_haproxy(policy: Policy) -> str:
    """Return an haproxy.cfg (2.6 or newer) for the proxies of a policy.

    One ring of ports serves all destinations of a server line there, so a slice carries as many connections as it has
    ports, not as many to each destination.
    """
    split = policy.controller.coexist is Coexist.SPLIT
    most = sum(proxy.max_connections for proxy in policy.proxies)
    lines = ["global", f"    maxconn {most}", ""]
    for proxy in policy.proxies:
        if proxy.mode.is_asked:
            lines += [f'# {proxy.name}: mode = "{proxy.mode.value}": {_UNABLE}.', ""]
        else:
            lines += [*_listen(proxy, split=split), ""]
    return "\n".join(lines)


def _listen(proxy: Proxy, *, split: bool) -> Iterator[str]:
    yield f"listen {proxy.name}"
    yield "    mode tcp"
    for endpoint in proxy.listen:
        place = f"{endpoint.address}:{endpoint.port}"
        only = " v6only" if endpoint.address.version == 6 else ""
        yield f"    bind {place}{only}{' transparent' if proxy.mode is ProxyMode.TPROXY else ''}"
    yield f"    maxconn {proxy.max_connections}"
    yield f"    timeout connect {proxy.connect_timeout_s}s"
    yield f"    timeout client {proxy.idle_timeout_s}s"
    yield f"    timeout server {proxy.idle_timeout_s}s"
    yield "    option splice-auto"
    yield "    retries 0"
    ranges = proxy.source_ranges(split=split)
    families = {address.version for address, _ in ranges}
    for number, (address, ports) in enumerate(ranges, 1):
        condition = f"v{address.version}_{number}"
        if len(families) > 1 and proxy.mode.intercepts:
            yield f"    use-server {condition} if {{ dst -m ip {'::/0' if address.version == 6 else '0.0.0.0/0'} }}"
        yield f"    server {condition} {_target(proxy)} source {_source(address, ports)}{_SEND[proxy.proxy_protocol]}"


def _target(proxy: Proxy) -> str:
    """Return a server's address; 0.0.0.0 without a port stands for where the client was going."""
    return f"{proxy.to.host}:{proxy.to.port}" if proxy.to else "0.0.0.0"


def _source(address: Address, ports: PortRange) -> str:
    return f"{address}:{ports.first}-{ports.last}" if len(ports) > 1 else f"{address}:{ports.first}"
