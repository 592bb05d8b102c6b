"""``apply`` and ``remove``: what is changed in the kernel."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nat_rewriter.cli.env import Env, common_options
from nat_rewriter.cli.numbers import seconds
from nat_rewriter.cli.state import find_log, known_log, log_of, read_configuration, state_option, table_option, warn
from nat_rewriter.config.source import read_bytes
from nat_rewriter.errors import EXIT_DONE, UsageError

if TYPE_CHECKING:
    from nat_rewriter.controller.apply import Applied
    from nat_rewriter.controller.generations import GenerationLog
    from nat_rewriter.controller.intent import Change
    from nat_rewriter.model.generations import Configuration
    from nat_rewriter.plan import SetChange

PREVIOUS = "previous"

# Why not, and what to do. A way back that is not complete would be worse than none.
_INSTEAD: dict[tuple[str, ...], str] = {
    ("--confirm", "--drain"): ": flows that were ended cannot be given back; drain alone, natctl diff shows before "
    "what it withdraws",
    ("--confirm", "--sysctls"): ": only the table is taken back; keep the change first, then apply --sysctls",
    ("--dry-run", "--drain"): ": nothing is waited for in a dry run; natctl diff counts the flows of withdrawn slices",
    ("--dry-run", "--sysctls"): ": natctl doctor tells which sysctls would be set",
}

wait_option = click.option(
    "--wait", "wait_s", metavar="SECONDS", type=seconds(), default=0.0,
    help="How long to wait for another natctl that is at work on the table. [default: not at all]",
)  # fmt: skip


@click.command(
    epilog="""\b
    Examples:
      natctl apply                         make the kernel match /etc/natctl/natctl.toml
      natctl apply --dry-run               print the nft commands instead, after the kernel checked them
      natctl apply --netns egress -v       in another namespace, and say what was changed
      natctl apply --confirm 60            and take it back after a minute, unless I can still type y
      natctl apply --confirmed             keep what waits, from anywhere
      natctl apply --drain 300             what uses a withdrawn slice has five minutes, then it is ended
      natctl apply --rollback              go back to the generation before this one
      natctl apply --rollback 7            or to generation 7 of natctl log
    """
)
@click.option("--dry-run", is_flag=True, help="Print the transaction instead of running it.")
@click.option(
    "--confirm",
    "confirm_s",
    metavar="SECONDS",
    type=seconds(min_open=True),
    help="Take the change back unless it is confirmed in time, here or by --confirmed.",
)
@click.option("--confirmed", is_flag=True, help="Confirm the change that waits for it; apply nothing.")
@click.option(
    "--drain",
    "drain_s",
    metavar="SECONDS",
    type=seconds(),
    help="Give the flows of withdrawn slices this time to end, without new ones; then end exactly those.",
)
@click.option(
    "--rollback",
    metavar="[N]",
    is_flag=False,
    flag_value=PREVIOUS,
    help="Apply an earlier generation in place of the configuration. [default: the one before this]",
)
@click.option("--sysctls", is_flag=True, help="Set the sysctls that the configuration needs, see above.")
@wait_option
@table_option
@state_option
@common_options(json=True)
def apply(env: Env, **options: Any) -> int:
    """Make the kernel match the configuration, in one atomic transaction.

    Every generation is kept: natctl log lists them. A change that waits to be confirmed is taken back when its time is
    over, also if natctl is killed or its terminal goes away. A second apply of the same configuration, or
    --confirmed, keeps it; --rollback takes it back at once.

    --sysctls adds the ports that are for rewriting to net.ipv4.ip_local_reserved_ports, so that no socket is given one
    unasked, or moves net.ipv4.ip_local_port_range where hardly any would be left to give. It switches on
    net.ipv4.ip_forward and net.ipv6.conf.all.forwarding where rules rewrite packets of that family. (An interface that
    has its IPv6 address from router advertisements then needs accept_ra = 2.) natctl remove gives back what they were,
    unless somebody has changed them since.
    """
    return _apply(env, ApplyOptions(**options))


@dataclass(frozen=True, slots=True)
class ApplyOptions:
    """The options of apply, by the names that they have on the command line."""

    dry_run: bool
    confirm_s: float | None
    confirmed: bool
    drain_s: float | None
    rollback: str | None
    sysctls: bool
    wait_s: float
    table: str | None
    state: Path | None

    @property
    def is_plain(self) -> bool:
        """Whether a configuration is to be applied at once, and nothing else."""
        return not (self.confirmed or self.dry_run or self.sysctls) and (
            self.rollback is None and self.confirm_s is None and self.drain_s is None
        )

    def check(self) -> None:
        """Refuse options that do not go together."""
        given = {
            "--dry-run": self.dry_run,
            "--confirm": self.confirm_s is not None,
            "--confirmed": self.confirmed,
            "--drain": self.drain_s is not None,
            "--rollback": self.rollback is not None and self.confirmed,
        }
        words = [word for word, is_given in given.items() if is_given]
        if self.sysctls and (self.dry_run or self.confirmed or self.confirm_s is not None):
            words.append("--sysctls")
        if self.table and not self.confirmed and self.rollback is None:
            raise click.UsageError("--table is for --confirmed and --rollback: a configuration names its own")
        if len(words) > 1:
            raise click.UsageError(f"{' and '.join(words)} do not go together{_INSTEAD.get(tuple(words), '')}")


def _apply(env: Env, options: ApplyOptions) -> int:
    from nat_rewriter.cli.confirm import apply_for_now, confirm, take_back
    from nat_rewriter.cli.drain import apply_drained
    from nat_rewriter.kernel.confirm_socket import is_waiting

    options.check()
    gc.disable()  # ten thousand slices are a million objects, none of them garbage before the end
    if options.confirmed:
        return confirm(find_log(env, options.state, options.table).place.table)
    if options.is_plain and not (env.json or env.verbosity > 0) and _apply_edit(env, options):
        return EXIT_DONE
    if options.rollback is None:
        configuration = read_configuration(env)
        log = log_of(options.state, configuration.table)
    else:
        log = find_log(env, options.state, options.table)
        if options.rollback == PREVIOUS and is_waiting(log.place.table):
            return take_back(log.place.table)
        configuration = earlier_configuration(log, options.rollback)
    if options.dry_run:
        return _print_transaction(configuration)
    if options.confirm_s is not None:
        return apply_for_now(env, configuration, log, options.wait_s, options.confirm_s)
    if options.drain_s is not None:
        apply_drained(env, configuration, log, options.wait_s, options.drain_s)
    else:
        _apply_at_once(env, configuration, log, options.wait_s)
    if options.sysctls:
        _set_sysctls(env, configuration, log)
    return EXIT_DONE


def _apply_edit(env: Env, options: ApplyOptions) -> bool:
    """Apply what was edited since the configuration in force, without reading the rest; False where that needs more."""
    from nat_rewriter.controller.edit import Editor

    if env.config_path == "-" or (log := known_log(options.state)) is None:
        return False
    with closing(Editor(log, warn)) as editor:
        edited = editor.apply(read_bytes(Path(env.config_path)), env.config_path, options.wait_s)
        if edited is None:
            return False
        if not env.quiet:
            click.echo(_line(log.place.table, "update" if edited.sets else "none", edited.sets))
        editor.settle()
    return True


def _apply_at_once(env: Env, configuration: Configuration, log: GenerationLog, wait_s: float) -> None:
    from nat_rewriter.controller.apply import apply_configuration

    print_applied(env, apply_configuration(configuration, log, warn, wait_s), configuration, log)


def _set_sysctls(env: Env, configuration: Configuration, log: GenerationLog) -> None:
    from nat_rewriter.controller.sysctls import set_sysctls

    for setting in set_sysctls(configuration.policy, log.place, warn):
        env.note(f"{setting.name} = {setting.set} (before: {setting.before or 'empty'})")


@click.command(
    epilog="""\b
    Examples:
      natctl remove                        packets pass as if natctl had never been here
      natctl remove --netns egress
    """
)
@wait_option
@state_option
@common_options()
def remove(env: Env, wait_s: float, state: Path | None) -> int:
    """Take all of natctl's own state out of the kernel, and nothing else.

    Flows that were rewritten keep their addresses until they end: they live in conntrack.
    """
    from nat_rewriter.controller.removal import remove_table

    table = env.policy().controller.table
    removed = remove_table(log_of(state, table), warn, wait_s)
    if not env.quiet:
        click.echo(f"table inet {table}: removed" if removed else f"table inet {table}: was not there")
    return EXIT_DONE


def earlier_configuration(log: GenerationLog, wanted: str) -> Configuration:
    """Return the configuration of a generation given by its number, or of the previous one."""
    if wanted == PREVIOUS:
        return log.configuration(log.rollback_target().number)
    if not wanted.isdecimal():
        raise UsageError("roll back", "expected the number of a generation, see natctl log", wanted)
    return log.configuration(int(wanted))


def _print_transaction(configuration: Configuration) -> int:
    from nat_rewriter.controller.intent import read_change
    from nat_rewriter.kernel.nft import KernelNft
    from nat_rewriter.render.transaction import transaction_text

    with KernelNft() as nft:
        change = read_change(configuration.policy, nft)
        nft.check(change.transaction)
    if change.transaction:
        click.echo(transaction_text(change.transaction))
    return EXIT_DONE


def print_applied(env: Env, applied: Applied, configuration: Configuration, log: GenerationLog) -> None:
    """Print what was changed: as JSON, by name, or in a line."""
    if env.json or env.verbosity > 0:
        from nat_rewriter.cli.ruleset import print_change
        from nat_rewriter.controller.touched import read_policy_change

        previous = log.policy_of(applied.previous)
        print_change(
            env, applied.change, read_policy_change(applied.change, configuration.policy, previous, count=False)
        )
    elif not env.quiet:
        click.echo(summary(applied.change))
        if applied.confirmed:
            click.echo(applied.confirmed)


def summary(change: Change) -> str:
    """Return in a line what was done to the table."""
    return _line(change.wanted.table, change.action, change.sets)


def _line(table: str, action: str, sets: Sequence[SetChange]) -> str:
    words = {"none": "up to date", "create": "created", "rebuild": "rebuilt", "update": "updated"}
    added = sum(len(one.added) for one in sets)
    removed = sum(len(one.removed) for one in sets)
    counts = f": {added} elements added, {removed} removed" if added or removed else ""
    return f"table inet {table}: {words[action]}{counts}"
