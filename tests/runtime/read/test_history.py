"""Time travel over a log of each kind: histories, states at versions and times, places, and what is not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from rayfold import Event, InvalidMessage, NotInHistory, UnknownEvent
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.encoding.saved_state import encode_state, state_fingerprint
from rayfold.runtime.log.contract import Append, Log, NewEvent
from rayfold.runtime.log.folder import open_log
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.read import time_travel
from rayfold.runtime.read.time_travel import (
    checked_place,
    history,
    microseconds,
    place_at,
    state_at,
    stored_history,
    version_at,
)
from rayfold.runtime.stream import ANY, StreamId
from tests.runtime.log.appends import DIGEST, command_id
from tests.support.orders import Added, DiscountGiven, Order

ONE = StreamId("Order", "one")
MISSING = StreamId("Order", "missing")
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
CATALOGUE = Catalogue([Order])
FACTS = [Added(pieces=3, price=10), Added(pieces=3, price=10), DiscountGiven(percent=10)]


class Clock:
    """The writer's clock, which a test sets, also back."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> int:
        return microseconds(self.now)


Make = Callable[[Clock], Log]


@pytest.fixture(params=["memory", "lmdb"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes a log of each kind that writes by a clock."""
    made: list[Log] = []

    def of(clock: Clock) -> Log:
        log: Log = (
            MemoryLog(clock) if request.param == "memory" else open_log(tmp_path / "log", "partition 0", now_us=clock)
        )
        log.activate()
        made.append(log)
        return log

    yield of
    for log in made:
        log.close()


def append(log: Log, event: Event, *, stream: StreamId = ONE, snapshot: tuple[bytes, bytes] = (b"", b"")) -> None:
    """One event, as a command of its own."""
    new = NewEvent(event.message_name, event.schema_version, encode_message(event))
    log.append(1, [Append(stream, ANY, (new,), command_id(), DIGEST, b"", b"", *snapshot)])


@pytest.fixture
def orders(make: Make) -> Log:
    """The three events of one order, one every minute from noon on."""
    clock = Clock()
    log = make(clock)
    for event in FACTS:
        append(log, event)
        clock.now += timedelta(minutes=1)
    return log


def total(log: Log, version: int | None = None, at: datetime | None = None) -> int:
    return state_at(CATALOGUE, log, Order, ONE, version, at).total


def test_two_additions_of_three_pieces_at_ten_and_a_discount_of_ten_percent_cost_30_then_60_then_54(
    orders: Log,
) -> None:
    assert [total(orders, version) for version in (1, 2, 3)] == [30, 60, 54]
    assert total(orders) == 54


def test_a_history_is_the_events_in_order_with_their_places(orders: Log) -> None:
    told = history(CATALOGUE, orders, 5, ONE)
    assert [event for event, _ in told] == FACTS
    assert [(place.version, place.position, place.partition) for _, place in told] == [(1, 1, 5), (2, 2, 5), (3, 3, 5)]
    assert [place.recorded_at for _, place in told] == [NOON + timedelta(minutes=minute) for minute in range(3)]


@pytest.mark.parametrize(
    ("first", "last", "versions"), [(1, 1, [1]), (2, None, [2, 3]), (2, 3, [2, 3]), (3, 3, [3]), (4, None, [])]
)
def test_a_range_of_a_history_has_both_of_its_ends(
    orders: Log, first: int, last: int | None, versions: list[int]
) -> None:
    assert [place.version for _, place in history(CATALOGUE, orders, 0, ONE, first, last)] == versions
    assert [stored.version for stored in stored_history(orders, ONE, first, last)] == versions


@pytest.mark.parametrize(
    ("stream", "first", "last", "told"),
    [
        (ONE, 5, None, "Order/one has no version 5; it is at 3"),
        (ONE, 4, 4, "Order/one has no version 4; it is at 3"),
        (ONE, 1, 9, "Order/one has no version 9; it is at 3"),
        (MISSING, 1, None, "Order/missing has no version 1; it has no events"),
    ],
)
def test_versions_that_are_not_there_are_an_error_and_no_shorter_answer(
    orders: Log, stream: StreamId, first: int, last: int | None, told: str
) -> None:
    with pytest.raises(NotInHistory) as error:
        history(CATALOGUE, orders, 0, stream, first, last)
    assert str(error.value) == told
    with pytest.raises(NotInHistory):
        stored_history(orders, stream, first, last)


@pytest.mark.parametrize(
    ("first", "last", "told"),
    [
        (0, None, "from_version: is 0; versions are counted from 1"),
        (True, None, "from_version: is True; versions are counted from 1"),
        (1, "3", "to_version: is '3'; versions are counted from 1"),
        (3, 2, "history: versions 3 to 2 are not a range; to_version is included"),
    ],
)
def test_what_is_no_range_is_said_to_be_none(orders: Log, first: int, last: int | None, told: str) -> None:
    with pytest.raises(InvalidMessage) as error:
        history(CATALOGUE, orders, 0, ONE, first, last)
    assert str(error.value) == told


def test_a_history_too_long_for_one_list_is_asked_for_range_by_range(
    orders: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_travel, "HISTORY_MAX", 2)
    with pytest.raises(InvalidMessage, match=r"history: versions 1 to 3 of Order/one are over 2 events; ask for one"):
        history(CATALOGUE, orders, 0, ONE)
    assert len(history(CATALOGUE, orders, 0, ONE, 2)) == 2
    assert len(list(stored_history(orders, ONE))) == 3, "what is passed on page by page has no such bound"


def test_a_history_of_many_pages_has_no_seam(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_travel, "_PAGE", 4)
    clock = Clock()
    log = make(clock)
    for number in range(1, 14):
        append(log, Added(pieces=number, price=1))
        clock.now += timedelta(seconds=1)
    assert [stored.version for stored in stored_history(log, ONE)] == list(range(1, 14))
    assert [event for event, _ in history(CATALOGUE, log, 0, ONE, 3, 9)] == [
        Added(pieces=number, price=1) for number in range(3, 10)
    ]
    assert [version_at(log, ONE, microseconds(NOON) + second * 1_000_000) for second in range(-1, 14)] == [
        *range(14),
        13,
    ]


def test_a_stored_history_is_read_without_any_class(orders: Log) -> None:
    names = [stored.name for stored in stored_history(orders, ONE)]
    assert names == ["Added", "Added", "DiscountGiven"]
    with pytest.raises(UnknownEvent):
        history(Catalogue(), orders, 0, ONE)


def test_the_state_at_a_time_is_the_one_after_the_last_event_up_to_then(orders: Log) -> None:
    assert [total(orders, at=NOON + timedelta(seconds=second)) for second in (0, 59, 60, 119, 120, 10**6)] == [
        *(30, 30, 60, 60, 54, 54)
    ]
    in_another_zone = (NOON + timedelta(seconds=60)).astimezone(timezone(timedelta(hours=-7)))
    assert total(orders, at=in_another_zone) == 60


def test_a_time_before_the_first_event_has_no_state(orders: Log) -> None:
    with pytest.raises(NotInHistory) as error:
        total(orders, at=NOON - timedelta(microseconds=1))
    assert str(error.value) == "Order/one has no event at or before 2026-03-01T11:59:59.999999+00:00; it is at 3"


@pytest.mark.parametrize(
    ("version", "at", "told"),
    [
        (1, NOON, "state_at: both a version and a time were given; give one of them"),
        (0, None, "version: is 0; versions are counted from 1"),
        (
            None,
            datetime(2026, 3, 1, 12),
            "at: 2026-03-01T12:00:00 has no time zone, so its moment is unknown;"
            " give an aware datetime, such as datetime(..., tzinfo=UTC)",
        ),
    ],
)
def test_a_question_that_makes_no_sense_is_told_why(
    orders: Log, version: int | None, at: datetime | None, told: str
) -> None:
    with pytest.raises(InvalidMessage) as error:
        total(orders, version, at)
    assert str(error.value) == told


def test_a_version_beyond_the_last_and_an_unknown_aggregate_have_no_state(orders: Log) -> None:
    with pytest.raises(NotInHistory, match=r"^Order/one has no version 4; it is at 3$"):
        total(orders, 4)
    with pytest.raises(NotInHistory, match=r"^Order/missing has no version 1; it has no events$"):
        state_at(CATALOGUE, orders, Order, MISSING, None, None)


def test_a_snapshot_serves_the_versions_from_it_on_and_no_earlier_one(make: Make) -> None:
    log = make(Clock())
    wrong = Order("one")
    wrong.total = 1000  # no fold gives this: an answer with it has used the snapshot
    append(log, FACTS[0])
    append(log, FACTS[1], snapshot=(encode_state(wrong), state_fingerprint(Order)))
    append(log, FACTS[2])
    assert [total(log, version) for version in (1, 2, 3)] == [30, 1000, 900]


def test_changing_the_state_that_was_asked_for_changes_nothing_else(orders: Log) -> None:
    state = state_at(CATALOGUE, orders, Order, ONE, 2, None)
    state.total = 0
    assert (state.version, state.id, total(orders, 2)) == (2, "one", 60)


@pytest.mark.parametrize("kind", ["memory", "lmdb"])
@drawn(minutes=st.lists(st.integers(0, 6), min_size=1, max_size=6), asked=st.integers(-1, 7))
def test_a_clock_that_went_back_tears_no_history_apart(
    kind: str, minutes: Sequence[int], asked: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if kind == "lmdb" and len(minutes) > 3:
        minutes = minutes[:3]
    clock = Clock()
    log: Log = (
        MemoryLog(clock)
        if kind == "memory"
        else open_log(tmp_path_factory.mktemp("clock") / "log", "partition 0", now_us=clock)
    )
    log.activate()
    for minute in minutes:
        clock.now = NOON + timedelta(minutes=minute)
        append(log, Added(pieces=1, price=1))
    at_us = microseconds(NOON + timedelta(minutes=asked))
    expected = max((version for version, minute in enumerate(minutes, 1) if minute <= asked), default=0)
    assert version_at(log, ONE, at_us) == expected
    assert place_at({3: log}, at_us) == {3: expected}
    log.close()


def test_a_place_names_a_position_of_every_partition_and_only_positions_that_are_there(orders: Log) -> None:
    readers = {0: orders, 1: MemoryLog()}
    assert checked_place(readers, {0: 2}) == {0: 2, 1: 0}
    assert checked_place(readers, {0: 3, 1: 0}) == {0: 3, 1: 0}
    with pytest.raises(NotInHistory, match=r"^partition 0 has no position 4; it is at 3$"):
        checked_place(readers, {0: 4})
    with pytest.raises(
        InvalidMessage, match=r"^place: 2: 1 is not a position in this store; its partitions are 0 to 1"
    ):
        checked_place(readers, {2: 1})
    with pytest.raises(InvalidMessage, match=r"^place: 0: -1 is not a position"):
        checked_place(readers, {0: -1})
