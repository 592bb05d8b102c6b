"""The ``natctl`` command: finds the subcommand, runs it, and turns every error into one line and an exit code."""

from __future__ import annotations

import errno
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from nat_rewriter import __version__
from nat_rewriter.errors import EXIT_FAILED, EXIT_USAGE, NatctlError, exit_code_of

# numpy's BLAS, of which natctl needs nothing, would begin with a thread a processor, each busy for a while.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# What is imported stays: to look through it again and again takes a tenth of the start.
gc.set_threshold(50_000)

# Name of the command -> module that has it, and its one line of help: a module is imported only when it is run.
COMMANDS = {
    "render": ("nat_rewriter.cli.ruleset", "Print the nft ruleset that the configuration means."),
    "diff": ("nat_rewriter.cli.ruleset", "Show what apply would change in the kernel."),
    "apply": ("nat_rewriter.cli.apply", "Make the kernel match the configuration, in one transaction."),
    "remove": ("nat_rewriter.cli.apply", "Take all of natctl's own state out of the kernel."),
    "log": ("nat_rewriter.cli.log", "List the generations that were applied."),
    "status": ("nat_rewriter.cli.status", "Show slices, their use, leaks, drift and sysctls."),
    "check": ("nat_rewriter.cli.check", "Look once: conntrack, sockets and ruleset against the configuration."),
    "watch": ("nat_rewriter.cli.watch", "The same, live, from conntrack events."),
    "flows": ("nat_rewriter.cli.flows", "List the flow table."),
    "explain": ("nat_rewriter.cli.explain", "Say who holds a tuple, and what would happen to whoever wants it."),
    "pool": ("nat_rewriter.cli.pool", "Take slices of shared addresses from a pool, and give them back."),
    "route": ("nat_rewriter.cli.route", "Route forwarded packets with soft-unicast sources, and their replies."),
    "lease": ("nat_rewriter.cli.lease", "Hold tuples of a slice, or run a program with a connected socket."),
    "proxy": ("nat_rewriter.cli.proxy", "Take TCP in, and go on from a slice."),
    "agent": ("nat_rewriter.cli.agent", "Hold slices of pools for this host, as their use demands."),
    "history": ("nat_rewriter.cli.history", "Say who had a tuple at a time."),
    "lab": ("nat_rewriter.cli.lab", "Try natctl in network namespaces of its own."),
    "doctor": ("nat_rewriter.cli.doctor", "Say what works on this host, what does not, and how to mend it."),
}


class LazyGroup(click.Group):
    """A group that imports the module of a subcommand only when that subcommand runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the contract."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name, imported now."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand. What the system refuses it, a write to a closed pipe above all, becomes a NatctlError."""
        try:
            return super().invoke(ctx)
        except OSError as error:  # here, because click would end the program without a word
            raise _system_error(error) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
    Examples:
      natctl lab demo            see a collision happen, be named and be prevented
      natctl apply --dry-run     what would be loaded for /etc/natctl/natctl.toml
      natctl check               every collision there is now
    """,
)
@click.version_option(__version__, prog_name="natctl")
def natctl() -> None:
    """Share addresses between hosts by port slices.

    Packet rewriting and ordinary sockets use the same slice without breaking each other.
    """


def _system_error(error: OSError) -> NatctlError:
    if error.errno == errno.EPIPE:
        return NatctlError("write output", "standard output was closed by its reader")
    return NatctlError("run command", (error.strerror or str(error)).lower(), error.filename)


def run(arguments: Sequence[str], begun: object = None) -> int:
    """Run one command and return its exit code; errors are written to standard error as one line.

    ``begun``: what has been begun for the command already, which it finds in its context.
    """
    _open_closed_streams()
    try:
        result = natctl.main(args=list(arguments), prog_name="natctl", standalone_mode=False, obj=begun)
    except NatctlError as error:
        _drop_output_if_lost(error)
        click.echo(f"natctl: {error}", err=True)
        return exit_code_of(error)
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        click.echo("natctl: interrupted", err=True)
        return EXIT_FAILED
    return result if isinstance(result, int) else 0


def _open_closed_streams() -> None:
    """Put nothing where the caller has closed standard input, output or error from the start."""
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _drop_output_if_lost(error: NatctlError) -> None:
    """Keep the interpreter from trying again, as it ends, to write what is still buffered and cannot be written."""
    if isinstance(error.__cause__, OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
