"""``natctl doctor``: what works on this host, what does not, and how to mend it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nat_rewriter.cli.env import DEFAULT_CONFIG, Env, common_options
from nat_rewriter.errors import EXIT_DONE, EXIT_FOUND, EXIT_NOT_HERE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nat_rewriter.model.checkup import Check
    from nat_rewriter.model.policy import Policy


# How remedies begin that are commands for one network namespace, and the sysctl that is for all of them.
_OF_NAMESPACE, _OF_ALL = ("sysctl -w net.", "ip address ", "natctl apply "), "nf_conntrack_max="


@click.command(
    epilog="""\b
    Examples:
      natctl doctor                            everything, with the command that mends what is missing
      natctl doctor --netns egress             of another network namespace
      natctl doctor --json | jq 'select(.answer != "yes")'
      natctl doctor -q || echo "see natctl doctor"
    """
)
@common_options(json=True)
def doctor(env: Env) -> int:
    """Say what works on this host, what does not, and how to mend it.

    Changes nothing. Exit code 0: all that is needed is there; 3: something should be mended; 4: the main job cannot
    be done here. A no that is optional does not count.
    """
    from nat_rewriter.controller.checkup import check_host, verdict
    from nat_rewriter.model.checkup import Weight

    checks = [_mended_in(check, env.netns) for check in check_host(_policy(env))]
    _print(env, checks)
    worst = verdict(checks)
    if not env.json:
        _summarise(env, checks)
    return {Weight.REQUIRED: EXIT_NOT_HERE, Weight.RECOMMENDED: EXIT_FOUND, None: EXIT_DONE}[worst]


def _policy(env: Env) -> Policy | None:
    """Return the configuration; None where there is none at the usual place, or nothing in it yet, as installed."""
    if env.config_path == DEFAULT_CONFIG and not Path(DEFAULT_CONFIG).exists():
        env.note(f"No configuration at {DEFAULT_CONFIG}: what depends on slices is left out.")
        return None
    policy = env.policy(needs_slices=False)
    if policy.slices or policy.pools:
        return policy
    env.note(f"No slices in {env.config_path} yet, and apply will refuse it: what depends on slices is left out.")
    return None


def _mended_in(check: Check, netns: str | None) -> Check:
    """Return a check whose remedy is for the network namespace that was looked at, wherever it is run."""
    if netns is None or _OF_ALL in check.remedy or not check.remedy.startswith(_OF_NAMESPACE):
        return check
    name = shlex.quote(netns)
    if check.remedy.startswith("natctl "):
        return replace(check, remedy=f"{check.remedy} --netns {name}")
    inside = f"nsenter --net={name}" if "/" in netns else f"ip netns exec {name}"
    return replace(check, remedy=f"{inside} {check.remedy}")


def _print(env: Env, checks: Sequence[Check]) -> None:
    from nat_rewriter.report.checkup import check_line, check_object
    from nat_rewriter.report.json_lines import json_line

    if env.json:
        env.stdout.writelines(f"{json_line(check_object(check))}\n" for check in checks)
    elif env.terminal and not env.quiet:
        from nat_rewriter.cli.checkup_table import checks_table

        env.console().print(checks_table(checks))
    elif not env.quiet:
        env.stdout.writelines(f"{check_line(check)}\n" for check in checks)


def _summarise(env: Env, checks: Sequence[Check]) -> None:
    from nat_rewriter.controller.checkup import verdict
    from nat_rewriter.model.checkup import Answer, Weight

    worst = verdict(checks)
    missing = (check.name for check in checks if check.answer is Answer.NO and check.weight is worst)
    names = ", ".join(dict.fromkeys(missing))
    if worst is Weight.REQUIRED:
        click.echo(f"natctl: doctor: cannot work here without: {names}", err=True)
    elif worst is Weight.RECOMMENDED:
        env.note(f"To be mended: {names}.")
    else:
        env.note("All that is needed is there.")
