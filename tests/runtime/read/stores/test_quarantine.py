"""An event that a handler raises on: tried again, never half-applied, then a visible stop or a place in quarantine."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rayfold.runtime.domain.projection import Projection, answer, project
from rayfold.runtime.domain.recorded import Recorded
from rayfold.runtime.errors import DefinitionError, HandlerFailed
from rayfold.runtime.log.contract import Append, NewEvent
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.read.read_model import ReadModel
from rayfold.runtime.read.stores.checkpoint import QUARANTINED_MAX
from rayfold.runtime.stream import StreamId
from tests.bank import Deposited
from tests.runtime.read.stores.tallies import (
    TALLIES,
    Broken,
    DuckDbTally,
    LmdbTally,
    Seen,
    SumOf,
    Tally,
    TallyForgetting,
    ask,
    deposit,
    quarantining,
    tally_of,
)


@pytest.fixture(params=TALLIES, ids=lambda tally: tally.__name__)
def tally(request: pytest.FixtureRequest) -> Iterator[type[Projection]]:
    """The same projection in each kind of store; deposits to `bad` break it."""
    Broken.accounts, Broken.calls = {"bad"}, 0
    yield request.param
    Broken.accounts, Broken.calls = set(), 0


@pytest.fixture
def log() -> MemoryLog:
    """Seven deposits, the fourth of which breaks a projection."""
    log = MemoryLog()
    deposit(log, ["alice", "bob", "alice", "bad", "bob", "alice", "bob"])
    return log


def test_an_event_is_tried_three_times_and_then_the_projection_stops_on_the_state_before_it(
    tally: type[Projection], log: MemoryLog
) -> None:
    read_model = tally_of(tally, log)
    assert Broken.calls == 3
    assert read_model.positions == {0: 3}
    assert read_model.failed is not None
    assert "failed on event 4 of partition 0 (Account/bad 1): ValueError: cannot count that" in str(read_model.failed)
    assert ask(read_model, Seen()) is read_model.failed
    read_model._kept.failed = None  # read what is under the stop
    assert ask(read_model, Seen()) == [1, 2, 3]
    assert ask(read_model, SumOf(account="bad")) == 0
    read_model.close()


def test_a_failed_event_is_set_aside_and_the_projection_goes_on(
    tally: type[Projection], log: MemoryLog, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        read_model = tally_of(quarantining(tally), log)
    assert Broken.calls == 3
    assert (read_model.positions, read_model.failed) == ({0: 7}, None)
    assert ask(read_model, Seen()) == [1, 2, 3, 5, 6, 7]
    assert ask(read_model, SumOf(account="bad")) == 0
    (entry,) = read_model.quarantined
    assert entry[:5] == (0, 4, "Account/bad", 1, "Deposited")
    assert entry.error.endswith("ValueError: cannot count that")
    assert "has set event 4 of partition 0 aside and goes on without it, 1 of 100 places" in caplog.text
    assert read_model.progress().quarantined == 1
    read_model.close()


def test_what_fails_only_once_is_taken_in(tally: type[Projection], log: MemoryLog) -> None:
    calls: list[int] = []
    check = Broken.check

    def heal(recorded: Recorded) -> None:
        calls.append(recorded.position)
        if calls.count(4) == 1:
            check(recorded)

    Broken.check = heal  # type: ignore[method-assign]
    try:
        read_model = tally_of(tally, log)
    finally:
        Broken.check = check  # type: ignore[method-assign]
    assert calls.count(4) == 2
    assert ask(read_model, Seen()) == [1, 2, 3, 4, 5, 6, 7]
    read_model.close()


def test_a_restart_knows_what_is_in_quarantine_and_does_not_try_it_again(
    tally: type[Projection], log: MemoryLog, tmp_path: Path
) -> None:
    first = tally_of(quarantining(tally), log, tmp_path)
    first.checkpoint()
    first.close()
    Broken.calls = 0
    again = tally_of(quarantining(tally), log, tmp_path)
    assert Broken.calls == 0
    assert again.quarantined == first.quarantined
    assert ask(again, Seen()) == [1, 2, 3, 5, 6, 7]
    again.close()


def test_many_poisoned_events_stop_the_projection(tally: type[Projection]) -> None:
    log = MemoryLog()
    deposit(log, ["alice", "bad"] * (QUARANTINED_MAX + 1) + ["alice"])
    read_model = tally_of(quarantining(tally), log)
    assert len(read_model.quarantined) == QUARANTINED_MAX
    assert read_model.positions == {0: 2 * QUARANTINED_MAX + 1}
    assert str(read_model.failed).endswith("100 events are in quarantine already, which is the limit")
    read_model.close()


def test_what_is_in_quarantine_is_taken_in_once_its_cause_is_mended(
    tally: type[Projection], log: MemoryLog, tmp_path: Path
) -> None:
    deposit(log, ["worse", "alice"])
    Broken.accounts = {"bad", "worse"}
    read_model = tally_of(quarantining(tally), log, tmp_path)
    assert [entry.position for entry in read_model.quarantined] == [4, 8]
    Broken.accounts = {"worse"}
    (left,) = read_model.retry_quarantined()
    assert left.position == 8
    assert ask(read_model, Seen()) == [1, 2, 3, 4, 5, 6, 7, 9]
    assert ask(read_model, SumOf(account="bad")) == 10
    deposit(log, ["worse"])
    read_model.catch_up(0)
    assert ask(read_model, Seen()) == [1, 2, 3, 4, 5, 6, 7, 9], "what was taken in late is not lost by a later failure"
    Broken.accounts = set()
    assert read_model.retry_quarantined() == ()
    assert ask(read_model, Seen()) == list(range(1, 11))
    read_model.checkpoint()
    read_model.close()
    again = tally_of(quarantining(tally), log, tmp_path)
    assert again.quarantined == ()
    assert ask(again, Seen()) == list(range(1, 11))
    again.close()


def test_a_failure_in_memory_goes_back_to_the_last_checkpoint_and_replays_from_there(
    log: MemoryLog, tmp_path: Path
) -> None:
    Broken.accounts = set()
    read_model = tally_of(Tally, log, tmp_path)
    assert read_model.checkpoint() > 0
    deposit(log, ["alice"] * 3 + ["bad", "alice"])
    Broken.accounts = {"bad"}
    read = []
    real = log.read
    log.read = lambda after, *rest: read.append(after) or real(after, *rest)  # type: ignore[func-returns-value,method-assign]
    read_model.catch_up(0)
    assert min(read) == 7, "nothing before the checkpoint is read"
    assert read_model.positions == {0: 10}
    assert read_model._model.positions == list(range(1, 11))  # type: ignore[attr-defined]
    Broken.accounts = set()


def test_rows_that_their_table_refuses_are_found_out_one_event_at_a_time() -> None:
    log = MemoryLog()
    deposit(log, ["alice"] * 20)
    deposit(log, ["greedy"], amount=5_000)
    deposit(log, ["bob"] * 20)
    read_model = tally_of(quarantining(DuckDbTally), log)
    assert [entry.position for entry in read_model.quarantined] == [21]
    assert "CHECK constraint failed" in read_model.quarantined[0].error
    assert ask(read_model, Seen()) == [position for position in range(1, 42) if position != 21]
    read_model.close()


class Swallowing(DuckDbTally):
    """Catches what DuckDB raises for an event, and leaves its transaction aborted."""

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        super().deposited(event, recorded)
        if recorded.aggregate_id == "quiet":
            with suppress(Exception):
                self.sql("SELECT nothing FROM nowhere")


def test_an_event_whose_handler_hides_that_it_has_spoilt_the_transaction_is_found_out() -> None:
    log = MemoryLog()
    deposit(log, ["alice"] * 5 + ["quiet"] + ["bob"] * 5)
    read_model = tally_of(quarantining(Swallowing), log)
    assert [(entry.position, entry.stream) for entry in read_model.quarantined] == [(6, "Account/quiet")]
    assert ask(read_model, Seen()) == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    read_model.close()


def test_an_event_that_cannot_be_read_is_set_aside_without_a_further_try(log: MemoryLog) -> None:
    Broken.accounts = set()
    stream = StreamId("Account", "alice")
    log.append(log.activate(), [Append(stream, -1, (NewEvent("Deposited", 9, b"\x80"),), b"i" * 16, bytes(16))])
    deposit(log, ["alice"])
    read_model = tally_of(quarantining(Tally), log)
    (entry,) = read_model.quarantined
    assert "Deposited is only at version 2; deploy newer code" in entry.error
    assert read_model.positions == {0: 9}


class Forgetful(Projection):
    """Counts how often it was called for each event, and remembers which were marked as replayed."""

    calls: dict[int, int] = {}
    marked: list[int] = []

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        if recorded.replayed:
            self.marked.append(recorded.position)
        Broken.check(recorded)

    @answer
    def seen(self, query: Seen) -> list[int]:
        return self.marked


def test_what_was_in_the_log_at_the_opening_is_marked_as_replayed_and_what_came_later_is_not(log: MemoryLog) -> None:
    Broken.accounts = set()
    read_model = tally_of(Forgetful, log)
    deposit(log, ["alice"] * 2)
    read_model.catch_up(0)
    assert ask(read_model, Seen()) == [1, 2, 3, 4, 5, 6, 7]


def test_what_is_taken_in_once_more_after_a_failure_is_marked_as_replayed(log: MemoryLog) -> None:
    Broken.accounts = {"bad"}
    read_model = ReadModel(
        quarantining(Forgetful), tally_of(Forgetful, MemoryLog())._catalogue, {0: (empty := MemoryLog())}
    )
    read_model.open()
    deposit(empty, ["alice", "alice", "bad", "alice"])
    read_model.catch_up(0)
    assert read_model._model.marked == [1, 2]  # type: ignore[attr-defined]
    deposit(empty, ["alice", "bad"])
    read_model.catch_up(0)
    assert [entry.position for entry in read_model.quarantined] == [3, 6]
    Broken.accounts = set()
    assert read_model.retry_quarantined() == ()
    assert read_model._model.marked[-2:] == [3, 6]  # type: ignore[attr-defined]


@pytest.mark.parametrize("tally", [TallyForgetting, LmdbTally, DuckDbTally])
def test_one_aggregate_alone_is_rebuilt(tally: type[Projection], log: MemoryLog, tmp_path: Path) -> None:
    Broken.accounts = {"bad"}
    read_model = tally_of(quarantining(tally), log, tmp_path)
    Broken.accounts = set()
    for account in ("alice", "bad", "nobody"):
        read_model.rebuild_stream(StreamId("Account", account), 0)
    assert read_model.quarantined == ()
    assert ask(read_model, Seen()) == [1, 2, 3, 4, 5, 6, 7]
    assert [ask(read_model, SumOf(account=each)) for each in ("alice", "bob", "bad")] == [30, 30, 10]
    Broken.accounts = {"alice"}
    with pytest.raises(HandlerFailed, match="cannot count that"):
        read_model.rebuild_stream(StreamId("Account", "alice"), 0)
    assert ask(read_model, Seen()) == [1, 2, 3, 4, 5, 6, 7]
    assert ask(read_model, SumOf(account="alice")) == 30
    Broken.accounts = set()
    read_model.close()


def test_a_projection_that_cannot_forget_says_what_is_missing(log: MemoryLog) -> None:
    Broken.accounts = set()
    with pytest.raises(DefinitionError) as told:
        tally_of(Tally, log).rebuild_stream(StreamId("Account", "alice"), 0)
    assert str(told.value) == (
        "Tally: it has no @forget method; add one: @forget def forget(self, stream: StreamId) -> None"
    )


def test_a_query_during_the_undoing_waits_and_never_sees_less_than_before(log: MemoryLog) -> None:
    """A reader asks all the time while poisoned events come in: what it sees only grows, and never by half an event."""
    Broken.accounts = {"bad"}
    read_model = tally_of(quarantining(Tally), log)
    seen: list[tuple[int, int]] = []
    done = threading.Event()

    def look(answers: list[Any]) -> None:
        model: Any = read_model._model
        seen.append((len(answers[0]), sum(model.sums.values())))

    def read() -> None:
        from rayfold.runtime.encoding.codec import encode_message

        while not done.is_set():
            read_model.answer([("Seen", encode_message(Seen()))], look)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(30):
        deposit(log, ["alice", "bad", "bob"])
        read_model.catch_up(0)
    done.set()
    reader.join(30)
    assert all(total == 10 * events for events, total in seen)
    assert [events for events, _ in seen] == sorted(events for events, _ in seen)
    Broken.accounts = set()
