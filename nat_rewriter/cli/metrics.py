"""``--metrics``: serving a collector to Prometheus over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from nat_rewriter.errors import NatctlError

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

Endpoint = tuple[str, int]


def _read_endpoint(_: click.Context, __: click.Parameter, text: str | None) -> Endpoint | None:
    if text is None:
        return None
    address, _colon, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise click.BadParameter(f"{text!r}: expected address:port or a port")
    return address.strip("[]") or "127.0.0.1", int(port)


metrics_option = click.option(
    "--metrics",
    metavar="[ADDRESS:]PORT",
    callback=_read_endpoint,
    help="Serve Prometheus metrics there; the address defaults to 127.0.0.1.",
)


@contextmanager
def served(collector: Collector, endpoint: Endpoint) -> Iterator[None]:
    """Serve what a collector tells until the block ends. Raises NatctlError where the endpoint cannot be had."""
    from prometheus_client import CollectorRegistry, start_http_server

    address, port = endpoint
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        raise NatctlError("serve metrics", error.strerror or str(error), f"{address}:{port}") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
