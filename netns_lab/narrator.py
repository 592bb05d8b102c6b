"""Who tells how a scenario goes: in lines of text, or in JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import IO, Any, Protocol


@dataclass(frozen=True, slots=True)
class Observation:
    """One thing that was looked at: in which step, what, what it should be, what it was."""

    step: str
    what: str
    expected: str
    saw: str
    met: bool


class Narrator(Protocol):
    """Tells a person, or a program, how a scenario goes."""

    def begin(self, name: str, summary: str) -> None:
        """A scenario starts."""

    def step(self, title: str) -> None:
        """A part of it starts."""

    def say(self, text: str) -> None:
        """Something worth knowing."""

    def command(self, words: str) -> None:
        """A command that a user would type now."""

    def finding(self, finding: dict[str, Any]) -> None:
        """What ``natctl check`` reported."""

    def observe(self, observation: Observation) -> None:
        """Something was looked at."""


class PlainNarrator:
    """Tells it in lines of text."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def begin(self, name: str, summary: str) -> None:
        """Print the title."""
        self._print(f"{name}: {summary}")

    def step(self, title: str) -> None:
        """Print a heading."""
        self._print(f"\n{title}")

    def say(self, text: str) -> None:
        """Print a line."""
        self._print(f"  {text}")

    def command(self, words: str) -> None:
        """Print a command line."""
        self._print(f"  $ {words}")

    def finding(self, finding: dict[str, Any]) -> None:
        """Print kind and severity, then who, what and how to mend it, a line each."""
        self._print(f"  {finding['kind']} ({finding['severity']})")
        for name, value in describe(finding):
            self._print(f"    {name}: {value}")

    def observe(self, observation: Observation) -> None:
        """Print what was seen, and what was expected where that is something else."""
        mark = "ok  " if observation.met else "FAIL"
        differs = "" if observation.expected == observation.saw else f"  (expected: {observation.expected})"
        self._print(f"  {mark} {observation.what}: {observation.saw}{differs}")

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class JsonNarrator:
    """Prints every observation as one JSON object a line, and nothing else."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._scenario = ""

    def begin(self, name: str, summary: str) -> None:
        """Remember the name."""
        self._scenario = name

    def step(self, title: str) -> None:
        """Print nothing: each observation names its step."""

    def say(self, text: str) -> None:
        """Print nothing."""

    def command(self, words: str) -> None:
        """Print nothing."""

    def finding(self, finding: dict[str, Any]) -> None:
        """Print nothing: what matters of it is observed."""

    def observe(self, observation: Observation) -> None:
        """Print the observation."""
        print(json.dumps({"scenario": self._scenario, **asdict(observation)}), file=self._stream, flush=True)


def describe(finding: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the lines that explain a finding to a person: label and text."""
    if victim := finding.get("victim"):
        yield "victim", f"process {victim['pid']} ({victim['command']})" if victim.get("pid") else str(victim)
    if holder := finding.get("holder"):
        name = holder.get("type", "").replace("-", " ")
        yield "holder", f"{name} of {holder['src']} port {holder['sport']}" if "src" in holder else name
    if "destination" in finding:
        yield "destination", finding["destination"]
    if "wire_sport" in finding:
        yield "port on the wire", str(finding["wire_sport"])
    yield "message", finding.get("message", "")
    yield "remedy", finding.get("remedy", "")
