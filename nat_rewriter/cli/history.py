"""``natctl history``: who had a tuple, and when."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nat_rewriter.cli.env import Env, common_options
from nat_rewriter.errors import EXIT_DONE, UsageError
from nat_rewriter.model.slices import Address
from nat_rewriter.model.tuples import PROTOCOL_NAMES

if TYPE_CHECKING:
    from nat_rewriter.history.reader import Found, Question

_TERMINAL_LIMIT = 1000
_End = tuple[Address, int | None]


def _read_end(context: click.Context, parameter: click.Parameter, value: str | None) -> _End | None:
    """Return address and port of `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`."""
    if value is None:
        return None
    address, port = value, ""
    if value.startswith("[") or value.count(":") == 1:
        address, _, port = value.rpartition(":") if not value.endswith("]") else (value, "", "")
    try:
        number = int(port) if port else None
        if number is not None and not 0 <= number <= 0xFFFF:
            raise ValueError
        return ip_address(address.strip("[]")), number
    except ValueError:
        expected = "expected ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT"
        raise click.BadParameter(f"{value!r}: {expected}", context, parameter) from None


@click.command(
    epilog="""\b
    Examples:
      natctl history 198.51.100.10:9003 --record /var/lib/natctl/history
      natctl history 198.51.100.10:9003 --at "2026-11-21 19:24" --tz UTC    an abuse report
      natctl history 198.51.100.10:9003 --at 2026-11-21T19:24:22Z --to 203.0.113.1:443
      natctl history --client 10.0.0.2 --since "10m ago" --json             what a client did
    """
)
@click.argument("tuple_", metavar="[ADDRESS[:PORT]]", required=False, callback=_read_end)
@click.option(
    "--record", "path", metavar="PATH", required=True, type=click.Path(path_type=Path),
    help="The directory that natctl watch --record writes.",
)  # fmt: skip
@click.option("--client", metavar="ADDRESS[:PORT]", callback=_read_end, help="Ask by what is behind the rewriting.")
@click.option("--at", metavar="TIME", help="Flows that existed then.")
@click.option("--since", metavar="TIME", help="Flows that existed at that time or later.")
@click.option("--until", metavar="TIME", help="Flows that existed at that time or earlier.")
@click.option(
    "--tz", metavar="ZONE", default="local", show_default=True,
    help="Zone of times that name none, and of those printed: local, UTC or a name like Europe/Berlin.",
)  # fmt: skip
@click.option("--protocol", metavar="NAME", help="Flows of this protocol.")
@click.option("--to", metavar="ADDRESS[:PORT]", callback=_read_end, help="Flows with this far end.")
@click.option(
    "--limit", type=click.IntRange(0), metavar="NUMBER",
    help=f"Print the latest NUMBER only; 0: all. On a terminal {_TERMINAL_LIMIT}, otherwise all.",
)  # fmt: skip
@common_options(json=True, config=False)
def history(env: Env, tuple_: _End | None, path: Path, limit: int | None, tz: str, **asked: Any) -> int:
    """Say who had an address and port of a slice, and when.

    A TIME is ISO 8601, "2026-11-21 19:24", "19:24" (today) or "10m ago", and as wide as it is written: 19:24 is that
    whole minute. Exit code 0 if there was a flow or none; 1 where the record cannot be read.
    """
    zone = _read_zone(tz)
    question = _question(tuple_, zone, **asked)
    if limit is None:
        limit = _TERMINAL_LIMIT if env.terminal else 0
    _print(env, _latest(env, path, question, limit), zone)
    return EXIT_DONE


def _question(
    wire: _End | None, zone: tzinfo | None, *, client: _End | None, to: _End | None, at: str | None,
    since: str | None, until: str | None, protocol: str | None,
) -> Question:  # fmt: skip
    from nat_rewriter.history.reader import Question

    asked = wire or client
    if asked is None or (wire and client):
        raise UsageError("ask history", "expected either an address of a slice or --client")
    first, last = _read_times(zone, at, since, until)
    remote, remote_port = to or (None, None)
    return Question(
        "wire" if wire else "client", *asked, protocols=_read_protocols(protocol), remote=remote,
        remote_port=remote_port, since_ns=first, until_ns=last,
    )  # fmt: skip


def _read_times(zone: tzinfo | None, at: str | None, since: str | None, until: str | None) -> tuple[int, int]:
    from nat_rewriter.history.moments import read_moment
    from nat_rewriter.history.reader import END_OF_TIME

    now = datetime.now(UTC)
    if at is not None:
        if since is not None or until is not None:
            raise UsageError("ask history", "--at goes with neither --since nor --until")
        return read_moment(at, zone, now)
    first = read_moment(since, zone, now).first_ns if since is not None else 0
    last = read_moment(until, zone, now).last_ns if until is not None else END_OF_TIME
    if last < first:
        raise UsageError("ask history", "--until is before --since", until)
    return first, last


def _read_zone(name: str) -> tzinfo | None:
    from zoneinfo import ZoneInfo

    if name == "local":
        return None
    if name.upper() == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        expected = "no such time zone here, expected local, UTC or a name like Europe/Berlin"
        raise UsageError("read time zone", expected, name) from None


def _read_protocols(name: str | None) -> frozenset[int]:
    """Return the numbers of a protocol; icmp stands for both."""
    if name is None:
        return frozenset()
    wanted = {"icmp", "icmpv6"} if name.lower() == "icmp" else {name.lower()}
    found = frozenset(number for number, known in PROTOCOL_NAMES.items() if known in wanted)
    if not found and not (name.isdecimal() and int(name) < 256):
        raise UsageError("ask history", f"expected one of {', '.join(PROTOCOL_NAMES.values())}, or a number", name)
    return found or frozenset({int(name)})


def _latest(env: Env, path: Path, question: Question, limit: int) -> Iterator[Found]:
    """Yield what was found; with a limit the latest of it, with a word about the rest."""
    from nat_rewriter.history.reader import find

    if not limit:
        yield from find(path, question)
        return
    kept: list[Found] = []
    left_out = 0
    for found in find(path, question):
        kept.append(found)
        while sum(len(each.records) for each in kept[1:]) >= limit:
            left_out += len(kept.pop(0).records)
    excess = max(0, sum(len(each.records) for each in kept) - limit)
    if left_out + excess:
        env.note(f"natctl: {left_out + excess} earlier flows are left out: --limit 0 prints them, --since narrows")
    for found in kept:
        yield found._replace(records=found.records[excess:])
        excess = 0


def _print(env: Env, answers: Iterator[Found], zone: tzinfo | None) -> None:
    from nat_rewriter.history.answers import answer_line, answer_object, answer_row
    from nat_rewriter.report import json_line

    found = ((record, slices) for records, slices in answers for record in records)
    if env.json:
        env.stdout.writelines(f"{json_line(answer_object(*each))}\n" for each in found)
        return
    if env.terminal:
        rows = [answer_row(*each, zone) for each in found]
        if rows:
            _print_table(env, rows)
    else:
        rows = []
        env.stdout.writelines(f"{answer_line(*each, zone)}\n" for each in found)
    env.stdout.flush()


def _print_table(env: Env, rows: list[tuple[str, ...]]) -> None:
    from rich.table import Table

    from nat_rewriter.history.answers import ANSWER_COLUMNS

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ANSWER_COLUMNS:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    env.console().print(table)
