"""Writes the manual pages: natctl(1), one for each command out of its help, natctl.toml(5) out of the reference.

    python3 packaging/manpages.py DIRECTORY

Needs of natctl's dependencies only click, as the commands import the others when they run.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import click  # noqa: E402

from nat_rewriter import __version__  # noqa: E402
from nat_rewriter.cli.main import COMMANDS, natctl  # noqa: E402

EXIT_STATUS = {
    "0": "Done, and nothing found.",
    "1": "Failed.",
    "2": "Bad usage or configuration.",
    "3": "Findings, drift or a difference.",
    "4": "Not permitted, or not supported here.",
}
FILES = {
    "/etc/natctl/natctl.toml": "The configuration, see natctl.toml(5).",
    "/var/lib/natctl": "The generations that were applied, and a history where one is kept.",
}
ENVIRONMENT = {
    "NATCTL_STATE_DIR": "Where generations are kept, in place of /var/lib/natctl.",
    "NO_COLOR": "Tables without colour.",
}


def escaped(text: str) -> str:
    """Return text as roff prints it: no escapes, no requests, and hyphens that can be copied as options."""
    return re.sub(r"^([.'])", r"\\&\1", text.replace("\\", "\\e").replace("-", "\\-"), flags=re.MULTILINE)


def quoted(text: str) -> str:
    """Return text as one argument of a macro."""
    return '"' + escaped(text).replace('"', '""') + '"'


def title(name: str, section: int) -> str:
    """Return the first line of a page, with the day of what it is built from."""
    day = date.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))
    return f'.TH {quoted(name.upper())} {section} {day} "natctl {__version__}" "natctl manual"'


def heading(text: str) -> str:
    """Return the start of a section."""
    return f".SH {quoted(text)}"


def paragraphs(text: str) -> Iterator[str]:
    r"""Yield paragraphs as roff; one that begins with \b is kept line by line, as click keeps it."""
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in block.splitlines()]
        if lines[0] == "\b":
            yield from preformatted(block.splitlines()[1:])
        else:
            yield f".PP\n{escaped(' '.join(lines))}"


def preformatted(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines that are printed as they are."""
    yield ".PP\n.nf\n.RS 2"
    yield from (escaped(line) or "\\&" for line in lines)
    yield ".RE\n.fi"


def terms(meanings: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield a list of terms, each with what it means."""
    for term, meaning in meanings:
        yield f".TP\n.B {quoted(term)}\n{escaped(' '.join(meaning.split()))}"


def options(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield the options of a command, as its help has them."""
    records = [param.get_help_record(context) for param in command.get_params(context)]
    yield from terms(record for record in records if record)


def body(command: click.Command, context: click.Context, section: str) -> Iterator[str]:
    """Yield synopsis, description, options and examples of a command under headings of a macro: SH or SS."""
    words = " ".join(command.collect_usage_pieces(context))
    yield f".{section} SYNOPSIS\n.B {quoted(context.command_path)}\n{escaped(words)}"
    yield f".{section} DESCRIPTION"
    yield from paragraphs(command.help or "")
    yield f".{section} OPTIONS"
    yield from options(command, context)
    epilog = (command.epilog or "").strip("\n").splitlines()
    examples = [line for line in epilog if line.strip() not in ("\b", "Examples:", "")]
    if examples:
        yield f".{section} EXAMPLES"
        margin = min(len(line) - len(line.lstrip()) for line in examples)
        yield from preformatted(line[margin:] for line in examples)


def subcommands(group: click.Group, context: click.Context) -> Iterator[str]:
    """Yield the commands of a group, each with all that its own help has."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=context)
        yield heading(inner.command_path)
        yield from paragraphs(command.help or "")
        yield f".PP\n.B {quoted(inner.command_path)}\n{escaped(' '.join(command.collect_usage_pieces(inner)))}"
        yield from options(command, inner)
        if isinstance(command, click.Group):
            yield from subcommands(command, inner)


def command_page(name: str, summary: str) -> str:
    """Return the page of a command of natctl."""
    parent = main_context()
    command = natctl.get_command(parent, name)
    assert command is not None, name
    context = click.Context(command, info_name=name, parent=parent)
    lines = [
        title(f"natctl-{name}", 1),
        heading("NAME"),
        f"natctl\\-{escaped(name)} \\- {escaped(first_word(summary))}",
    ]
    lines += body(command, context, "SH")
    if isinstance(command, click.Group):
        lines += subcommands(command, context)
    return page([*lines, *ending(["natctl(1)", "natctl.toml(5)"])])


def main_context() -> click.Context:
    """Return the context of natctl itself, which its commands have theirs from."""
    return click.Context(natctl, info_name="natctl", **natctl.context_settings)


def main_page() -> str:
    """Return natctl(1)."""
    context = main_context()
    about = paragraphs(natctl.help or "")
    commands = ((f"natctl-{name}(1)", summary) for name, (_, summary) in COMMANDS.items())
    lines = [title("natctl", 1), heading("NAME"), "natctl \\- share addresses between hosts by port slices"]
    lines += [heading("SYNOPSIS"), ".B natctl\nCOMMAND [OPTIONS] [ARGUMENTS]", heading("DESCRIPTION"), *about]
    lines += [heading("COMMANDS"), *terms(commands), heading("OPTIONS"), *options(natctl, context)]
    lines += [heading("ENVIRONMENT"), *terms(ENVIRONMENT.items())]
    return page([*lines, *ending(["natctl.toml(5)", "nft(8)", "conntrack(8)"])])


def ending(see_also: list[str]) -> Iterator[str]:
    """Yield what all pages end with."""
    yield heading("EXIT STATUS")
    yield from terms(EXIT_STATUS.items())
    yield heading("FILES")
    yield from terms(FILES.items())
    yield heading("SEE ALSO")
    yield escaped(", ".join(see_also))


def first_word(summary: str) -> str:
    """Return a summary as the NAME section has it: no capital, no full stop."""
    return summary[0].lower() + summary[1:].rstrip(".")


def page(parts: Iterable[str]) -> str:
    """Return a page of its parts; a heading begins a paragraph by itself."""
    return re.sub(r"^(\.S[HS] .*\n)\.PP\n", r"\1", "\n".join(parts) + "\n", flags=re.MULTILINE)


def reference_page(reference: str) -> str:
    """Return natctl.toml(5): the reference, with each key above what is said of it."""
    lines = [title("natctl.toml", 5), heading("NAME"), "natctl.toml \\- configuration of natctl"]
    lines += [heading("DESCRIPTION")]
    for comment, keys in blocks(reference):
        lines += entry(comment, keys)
    lines += [heading("FILES"), *terms(list(FILES.items())[:1]), heading("SEE ALSO"), "natctl(1), natctl\\-render(1)"]
    return page(lines)


def blocks(reference: str) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the parts between empty lines: the comment, without its signs, and the keys or the section under it."""
    for block in re.split(r"\n\s*\n", reference.strip()):
        comment, keys = [], []
        for line in block.splitlines():
            if line.startswith("# ") or line == "#":
                comment.append(line[2:])
            else:
                keys.append(line)
        yield comment, keys


def entry(comment: list[str], keys: list[str]) -> Iterator[str]:
    """Yield a part of the reference."""
    if keys and re.fullmatch(r"\[+[\w.]+\]+", keys[0]):
        yield heading(keys[0])
        keys = keys[1:]
        yield from prose(comment)
        comment = []
    if keys:
        yield ".TP\n" + "\n.TQ\n".join(f".B {quoted(key)}" for key in keys)
    yield from prose(comment, inside=bool(keys))


def prose(comment: list[str], *, inside: bool = False) -> Iterator[str]:
    """Yield a comment as roff: lines that are indented stay lines."""
    if not inside and comment:
        yield ".PP"
    table = False
    for line in comment:
        indented = line.startswith("  ")
        if indented != table:
            yield ".sp\n.nf" if indented else ".fi"
            table = indented
        yield escaped(line) or ".sp"
    if table:
        yield ".fi"


def write_pages(directory: Path) -> list[Path]:
    """Write all pages into a directory; return their paths."""
    pages = {f"natctl-{name}.1": command_page(name, summary) for name, (_, summary) in COMMANDS.items()}
    pages["natctl.1"] = main_page()
    pages["natctl.toml.5"] = reference_page((ROOT / "docs/reference.toml").read_text(encoding="utf-8"))
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        (directory / name).write_text(text, encoding="utf-8")
    return sorted(directory / name for name in pages)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: manpages.py DIRECTORY")
    write_pages(Path(sys.argv[1]))
