"""Scenarios: short stories on a real kernel, each of which fails when something goes otherwise than it says."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nat_rewriter.errors import UsageError
from netns_lab.lab import Lab
from netns_lab.narrator import Narrator
from netns_lab.stage import Stage

Play = Callable[[Stage], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A story: its name, one line about it, what happens, and the lab it needs."""

    name: str
    summary: str
    play: Play
    lab_options: dict[str, Any]

    def run(self, narrator: Narrator, lab: Lab | None = None) -> None:
        """Play it in a lab of its own, or in one that stands; NotAsExpected where it goes otherwise than it says."""
        narrator.begin(self.name, self.summary)
        if lab is not None:
            self.play(Stage(lab, narrator))
            return
        with Lab(**self.lab_options) as own:
            self.play(Stage(own, narrator))


_REGISTERED: dict[str, Scenario] = {}


def scenario(name: str, summary: str, **lab_options: Any) -> Callable[[Play], Play]:
    """Register a function as a scenario; ``lab_options`` are those of :class:`netns_lab.lab.Lab`."""

    def register(play: Play) -> Play:
        _REGISTERED[name] = Scenario(name, summary, play, lab_options)
        return play

    return register


def list_scenarios() -> list[Scenario]:
    """Return all scenarios, in the order of their names."""
    package = importlib.import_module("netns_lab.scenarios")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return [_REGISTERED[name] for name in sorted(_REGISTERED)]


def get_scenario(name: str) -> Scenario:
    """Return the scenario of that name; UsageError names those there are."""
    known = {each.name: each for each in list_scenarios()}
    if name not in known:
        raise UsageError("run scenario", f"expected one of {', '.join(known)}", name)
    return known[name]
