"""The generations of a table on disk: configuration, ruleset, who, when, and what became of each.

A generation is three files of one number: ``7.toml.gz`` for the configuration as it was read, ``7.json`` for what is
said of it, replaced when its outcome is known, and ``7.nft.gz`` for the ruleset that it meant, written while the kernel
takes it. One that came from another by small edits has ``7.edits-4.json`` in place of both texts, for what was edited
since generation 4.

They outlast a crash of the host from when the outcome is known, or a moment after: what was under way then has no
ruleset any more.
"""

from __future__ import annotations

import gzip
import json
import os
import pwd
import re
import shlex
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nat_rewriter import __version__, render
from nat_rewriter.config import read_policy
from nat_rewriter.config.edit import Edit
from nat_rewriter.errors import NatctlError, StateError
from nat_rewriter.kernel import store
from nat_rewriter.kernel.netns_names import name_of_current
from nat_rewriter.model.generations import Actor, Configuration, Generation, Outcome, Place
from nat_rewriter.model.policy import Policy

KEPT = 50
MOST_EDITS = 32  # after so many a configuration is kept whole again
_CONFIGURATION, _RULESET = "toml.gz", "nft.gz"
_EDITS = re.compile(r"(\d+)\.edits-(\d+)\.json")
# A generation whose outcome says that it came and that nothing replaced it by itself.
_STANDS = (Outcome.APPLIED, Outcome.UNCONFIRMED)

Warn = Callable[[str], None]


def place_of(root: Path | None, table: str) -> Place:
    """Return where the generations of a table in the current network namespace are kept."""
    return Place(root or store.default_directory(), name_of_current(), table)


def list_tables(root: Path | None) -> list[str]:
    """Return the tables that have generations in the current network namespace."""
    directory = (root or store.default_directory()) / name_of_current()
    return store.list_names(directory)


@dataclass(frozen=True, slots=True)
class GenerationLog:
    """The generations of one table; to be written by the holder of the table's lock."""

    place: Place

    def list_generations(self) -> list[Generation]:
        """Return all generations that are kept, oldest first; one that cannot be read is left out."""
        found = (self._read(number) for number in self._numbers())
        return [generation for generation in found if generation]

    def get(self, number: int) -> Generation:
        """Return one generation."""
        if (found := self._read(number)) is None:
            raise NatctlError("find generation", f"none is kept, natctl log lists those of table {self._table}", number)
        return found

    def configuration_text(self, number: int) -> bytes:
        """Return the configuration of a generation as it was read; empty for a removal."""
        root, edits = self._edits_of(number)
        text = self._bulk(root, _CONFIGURATION)
        for edit in edits:
            text = edit.of(text)
        return text

    def ruleset_text(self, number: int) -> str:
        """Return the ruleset of a generation, as text that `nft -f` loads; raise ConfigError as configuration().

        Of an edit, and of what natctl was ended at, none is kept: it is what this natctl makes of the configuration.
        """
        if self.get(number).action == "remove":
            return ""
        if f"{number}.{_RULESET}" in store.list_names(self.place.directory):
            return self._bulk(number, _RULESET).decode()
        return render.ruleset_text(self.configuration(number).policy)

    def configuration(self, number: int) -> Configuration:
        """Return the configuration of a generation; raise ConfigError where this natctl cannot read it any more."""
        generation = self.get(number)
        if generation.action == "remove":
            raise NatctlError("roll back", "generation took the table away: natctl remove does that again", number)
        text = self.configuration_text(number)
        return Configuration(text, generation.source, read_policy(text, f"generation {number}"), number)

    def current(self) -> Generation | None:
        """Return the newest generation that came into the kernel and stayed; None where none is known or it left."""
        stood = [one for one in self.list_generations() if one.outcome in _STANDS]
        return stood[-1] if stood and stood[-1].action != "remove" else None

    def current_number(self) -> int | None:
        """Return the number of the current generation, None where nothing is known."""
        try:
            current = self.current()
        except StateError:
            return None
        return current.number if current else None

    def policy_of(self, number: int | None) -> Policy | None:
        """Return what a generation meant; None where that is not known, or not understood any more."""
        try:
            return self.configuration(number).policy if number is not None else None
        except NatctlError:
            return None

    def current_policy(self) -> Policy | None:
        """Return what is believed to be applied, None where nothing is known."""
        return self.policy_of(self.current_number())

    def rollback_target(self) -> Generation:
        """Return the generation to go back to: the one applied before the current, or before one that never ended."""
        known = [one for one in self.list_generations() if one.outcome not in (Outcome.FAILED, Outcome.ROLLED_BACK)]
        applied = [one for one in known[:-1] if one.outcome is Outcome.APPLIED and one.action != "remove"]
        if not applied:
            raise NatctlError("roll back", "no earlier generation is kept", self._table)
        return applied[-1]

    def begin(self, configuration: Configuration | None, action: str) -> Generation:
        """Keep a generation that is about to be applied (None: removed), and forget the oldest ones."""
        source, text = (configuration.source, configuration.text) if configuration else ("", b"")
        generation = self._new(action, source, configuration.rolled_back_to if configuration else None)
        self._write_bulk(generation.number, _CONFIGURATION, text)
        self._write(generation)
        self._forget_oldest()
        return generation

    def keep_ruleset(self, number: int, ruleset: str) -> None:
        """Keep the ruleset of a generation as text."""
        self._write_bulk(number, _RULESET, ruleset.encode())

    def begin_edit(self, of: int, edit: Edit, source: str) -> Generation:
        """Keep a generation that is about to be applied, and is another one but for an edit."""
        root, edits = self._edits_of(of)
        generation = self._new("update", source)
        edits.append(edit)
        if len(edits) > MOST_EDITS:
            root, edits, text = generation.number, [], edit.of(self.configuration_text(of))
            self._write_bulk(root, _CONFIGURATION, text)
        fields = [[one.first, one.last, one.new.decode()] for one in edits]
        store.write_file(
            self._path(generation.number, f"edits-{root}.json"), json.dumps(fields).encode(), lasting=False
        )
        self._write(generation)
        return generation

    def _new(self, action: str, source: str, rolled_back_to: int | None = None) -> Generation:
        store.make_directory(self.place.directory)
        return Generation(
            number=max(self._numbers(), default=0) + 1,
            time=datetime.now(UTC),
            action=action,
            outcome=Outcome.UNFINISHED,
            actor=current_actor(),
            netns=self.place.netns,
            table=self._table,
            source=source,
            natctl=__version__,
            rolled_back_to=rolled_back_to,
        )

    def finish(self, generation: Generation, outcome: Outcome, reason: str | None = None) -> Generation:
        """Keep what became of a generation."""
        finished = replace(generation, outcome=outcome, reason=reason)
        self._write(finished)
        return finished

    def make_lasting(self, number: int) -> None:
        """Let a generation outlast a crash of the host, and forget the oldest ones."""
        own = (name for name in store.list_names(self.place.directory) if name.startswith(f"{number}."))
        store.make_lasting(self.place.directory, own)
        self._forget_oldest()

    @property
    def _table(self) -> str:
        return self.place.table

    def _numbers(self) -> list[int]:
        return _numbers_in(store.list_names(self.place.directory))

    def _path(self, number: int, suffix: str) -> Path:
        return self.place.directory / f"{number}.{suffix}"

    def _read(self, number: int) -> Generation | None:
        content = store.read_file(self._path(number, "json"))
        try:
            return generation_from_object(json.loads(content)) if content else None
        except (ValueError, TypeError, KeyError):
            return None

    def _write(self, generation: Generation) -> None:
        content = json.dumps(generation_object(generation), indent=1).encode() + b"\n"
        store.write_file(self._path(generation.number, "json"), content, lasting=False)

    def _write_bulk(self, number: int, suffix: str, content: bytes) -> None:
        store.write_file(self._path(number, suffix), gzip.compress(content, 1, mtime=0), lasting=False)

    def _bulk(self, number: int, suffix: str) -> bytes:
        path = self._path(number, suffix)
        content = store.read_file(path)
        if content is None:
            raise StateError("read state", "does not exist", path)
        try:
            if content:
                return gzip.decompress(content) if suffix.endswith(".gz") else content
        except (OSError, EOFError, zlib.error):
            pass
        raise StateError("read state", "is damaged", path)

    def _edits_of(self, number: int) -> tuple[int, list[Edit]]:
        """Return the generation whose configuration is kept whole, and the edits from there."""
        root = _roots(store.list_names(self.place.directory)).get(number)
        if root is None:
            return number, []
        content = self._bulk(number, f"edits-{root}.json")
        try:
            return root, [Edit(first, last, new.encode()) for first, last, new in json.loads(content)]
        except (ValueError, TypeError, AttributeError):
            raise StateError("read state", "is damaged", self._path(number, f"edits-{root}.json")) from None

    def _forget_oldest(self) -> None:
        """Keep the last ones; and the two that were applied last, however many failed after them."""
        names = store.list_names(self.place.directory)
        numbers, roots = _numbers_in(names), _roots(names)
        if len(numbers) > KEPT:
            kept = {*numbers[-KEPT:], *self._applied_last(numbers)}
            kept |= {roots[number] for number in kept if number in roots}
            for number in set(numbers) - kept:
                suffixes = ("json", _CONFIGURATION, _RULESET, f"edits-{roots.get(number)}.json")
                store.remove_files(self._path(number, suffix) for suffix in suffixes)
        store.remove_drafts(self.place.directory)

    def _applied_last(self, numbers: Sequence[int]) -> Iterator[int]:
        """Yield the two generations that were applied last."""
        left = 2
        for number in reversed(numbers):
            found = self._read(number)
            if found and found.outcome is Outcome.APPLIED:
                yield number
                left -= 1
                if not left:
                    return


def _numbers_in(names: Iterable[str]) -> list[int]:
    parts = (name.partition(".") for name in names)
    return sorted(int(stem) for stem, _, suffix in parts if suffix == "json" and stem.isdecimal())


def _roots(names: Iterable[str]) -> dict[int, int]:
    """Return which generation an edited one was edited from, by the names of their files."""
    found = (_EDITS.fullmatch(name) for name in names)
    return {int(match[1]): int(match[2]) for match in found if match}


def current_actor() -> Actor:
    """Return who runs this process."""
    uid = os.getuid()
    return Actor(uid, os.environ.get("SUDO_USER") or _user_name(uid), os.getpid(), _command())


def generation_object(generation: Generation) -> dict[str, Any]:
    """Return a generation as `log --json` prints it; absent fields are left out."""
    fields = asdict(generation) | {"time": generation.time.isoformat(), "outcome": generation.outcome.value}
    return {name: value for name, value in fields.items() if value is not None}


def generation_from_object(fields: dict[str, Any]) -> Generation:
    """Return the generation of such an object; raise ValueError, TypeError or KeyError for any other."""
    read = {
        "time": datetime.fromisoformat(fields["time"]),
        "outcome": Outcome(fields["outcome"]),
        "actor": Actor(**fields["actor"]),
    }
    return Generation(**(fields | read))


def _command() -> str:
    """Return the command line of this process, however natctl was found."""
    name = Path(sys.argv[0]).name
    return shlex.join(["natctl" if name == "__main__.py" else name, *sys.argv[1:]])


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
