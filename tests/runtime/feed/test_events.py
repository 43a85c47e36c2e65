"""Events in bulk: to an end, in order, from and to places, resumed, and where something cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgpack
import pytest

from rayfold import (
    BlockingEvents,
    CallerError,
    Damaged,
    Event,
    HandlerFailed,
    InvalidMessage,
    NotInHistory,
    Receipt,
    Recorded,
    StoreMissing,
    StreamId,
    UnknownEvent,
    UnknownName,
    UnreadableEvent,
    read_events,
    stored,
    upcast,
)
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.feed import log_range
from rayfold.runtime.log.contract import NewEvent
from rayfold.runtime.log.reader import LmdbReader
from rayfold.runtime.read.time_travel import history
from rayfold.runtime.store.store import Store, create_or_open_store
from tests.bank import Account, Deposited, Opened, Vault, Withdrawn
from tests.support.written import Told, write

NAMES = [f"account {number}" for number in range(12)]
HISTORY: list[Told] = [
    *((name, Opened(owner=name)) for name in NAMES),
    *((name, Deposited(amount=number)) for number, name in enumerate(NAMES * 5)),
    *((name, Withdrawn(amount=1)) for name in NAMES),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = create_or_open_store(tmp_path_factory.mktemp("bulk") / "bank-data", 3)
    write(store, HISTORY)
    return store


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that everything takes many of them."""
    monkeypatch.setattr(log_range, "PAGE_RECORDS", 4)
    read = log_range.LogRange.read
    monkeypatch.setattr(log_range.LogRange, "read", lambda self: read(self, 4))


def of(store: Store, **options: Any) -> BlockingEvents:
    return read_events(store.path, aggregates=[Account, Vault], **options)


def expected(store: Store) -> list[tuple[Event, Recorded]]:
    """Every event as `history` gives it, by partition and position."""
    catalogue = Catalogue([Account, Vault])
    found = []
    for name in NAMES:
        stream = StreamId("Account", name)
        partition = store.partition_of(stream)
        with closing(store.open_reader(partition)) as reader:
            found += history(catalogue, reader, partition, stream)
    return sorted(found, key=lambda one: one[1][2:4])


def test_all_events_come_by_partition_and_position_as_history_has_them_and_then_there_is_an_end(store: Store) -> None:
    events = of(store)
    assert [*events] == expected(store)
    assert [*events] == [], "it has ended"
    with closing(store.open_reader(1)) as reader:
        assert events.positions[1] == reader.head()


def test_types_and_streams_choose(store: Store) -> None:
    deposits = [one for one in expected(store) if isinstance(one[0], Deposited)]
    assert [*of(store, types=[Deposited])] == deposits
    mine = [one for one in deposits if one[1].aggregate_id == "account 3"]
    assert [*of(store, types="Deposited", streams="Account/account 3")] == mine
    assert [*of(store, types=Deposited, streams=lambda stream: stream.id == "account 3")] == mine
    assert [*of(store, streams=Vault)] == []
    with pytest.raises(UnknownName, match="no event is named 'Deposed'"):
        of(store, types="Deposed")
    with pytest.raises(HandlerFailed, match=r"streams= of read_events\(\) failed on event 1 of partition 0 .*KeyError"):
        next(of(store, streams=lambda stream: {}[stream]))


def test_what_is_committed_after_the_call_is_left_out(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "bank-data", 1)
    write(store, [("alice", Deposited(amount=1))])
    events = of(store)
    heads = {0: 1}
    events.close()
    write(store, [("alice", Deposited(amount=2))])
    assert [event for event, _ in of(store, until=heads)] == [Deposited(amount=1)]
    assert [event for event, _ in of(store, since=heads)] == [Deposited(amount=2)]


def test_a_range_goes_from_after_one_place_to_another_and_ranges_join_without_a_gap(store: Store) -> None:
    everything = expected(store)
    first, second = {0: 3, 1: 7, 2: 1}, {0: 10, 1: 7, 2: 12}
    parts = [of(store, until=first), of(store, since=first, until=second), of(store, since=second)]
    found = [one for part in parts for one in part]
    assert sorted(found, key=lambda one: one[1][2:4]) == everything
    assert [*of(store, until={1: 2})] == [one for one in everything if one[1].partition == 1 and one[1].position <= 2]
    assert [*of(store, since=second, until=first)] == []


def test_a_time_and_a_receipt_are_places_too(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "bank-data", 2)
    for number in range(6):
        write(store, [(f"account {number}", Deposited(amount=number))])
    everything = sorted((one for one in of(store)), key=lambda one: one[1].recorded_at_us)
    third = everything[2][1]
    receipt = Receipt(third.stream, third.partition, third.position, third.version, third.command_id)
    for place in (third.recorded_at, receipt):
        before, after = [*of(store, until=place)], [*of(store, since=place)]
        assert sorted(event.amount for event, _ in before if isinstance(event, Deposited)) == [0, 1, 2]
        assert sorted(event.amount for event, _ in after if isinstance(event, Deposited)) == [3, 4, 5]


def test_a_place_that_cannot_be_is_refused_at_the_call(store: Store) -> None:
    with pytest.raises(NotInHistory, match="partition 0 has no position 1000000; it is at"):
        of(store, until={0: 1_000_000})
    with pytest.raises(InvalidMessage, match="since: 7: 1 is not a position in this store; its partitions are 0 to 2"):
        of(store, since={7: 1})
    with pytest.raises(InvalidMessage, match="until: is 'heads'; give positions by partition, a receipt, or an aware"):
        of(store, until="heads")
    for argument in ("since", "until"):
        with pytest.raises(InvalidMessage, match=f"^{argument}: 2026-01-01T00:00:00 has no time zone"):
            of(store, **{argument: datetime(2026, 1, 1)})
    now = datetime.now(UTC)
    with pytest.raises(InvalidMessage, match="is before since="):
        of(store, since=now, until=now - timedelta(days=1))
    receipt = Receipt(StreamId("Account", "alice"), 0, 1, 1, bytes(16), store_id="another")
    with pytest.raises(InvalidMessage, match="the receipt is of the store another"):
        of(store, since=receipt)
    with pytest.raises(StoreMissing):
        read_events(store.path / "none", aggregates=[Account])


@pytest.mark.parametrize("options", [{}, {"types": [Withdrawn]}, {"streams": ["Account/account 2"]}])
def test_a_read_goes_on_from_the_positions_of_one_that_stopped_anywhere(store: Store, options: dict[str, Any]) -> None:
    whole = [*of(store, **options)]
    for stopped in range(0, len(whole) + 1, 5):
        events = of(store, **options)
        found = [next(events) for _ in range(stopped)]
        positions = events.positions
        events.close()
        assert found + [*of(store, since=positions, **options)] == whole


def test_batches_are_the_same_in_lists(store: Store) -> None:
    batches = [*of(store).batches(3)]
    assert {len(batch) for batch in batches} <= {1, 2, 3}
    assert [one for batch in batches for one in batch] == expected(store)


def test_streams_that_are_named_are_found_by_the_index_without_reading_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create_or_open_store(tmp_path / "bank-data", 1)
    crowd = [(f"other {number}", Deposited(amount=number)) for number in range(1_200)]
    write(store, [("alice", Deposited(amount=1)), *crowd, ("alice", Deposited(amount=2)), *crowd])

    def scanned(*_arguments: object) -> None:
        raise AssertionError("the whole log is read")

    monkeypatch.setattr(LmdbReader, "read", scanned)
    events = of(store, streams=[StreamId("Account", "alice")])
    assert [event for event, _ in events] == [Deposited(amount=1), Deposited(amount=2)]
    assert events.positions == {0: 2_402}


class Split(Event, name="Deposited", version=3):
    amount: int

    @staticmethod
    @upcast(from_version=1)
    def one(old: Any) -> Any:
        return old

    @staticmethod
    @upcast(from_version=2)
    def several(old: Any) -> Any:
        return [stored("Withdrawn", amount=amount) for amount in range(old["amount"])]


def test_one_stored_event_that_is_several_now_is_passed_with_the_last_of_them(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "bank-data", 1)
    write(store, [("alice", Deposited(amount=3)), ("alice", Withdrawn(amount=9))])
    events = read_events(store.path, aggregates=[], events=[Split, Withdrawn])
    seen = []
    for event, recorded in events:
        seen.append((event.model_dump()["amount"], recorded.position, events.positions))
    assert seen == [(0, 1, {0: 0}), (1, 1, {0: 0}), (2, 1, {0: 1}), (9, 2, {0: 2})]


@pytest.fixture
def newer(tmp_path: Path) -> Store:
    """With an event of a later version in the middle, and one of a name that is unknown here."""
    store = create_or_open_store(tmp_path / "newer-data", 1)
    later = NewEvent("Deposited", 7, msgpack.packb({"amount": 2, "bonus": 1}))
    write(store, [("alice", Deposited(amount=1)), ("alice", later), ("alice", Withdrawn(amount=1))])
    write(store, [("alice", NewEvent("Frozen", 1, msgpack.packb({"why": "x"}))), ("alice", Deposited(amount=3))])
    return store


def test_events_that_cannot_be_read_are_given_as_they_are_stored_unless_types_are_chosen(newer: Store) -> None:
    events = [event for event, _ in of(newer)]
    assert [type(event).__name__ for event in events] == [
        *("Deposited", "UnreadableEvent", "Withdrawn", "UnreadableEvent", "Deposited")
    ]
    later = events[1]
    assert isinstance(later, UnreadableEvent)
    assert (later.event, later.stored_version, later.fields) == ("Deposited", 7, {"amount": 2, "bonus": 1})
    assert [event for event, _ in of(newer, types=[Withdrawn])] == [Withdrawn(amount=1)]


def test_one_that_has_to_be_read_is_an_error_at_its_place_each_time(newer: Store) -> None:
    for options in ({"types": [Deposited]}, {"unreadable": "raise"}):
        events = of(newer, **options)
        assert next(events)[0] == Deposited(amount=1)
        assert events.positions == {0: 1}
        for _ in range(2):
            with pytest.raises(UnknownEvent, match="'Deposited' version 7 cannot be read") as told:
                next(events)
            assert told.value.position == 2
        events.close()
    with of(newer, types=[Deposited], unreadable="yield") as events:
        assert [type(event).__name__ for event, _ in events] == ["Deposited", "UnreadableEvent", "Deposited"]


def test_a_damaged_record_is_an_error_after_everything_before_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read = LmdbReader.read

    def reading(self: LmdbReader, after: int, limit: int, bytes_max: int = 1 << 62) -> list[bytes]:
        if self.name == "partition 1" and after < 6 <= after + limit:
            raise Damaged("partition 1, event 6", "its checksum is wrong")
        return read(self, after, limit, bytes_max)

    monkeypatch.setattr(LmdbReader, "read", reading)
    intact = [one for one in expected(store) if one[1][2:4] < (1, 6)]
    events = of(store)
    assert [next(events) for _ in intact] == intact
    for _ in range(2):
        with pytest.raises(Damaged, match="event 6"):
            next(events)
    assert events.positions[1] == 5
    monkeypatch.undo()
    rest = [*of(store, since=events.positions)]
    assert [one for one in expected(store) if one[1].partition == 1 and one[1].position > 5] == [
        one for one in rest if one[1].partition == 1
    ]


@pytest.mark.parametrize("taken", [0, 1, len(HISTORY)])
def test_one_that_was_closed_gives_nothing_more_wherever_it_was(store: Store, taken: int, tmp_path: Path) -> None:
    with of(store) as events:
        begun = [next(events) for _ in range(taken)]
    events.close()
    uses: list[Callable[[], object]] = [
        *(lambda: next(events), lambda: list(events), lambda: next(events.batches())),
        *(events.to_arrow, events.to_reader, events.to_pandas),
        *(lambda: events.to_parquet(tmp_path / "out"), lambda: events.to_parquet(tmp_path / "out.jsonl")),
    ]
    for use in uses:
        with pytest.raises(CallerError, match="this read of events was closed; begin another one, from its positions"):
            use()
    assert list(tmp_path.iterdir()) == []
    if begun:
        assert begun + [*of(store, since=events.positions)] == expected(store)


def test_one_that_is_closed_while_a_page_is_read_says_so_and_has_not_passed_that_page(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = of(store)
    read, places = LmdbReader.read, []

    def reading(self: LmdbReader, after: int, limit: int, bytes_max: int = 1 << 62) -> list[bytes]:
        records = read(self, after, limit, bytes_max)
        if after == 4:
            places.append(events.positions)
            events.close()
        return read(self, after, limit, bytes_max) if after == 4 else records

    monkeypatch.setattr(LmdbReader, "read", reading)
    assert len([next(events) for _ in range(4)]) == 4
    with pytest.raises(CallerError, match="this read of events was closed"):
        next(events)
    assert places == [events.positions] == [{0: 4, 1: 0, 2: 0}]


def test_a_page_that_is_being_made_into_events_is_not_passed_yet(store: Store) -> None:
    places = []

    def chosen(_stream: StreamId) -> bool:
        places.append(events.positions)
        return True

    with of(store, streams=chosen) as events:
        next(events)
    assert places == [{0: 0, 1: 0, 2: 0}] * 4
