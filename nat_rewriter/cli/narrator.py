"""A scenario told on a terminal: headings, colours, and findings in a box."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from netns_lab.narrator import Observation, describe

if TYPE_CHECKING:
    from rich.console import Console

_COLOURS = {"critical": "red", "warning": "yellow"}


class TerminalNarrator:
    """Tells a scenario to a person at a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, name: str, summary: str) -> None:
        """Print the title in a box."""
        self._console.print(Panel(f"[bold]{escape(name)}[/]  {escape(summary)}", border_style="cyan", expand=False))

    def step(self, title: str) -> None:
        """Print a heading."""
        self._console.print(f"\n[bold cyan]{escape(title)}[/]", highlight=False)

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(f"  {escape(text)}", highlight=False)

    def command(self, words: str) -> None:
        """Print a command line."""
        self._console.print(f"  [bold]$ {escape(words)}[/]", highlight=False)

    def finding(self, finding: dict[str, Any]) -> None:
        """Print a box with kind and severity as its title."""
        table = Table.grid(padding=(0, 2))
        for name, value in describe(finding):
            table.add_row(f"[dim]{escape(name)}[/]", escape(value))
        colour = _COLOURS.get(finding["severity"], "blue")
        title = f"[bold]{finding['kind']}[/] ({finding['severity']})"
        self._console.print(Panel(table, title=title, title_align="left", border_style=colour, expand=False))

    def observe(self, observation: Observation) -> None:
        """Print what was seen, and what was expected where that is something else."""
        mark = "[green]✓[/]" if observation.met else "[bold red]✗[/]"
        differs = (
            "" if observation.expected == observation.saw else f" [dim](expected: {escape(observation.expected)})[/]"
        )
        seen = f"[bold]{escape(observation.saw)}[/]"
        self._console.print(f"  {mark} {escape(observation.what)}: {seen}{differs}", highlight=False)
