"""``natctl proxy``: TCP is taken in here, and goes on from a slice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import click

from nat_rewriter.cli.env import Env, common_options
from nat_rewriter.cli.metrics import Endpoint, metrics_option, served
from nat_rewriter.cli.numbers import seconds
from nat_rewriter.errors import EXIT_DONE, ConfigError, NatctlError, UsageError

if TYPE_CHECKING:
    from nat_rewriter.cli.proxy_output import Output
    from nat_rewriter.kernel.tproxy_routes import TproxyRoutes
    from nat_rewriter.model.policy import Policy
    from nat_rewriter.proxy.supervisor import Supervisor

_STEP_S = 0.2
_MOST_WORKERS = 64


@click.command(
    epilog="""\b
    Examples:
      natctl proxy                              all [[proxy]] of the configuration, with a live view
      natctl proxy --workers 4 | tee log.jsonl  in a pipe it is JSON, one object a line
      natctl proxy -v > access.jsonl            every connection, not only those that failed
      natctl proxy --metrics 127.0.0.1:9465     for Prometheus
      natctl proxy --render haproxy             the same job, for HAProxy
    """
)
@click.option(
    "--workers", type=click.IntRange(1, _MOST_WORKERS), metavar="N", help="Processes. Default: one for each processor."
)
@click.option(
    "--grace",
    type=seconds(),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long connections may go on after SIGTERM.",
)
@metrics_option
@click.option(
    "--interval",
    type=seconds(min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How often the counts are printed in a pipe.",
)
@click.option(
    "--render", "engine", type=click.Choice(["haproxy"]), help="Print a configuration for that engine, and end."
)
@common_options(json=True)
def proxy(
    env: Env, workers: int | None, grace: float, metrics: Endpoint | None, interval: float, engine: str | None
) -> int:  # fmt: skip
    """Take TCP in, and go on from a slice.

    Each [[proxy]] of the configuration: redirected or TPROXYed connections (`natctl apply` makes the rules), one fixed
    destination, SOCKS5 or HTTP CONNECT. SIGTERM and SIGINT end it with grace: no new connections, and those that are
    there may go on for --grace seconds; a second signal ends them. SIGHUP reads the configuration again, and
    no connection is lost; a faulty one is told, and the one before stays.
    """
    policy = env.policy()
    if engine:
        return _render(env, policy)
    _serve(env, policy, workers or os.cpu_count() or 1, grace, metrics, interval)
    return EXIT_DONE


def _render(env: Env, policy: Policy) -> int:
    from nat_rewriter.proxy.haproxy import left_out, render_haproxy

    if not policy.proxies:
        raise UsageError("proxy", "the configuration has no [[proxy]]")
    click.echo(render_haproxy(policy), nl=False)
    for name in left_out(policy):
        env.note(f"natctl: proxy {name} is left out: HAProxy does not speak its protocol with applications")
    return EXIT_DONE


def _serve(
    env: Env, policy: Policy, workers: int, grace_s: float, metrics: Endpoint | None, interval_s: float
) -> None:  # fmt: skip
    from nat_rewriter.cli.proxy_output import output_to
    from nat_rewriter.kernel.service_manager import ServiceManager
    from nat_rewriter.kernel.tproxy_routes import TproxyRoutes
    from nat_rewriter.proxy.metrics import ProxyCollector
    from nat_rewriter.proxy.supervisor import Supervisor

    manager = ServiceManager()
    with ExitStack() as stack:
        signals = stack.enter_context(_signals())
        routes = stack.enter_context(TproxyRoutes())
        routes.cover(_routed_families(policy))
        supervisor = stack.enter_context(Supervisor(policy, workers, tell_all=env.verbosity > 0))
        _warn(env, supervisor)
        if metrics:
            stack.enter_context(served(ProxyCollector(supervisor.status), metrics))
        output = stack.enter_context(output_to(env, supervisor, interval_s))
        output.say("started")
        manager.ready(f"{len(policy.proxies)} proxies, {workers} workers")
        _run(env, supervisor, routes, output, signals)
        manager.stopping()
        _stop(supervisor, output, signals, grace_s)


def _run(env: Env, supervisor: Supervisor, routes: TproxyRoutes, output: Output, signals: list[int]) -> None:
    while not _takes_stop(signals):
        output.show(supervisor.step(_STEP_S))
        if signal.SIGHUP in signals:
            signals.remove(signal.SIGHUP)
            _reload(env, supervisor, routes, output)


def _takes_stop(signals: list[int]) -> bool:
    """Tell whether a signal asks for an end, and take that one away: the next one means at once."""
    for number in (signal.SIGTERM, signal.SIGINT):
        if number in signals:
            signals.remove(number)
            return True
    return False


def _reload(env: Env, supervisor: Supervisor, routes: TproxyRoutes, output: Output) -> None:
    try:
        if env.config_path == "-":
            raise NatctlError("reload", "standard input cannot be read again: give the configuration as a file")
        policy = env.policy()
        routes.cover(_routed_families(policy))
        supervisor.reload(policy)
    except (ConfigError, NatctlError) as error:
        output.say("reload-failed", str(error))
    else:
        output.say("reloaded")
        _warn(env, supervisor)


def _stop(supervisor: Supervisor, output: Output, signals: list[int], grace_s: float) -> None:
    supervisor.begin_stop()
    output.say("stopping")
    deadline = time.monotonic() + grace_s
    while supervisor.running and time.monotonic() < deadline and not _takes_stop(signals):
        output.show(supervisor.step(_STEP_S))
    supervisor.end()
    output.say("stopped")


def _routed_families(policy: Policy) -> set[int]:
    """Return the IP versions that connections are handed over in without rewriting."""
    from nat_rewriter.model.proxies import ProxyMode

    transparent = [one for one in policy.proxies if one.mode is ProxyMode.TPROXY]
    return {endpoint.address.version for one in transparent for endpoint in one.listen}


def _warn(env: Env, supervisor: Supervisor) -> None:
    if shortage := supervisor.shortage:
        env.note(f"natctl: {shortage}")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Yield the list to which signals are added as they come, while the block runs."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {
        number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
