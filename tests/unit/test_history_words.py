"""What people write and read of history: times, lengths, sizes, answers, words of the command."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from recorded import NOW, OUT, SECOND, closed, opened, record_into, sight
from tables import CLIENT, SERVER, SOFT

from nat_rewriter.cli.main import run
from nat_rewriter.errors import UsageError
from nat_rewriter.history.answers import answer_line, answer_object
from nat_rewriter.history.merging import Batch, merge
from nat_rewriter.history.moments import read_age_ns, read_moment, read_size
from nat_rewriter.history.records import Sighting, joined

AT = datetime(2026, 11, 21, 19, 24, 22, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "first", "seconds"),
    [
        ("2026-11-21T19:24:22Z", "2026-11-21T19:24:22+00:00", 1),
        ("2026-11-21T19:24:22.5Z", "2026-11-21T19:24:22.500000+00:00", 1e-6),
        ("2026-11-21 19:24", "2026-11-21T18:24:00+00:00", 60),
        ("19:24", "2026-11-21T18:24:00+00:00", 60),
        ("2026-11-21", "2026-11-20T23:00:00+00:00", 86400),
        ("2026-11-21T19:24-05:00", "2026-11-22T00:24:00+00:00", 60),
        ("10m ago", "2026-11-21T19:14:22+00:00", 1),
        ("2d ago", "2026-11-19T19:24:22+00:00", 1),
    ],
)
def test_moments(text: str, first: str, seconds: float) -> None:
    found = read_moment(text, ZoneInfo("Europe/Berlin"), AT)
    assert found.first_ns == int(datetime.fromisoformat(first).timestamp() * 1000) * 1_000_000
    assert found.last_ns - found.first_ns + 1 == round(seconds * SECOND)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("2026-10-25 02:30", "twice"), ("2026-03-29 02:30", "put forward"), ("soon", "expected"), ("25:00", "expected")],
)
def test_moments_that_mean_nothing(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        read_moment(text, ZoneInfo("Europe/Berlin"), AT)


def test_ages_and_sizes() -> None:
    assert read_age_ns("30d") == 30 * 86400 * SECOND
    assert (read_size("20G"), read_size("512"), read_size("1m")) == (20 << 30, 512, 1 << 20)
    for read, text in ((read_age_ns, "30"), (read_age_ns, "0d"), (read_size, "20X"), (read_size, "-1")):
        with pytest.raises(UsageError):
            read(text)


def test_answers() -> None:
    records = merge([Batch(joined([sight(OUT | {"key": 1}), sight(OUT | {"key": 1}, kind=Sighting.CLOSED)]), NOW)])
    answer = answer_object(records[0], ("ams-1",))
    assert answer["tuple"] == {"src": SOFT, "sport": 9003, "dst": SERVER, "dport": 443}
    assert answer["holder"] == {"type": "nat-flow", "src": CLIENT, "sport": 39064, "id": 1000}
    assert (answer["start"], answer["start_is"], answer["slice"]) == ("2026-09-21T14:13:20.000000Z", "event", "ams-1")
    assert answer_line(records[0], ("ams-1",), UTC).endswith(
        "held by 10.0.0.2:39064 from 2026-09-21 14:13:20.000+0000 until 2026-09-21 14:13:20.000+0000 ams-1"
    )


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record_into(tmp_path, [opened(3), closed(3), opened(13)])
    words = ["history", f"{SOFT}:9003", "--record", str(tmp_path)]
    assert run([*words, "--json"]) == 0
    assert [json.loads(line)["end_is"] for line in capsys.readouterr().out.splitlines()] == [
        "event", "recording-ended",
    ]  # fmt: skip
    assert run([*words, "--limit", "1"]) == 0
    shown = capsys.readouterr()
    assert "10.0.0.2:1013" in shown.out
    assert "1 earlier flows are left out" in shown.err


@pytest.mark.parametrize(
    "words",
    [
        [], ["198.51.100.10:70000"], ["nowhere"], [SOFT, "--client", CLIENT], [SOFT, "--at", "soon"],
        [SOFT, "--at", "19:24", "--since", "19:20"], [SOFT, "--since", "19:24", "--until", "19:20"],
        [SOFT, "--tz", "Nowhere/Town"], [SOFT, "--protocol", "carrier-pigeon"], [SOFT, "--to", "443"],
    ],
)  # fmt: skip
def test_bad_words(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["history", *words, "--record", str(tmp_path)]) == 2
    assert capsys.readouterr().err
