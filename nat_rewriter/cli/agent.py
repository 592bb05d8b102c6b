"""``natctl agent``: the long-running controller of a host that takes its slices from pools."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nat_rewriter.cli.env import Env, common_options
from nat_rewriter.cli.pool_words import host_name
from nat_rewriter.cli.service import Service, stop_signals
from nat_rewriter.cli.state import log_of, state_option, warn
from nat_rewriter.errors import EXIT_DONE, NatctlError, StateError, UsageError

if TYPE_CHECKING:
    from nat_rewriter.controller.agent import Agent
    from nat_rewriter.controller.inbound import InboundKeeper
    from nat_rewriter.model.generations import Configuration
    from nat_rewriter.model.pools import Deed
    from nat_rewriter.pool import PoolStore

_AGAIN_S = 0.25  # after what failed


@click.command(
    epilog="""\b
    Examples:
      natctl agent                         hold slices of the configuration's pools, as their use demands
      natctl agent --json | logger         what it does, one object a line
      natctl agent --give-back             and give everything back when it is stopped
    """
)
@click.option("--host", metavar="NAME", default=socket.gethostname, help="Which host; default: this one.")
@click.option("--give-back", is_flag=True, help="When stopped, end the flows of what is held, and give it back.")
@state_option
@common_options(json=True)
def agent(env: Env, host: str, give_back: bool, state: Path | None) -> int:
    """Hold slices of pools for this host, renew them, apply them, and give back what is not used.

    Packets that leave from a slice of a pool after its term are dropped by the kernel itself, by the table NAME_terms,
    also when the agent was killed or stands still. Without --give-back a stopped agent leaves everything as it is: one
    that is started again within the term goes on. SIGHUP has it read its configuration again.
    """
    from nat_rewriter.controller.agent import Agent
    from nat_rewriter.controller.inbound import InboundKeeper
    from nat_rewriter.pool import open_store

    host_name(host)
    service = Service(env, _status)
    configuration = service.configuration
    if not configuration.policy.pools:  # before a store is opened, which may make its file
        raise UsageError("hold slices", "there is no [[pool]] in the configuration", configuration.source)
    with ExitStack() as stack:
        stopped = stack.enter_context(stop_signals())
        store = stack.enter_context(open_store(configuration.policy.store))
        log = log_of(state, configuration.table)
        running = Agent(configuration, store, log, host, lambda deed: _print(env, deed), warn)
        stack.callback(running.close)
        inbound = InboundKeeper(configuration.policy, host, lambda deed: _print(env, deed))
        stack.callback(inbound.close)
        running.begin()
        inbound.begin()
        threading.Thread(target=_warn_of_faults, args=(store,), name="natctl-faults", daemon=True).start()
        _run(running, inbound, service, stopped)
        if give_back:
            running.give_back()
            inbound.leave()
    return EXIT_DONE


def _run(running: Agent, inbound: InboundKeeper, service: Service, stopped: Callable[[], bool]) -> None:
    """Take one step after the other, and look for moves in between; what fails is told, and tried again."""

    def follow(configuration: Configuration) -> None:
        inbound.refuse_other(configuration)
        running.follow(configuration)

    due = 0.0
    for again_s in service.attend(_until(stopped), follow):
        pause_s = again_s
        try:
            if time.monotonic() >= due:
                began = time.monotonic()
                try:
                    running.step()
                finally:
                    due = began + running.pause_s
            pause_s = running.look()
        except NatctlError as error:
            warn(str(error))
        time.sleep(pause_s)


def _warn_of_faults(store: PoolStore) -> None:
    """Say what is known to be wrong with the store, where it answers; in a thread, since it may not."""
    with suppress(StateError):
        for fault in store.known_faults():
            warn(fault)


def _until(stopped: Callable[[], bool]) -> Iterator[float]:
    while not stopped():
        yield _AGAIN_S


def _status(configuration: Configuration) -> str:
    names = ", ".join(pool.name for pool in configuration.policy.pools)
    return f"holding slices of {names or 'no pool'} by {configuration.source}"


def _print(env: Env, deed: Deed) -> None:
    from nat_rewriter.report.json_lines import json_line
    from nat_rewriter.report.pools import deed_line, deed_object

    click.echo(json_line(deed_object(deed)) if env.json or not env.terminal else deed_line(deed))
    env.stdout.flush()
