"""History without a kernel: sightings, merging, pages, parts, questions and times."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import NOW, OUT, SECOND, WEB, asked, closed, opened, record_into, sight
from tables import AMS, CLEAN, CLIENT, SERVER, SOFT, SOFT6, flow, flows
from waiting import wait_until

from nat_rewriter.errors import LockHeld, StateError
from nat_rewriter.history import journaling, recorder
from nat_rewriter.history.directory import MARKER, Part, WriterLock, expired, list_parts
from nat_rewriter.history.journaling import Retention
from nat_rewriter.history.merging import Batch, end_recording, merge, parted
from nat_rewriter.history.pages import pack, places_of, unpack
from nat_rewriter.history.recorder import Recorder
from nat_rewriter.history.records import RECORD_DTYPE, EndMark, Records, Sighting, StartMark, Trait, empty, joined
from nat_rewriter.model.flows import Present, Status

# entries become sightings


def ends(record: Any) -> list[tuple[int, int]]:
    return [(int(record[end][1]), int(record[f"{end}_port"])) for end in ("wire", "client", "remote")]


def numbered(*ends: tuple[str, int]) -> list[tuple[int, int]]:
    return [(int(ip_address(address)) & (1 << 64) - 1, port) for address, port in ends]


@pytest.mark.parametrize(
    ("row", "wanted", "traits"),
    [
        (OUT, [(SOFT, 9003), (CLIENT, 39064), WEB], Trait(0)),
        (flow(((SOFT, 9003), WEB)), [(SOFT, 9003), (SOFT, 9003), WEB], Trait.LOCAL),
        (flow(((SOFT, 9003), WEB), (SOFT, 9004)), [(SOFT, 9004), (SOFT, 9003), WEB], Trait.LOCAL),
        (flow((("2001:db8::2", 5), ("2001:db8::3", 80)), (SOFT6, 9001)),
         [(SOFT6, 9001), ("2001:db8::2", 5), ("2001:db8::3", 80)], Trait(0)),
        (flow(((CLIENT, 77), (SERVER, 0)), (SOFT, 9005), protocol="icmp"),
         [(SOFT, 9005), (CLIENT, 77), (SERVER, 9005)], Trait(0)),
        (flow((WEB, (SOFT, 9001))), [(SOFT, 9001), (SOFT, 9001), WEB], Trait.INBOUND | Trait.LOCAL),
    ],
)  # fmt: skip
def test_ends_of_a_sighting(row: dict[str, Any], wanted: list[tuple[str, int]], traits: Trait) -> None:
    (record,) = sight(row)
    assert ends(record) == numbered(*wanted)
    assert Trait(int(record["traits"])) == traits


def test_inbound_that_is_sent_on() -> None:
    to_client = {
        "reply_src": (0, int(ip_address(CLIENT))),
        "reply_sport": 80,
        "reply_dst": (0, int(ip_address(SERVER))),
    }
    row = flow(((SERVER, 5000), (SOFT, 9001))) | to_client | {"reply_dport": 5000, "status": CLEAN | Status.DST_NAT}
    (record,) = sight(row)
    assert ends(record) == numbered((SOFT, 9001), (CLIENT, 80), (SERVER, 5000))
    assert Trait(int(record["traits"])) == Trait.INBOUND


def test_what_touches_no_slice_is_not_kept() -> None:
    assert len(sight(flow(((CLIENT, 1), WEB)), flow((WEB, (SOFT, 80))), OUT)) == 1


def test_times_are_the_kernels_where_it_has_them() -> None:
    stamped = OUT | {"present": OUT["present"] | Present.TIMESTAMP, "start_ns": 5, "stop_ns": 7}
    told, own = sight(stamped, OUT, kind=Sighting.CLOSED)
    assert (told["start_ns"], told["start_mark"], told["end_ns"], told["end_mark"]) == (
        5, StartMark.KERNEL, 7, EndMark.KERNEL,
    )  # fmt: skip
    assert (own["start_mark"], own["end_ns"], own["end_mark"]) == (StartMark.UNKNOWN, NOW, EndMark.EVENT)
    marks = {kind: sight(OUT, kind=kind)[0] for kind in Sighting}
    assert marks[Sighting.OPENED]["start_mark"] == StartMark.EVENT
    assert marks[Sighting.SEEN]["start_mark"] == StartMark.FIRST_SIGHT
    assert marks[Sighting.GONE]["end_mark"] == EndMark.SEEN_GONE


# sightings become records

B, S, C, G = Sighting.OPENED, Sighting.SEEN, Sighting.CLOSED, Sighting.GONE
_START = {B: StartMark.EVENT, S: StartMark.FIRST_SIGHT}
_END = {C: EndMark.EVENT, G: EndMark.SEEN_GONE}


def seen(number: int, kind: Sighting, time_ns: int, entry: int = 1) -> Records:
    one = empty(1)
    one["flow"], one["sighting"], one["id"] = number, kind, entry
    if kind in _START:
        one["start_ns"], one["start_mark"] = time_ns, _START[kind]
    else:
        one["end_ns"], one["end_mark"] = time_ns, _END[kind]
    return one


def story(records: Records) -> list[tuple[int, int, int, int]]:
    names = ("flow", "start_ns", "end_ns", "end_mark")
    return sorted(zip(*(records[name].tolist() for name in names), strict=True))


@pytest.mark.parametrize(
    ("sightings", "wanted"),
    [
        ([(B, 1), (C, 2)], [(1, 1, 2, EndMark.EVENT)]),
        ([(B, 1)], [(1, 1, 0, EndMark.OPEN)]),
        ([(B, 1), (S, 2), (C, 3)], [(1, 1, 3, EndMark.EVENT)]),
        ([(S, 1), (G, 4)], [(1, 1, 4, EndMark.SEEN_GONE)]),
        ([(C, 5)], [(1, 5, 5, EndMark.EVENT)]),
        ([(G, 5)], []),
        ([(B, 1), (C, 2), (G, 3), (B, 4)], [(1, 1, 2, EndMark.EVENT), (1, 4, 0, EndMark.OPEN)]),
        ([(B, 1), (B, 3, 2)], [(1, 1, 3, EndMark.SEEN_GONE), (1, 3, 0, EndMark.OPEN)]),
        ([(B, 9), (C, 4)], [(1, 9, 9, EndMark.EVENT)]),  # the clock was put back
    ],
)
def test_merge(sightings: list[tuple[Any, ...]], wanted: list[tuple[int, ...]]) -> None:
    assert story(merge([Batch(seen(1, *one), one[1]) for one in sightings])) == wanted


def test_complete_batch_ends_what_it_lacks() -> None:
    before = Batch(joined([seen(1, B, 1), seen(2, B, 2)]), 2)
    complete = Batch(joined([seen(2, S, 5), seen(3, S, 5)]), 5, complete=True)
    assert story(merge([before, complete])) == [
        (1, 1, 5, EndMark.SEEN_GONE), (2, 2, 0, EndMark.OPEN), (3, 5, 0, EndMark.OPEN),
    ]  # fmt: skip


def test_start_is_the_kernels_once_the_end_tells_it() -> None:
    closed = seen(1, C, 9)
    closed["start_ns"], closed["start_mark"] = 3, StartMark.KERNEL
    (record,) = merge([Batch(joined([seen(1, B, 4), closed]), 9)])
    assert (record["start_ns"], record["start_mark"]) == (3, StartMark.KERNEL)


def test_counters_are_the_last_that_were_told() -> None:
    opened, closed = seen(1, B, 1), seen(1, C, 2)
    closed["packets"], closed["traits"] = (3, 4), Trait.COUNTED
    (record,) = merge([Batch(joined([opened, closed]), 2)])
    assert record["packets"].tolist() == [3, 4]
    assert record["traits"] == Trait.COUNTED


steps = st.lists(st.tuples(st.integers(1, 3), st.sampled_from([B, S, C, G]), st.integers(1, 2)), max_size=30)


@given(steps, st.lists(st.integers(0, 30), max_size=4))
def test_parts_tell_what_one_part_would(sightings: list[tuple[int, Sighting, int]], cuts: list[int]) -> None:
    batches = [Batch(seen(flow, kind, at, entry), at) for at, (flow, kind, entry) in enumerate(sightings, start=1)]
    found, still, begin = [], empty(), 0
    for cut in [*sorted(cuts), len(batches)]:
        ended, still = parted(merge([Batch(still, begin), *batches[begin:cut]]))
        found.append(ended)
        begin = max(begin, cut)
    whole = merge(batches)
    for records in (whole, still):
        end_recording(records, 100)
    assert story(joined([*found, still])) == story(whole)


# pages


@given(st.binary(min_size=RECORD_DTYPE.itemsize, max_size=RECORD_DTYPE.itemsize), st.integers(1, 40), st.randoms())
def test_pages_round_trip(content: bytes, count: int, chance: Any) -> None:
    records = np.frombuffer(content * count, RECORD_DTYPE).copy()
    records["wire_port"] = [chance.choice((9000, 9001)) for _ in range(count)]
    page = pack(records)
    assert unpack(page).tobytes() == records.tobytes()
    wanted = empty(1)
    wanted["wire_port"] = 9001
    chosen = unpack(page, places_of(wanted, ["wire_port"]))
    assert chosen.tobytes() == records[records["wire_port"] == 9001].tobytes()
    spoilt = bytearray(page)
    spoilt[chance.randrange(8, len(page))] ^= 1 << chance.randrange(8)
    with pytest.raises(ValueError, match="checksum"):
        unpack(bytes(spoilt))


# a directory of parts


def test_flows_are_found_by_wire_and_by_client(tmp_path: Path) -> None:
    path = tmp_path / "history"
    record_into(path, [opened(3), closed(3), opened(4), opened(13)])
    assert [(one["client_port"], one["end_mark"]) for one in asked(path, port=9003)] == [
        (1003, EndMark.EVENT), (1013, EndMark.RECORDING_ENDED),
    ]  # fmt: skip
    assert len(asked(path)) == 3
    assert len(asked(path, end="client", address=ip_address(CLIENT))) == 3
    assert len(asked(path, end="client", address=ip_address(CLIENT), port=1004)) == 1
    assert len(asked(path, remote=ip_address(SERVER), remote_port=443)) == 3
    assert asked(path, port=9009) == []
    assert asked(path, remote=ip_address(SERVER), remote_port=80) == []
    assert asked(path, protocols=frozenset({17})) == []
    assert asked(path, address=ip_address(SOFT6)) == []
    assert asked(path, until_ns=NOW) == []
    assert asked(path, since_ns=time.time_ns() + SECOND) == []


def test_flow_that_lasts_longer_than_parts_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journaling, "_PART_SIGHTINGS", 4)
    monkeypatch.setattr(recorder, "FLUSH_EVERY_S", 0.01)
    with Recorder(tmp_path, (AMS,)) as one:
        for number in range(0, 40, 4):
            one.events(flows(*([opened(99)] if number == 0 else []), *map(opened, range(number, number + 4))))
            one.events(flows(*map(closed, range(number, number + 4))))
            time.sleep(0.05)
        wait_until(lambda: one.status.written == 81)
        live = asked(tmp_path)
        one.events(flows(closed(99)))
    assert len(list_parts(tmp_path)) > 2
    for found in (live, asked(tmp_path)):
        assert sorted(record["id"] for record in found) == [*range(1, 41), 100]
    assert {int(one["end_mark"]) for one in live} == {EndMark.EVENT, EndMark.OPEN}
    assert {int(one["end_mark"]) for one in asked(tmp_path)} == {EndMark.EVENT}


def test_what_the_queue_has_no_room_for_is_counted_and_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "QUEUED_FLOWS", 10)
    told: list[str] = []
    with Recorder(tmp_path, (AMS,), tell=told.append) as one:
        one.events(flows(opened(1), opened(2)))
        one.snapshot(flows(opened(1), opened(2)))
        assert not one.wants_snapshot
        one.events(flows(*map(closed, range(20))))
        wait_until(lambda: one.wants_snapshot)
        one.snapshot(flows(opened(2)))
        assert one.status.lost == 20
    assert told == ["history: 20 sightings were lost, 20 in all"]
    assert [(one["id"], one["end_mark"]) for one in asked(tmp_path)] == [
        (2, EndMark.SEEN_GONE), (3, EndMark.RECORDING_ENDED),
    ]  # fmt: skip


def test_retention(tmp_path: Path) -> None:
    record_into(tmp_path, *([opened(number), closed(number)] for number in range(4)))
    sizes = [part.path.stat().st_blocks * 512 for part in list_parts(tmp_path)]
    record_into(tmp_path, [opened(4), closed(4)], retention=Retention(keep_bytes=sum(sizes[:3])))
    assert sorted(one["id"] for one in asked(tmp_path)) in ([4, 5], [3, 4, 5])
    time.sleep(1.1)
    record_into(tmp_path, [opened(5), closed(5)], retention=Retention(keep_ns=SECOND // 100))
    assert [one["id"] for one in asked(tmp_path)] in ([6], [])


def test_live_parts_are_never_deleted() -> None:
    parts = [Part(Path("1.20200101T000000Z-20200101T000001Z.flows"), 1, 0, 10), Part(Path("2.live"), 2)]
    assert expired(parts, [5, 5], NOW, None, 1) == parts[:1]
    assert expired(parts, [5, 5], NOW, 1, None) == parts[:1]
    assert expired(parts, [5, 5], NOW, None, 10) == []


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    lock = WriterLock(tmp_path / "history")
    with pytest.raises(LockHeld, match="another natctl"):
        WriterLock(tmp_path / "history")
    lock.close()
    WriterLock(tmp_path / "history").close()


def test_what_is_no_history(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("letters")
    with pytest.raises(StateError, match="not a history"):
        Recorder(tmp_path, (AMS,))
    for path in (tmp_path, tmp_path / "mine", tmp_path / "none"):
        with pytest.raises(StateError, match="there is none"):
            asked(path)
    with pytest.raises(StateError):
        Recorder(tmp_path / "mine", (AMS,))


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = os.urandom(len(content) - len(content) // 2)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [spoil, lambda path: path.write_bytes(b"letters" * 1000), lambda path: os.truncate(path, 5000)]
)
def test_damaged_part_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    record_into(tmp_path, [opened(number) for number in range(2000)])
    (part,) = list_parts(tmp_path)
    damage(part.path)
    with pytest.raises(StateError, match="read history") as caught:
        asked(tmp_path)
    assert str(part.path) in str(caught.value)


def test_damaged_leftover_does_not_stop_recording(tmp_path: Path) -> None:
    (tmp_path / MARKER).touch()
    (tmp_path / "00000007.live").write_bytes(b"letters" * 1000)
    told: list[str] = []
    with Recorder(tmp_path, (AMS,), tell=told.append) as one:
        one.events(flows(opened(1), closed(1)))
        wait_until(lambda: bool(told))
    assert "00000007.live" in told[0]
    assert [part.number for part in list_parts(tmp_path)] == [7, 8]
