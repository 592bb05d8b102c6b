"""``natctl explain``: who holds a tuple, and what would happen to whoever wants it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nat_rewriter.cli.env import Env, common_options
from nat_rewriter.errors import EXIT_DONE, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nat_rewriter.explain.lines import Line

_COLOURS: dict[str, dict[str, object]] = {
    "plain": {},
    "title": {"bold": True},
    "dim": {"dim": True},
    "good": {"fg": "green"},
    "changed": {"fg": "yellow"},
    "bad": {"fg": "red"},
}


@click.command(
    epilog="""\b
    Examples:
      natctl explain tcp 198.51.100.10:9000 203.0.113.1:443    a tuple as it is on the wire
      natctl explain tcp 10.0.0.2:40000 203.0.113.1:443        a client's tuple: which range it is given
      natctl explain 'udp [2001:db8::1]:9000 [2001:db8::2]:53'
      natctl explain icmp 198.51.100.10:77 203.0.113.1         77 is the echo id
      natctl explain 'tcp:10.0.0.2:40000->203.0.113.1:443' --iif fish0 --json
    """
)
@click.argument("words", metavar="TUPLE", nargs=-1, required=True)
@click.option("--iif", "iifname", metavar="NAME", help="The interface the packet comes in by; default: by the routes.")
@click.option("--oif", "oifname", metavar="NAME", help="The interface it leaves by; default: by the routes.")
@click.option("--mark", metavar="NUMBER", default="0", show_default=True, help="The packet's mark, 16 or 0x10.")
@common_options(json=True)
def explain(env: Env, words: tuple[str, ...], iifname: str | None, oifname: str | None, mark: str) -> int:
    """Say who holds a tuple, which rule and range would take it, and what would happen to whoever wants it.

    TUPLE is a protocol, a source and a destination. What may not be asked without privilege is left out, and said.
    """
    from nat_rewriter.controller.explanation import explain_packet
    from nat_rewriter.explain import Packet, parse_tuple

    packet = Packet(parse_tuple(words), _interface(iifname), _interface(oifname), _mark(mark))
    explanation = explain_packet(env.policy(), packet)
    if env.json:
        from nat_rewriter.explain.objects import explanation_object
        from nat_rewriter.report import json_line

        env.stdout.write(f"{json_line(explanation_object(explanation))}\n")
    else:
        from nat_rewriter.explain.lines import explanation_lines

        _print(env, explanation_lines(explanation))
    return EXIT_DONE


def _print(env: Env, lines: Iterable[Line]) -> None:
    for line in lines:
        if env.terminal:
            env.stdout.write("".join(click.style(text, **_COLOURS[style.value]) for text, style in line) + "\n")  # type: ignore[arg-type]
        else:
            env.stdout.write("".join(text for text, _ in line).rstrip() + "\n")


def _interface(name: str | None) -> str | None:
    """Return an interface name as the configuration would have it; it need not exist."""
    from nat_rewriter.config.values import Unexpected, interface

    try:
        return None if name is None else interface(name)
    except Unexpected as error:
        raise UsageError("read interface", f"expected {error}", name) from None


def _mark(text: str) -> int:
    try:
        mark = int(text, 0)
    except ValueError:
        mark = -1
    if not 0 <= mark <= 0xFFFFFFFF:
        raise UsageError("read mark", "expected a number from 0 to 4294967295, like 16 or 0x10", text)
    return mark
