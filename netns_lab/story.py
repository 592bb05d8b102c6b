"""What every scenario is told with: steps, and observations that are compared with what was expected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nat_rewriter.errors import NatctlError
from nat_rewriter.model.slices import PortRange
from netns_lab.narrator import Narrator, Observation


class NotAsExpected(NatctlError):
    """A step of a scenario that went otherwise than expected."""


@dataclass(frozen=True, slots=True)
class Outside:
    """Expected: any number but those of a range."""

    range: PortRange

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and number not in self.range

    def __str__(self) -> str:
        return f"outside {self.range}"


@dataclass(frozen=True, slots=True)
class Within:
    """Expected: a number of one of several ranges."""

    ranges: tuple[PortRange, ...]

    def __contains__(self, number: object) -> bool:
        return any(number in ports for ports in self.ranges)

    def __str__(self) -> str:
        return ", ".join(map(str, self.ranges))


class Story:
    """Tells a narrator what happens, and fails where it is not what was expected."""

    def __init__(self, narrator: Narrator) -> None:
        self._narrator = narrator
        self._step = ""

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Begin a part of the scenario; whatever fails in it is reported with its title."""
        self._step = title
        self._narrator.step(title)
        try:
            yield
        except NotAsExpected:
            raise
        except (NatctlError, OSError, ValueError, KeyError) as error:
            raise NotAsExpected(title, f"{type(error).__name__}: {error}") from error

    def say(self, text: str) -> None:
        """Tell something that needs no proof."""
        self._narrator.say(text)

    def expect(self, what: str, saw: object, expected: object = True) -> None:
        """Compare what was seen with a value, a PortRange, Within or Outside; raise when it is something else."""
        among = isinstance(expected, PortRange | Within | Outside)
        met = saw in expected if among else saw == expected  # type: ignore[operator]
        self._narrator.observe(Observation(self._step, what, _text(expected), _text(saw), met))
        if not met:
            raise NotAsExpected(self._step, f"{what}: expected {_text(expected)}, saw {_text(saw)}")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "nothing" if value is None else str(value)
