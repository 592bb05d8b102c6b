"""What is done about which finding, how often, and how it is told."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from ipaddress import ip_address

from tables import CLIENT, SERVER, SOFT

from nat_rewriter.controller.attempts import AGAIN_AFTER_S, MOST, WITHIN_S, Attempts, Verdict
from nat_rewriter.controller.measures import measure_of
from nat_rewriter.controller.mender import Mender, Powers
from nat_rewriter.model.actions import Action, EntryTarget, Result, SocketTarget, TableTarget, Verb
from nat_rewriter.model.findings import Finding, FlowParty, Kind, SocketParty
from nat_rewriter.model.tuples import FlowTuple
from nat_rewriter.report import action_line, action_object, json_line

MOMENT = datetime(2026, 11, 21, 19, 24, 22, 123456, UTC)
TUPLE = FlowTuple("tcp", ip_address(SOFT), 9000, ip_address(SERVER), 443)
SOCKET = SocketParty(81233, 4242, "curl", cookie=77)
ENTRY = EntryTarget(TUPLE, id=5)
DRIFT = Finding(Kind.RULESET_DRIFT, "It differs.", "Mend it.")


def finding(kind: Kind, **fields: object) -> Finding:
    return Finding(kind, "What.", "How.", protocol="tcp", tuple=TUPLE, **fields)  # type: ignore[arg-type]


def test_what_is_done_about_what() -> None:
    stuck = finding(Kind.ENTRY_STUCK, extra={"entry_id": 5, "zone": 3})
    assert measure_of(stuck, "natctl") == (Verb.DELETE_ENTRY, EntryTarget(TUPLE, 3, 5))
    assert measure_of(finding(Kind.SOCKET_UNTRACKED), "natctl") == (Verb.INSERT_ENTRY, EntryTarget(TUPLE))
    assert measure_of(DRIFT, "mine") == (Verb.RESTORE_RULESET, TableTarget("mine"))
    leak = finding(Kind.PORT_LEAKED, victim=SOCKET)
    assert measure_of(leak, "natctl") == (Verb.DESTROY_SOCKET, SocketTarget(TUPLE, SOCKET, 77))


def test_what_nothing_is_done_about() -> None:
    gone, shared = FlowParty("local-flow", SOFT, 9000, 5), SocketParty(81233)
    assert [measure_of(finding(Kind.PORT_LEAKED, victim=victim), "natctl") for victim in (gone, shared, None)] == [
        None, None, None,
    ]  # fmt: skip
    left_alone = set(Kind) - {Kind.ENTRY_STUCK, Kind.SOCKET_UNTRACKED, Kind.RULESET_DRIFT, Kind.PORT_LEAKED}
    assert all(measure_of(finding(kind, victim=SOCKET), "natctl") is None for kind in left_alone)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_settled_finding_is_left_until_it_comes_back() -> None:
    attempts = Attempts(clock=Clock())
    identity = DRIFT.identity
    assert attempts.judge(identity, ENTRY) is Verdict.GO
    attempts.note(identity, ENTRY, settled=True)
    attempts.keep([identity])
    assert attempts.judge(identity, ENTRY) is Verdict.NOT_NOW
    assert attempts.judge(identity, EntryTarget(TUPLE, id=6)) is Verdict.GO  # another one behind the same finding
    attempts.keep([])
    assert attempts.judge(identity, ENTRY) is Verdict.GO


def test_what_failed_is_tried_again_later() -> None:
    clock = Clock()
    attempts = Attempts(clock=clock)
    attempts.note(DRIFT.identity, ENTRY, settled=False)
    assert attempts.judge(DRIFT.identity, ENTRY) is Verdict.NOT_NOW
    clock.now = AGAIN_AFTER_S
    assert attempts.judge(DRIFT.identity, ENTRY) is Verdict.GO


def test_it_is_given_up_once_and_taken_up_again_after_an_hour() -> None:
    clock = Clock()
    attempts = Attempts(clock=clock)
    for number in range(MOST):
        assert attempts.judge(DRIFT.identity, EntryTarget(TUPLE, id=number)) is Verdict.GO
        attempts.note(DRIFT.identity, EntryTarget(TUPLE, id=number), settled=True)
        attempts.keep([])
    assert attempts.judge(DRIFT.identity, ENTRY) is Verdict.GIVE_UP
    assert attempts.judge(DRIFT.identity, ENTRY) is Verdict.NOT_NOW
    clock.now = WITHIN_S - 1
    attempts.keep([])
    assert attempts.judge(DRIFT.identity, ENTRY) is Verdict.NOT_NOW
    clock.now = WITHIN_S
    attempts.keep([])
    assert attempts.judge(DRIFT.identity, ENTRY) is Verdict.GO


def test_restoring_is_told_when_it_has_ended() -> None:
    with Mender("natctl", Powers(heal=True, dry_run=True), lambda: (Result.DONE, None)) as mender:
        began = mender.mend([DRIFT]) + mender.mend([DRIFT])
        (action,) = began + mender.finish()
        assert (action.verb, action.result) == (Verb.RESTORE_RULESET, Result.DONE)
        assert mender.mend([DRIFT]) + mender.finish() == []
    assert mender.counts == {(Verb.RESTORE_RULESET, Result.DONE): 1}


def test_nothing_is_done_without_the_power_to() -> None:
    with Mender("natctl", Powers(abort=True, dry_run=True), lambda: (Result.DONE, None)) as mender:
        assert mender.mend([DRIFT, finding(Kind.SOCKET_UNTRACKED)]) + mender.finish() == []
        (action,) = mender.mend([finding(Kind.PORT_LEAKED, victim=SOCKET)])
        assert action.result is Result.DRY_RUN


def test_a_socket_is_the_same_one_without_its_name() -> None:
    named = finding(Kind.PORT_LEAKED, victim=SOCKET)
    unnamed = finding(Kind.PORT_LEAKED, victim=SocketParty(SOCKET.inode, cookie=SOCKET.cookie))
    with Mender("natctl", Powers(abort=True, dry_run=True), lambda: (Result.DONE, None)) as mender:
        assert len(mender.mend([named]) + mender.mend([unnamed])) == 1


def test_action_as_an_object() -> None:
    leak = finding(Kind.PORT_LEAKED, victim=SOCKET)
    ended = Action(Verb.DESTROY_SOCKET, SocketTarget(TUPLE, SOCKET, 77), leak, Result.DONE)
    expected = """{"time": "2026-11-21T19:24:22.123456Z", "action": "destroy-socket",
        "target": {"type": "socket", "protocol": "tcp",
        "tuple": {"src": "198.51.100.10", "sport": 9000, "dst": "203.0.113.1", "dport": 443},
        "pid": 4242, "command": "curl", "inode": 81233},
        "finding": "port-leaked", "result": "done"}"""
    assert json.loads(json_line(action_object(ended, MOMENT))) == json.loads(expected)
    table = Action(Verb.RESTORE_RULESET, TableTarget("natctl"), DRIFT, Result.FAILED, "locked")
    printed = action_object(table, MOMENT)
    assert printed["target"] == {"type": "table", "family": "inet", "name": "natctl"}
    assert printed["detail"] == "locked"
    entry = Action(Verb.INSERT_ENTRY, EntryTarget(TUPLE), finding(Kind.SOCKET_UNTRACKED), Result.DONE)
    assert list(action_object(entry, MOMENT)["target"]) == ["type", "protocol", "tuple"]


def test_action_as_a_line() -> None:
    leak = finding(Kind.PORT_LEAKED, victim=SOCKET)
    ends = f"tcp {SOFT}:9000 -> {SERVER}:443"
    done = Action(Verb.DESTROY_SOCKET, SocketTarget(TUPLE, SOCKET, 77), leak, Result.DONE)
    assert action_line(done) == f"action done destroy-socket {ends} of curl[4242] for port-leaked"
    stuck = finding(Kind.ENTRY_STUCK, holder=FlowParty("nat-flow", CLIENT, 1, 2))
    late = Action(Verb.DELETE_ENTRY, ENTRY, stuck, Result.GONE, "the entry is gone")
    assert action_line(late) == f"action gone delete-entry {ends} id 5 for entry-stuck: the entry is gone"
