"""What a host offers: questions with three answers, and how much each matters."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Answer(enum.Enum):
    """Whether something is there; unknown where this process may not look, or looking failed."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class Weight(enum.Enum):
    """What a no means: natctl cannot do its main job, something should be mended, or a convenience is missing."""

    REQUIRED = "required"
    RECOMMENDED = "recommended"
    OPTIONAL = "optional"


@dataclass(frozen=True, slots=True)
class Check:
    """One question with its answer: ``purpose`` is what it is for, ``found`` why the answer is what it is.

    ``remedy`` is a command, or what to change, that turns a no into a yes; empty for a yes. ``subject`` tells checks
    of one name apart: a slice, an address or a chain.
    """

    name: str
    answer: Answer
    weight: Weight
    purpose: str
    found: str
    remedy: str = ""
    subject: str = ""
