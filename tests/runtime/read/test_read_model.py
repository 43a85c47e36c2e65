"""The read model's loop: a prefix of each partition's log, exactly once and in order, however the events arrive."""

from __future__ import annotations

import dataclasses
import logging
import pickle
import threading
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayfold.runtime.domain.messages import Query
from rayfold.runtime.domain.projection import Projection, answer, project
from rayfold.runtime.domain.recorded import Recorded
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.encoding.query_batch import PackedQuery
from rayfold.runtime.errors import (
    Conflict,
    Damaged,
    HandlerFailed,
    InvalidMessage,
    NotYetVisible,
    Overloaded,
    RayfoldError,
    Rejected,
    StorageFailed,
    Unavailable,
    UnknownEvent,
    UnknownName,
)
from rayfold.runtime.log.contract import Append, Log, NewEvent
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.read.read_model import ReadModel
from rayfold.runtime.stream import StreamId
from tests.bank import Account, BalanceOf, Balances, Deposit, Deposited, Open, Opened, Withdrawn
from tests.support.arrivals import activated, to
from tests.support.faulty_log import FaultyLog

PARTITION = 7


class Seen(Query[list[int]]):
    """The positions that were projected, in the order they were."""


@dataclasses.dataclass(frozen=True)
class FrozenFailure(Exception):
    """Takes no other trace, nor anything else."""

    what: str


class Ask(Query[int]):
    """Answered by raising what it asks for."""

    how: str


OF_A_CALL: dict[str, RayfoldError] = {
    "overloaded": Overloaded("another system", 7, "commands"),
    "unavailable": Unavailable("another system", "no answer in time"),
    "late": NotYetVisible("Others", 0, 2, 1),
    "conflict": Conflict("Account/alice", 1, 2),
}
"""What a handler may have of a call of its own."""


class Diary(Projection):
    """Every event's place. Brittle: an event of the account `bad` breaks it."""

    positions: list[int] = []
    halves: int = 0

    @project
    def opened(self, event: Opened, recorded: Recorded) -> None:
        self.positions.append(recorded.position)

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        self.halves += 1
        if recorded.aggregate_id == "bad":
            raise ValueError("cannot count that")
        if recorded.aggregate_id == "exit":
            raise SystemExit(1)
        self.positions.append(recorded.position)

    @answer
    def seen(self, query: Seen) -> list[int]:
        return self.positions

    @answer
    def ask(self, query: Ask) -> int:
        if query.how == "exit":
            raise SystemExit(1)
        if query.how == "rejected":
            raise Rejected("no_answer", why="shy")
        if query.how == "frozen":
            raise FrozenFailure("cold")
        if query.how in OF_A_CALL:
            raise OF_A_CALL[query.how]
        raise LookupError("nothing found")


CATALOGUE = Catalogue([Account], [Diary, Balances])
OPEN = Open(owner="Ada")
TEN = Deposit(amount=10)


def fill(log: Log, deposits: int, account: str = "alice") -> list[bytes]:
    """Append an `Opened`, unless there is one, and as many `Deposited`. Returns all records of the log."""
    loop = activated(log, catalogue=Catalogue([Account]))
    loop.execute([to(Account, account, OPEN), *(to(Account, account, TEN) for _ in range(deposits))])
    return log.read(0, 1_000_000)


def model_of(log: Log, projection: type[Projection] = Diary) -> ReadModel:
    return ReadModel(projection, CATALOGUE, {PARTITION: log})


def ask(read_model: ReadModel, query: Query[Any]) -> Any:
    packed = PackedQuery(query.message_name, encode_message(query))
    (answered,) = read_model.answer([packed], list)
    return answered


def seen(read_model: ReadModel) -> list[int]:
    answered = ask(read_model, Seen())
    assert isinstance(answered, list), answered
    return list(answered)


@pytest.fixture
def records(log: FaultyLog) -> list[bytes]:
    """A log of ten events."""
    return fill(log, 9)


# How events arrive ----------------------------------------------------------------------------------------------


def test_events_are_applied_in_order_as_they_arrive(log: FaultyLog, records: list[bytes]) -> None:
    read_model = model_of(log)
    read_model.apply(PARTITION, 1, records[:4])
    assert seen(read_model) == [1, 2, 3, 4]
    read_model.apply(PARTITION, 5, records[4:])
    assert seen(read_model) == list(range(1, 11))
    assert read_model.positions == {PARTITION: 10}


def test_events_that_were_sent_are_not_read_from_the_log(records: list[bytes]) -> None:
    read_model = model_of(MemoryLog())
    read_model.apply(PARTITION, 1, records, head=10)
    assert seen(read_model) == list(range(1, 11))


def test_a_batch_that_was_seen_before_is_passed_over(log: FaultyLog, records: list[bytes]) -> None:
    read_model = model_of(log)
    for _ in range(3):
        read_model.apply(PARTITION, 1, records[:4])
    read_model.apply(PARTITION, 2, records[1:3])
    assert seen(read_model) == [1, 2, 3, 4]


def test_a_batch_that_overlaps_is_cut(log: FaultyLog, records: list[bytes]) -> None:
    read_model = model_of(log)
    read_model.apply(PARTITION, 1, records[:4])
    read_model.apply(PARTITION, 3, records[2:7])
    assert seen(read_model) == [1, 2, 3, 4, 5, 6, 7]


def test_a_gap_is_filled_from_the_log_before_the_batch(log: FaultyLog, records: list[bytes]) -> None:
    read_model = model_of(log)
    read_model.apply(PARTITION, 6, records[5:7])
    assert seen(read_model) == [1, 2, 3, 4, 5, 6, 7]


def test_a_notice_of_the_head_makes_up_for_what_was_not_sent(log: FaultyLog, records: list[bytes]) -> None:
    read_model = model_of(log)
    read_model.apply(PARTITION, 1, records[:2], head=8)
    assert seen(read_model) == list(range(1, 9))
    read_model.apply(PARTITION, 1, (), head=10)
    assert seen(read_model) == list(range(1, 11))
    read_model.apply(PARTITION, 1, (), head=3)
    assert read_model.positions == {PARTITION: 10}


@pytest.mark.usefixtures("records")
def test_a_head_beyond_the_log_ends_at_the_log(log: FaultyLog) -> None:
    read_model = model_of(log)
    read_model.apply(PARTITION, 1, (), head=1_000)
    assert seen(read_model) == list(range(1, 11))


@pytest.mark.usefixtures("records")
def test_catching_up_reads_to_a_position_or_to_the_end(log: FaultyLog) -> None:
    read_model = model_of(log)
    read_model.catch_up(PARTITION, 3)
    assert seen(read_model) == [1, 2, 3]
    read_model.catch_up(PARTITION, 5)
    assert seen(read_model) == [1, 2, 3, 4, 5]
    read_model.catch_up(PARTITION)
    assert seen(read_model) == list(range(1, 11))


def test_a_long_log_is_read_page_by_page(log: FaultyLog) -> None:
    fill(log, 1_300)
    read_model = model_of(log)
    read_model.catch_up(PARTITION)
    assert seen(read_model) == list(range(1, 1_302))


@pytest.mark.parametrize("spoil", ["damaged", "out of place", "cut off"])
def test_a_record_that_arrived_spoilt_is_read_from_the_log_instead(
    log: FaultyLog, records: list[bytes], spoil: str
) -> None:
    spoilt = {"damaged": records[2][:-1] + b"?", "out of place": records[7], "cut off": records[2][:20]}[spoil]
    read_model = model_of(log)
    read_model.apply(PARTITION, 1, [*records[:2], spoilt, *records[3:6]])
    assert read_model.failed is None
    assert seen(read_model) == [1, 2, 3, 4, 5, 6]


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    sent=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 8), st.sampled_from([0, 0, 0, 5, 20, 30])), max_size=12)
)
def test_whatever_is_dropped_repeated_or_reordered_a_prefix_is_seen_and_no_less_than_was_sent(
    sent: list[tuple[int, int, int]],
) -> None:
    log = MemoryLog()
    records = fill(log, 29)
    read_model, reached = model_of(log), 0
    for first, count, head in sent:
        batch = records[first - 1 : first - 1 + count]
        read_model.apply(PARTITION, first, batch, head)
        reached = max(reached, first - 1, first + len(batch) - 1, head)
        assert seen(read_model) == list(range(1, reached + 1))
        assert read_model.positions == {PARTITION: reached}


def test_partitions_do_not_wait_for_one_another() -> None:
    first, second = MemoryLog(), MemoryLog()
    fill(first, 2)
    fill(second, 4, "bob")
    read_model = ReadModel(Balances, CATALOGUE, {0: first, 1: second})
    read_model.catch_up(0, 2)
    read_model.catch_up(1, 5)
    assert read_model.positions == {0: 2, 1: 5}
    assert ask(read_model, BalanceOf(account="alice")) == 10
    assert ask(read_model, BalanceOf(account="bob")) == 40


# Waiting for one's own write -----------------------------------------------------------------------------------


def test_a_position_that_is_reached_needs_no_waiting(log: FaultyLog, records: list[bytes]) -> None:
    read_model = model_of(log)
    read_model.apply(PARTITION, 1, records[:4])
    read_model.wait_for({}, 0)
    read_model.wait_for({PARTITION: 4}, 0)


def test_a_position_that_is_reached_meanwhile_ends_the_waiting(log: FaultyLog, records: list[bytes]) -> None:
    read_model = model_of(log)
    with waiting(read_model, {PARTITION: 6}) as outcome:
        read_model.apply(PARTITION, 1, records[:5])
        read_model.apply(PARTITION, 6, records[5:6])
    assert outcome == ["visible"]


def test_a_position_that_is_not_reached_in_time_is_said_with_the_place(log: FaultyLog, records: list[bytes]) -> None:
    read_model = model_of(log)
    read_model.apply(PARTITION, 1, records[:4])
    with pytest.raises(NotYetVisible) as raised:
        read_model.wait_for({PARTITION: 5}, 0.01)
    assert str(raised.value) == "Diary: position 5 of partition 7 is not visible yet, the replica is at 4"
    with pytest.raises(NotYetVisible, match="position 1 of partition 3 is not visible yet, the replica is at 0"):
        read_model.wait_for({PARTITION: 4, 3: 1}, 0)


def test_who_waits_is_woken_when_the_projection_stops(log: FaultyLog) -> None:
    records = fill(log, 1, "bad") + [b"never looked at"]
    read_model = model_of(log)
    with waiting(read_model, {PARTITION: 3}) as outcome:
        read_model.apply(PARTITION, 1, records)
    assert outcome == ["HandlerFailed"]
    assert isinstance(ask(read_model, Seen()), HandlerFailed)


def test_who_waits_for_what_was_reached_before_the_stop_has_it(log: FaultyLog) -> None:
    read_model = model_of(log)
    read_model.apply(PARTITION, 1, fill(log, 1, "bad"))
    read_model.wait_for({PARTITION: 1}, 30)
    with pytest.raises(HandlerFailed, match="cannot count that"):
        read_model.wait_for({PARTITION: 2}, 30)


@pytest.mark.usefixtures("records")
def test_who_waits_is_woken_when_the_read_model_is_closed(log: FaultyLog) -> None:
    read_model = model_of(log)
    read_model.catch_up(PARTITION)
    with waiting(read_model, {PARTITION: 11}) as outcome:
        read_model.close()
    assert outcome == ["Unavailable"]


@pytest.mark.usefixtures("records")
def test_the_read_model_itself_can_be_read_while_nothing_changes(log: FaultyLog) -> None:
    read_model = model_of(log)
    read_model.catch_up(PARTITION)
    with read_model.reading() as diary:
        assert diary.positions == list(range(1, 11))  # type: ignore[attr-defined]
    fill(log, 1, "bad")
    read_model.catch_up(PARTITION)
    with pytest.raises(HandlerFailed, match="cannot count that"), read_model.reading():
        pass
    read_model.close()


class waiting:  # noqa: N801 - reads as part of a sentence
    """Another thread that waits for a position while the block runs; what came of it is in the list."""

    def __init__(self, read_model: ReadModel, after: dict[int, int]) -> None:
        self.outcome: list[str] = []
        self._thread = threading.Thread(target=self._wait, args=(read_model, after))

    def _wait(self, read_model: ReadModel, after: dict[int, int]) -> None:
        began_s = time.monotonic()
        try:
            read_model.wait_for(after, 30)
        except RayfoldError as error:
            told = type(error).__name__
        else:
            told = "visible"
        self.outcome.append(told if time.monotonic() - began_s < 20 else "only after the timeout")

    def __enter__(self) -> list[str]:
        self._thread.start()
        return self.outcome

    def __exit__(self, *_: object) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


# What stops a projection ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("account", "what"), [("bad", "ValueError: cannot count that"), ("exit", "SystemExit: 1")])
def test_a_handler_that_raises_stops_the_projection_visibly(
    log: FaultyLog, caplog: pytest.LogCaptureFixture, account: str, what: str
) -> None:
    fill(log, 1)
    records = fill(log, 2, account)
    read_model = model_of(log)
    with caplog.at_level(logging.ERROR):
        read_model.apply(PARTITION, 1, records)
    told = ask(read_model, Seen())
    assert isinstance(told, HandlerFailed)
    assert str(told) == f"Diary.deposited failed on event 4 of partition 7 (Account/{account} 2): {what}"
    assert read_model.positions == {PARTITION: 3}
    assert caplog.messages == [
        f"projection Diary stopped before event 4 of partition 7: {told}; mend the handler and start again, the read"
        " model is rebuilt from the log"
    ]


def test_a_stopped_projection_applies_nothing_more_and_its_neighbours_go_on(log: FaultyLog) -> None:
    records = fill(log, 2, "bad")
    stopped, neighbour = model_of(log), model_of(log, Balances)
    for read_model in (stopped, neighbour):
        for _ in range(2):
            read_model.apply(PARTITION, 1, records, head=3)
            read_model.catch_up(PARTITION)
    assert stopped.positions == {PARTITION: 1}
    assert stopped._model.halves == 0, "half of an event is in the model"  # type: ignore[attr-defined]
    assert ask(neighbour, BalanceOf(account="bad")) == 20


def appended(log: Log, name: str, payload: bytes) -> None:
    event = NewEvent(name, 1, payload)
    log.append(log.activate(), [Append(StreamId("Account", "alice"), 0, (event,), bytes(16), bytes(16))])


def test_an_event_that_cannot_be_read_stops_the_projection(log: FaultyLog) -> None:
    appended(log, "Opened", b"\x80")
    read_model = model_of(log)
    read_model.catch_up(PARTITION)
    told = ask(read_model, Seen())
    assert isinstance(told, UnknownEvent)
    assert str(told) == "stored event 'Opened' version 1 cannot be read: Opened: owner is missing"


def test_an_event_that_the_projection_has_no_handler_for_is_not_even_decoded(log: FaultyLog) -> None:
    appended(log, "SomethingElse", b"\xc1")
    read_model = model_of(log)
    read_model.catch_up(PARTITION)
    assert read_model.positions == {PARTITION: 1}
    assert seen(read_model) == []


class Unreadable(MemoryLog):
    """A log that cannot be read beyond a position."""

    def __init__(self, log: Log, up_to: int, error: Exception) -> None:
        super().__init__()
        self.behind, self.up_to, self.error = log, up_to, error

    def read(self, after: int, limit: int, bytes_max: int = 1 << 62) -> list[bytes]:
        if after >= self.up_to:
            raise self.error
        return self.behind.read(after, min(limit, self.up_to - after), bytes_max)


@pytest.mark.usefixtures("records")
def test_damage_in_the_log_stops_the_projection(log: FaultyLog) -> None:
    damage = Damaged("partition 7, event 4", "its checksum is wrong")
    read_model = model_of(Unreadable(log, 3, damage))
    read_model.apply(PARTITION, 1, (), head=10)
    assert read_model.positions == {PARTITION: 3}
    assert ask(read_model, Seen()) is damage


def test_a_log_that_cannot_be_read_for_the_moment_is_an_error_and_no_stop(log: FaultyLog, records: list[bytes]) -> None:
    read_model = model_of(Unreadable(log, 3, StorageFailed("partition 7", "too many readers")))
    with pytest.raises(StorageFailed, match="too many readers"):
        read_model.apply(PARTITION, 1, (), head=10)
    assert seen(read_model) == [1, 2, 3]
    read_model.apply(PARTITION, 4, records[3:])
    assert seen(read_model) == list(range(1, 11))


# Answers -------------------------------------------------------------------------------------------------------


def test_a_failing_answer_fails_no_neighbour(log: FaultyLog, records: list[bytes]) -> None:
    read_model = model_of(log)
    read_model.apply(PARTITION, 1, records)

    def packed(query: Query[Any]) -> PackedQuery:
        return PackedQuery(query.message_name, encode_message(query))

    asked = [
        packed(Seen()),
        packed(Ask(how="fail")),
        packed(Ask(how="exit")),
        packed(Ask(how="rejected")),
        packed(Ask(how="frozen")),
        packed(Seen())._replace(name="Lacking"),
        packed(Ask(how="fail"))._replace(payload=b"\x80"),
        packed(Seen()),
    ]
    first, failed, left, rejected, frozen, unknown, invalid, last = read_model.answer(asked, list)
    assert first == last == list(range(1, 11))
    assert isinstance(failed, HandlerFailed)
    assert str(failed) == "Diary @answer failed on Ask: LookupError: nothing found"
    assert isinstance(frozen, HandlerFailed)
    assert str(frozen).startswith("Diary @answer failed on Ask: FrozenFailure")
    assert isinstance(left, HandlerFailed)
    assert str(left) == "Diary @answer failed on Ask: SystemExit: 1"
    assert isinstance(rejected, Rejected)
    assert rejected.facts == {"why": "shy"}
    assert isinstance(unknown, UnknownName)
    assert str(unknown) == "no query of Diary is named 'Lacking'; known: Ask, Seen"
    assert isinstance(invalid, InvalidMessage)
    assert str(invalid) == "Ask: how is missing"


class Frank(Projection):
    """Answers in ways that are known to change nothing, and so are called directly."""

    @project
    def opened(self, event: Opened) -> None: ...

    @answer
    def ask(self, query: Ask) -> int:
        raise Overloaded("another system", 7, "commands")


@pytest.mark.parametrize("how", OF_A_CALL)
def test_what_became_of_a_call_of_the_handlers_own_is_not_told_of_the_query(log: FaultyLog, how: str) -> None:
    read_model = model_of(log)
    (told,) = read_model.answer([PackedQuery("Ask", encode_message(Ask(how=how)))], list)
    assert type(told) is HandlerFailed
    assert str(told).startswith(f"Diary @answer failed on Ask: {type(OF_A_CALL[how]).__name__}: ")


def test_the_same_of_a_handler_that_is_called_directly(log: FaultyLog) -> None:
    read_model = ReadModel(Frank, Catalogue([Account], [Frank]), {PARTITION: log})
    (told,) = read_model.answer([PackedQuery("Ask", encode_message(Ask(how="overloaded")))], list)
    assert type(told) is HandlerFailed


def test_answers_are_encoded_before_anything_can_change_again(log: FaultyLog, records: list[bytes]) -> None:
    read_model = model_of(log)
    read_model.apply(PARTITION, 1, records[:3])
    encoding, applied = threading.Event(), threading.Event()

    def apply() -> None:
        encoding.wait(30)
        read_model.apply(PARTITION, 4, records[3:])
        applied.set()

    def encode(answers: list[Any]) -> bytes:
        encoding.set()
        assert not applied.wait(0.05), "the model changed while its own list was being encoded"
        return pickle.dumps(answers)

    other = threading.Thread(target=apply)
    other.start()
    encoded = read_model.answer([PackedQuery("Seen", encode_message(Seen()))], encode)
    other.join(30)
    assert pickle.loads(encoded) == [[1, 2, 3]]
    assert seen(read_model) == list(range(1, 11))


class Both(Query[bool]):
    """Whether both halves of the books agree."""


class TwoBooks(Projection):
    """Writes every event into two books, with a pause between, in which a reader would see half of it."""

    left: int = 0
    right: int = 0

    @project
    def deposited(self, event: Deposited) -> None:
        self.left += 1
        threading.Event().wait(0.0005)
        self.right += 1

    @project
    def withdrawn(self, event: Withdrawn) -> None:
        """Not in these logs."""

    @answer
    def both(self, query: Both) -> bool:
        return self.left == self.right


def test_a_query_never_sees_half_an_event() -> None:
    log = MemoryLog()
    records = fill(log, 120)
    read_model = ReadModel(TwoBooks, Catalogue([Account], [TwoBooks]), {PARTITION: log})
    answers: list[tuple[bool, int]] = []

    def feed() -> None:
        for position, record in enumerate(records, start=1):
            read_model.apply(PARTITION, position, [record])

    feeders = [threading.Thread(target=feed) for _ in range(2)]
    for feeder in feeders:
        feeder.start()
    packed = [PackedQuery("Both", encode_message(Both()))]
    while any(feeder.is_alive() for feeder in feeders):
        answers.append(read_model.answer(packed, lambda got: (got[0], read_model.positions[PARTITION])))
    assert all(agree is True for agree, _ in answers)
    reached = [position for _, position in answers]
    assert reached == sorted(reached)
    assert len(set(reached)) > 3, "the queries did not come between the events"
    assert read_model.positions == {PARTITION: 121}
    assert read_model._model.left == 120  # type: ignore[attr-defined]
