"""Whatever a configuration says: it is refused with a path to the fault, or the kernel holds just what it means.

``NATCTL_LONG=1`` tries 100,000 of them.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from hostile import HOSTILE_TEXTS, Document, Kernel, hostile_documents, read
from hypothesis import HealthCheck, Phase, given, seed, settings

from nat_rewriter.config import check_document
from nat_rewriter.errors import ConfigError
from nat_rewriter.model.policy import Policy
from netns_lab.enter import missing_privilege

LONG = bool(os.environ.get("NATCTL_LONG"))
PARTS = 4 if LONG else 1  # for processors beside each other
CONFIGURATIONS = 25_000 if LONG else 400  # in each part
AT_ONCE = 10  # tables in the kernel: with more, nft takes longer for each
HEALTH = list(HealthCheck)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    if missing := missing_privilege():
        pytest.skip(f"needs {missing}: run ./dev test, or python -m netns_lab.enter -- python -m pytest")
    found = Kernel(AT_ONCE)
    yield found
    found.close()


def assert_says_where(error: ConfigError) -> None:
    """Fail unless each problem has a path, and fits on a line of a terminal."""
    assert error.problems
    for problem in error.problems:
        assert problem.path, problem
        assert problem.expected.startswith("expected "), problem
        assert str(problem).isprintable(), problem


@pytest.mark.parametrize("part", range(PARTS))
def test_a_configuration_is_refused_or_means_what_the_kernel_holds(part: int, kernel: Kernel) -> None:
    seen: Counter[str] = Counter()

    # What fails is told below, with its policy: to find a smaller one would load it again and again.
    @seed(part)
    @settings(max_examples=CONFIGURATIONS, phases=[Phase.generate], database=None, suppress_health_check=HEALTH)
    @given(hostile_documents())
    def try_all(document: Document) -> None:
        answer = read(document)
        if isinstance(answer, Policy):
            seen["accepted"] += 1
            kernel.take(answer)
        else:
            seen["refused"] += 1
            assert_says_where(answer)

    began = time.monotonic()
    try_all()
    kernel.flush()
    print(f"{dict(seen)}, {kernel.loaded} loaded, in {time.monotonic() - began:.0f} s")
    assert kernel.faults == []
    assert kernel.loaded == seen["accepted"]
    assert seen.total() >= CONFIGURATIONS
    assert min(seen["accepted"], seen["refused"]) > CONFIGURATIONS // 10, "one of the two ways is hardly tried"


TEXT_KEYS: dict[str, Document] = {
    "table": {"controller": {"table": None}},
    "slice": {"slice": [{"name": None, "address": "198.51.100.10", "ports": ["9000"]}]},
    "address": {"slice": [{"name": "a", "address": None, "ports": ["9000"]}]},
    "ports": {"slice": [{"name": "a", "address": "198.51.100.10", "ports": [None]}]},
    "protocol": {"slice": [{"name": "a", "address": "198.51.100.10", "ports": ["9000"], "protocols": [None]}]},
    "snat": {"snat": [{"name": None, "iifname": "a", "slices": ["s"]}]},
    "interface": {"snat": [{"name": "r", "iifname": None, "slices": ["s"]}]},
    "source": {"snat": [{"name": "r", "source": [None], "slices": ["s"]}]},
    "to": {"dnat": [{"name": "r", "slice": "s", "to": None}]},
}


def filled(document: object, text: str) -> object:
    """Return a document with a text in place of None."""
    if isinstance(document, dict):
        return {key: filled(value, text) for key, value in document.items()}
    if isinstance(document, list):
        return [filled(value, text) for value in document]
    return text if document is None else document


@pytest.mark.parametrize("place", TEXT_KEYS)
def test_every_hostile_text_in_every_place_for_text(place: str, kernel: Kernel) -> None:
    sound = {"version": 1, "slice": [{"name": "s", "address": "198.51.100.20", "ports": ["9000-9009"]}]}
    for text in HOSTILE_TEXTS:
        document = sound | filled(TEXT_KEYS[place], text)  # type: ignore[operator]
        try:
            kernel.take(check_document(document, "hostile.toml"))
        except ConfigError as error:
            assert_says_where(error)
    kernel.flush()
    assert kernel.faults == []
