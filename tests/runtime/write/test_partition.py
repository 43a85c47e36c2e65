"""The partition's write loop: dedupe, decide, append, adopt; outcomes item by item; over both logs.

What random histories do not show as clearly, one sentence each. Those are in `test_histories.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

import pytest

from rayfold.runtime.domain.aggregate import EVENTS_PER_COMMAND_MAX
from rayfold.runtime.encoding.envelope import Envelope, PackedCommand, pack
from rayfold.runtime.encoding.outcome import Outcome
from rayfold.runtime.errors import (
    CommandIdReused,
    Conflict,
    Damaged,
    Fenced,
    HandlerFailed,
    InvalidId,
    InvalidMessage,
    RayfoldError,
    Rejected,
    StorageFailed,
    UnknownName,
)
from rayfold.runtime.log import plan
from rayfold.runtime.log.contract import Append, Appended, CommandEntry, Log
from rayfold.runtime.log.format import decode_record
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.log.writer import LmdbLog
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.stream import NO_STREAM, StreamId
from rayfold.runtime.write.write_loop import AlreadyStored, WriteLoop
from tests.bank import Account, Close, Deposit, Open, Pay, Store, Vault, Withdraw
from tests.support.arrivals import (
    CATALOGUE,
    Grow,
    Leave,
    Picky,
    Recurse,
    Refuse,
    Show,
    activated,
    alice,
    assert_residents_are_a_fold,
    balance,
    error,
    facts,
    risky,
    to,
)
from tests.support.faulty_log import FaultyLog
from tests.support.ledger import Babble, Break, Burst

OPEN = Open(owner="Ada")
TEN = Deposit(amount=10)


# Receipts -------------------------------------------------------------------------------------------------------


def test_a_command_is_acknowledged_with_its_place(loop: WriteLoop) -> None:
    done = loop.execute([alice(OPEN, 1)])
    assert done.outcomes == [Receipt(StreamId("Account", "alice"), 7, 1, 1, bytes(15) + b"\1", False, "", 1)]


def test_an_event_carries_what_its_command_carried(loop: WriteLoop) -> None:
    envelope = Envelope(Account, "alice", OPEN, UUID(int=1), correlation_id=UUID(int=2), causation_id=UUID(int=3))
    (record,) = loop.execute([pack(envelope)[0]]).records
    stored = decode_record(record)
    assert stored.stream == ("Account", "alice")
    assert [stored.command_id, stored.correlation_id, stored.causation_id] == [
        bytes(15) + bytes([n]) for n in (1, 2, 3)
    ]


def test_commands_in_one_batch_see_each_others_effects(loop: WriteLoop) -> None:
    done = loop.execute([alice(OPEN), alice(TEN), alice(Withdraw(amount=10)), alice(Withdraw(amount=1))])
    assert [facts(outcome) for outcome in done.outcomes[:3]] == [(1, 1, False), (2, 2, False), (3, 3, False)]
    assert error(done.outcomes[3], Rejected) == (
        "Account/alice refused Withdraw: insufficient_funds (balance=0, needed=1)"
    )


def test_the_records_returned_are_what_was_appended_in_position_order(loop: WriteLoop, log: FaultyLog) -> None:
    loop.execute([alice(OPEN)])
    done = loop.execute(
        [
            to(Account, "bob", OPEN),
            alice(TEN, 1),
            alice(Pay(to="bob", amount=3)),
            alice(TEN, 1),
            to(Vault, "v", Store(thing="x")),
        ]
    )
    assert [decode_record(record).position for record in done.records] == [2, 3, 4, 5, 6]
    assert done.records == log.read(1, 100)


def test_an_empty_batch_is_answered_with_nothing(loop: WriteLoop, log: FaultyLog) -> None:
    assert loop.execute([]) == ([], [])
    assert log.head() == 0


def test_a_command_without_events_is_told_the_place_of_what_it_was_decided_on(loop: WriteLoop, log: FaultyLog) -> None:
    loop.execute([alice(OPEN), alice(Close())])
    done = loop.execute([to(Account, "bob", OPEN), alice(Close(), 5), to(Account, "carol", OPEN)])
    assert [facts(outcome) for outcome in done.outcomes] == [(3, 1, False), (2, 2, False), (4, 1, False)]
    assert log.find_command(bytes(15) + b"\5") is None


def test_a_command_without_events_leaves_no_id_in_its_batch_either(loop: WriteLoop) -> None:
    loop.execute([alice(OPEN), alice(Close())])
    done = loop.execute([alice(Close(), 5), alice(Close(), 5), to(Account, "bob", OPEN, 5)])
    assert [facts(outcome) for outcome in done.outcomes] == [(2, 2, False), (2, 2, False), (3, 1, False)]


# Command ids ----------------------------------------------------------------------------------------------------


def test_a_repeat_gets_the_first_receipt_and_stores_nothing(loop: WriteLoop, log: FaultyLog) -> None:
    loop.execute([alice(OPEN, 1), alice(TEN, 2)])
    loop.execute([alice(TEN, 3)])
    done = loop.execute([alice(TEN, 2)])
    assert facts(done.outcomes[0]) == (2, 2, True)
    assert not done.records
    assert log.head() == 3


def test_a_repeat_is_one_whatever_version_it_expects_now(loop: WriteLoop) -> None:
    loop.execute([alice(OPEN, 1), alice(TEN, 2, 1), alice(TEN, 3)])
    for expected in (1, NO_STREAM, 99):
        assert facts(loop.execute([alice(TEN, 2, expected)]).outcomes[0]) == (2, 2, True)


def test_a_repeat_is_one_though_the_aggregate_would_refuse_it_now(loop: WriteLoop) -> None:
    loop.execute([alice(OPEN, 1), alice(TEN, 2), alice(Close(), 3)])
    done = loop.execute([alice(OPEN, 1), alice(TEN, 2)])
    assert [facts(outcome) for outcome in done.outcomes] == [(1, 1, True), (2, 2, True)]


def test_a_repeat_inside_its_batch_gets_the_first_receipt(loop: WriteLoop, log: FaultyLog) -> None:
    done = loop.execute([alice(OPEN, 1), alice(TEN, 2), alice(OPEN, 1), alice(TEN, 2, 99), alice(TEN, 2)])
    told = [facts(outcome) for outcome in done.outcomes]
    assert told == [(1, 1, False), (2, 2, False), (1, 1, True), (2, 2, True), (2, 2, True)]
    assert log.head() == len(done.records) == 2


def test_a_repeat_after_a_restart_gets_the_first_receipt(loop: WriteLoop, reopen: Callable[[], WriteLoop]) -> None:
    loop.execute([alice(OPEN, 1), alice(Pay(to="bob", amount=1), 9), alice(TEN, 2), alice(TEN, 3)])
    done = reopen().execute([alice(TEN, 2), alice(TEN, 4)])
    assert [facts(outcome) for outcome in done.outcomes] == [(2, 2, True), (4, 4, False)]


def test_a_refused_command_may_be_sent_again_under_its_id(loop: WriteLoop) -> None:
    loop.execute([alice(OPEN)])
    assert error(loop.execute([alice(Withdraw(amount=5), 8)]).outcomes[0], Rejected)
    done = loop.execute([alice(TEN), alice(Withdraw(amount=5), 8)])
    assert facts(done.outcomes[1]) == (3, 3, False)


@pytest.mark.parametrize(
    "other",
    [
        alice(Deposit(amount=11), 2),
        alice(Withdraw(amount=10), 2),
        to(Account, "bob", TEN, 2),
        to(Vault, "alice", Store(thing="x"), 2),
    ],
    ids=["payload", "name", "id", "type"],
)
@pytest.mark.parametrize("in_one_batch", [True, False])
def test_the_id_of_a_stored_command_with_other_content_is_refused(
    loop: WriteLoop, log: FaultyLog, other: PackedCommand, in_one_batch: bool
) -> None:
    loop.execute([alice(OPEN, 1)])
    if in_one_batch:
        outcome = loop.execute([alice(TEN, 2), other]).outcomes[1]
    else:
        loop.execute([alice(TEN, 2)])
        outcome = loop.execute([other]).outcomes[0]
    assert error(outcome, CommandIdReused) == (
        f"command id {2:032x} was already used for a different command than this one to {other.stream};"
        " give each new command an id of its own"
    )
    assert log.head() == 2


# Versions and creation ------------------------------------------------------------------------------------------


def test_an_expected_version_is_compared_with_the_version_at_its_turn(loop: WriteLoop) -> None:
    done = loop.execute(
        [alice(OPEN, 0, NO_STREAM), alice(TEN, 0, 1), alice(TEN, 0, 1), alice(TEN, 0, NO_STREAM), alice(TEN, 0, 2)]
    )
    assert [facts(done.outcomes[index]) for index in (0, 1, 4)] == [(1, 1, False), (2, 2, False), (3, 3, False)]
    assert error(done.outcomes[2], Conflict) == "expected version 1 of Account/alice, but the stream is at 2"
    assert error(done.outcomes[3], Conflict) == "expected no stream of Account/alice, but the stream is at 2"


def test_a_command_that_may_not_create_is_refused_on_an_unknown_id_and_leaves_no_trace(
    loop: WriteLoop, log: FaultyLog, reopen: Callable[[], WriteLoop]
) -> None:
    loop.execute([to(Account, "bob", OPEN)])
    before = entries(log)
    for number in range(1, 4):
        (outcome,) = loop.execute([alice(TEN, number)]).outcomes
        assert error(outcome, Rejected) == "Account/alice refused Deposit: does_not_exist"
    assert len(loop.residents) == 1
    assert entries(log) == before
    assert log.head() == 1
    assert log.version(StreamId("Account", "alice")) == 0
    assert facts(reopen().execute([alice(OPEN, 1)]).outcomes[0]) == (2, 1, False)


def entries(log: FaultyLog) -> list[int]:
    """How many pairs each database holds."""
    if isinstance(log.behind, MemoryLog):
        return [len(kept) for kept in vars(log.behind).values() if isinstance(kept, dict | list)]
    assert isinstance(log.behind, LmdbLog)
    environment = log.behind.environment
    return [environment.entries(name) for name in (b"events", b"streams", b"commands", b"snapshots", b"meta")]


# One command's fault costs no neighbour -------------------------------------------------------------------------


def refused(bad: PackedCommand, loop: WriteLoop, log: FaultyLog) -> Outcome:
    """The outcome of `bad` in the middle of a batch, whose neighbours must not notice it."""
    if not log.head():
        loop.execute([alice(OPEN), risky(Grow(events=1, size=1))])
    head, before = log.head(), balance(loop)
    done = loop.execute([alice(TEN), risky(Grow(events=1, size=1)), bad, risky(Grow(events=1, size=1)), alice(TEN)])
    assert [facts(done.outcomes[index])[0] for index in (0, 1, 3, 4)] == [head + 1, head + 2, head + 3, head + 4]
    assert done.records == log.read(head, 100)
    assert len(done.records) == 4
    assert balance(loop) == before + 20
    assert_residents_are_a_fold(loop)
    return done.outcomes[2]


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (alice(Break()), "Till.break_ failed on Account/alice: ValueError: broken"),
        (alice(Burst()), "Till.bursting failed on Account/alice: KeyError: 'burst'"),
        (
            alice(Babble()),
            "Till.babble failed on Account/alice: it returned str 'a deposit'; return events, None or Rejected",
        ),
        (risky(Leave(where="decide")), "Risky.leave failed on Risky/r: SystemExit: 3"),
        (risky(Leave(where="evolve")), "Risky.left failed on Risky/r: SystemExit: 4"),
        (risky(Refuse()), "Risky.refused failed on Risky/r: Rejected: too late"),
        (
            risky(Grow(events=EVENTS_PER_COMMAND_MAX + 1, size=0)),
            "Risky.grow failed on Risky/r: it returned over 10,000 events; split the command",
        ),
        (
            risky(Picky(key="known"))._replace(payload=b"\x81\xa3key\xa1?"),
            "the code of Picky failed on Risky/r: KeyError: '?'",
        ),
    ],
    ids=lambda value: value.split(" failed")[0] if isinstance(value, str) else "",
)
def test_a_failing_handler_is_an_error_to_its_caller_only(
    loop: WriteLoop, log: FaultyLog, bad: PackedCommand, text: str
) -> None:
    assert error(refused(bad, loop, log), HandlerFailed) == text


def test_a_handler_without_end_is_an_error_to_its_caller_only(loop: WriteLoop, log: FaultyLog) -> None:
    text = error(refused(risky(Recurse()), loop, log), HandlerFailed)
    assert text.startswith("Risky.recurse failed on Risky/r: RecursionError: maximum recursion depth exceeded")


@pytest.mark.parametrize(
    ("bad", "kind", "text"),
    [
        (
            risky(Grow(events=1, size=0))._replace(payload=b"\x81"),
            InvalidMessage,
            "Grow: its bytes are not a message: Unpack failed: incomplete input",
        ),
        (
            risky(Grow(events=1, size=0))._replace(payload=b"\x80"),
            InvalidMessage,
            "Grow: events is missing, size is missing",
        ),
        (
            risky(Grow(events=1, size=1_100_000)),
            InvalidMessage,
            "Grown: it has 1,100,011 bytes, over 1,048,576; keep large things elsewhere and send their address",
        ),
        (
            risky(Grow(events=1, size=0))._replace(name="Shrink"),
            UnknownName,
            "no command of Risky is named 'Shrink'; known: Grow, Leave, Picky, Recurse, Refuse, Show",
        ),
        (
            risky(Grow(events=1, size=0))._replace(stream=StreamId("Ghost", "r")),
            UnknownName,
            "no aggregate is named 'Ghost'; known: Account, Risky, Vault",
        ),
        (
            risky(Grow(events=1, size=0))._replace(stream=StreamId("Risky", "")),
            InvalidId,
            "aggregate id '' is empty",
        ),
        (
            risky(Grow(events=1, size=0))._replace(command_id=b"short"),
            InvalidId,
            "command id '73686f7274' has 5 bytes, not 16",
        ),
        (
            risky(Grow(events=1, size=0))._replace(correlation_id=b"short"),
            InvalidId,
            "correlation id '73686f7274' has 5 bytes, not 16",
        ),
    ],
    ids=["garbage", "fields", "event too large", "command", "aggregate", "empty id", "command id", "correlation id"],
)
def test_a_callers_mistake_costs_no_neighbour(
    loop: WriteLoop, log: FaultyLog, bad: PackedCommand, kind: type[RayfoldError], text: str
) -> None:
    assert error(refused(bad, loop, log), kind) == text


def test_facts_of_a_rejection_are_those_of_its_moment(loop: WriteLoop) -> None:
    grow = risky(Grow(events=1, size=2))
    _, shown, _ = loop.execute([grow, risky(Show()), risky(Grow(events=1, size=3))]).outcomes
    assert isinstance(shown, Rejected)
    assert shown.facts == {"texts": ["xx"]}


def test_what_a_failing_command_did_is_not_seen_by_the_next_in_its_batch(loop: WriteLoop) -> None:
    done = loop.execute([alice(OPEN), alice(TEN), alice(Break()), alice(Burst()), alice(Withdraw(amount=11))])
    assert error(done.outcomes[4], Rejected) == (
        "Account/alice refused Withdraw: insufficient_funds (balance=10, needed=11)"
    )


def test_a_batch_too_large_for_one_append_is_appended_in_parts(
    loop: WriteLoop, log: FaultyLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "BATCH_BYTES_MAX", 3_000)
    done = loop.execute([risky(Grow(events=1, size=size)) for size in (900, 900, 4_000, 900, 900)])
    told = [type(outcome).__name__ for outcome in done.outcomes]
    assert told == ["Receipt", "Receipt", "InvalidMessage", "Receipt", "Receipt"]
    assert done.records == log.read(0, 100)
    assert log.head() == 4


def test_a_damaged_entry_of_one_command_id_costs_no_neighbour(loop: WriteLoop, log: FaultyLog) -> None:
    loop.execute([alice(OPEN)])
    log.damaged[bytes(15) + b"\2"] = Damaged("command 2", "its checksum is wrong")
    done = loop.execute([alice(TEN, 2), alice(TEN, 3)])
    assert error(done.outcomes[0], Damaged) == "command 2 is damaged: its checksum is wrong"
    assert facts(done.outcomes[1]) == (2, 2, False)


def test_a_log_that_cannot_be_read_is_the_outcome_of_every_command(loop: WriteLoop, log: FaultyLog) -> None:
    loop.execute([alice(OPEN)])
    log.fail_once("before deciding", StorageFailed("disk", "it is gone"))
    done = loop.execute([alice(TEN, 2), alice(TEN, 3)])
    assert [error(outcome, StorageFailed) for outcome in done.outcomes] == ["disk: it is gone"] * 2
    assert facts(loop.execute([alice(TEN, 2)]).outcomes[0]) == (2, 2, False)


# When the append fails ------------------------------------------------------------------------------------------


def test_nothing_is_adopted_when_the_append_fails_and_the_next_batch_is_right(loop: WriteLoop, log: FaultyLog) -> None:
    loop.execute([alice(OPEN, 1), alice(TEN, 2)])
    full = StorageFailed("disk", "no space left")
    log.fail_once("before the append", full)
    done = loop.execute([alice(TEN, 3), alice(TEN, 1), alice(TEN, 2), alice(Withdraw(amount=50), 4)])
    assert done.outcomes[0] is full
    assert error(done.outcomes[1], CommandIdReused)
    assert facts(done.outcomes[2]) == (2, 2, True)
    assert done.outcomes[3] is full, "it was refused because of a deposit that did not happen, or happened?"
    assert not done.records
    assert balance(loop) == 10
    done = loop.execute([alice(TEN, 3), alice(Withdraw(amount=20), 4)])
    assert [facts(outcome) for outcome in done.outcomes] == [(3, 3, False), (4, 4, False)]


def test_what_does_not_depend_on_the_lost_batch_is_still_told(loop: WriteLoop, log: FaultyLog) -> None:
    loop.execute([alice(OPEN)])
    log.fail_once("before the append", StorageFailed("disk", "no space left"))
    done = loop.execute([alice(Withdraw(amount=5)), to(Vault, "v", Store(thing="x")), to(Account, "bob", TEN)])
    assert [type(outcome) for outcome in done.outcomes] == [Rejected, StorageFailed, Rejected]


def test_an_id_is_not_reused_when_its_first_use_was_lost(loop: WriteLoop, log: FaultyLog) -> None:
    log.fail_once("before the append", StorageFailed("disk", "no space left"))
    done = loop.execute([alice(OPEN, 1), to(Account, "bob", OPEN, 1)])
    assert [type(outcome) for outcome in done.outcomes] == [StorageFailed, StorageFailed]


def test_an_append_that_was_committed_though_it_raised_is_found_by_the_repeat(loop: WriteLoop, log: FaultyLog) -> None:
    loop.execute([alice(OPEN, 1)])
    log.fail_once("after the commit", StorageFailed("disk", "the answer was lost"))
    assert error(loop.execute([alice(TEN, 2)]).outcomes[0], StorageFailed)
    done = loop.execute([alice(TEN, 2), alice(Withdraw(amount=10), 3)])
    assert [facts(outcome) for outcome in done.outcomes] == [(2, 2, True), (3, 3, False)]


def test_a_loop_that_was_taken_over_says_nothing_but_that(loop: WriteLoop, log: FaultyLog) -> None:
    loop.execute([alice(OPEN, 1), alice(TEN, 2)])
    second = activated(log)
    second.execute([alice(Withdraw(amount=10))])
    done = loop.execute([alice(TEN, 2), alice(TEN, 3), alice(Withdraw(amount=50), 4), alice(OPEN, 5, 2)])
    assert facts(done.outcomes[0]) == (2, 2, True), "what is stored is stored"
    for outcome in done.outcomes[1:]:
        assert error(outcome, Fenced).endswith(": epoch 1 may not append, epoch 2 has taken over")
    assert len(loop.residents) == 0


def test_a_refusal_alone_asks_the_log_whether_this_loop_may_still_speak(loop: WriteLoop, log: FaultyLog) -> None:
    loop.execute([alice(OPEN)])
    activated(log).execute([alice(TEN)])
    assert error(loop.execute([alice(Withdraw(amount=5))]).outcomes[0], Fenced)


def test_a_loop_that_was_never_activated_may_not_append(log: FaultyLog) -> None:
    log.activate()
    (outcome,) = WriteLoop(7, log, CATALOGUE).execute([alice(OPEN)]).outcomes
    assert error(outcome, Fenced)


class RemoteLog(FaultyLog):
    """A log that knows command ids only while it appends, as an own actor sees its partition."""

    def __init__(self, log: Log) -> None:
        super().__init__(log)
        self.asked: list[bytes] = []

    def find_commands(self, command_ids: Sequence[bytes]) -> dict[bytes, CommandEntry | RayfoldError]:
        self.asked.extend(command_ids)
        return {}

    def append(self, epoch: int, appends: Sequence[Append]) -> list[Appended]:
        asked, self.asked = self.asked, []
        known = {each: entry for each in asked if (entry := self.behind.find_command(each)) is not None}
        if known:
            raise AlreadyStored(known)
        return self.behind.append(epoch, appends)


def test_repeats_that_only_the_append_finds_are_repeats_all_the_same() -> None:
    loop = activated(RemoteLog(MemoryLog()))
    loop.execute([alice(OPEN, 1), alice(TEN, 2)])
    done = loop.execute([alice(TEN, 2), alice(TEN, 3), alice(OPEN, 1), alice(Deposit(amount=1), 2)])
    assert [facts(outcome) for outcome in done.outcomes[:3]] == [(2, 2, True), (3, 3, False), (1, 1, True)]
    assert error(done.outcomes[3], CommandIdReused)
    assert balance(loop) == 20
    assert_residents_are_a_fold(loop)
