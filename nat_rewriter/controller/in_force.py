"""Which configuration is in force, as the kernel vouches for it.

The kernel counts the rulesets of a network namespace (NFT_MSG_GETGEN). While that number is the one after natctl's own
last transaction, no table has changed since, and what natctl applied then is what is there: nothing has to be read back
to know it. Packets that fill sets do not count.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from nat_rewriter import __version__
from nat_rewriter.config.edit import Mentions, frame_of
from nat_rewriter.config.source import Document
from nat_rewriter.controller.generations import GenerationLog
from nat_rewriter.errors import NatctlError
from nat_rewriter.kernel import store
from nat_rewriter.kernel.netns_names import life_of_current

_FILE = "in-force.json"


@dataclass(frozen=True, slots=True)
class InForce:
    """A configuration, the generation that it is kept as, and the number of the ruleset that it became.

    ``frame`` is what it says beside slices and rules; it is as plain as :mod:`nat_rewriter.config.edit` needs it.
    ``mentions`` are there in a process that stays.
    """

    text: bytes
    frame: Document
    generation: int
    ruleset: int
    mentions: Mentions | None = None


def note_in_force(log: GenerationLog, generation: int, ruleset: int) -> None:
    """Note that the configuration of a generation is in force, as the ruleset of that number. Raises StateError.

    The note need not outlast a crash of the host, because rulesets do not.
    """
    if life := life_of_current():
        fields = {"natctl": __version__, "namespace": life, "generation": generation, "ruleset": ruleset}
        store.write_file(_path(log), json.dumps(fields).encode(), lasting=False)


def read_in_force(log: GenerationLog, ruleset: int) -> InForce | None:
    """Return what is in force by the note, if that is of the ruleset of this number.

    None where nothing is known, or where it is less plain than edits need it.
    """
    try:
        noted = json.loads(store.read_file(_path(log)) or b"{}")
        here = {"natctl": __version__, "namespace": life_of_current(), "ruleset": ruleset}
        if not here.items() <= noted.items():
            return None
        text = log.configuration_text(noted["generation"])
        frame = frame_of(text)
        return InForce(text, frame, noted["generation"], ruleset) if frame else None
    except (NatctlError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _path(log: GenerationLog) -> Path:
    return log.place.directory / _FILE
