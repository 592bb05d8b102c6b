"""What every command is given: the configuration, the network namespace, and how to print."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from nat_rewriter.model.policy import Policy

DEFAULT_CONFIG = "/etc/natctl/natctl.toml"


@dataclass(frozen=True, slots=True)
class Env:
    """The options that all commands share."""

    config_path: str = DEFAULT_CONFIG
    netns: str | None = None
    json: bool = False
    verbosity: int = 0  # -1 quiet, 0 normal, 1 and more verbose

    @property
    def quiet(self) -> bool:
        """Whether only errors and results are wanted."""
        return self.verbosity < 0

    @property
    def stdout(self) -> IO[str]:
        """The stream for results."""
        return sys.stdout

    @property
    def terminal(self) -> bool:
        """Whether results go to a person: a terminal, and no --json."""
        return not self.json and sys.stdout.isatty()

    def policy(self, *, needs_slices: bool = True) -> Policy:
        """Read and check the configuration; raise ConfigError with every problem, no slices at all being one."""
        from nat_rewriter.config import read_policy

        if self.config_path == "-":
            return read_policy(sys.stdin.buffer.read(), "<stdin>", needs_slices=needs_slices)
        return read_policy(Path(self.config_path), needs_slices=needs_slices)

    def console(self) -> Console:
        """Return a rich console on standard output."""
        from rich.console import Console

        return Console()

    def note(self, text: str) -> None:
        """Tell a person something on standard error, unless quiet."""
        if not self.quiet:
            click.echo(text, err=True)

    def enter_netns(self) -> None:
        """Move this process into the namespace of --netns, if one was given."""
        if self.netns is not None:  # an empty name is a name: of a script whose variable is not set
            from nat_rewriter.kernel.netns import enter

            enter(self.netns)


def common_options(*, json: bool = False, config: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options every command takes; the command gets them as its first argument, an :class:`Env`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(
            *args: Any,
            config_path: str = DEFAULT_CONFIG,
            netns: str | None = None,
            as_json: bool = False,
            quiet: bool = False,
            verbose: int = 0,
            **options: Any,
        ) -> Any:
            env = Env(config_path, netns, as_json, -1 if quiet else verbose)
            env.enter_netns()
            return function(env, *args, **options)

        for option in reversed(_options(json, config)):
            command = option(command)
        return command

    return decorate


def _options(json: bool, config: bool) -> list[Callable[[Callable[..., Any]], Callable[..., Any]]]:
    options: list[Callable[[Callable[..., Any]], Callable[..., Any]]] = [
        click.option("--netns", metavar="NAME|PATH", help="Work in this network namespace."),
        click.option("-q", "--quiet", is_flag=True, help="Print results and errors only."),
        click.option("-v", "--verbose", count=True, help="Say more about what is done."),
    ]
    if json:
        options.insert(0, click.option("--json", "as_json", is_flag=True, help="Print stable JSON."))
    if config:
        path = click.option(
            "--config", "config_path", metavar="PATH", default=DEFAULT_CONFIG, show_default=True,
            help="Configuration; - reads standard input.",
        )  # fmt: skip
        options.insert(0, path)
    return options
