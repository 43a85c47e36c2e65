"""Some streams of a log, read by the stream index: the same records in the same order as from the whole log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayfold import Damaged, StreamId, subscribe
from rayfold.runtime.feed import indexed_streams
from rayfold.runtime.feed.indexed_streams import IndexedStreams, by_index
from rayfold.runtime.feed.log_follower import LogFollower
from rayfold.runtime.log.contract import Append, NewEvent
from rayfold.runtime.log.format import decode_record, record_position
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.log.reader import LmdbReader
from rayfold.runtime.store.store import Store, create_or_open_store
from rayfold.runtime.stream import ANY
from tests.bank import Account, Deposited
from tests.runtime.log.appends import ALICE, BOB, DIGEST, amounts_of, command_id, deposits

STREAMS = [StreamId("Account", f"account {number}") for number in range(6)]


def log_of(appends: list[tuple[int, int, int]]) -> MemoryLog:
    """Of (stream, number of events, size of each)."""
    log = MemoryLog()
    epoch = log.activate()
    for stream, count, size in appends:
        events = tuple(
            NewEvent("Deposited", 1, b"\x81\xa6amount" + bytes([0xC4, size]) + bytes(size)) for _ in range(count)
        )
        log.append(epoch, [Append(STREAMS[stream], ANY, events, command_id(), DIGEST)])
    return log


def read_all(indexed: IndexedStreams, after: int, limit: int, bytes_max: int) -> list[bytes]:
    found = []
    while after < indexed.up_to:
        records, reached = indexed.read(after, limit, bytes_max)
        assert len(records) <= limit
        assert reached > after
        found += records
        after = reached
    return found


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(0, 200)), min_size=1, max_size=40),
    st.sets(st.sampled_from([*STREAMS, StreamId("Account", "no such")])),
    st.integers(0, 100),
    st.integers(0, 100),
    st.sampled_from([1, 2, 7, 512]),
    st.sampled_from([1, 300, 1 << 20]),
    st.sampled_from([(4_096, 4 << 20), (3, 4 << 20), (4_096, 500), (1, 1)]),
)
@settings(deadline=None)
def test_the_records_are_those_of_the_whole_log_that_belong_to_the_streams(
    appends: list[tuple[int, int, int]],
    streams: set[StreamId],
    after: int,
    up_to: int,
    limit: int,
    bytes_max: int,
    shares: tuple[int, int],
) -> None:
    log = log_of(appends)
    up_to = min(up_to, log.head())
    expected = [
        record
        for record in log.read(0, 1 << 62)
        if after < record_position(record) <= up_to and decode_record(record).stream in streams
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexed_streams, "RECORDS", shares[0])
        patch.setattr(indexed_streams, "BYTES", shares[1])
        indexed = IndexedStreams(log, streams, up_to)
        assert read_all(indexed, after, limit, bytes_max) == expected
        assert read_all(indexed, after, limit, bytes_max) == expected, "and again from the same place"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Alice's three deposits, far apart among those of many others."""
    store = create_or_open_store(tmp_path / "bank-data", 1)
    log = store.open_log(0)
    epoch = log.activate()
    others = iter(range(10_000))
    for amount in (1, 2, 3):
        crowd = [deposits(StreamId("Account", f"other {number}"), number) for number in islice(others, 1_500)]
        log.append(epoch, [*crowd, deposits(ALICE, amount)])
    log.close()
    return store


@pytest.fixture
def no_scan(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def scanned(*_arguments: object) -> None:
        raise AssertionError("the whole log is read")

    with monkeypatch.context() as patch:
        patch.setattr(LmdbReader, "read", scanned)
        yield


@pytest.mark.usefixtures("no_scan")
def test_a_subscription_to_one_stream_catches_up_by_the_index_and_passes_the_rest_over(store: Store) -> None:
    with subscribe(store.path, aggregates=[Account], streams=["Account/alice"]) as subscription:
        assert [event for event, _ in islice(subscription, 3)] == [Deposited(amount=amount) for amount in (1, 2, 3)]
        assert subscription.positions == {0: 4_503}
    middle = subscribe(store.path, aggregates=[Account], streams=[ALICE], from_={0: 1_501})
    with middle as subscription:
        assert [event for event, _ in islice(subscription, 2)] == [Deposited(amount=amount) for amount in (2, 3)]


@pytest.mark.usefixtures("no_scan")
def test_a_stream_without_events_is_passed_over_to_the_end_of_the_log(store: Store) -> None:
    with closing(store.open_reader(0)) as reader:
        follower = LogFollower({0: reader}, {}, by_index(store, {0: reader}, {BOB}, {0: 0}, {0: 4_503}))
        assert follower.read() == []
        assert (follower.positions, follower.has_new_records()) == ({0: 4_503}, False)


def test_what_comes_after_the_catching_up_is_read_from_the_log() -> None:
    log = MemoryLog()
    epoch = log.activate()
    log.append(epoch, [deposits(ALICE, 1), deposits(BOB, 2), deposits(ALICE, 3)])
    follower = LogFollower({0: log}, {}, {0: IndexedStreams(log, [ALICE], log.head())})
    log.append(epoch, [deposits(BOB, 4), deposits(ALICE, 5)])
    [(_, records)] = follower.read()
    assert amounts_of(records) == [1, 3]
    [(_, records)] = follower.read()
    assert amounts_of(records) == [4, 5], "all of them: the filter chooses"


def test_where_the_index_is_damaged_the_log_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    log = MemoryLog()
    log.append(log.activate(), [deposits(ALICE, 1), deposits(BOB, 2), deposits(ALICE, 3), deposits(BOB, 4)])
    follower = LogFollower({0: log}, {}, {0: IndexedStreams(log, [ALICE], log.head())})
    [(_, records)] = follower.read(limit=1)
    assert amounts_of(records) == [1]

    def damaged(*_arguments: object) -> list[bytes]:
        raise Damaged("stream index of Account/alice", "version 2 is missing")

    monkeypatch.setattr(log, "read_stream", damaged)
    follower.go_back(0, 0)
    [(_, records)] = follower.read()
    assert amounts_of(records) == [1, 2, 3, 4]


def test_many_streams_are_read_from_the_log_where_that_is_faster(store: Store) -> None:
    with closing(store.open_reader(0)) as reader:
        few = [StreamId("Account", f"other {number}") for number in range(4)]
        many = [StreamId("Account", f"other {number}") for number in range(5)]
        assert list(by_index(store, {0: reader}, few, {0: 0}, {0: 4_503})) == [0]
        assert by_index(store, {0: reader}, many, {0: 0}, {0: 4_503}) == {}
        assert by_index(store, {0: reader}, few, {0: 2_000}, {0: 4_503}) == {}
        assert by_index(store, {0: reader}, None, {0: 0}, {0: 4_503}) == {}
