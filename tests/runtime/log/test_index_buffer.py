"""The stream index lags behind, by a bound, and no reader of a stream notices."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayfold.runtime.errors import Conflict, Damaged
from rayfold.runtime.log import index_buffer
from rayfold.runtime.log.folder import open_log
from rayfold.runtime.log.format import (
    EVENTS,
    FORMAT_VERSION,
    META,
    META_FORMAT,
    META_INDEXED,
    STREAMS,
    decode_record,
    encode_meta,
    encode_record,
    pack_position,
    record_position,
)
from rayfold.runtime.log.index_buffer import GROUPS, group_of
from rayfold.runtime.log.reader import LmdbReader
from rayfold.runtime.log.segment import read_log_segment
from rayfold.runtime.log.writer import LmdbLog
from rayfold.runtime.store.store import Store, create_or_open_store
from rayfold.runtime.store.verify import verify_store
from rayfold.runtime.stream import StreamId, partition_of
from tests.runtime.log.appends import ALICE, BOB, amounts_of, deposits, python, versions_of

MANY = [StreamId("Account", f"account-{number}") for number in range(200)]


def cold(log: LmdbLog) -> LmdbReader:
    """A reader of the same log without the cache, as one in another process."""
    return LmdbReader(log.environment)


def entries(log: LmdbLog) -> int:
    return log.environment.entries(STREAMS)


def indexed(log: LmdbLog) -> Sequence[int]:
    return log.environment.read(log.indexed_in)


def fill(log: LmdbLog, batches: int, size: int = 40) -> int:
    """Batches of one event each to many accounts in turn. Returns the epoch."""
    epoch = log.activate()
    for batch in range(batches):
        log.append(epoch, [deposits(MANY[(batch * size + n) % len(MANY)], n) for n in range(size)])
    return epoch


def break_it(log: LmdbLog, database: bytes, key: bytes, value: bytes | None) -> None:
    """Overwrite, or remove, a pair below the log."""
    of = log.environment.database(database)
    log.environment.write(lambda txn: txn.delete(key, db=of) if value is None else txn.put(key, value, db=of))


# --- how far behind -----------------------------------------------------------------------------------------------


def test_entries_are_put_a_group_at_a_time_and_the_index_lags_by_a_bound(lmdb_log: LmdbLog) -> None:
    epoch = fill(lmdb_log, 5)
    assert entries(lmdb_log) == 0, "200 events are no turn yet"
    for number in range(300):
        lmdb_log.append(epoch, [deposits(MANY[(number * 40 + n) % 200], n) for n in range(40)])
        assert lmdb_log.head() - min(indexed(lmdb_log)) <= GROUPS * index_buffer.EVENTS_A_ROUND + 40
    groups = [group_of(decode_record(record).stream.key) for record in lmdb_log.read(0, 1 << 20)]
    held = indexed(lmdb_log)
    assert entries(lmdb_log) == sum(position <= held[group] for position, group in enumerate(groups, 1))
    assert 0 < entries(lmdb_log) < len(groups)


def test_large_records_have_their_turn_sooner(lmdb_log: LmdbLog) -> None:
    epoch = lmdb_log.activate()
    large = deposits(ALICE, 1)._replace(events=(deposits(ALICE, 1).events[0]._replace(payload=bytes(1 << 20)),))
    for stream in MANY[:9]:
        lmdb_log.append(epoch, [large._replace(stream=stream, command_id=deposits(stream, 1).command_id)])
    assert lmdb_log.head() - min(indexed(lmdb_log)) < 9
    held, head = sorted(indexed(lmdb_log)), lmdb_log.head()
    assert head - held[0] <= 1 + (GROUPS * index_buffer.BYTES_A_ROUND >> 20)


def test_a_batch_larger_than_all_turns_together_is_in_the_index_at_once(
    lmdb_log: LmdbLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_buffer, "EVENTS_A_ROUND", 2)
    lmdb_log.append(lmdb_log.activate(), [deposits(stream, 1) for stream in MANY])
    assert (entries(lmdb_log), set(indexed(lmdb_log))) == (200, {200})


# --- what is read -------------------------------------------------------------------------------------------------

appends = st.tuples(st.integers(0, 11), st.integers(0, 3))
batches = st.lists(st.lists(appends, max_size=6), max_size=12)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(batches, st.sampled_from([1, 2, 5, 256]), st.sampled_from([1, 700, 1 << 20]), st.sets(st.integers(0, 11)))
def test_whoever_reads_and_however_often_the_writer_begins_anew_every_stream_is_whole(
    history: list[list[tuple[int, int]]], events_a_round: int, bytes_a_round: int, reopened: set[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_buffer, "EVENTS_A_ROUND", events_a_round)
        patch.setattr(index_buffer, "BYTES_A_ROUND", bytes_a_round)
        store = create_or_open_store(folder, 1)
        log = store.open_log(0)
        epoch, of = log.activate(), {stream: list[int]() for stream in MANY[:12]}
        for number, batch in enumerate(history):
            planned = [deposits(MANY[which], *range(count)) for which, count in batch]
            log.append(epoch, [one._replace(expected_version=-1) for one in planned])
            for which, count in batch:
                of[MANY[which]] += range(count)
            if number in reopened:
                log.close()
                log = store.open_log(0)
                epoch = log.activate()
            for reader in (log, cold(log)):
                for stream, amounts in of.items():
                    assert reader.version(stream) == len(amounts)
                    assert amounts_of(reader.read_stream(stream)) == amounts
                    assert amounts_of(reader.read_stream(stream, 2, limit=3)) == amounts[1:4]
            for stream, amounts in of.items():
                last = record_position(log.read_stream(stream)[-1]) if amounts else 0
                [nothing] = log.append(epoch, [deposits(stream)._replace(expected_version=-1)])
                assert (nothing.position, nothing.version) == (last, len(amounts))
        log.close()
        report = verify_store(store.path).partitions[0]
        assert (report.problems, report.warnings) == ([], [])
        assert report.streams == sum(bool(amounts) for amounts in of.values())


@pytest.mark.slow
def test_a_reader_beside_a_writer_in_another_process_always_sees_whole_streams(tmp_path: Path) -> None:
    code = """
import sys
from rayfold.runtime.log import recent
from rayfold.runtime.store.store import open_store
from tests.runtime.log.appends import deposits
from tests.runtime.log.test_recent import MANY
recent.EVENTS_A_ROUND = 10
log = open_store(sys.argv[1]).open_log(0)
epoch = log.activate()
while True:
    log.append(epoch, [deposits(stream, 1) for stream in MANY[:30]])
    print(log.head(), flush=True)
"""
    store = create_or_open_store(tmp_path / "store", 1)
    writer = python(code, store.path)
    assert writer.stdout is not None
    writer.stdout.readline()
    reader = store.open_reader(0)
    for number in range(300):
        stream = MANY[number % 30]
        before = reader.head()
        records = reader.read_stream(stream)
        assert versions_of(records) == list(range(1, len(records) + 1))
        assert len(records) >= before // 30
    writer.kill()
    writer.communicate(timeout=60)
    assert verify_store(store.path).ok


def test_a_reader_in_a_moment_that_the_writer_is_past_looks_into_the_log(lmdb_log: LmdbLog) -> None:
    epoch = lmdb_log.activate()
    lmdb_log.append(epoch, [deposits(ALICE, 1), deposits(BOB, 7)])

    def read_while_it_is_written(transaction: object) -> tuple[int, int]:
        lmdb_log.append(epoch, [deposits(ALICE, 2)])
        return lmdb_log.version_in(transaction, ALICE), lmdb_log.version_in(transaction, BOB)  # type: ignore[arg-type]

    assert lmdb_log.environment.read(read_while_it_is_written) == (1, 1)
    assert lmdb_log.version(ALICE) == 2


def test_a_writer_that_takes_a_log_over_knows_its_end_by_heart(lmdb_log: LmdbLog, tmp_path: Path) -> None:
    """Or each aggregate that it loads would cost a look through the latest events."""
    fill(lmdb_log, 30)
    lmdb_log.close()
    log = open_log(tmp_path / "log", "partition 3")
    epoch = log.activate()
    assert log._recent.head == log.head() == 1200
    held = indexed(log)
    unindexed_entries = [
        event for event in map(decode_record, log.read(0, 1200)) if event.position > held[group_of(event.stream.key)]
    ]
    assert sum(len(log._recent.entries(stream.key, 1)) for stream in MANY) == len(unindexed_entries) > 0
    log.append(epoch, [deposits(MANY[0], 1)])
    assert log._recent.head == log.head() == 1201
    log.close()


def test_what_is_known_of_one_busy_stream_is_not_gone_through_for_its_end(lmdb_log: LmdbLog) -> None:
    epoch = lmdb_log.activate()
    for amount in range(0, 900, 3):
        lmdb_log.append(epoch, [deposits(ALICE, amount, amount + 1, amount + 2)])
    known = lmdb_log._recent
    assert [len(known.entries(ALICE.key, first)) for first in (None, 899, 900, 901)] == [1, 1, 1, 0]
    assert [len(known.entries(ALICE.key, first)) for first in (897, 898)] == [2, 1], "one entry covers three versions"
    for reader in (lmdb_log, cold(lmdb_log)):
        assert reader.version(ALICE) == 900
        assert amounts_of(reader.read_stream(ALICE, 899)) == [898, 899]
        assert amounts_of(reader.read_stream(ALICE, 3, 5)) == [2, 3, 4]
        assert reader.read_stream(ALICE, 901) == []


def test_a_batch_that_is_refused_changes_nothing_of_what_the_writer_knows(lmdb_log: LmdbLog) -> None:
    epoch = fill(lmdb_log, 3)
    with pytest.raises(Conflict):
        lmdb_log.append(epoch, [deposits(MANY[0], 5), deposits(MANY[1], 5, expected=9)])
    assert [lmdb_log.version(stream) for stream in MANY[:2]] == [1, 1]
    lmdb_log.append(epoch, [deposits(MANY[0], 6, expected=1)])
    assert amounts_of(cold(lmdb_log).read_stream(MANY[0])) == amounts_of(lmdb_log.read_stream(MANY[0])) == [0, 6]


# --- what is wrong ------------------------------------------------------------------------------------------------


def test_an_event_that_decayed_before_it_was_indexed_hides_nothing(lmdb_log: LmdbLog) -> None:
    lmdb_log.append(lmdb_log.activate(), [deposits(ALICE, 1), deposits(BOB, 2), deposits(ALICE, 3)])
    reader = cold(lmdb_log)
    for position in (1, 3):
        record = lmdb_log.read(position - 1, 1)[0]
        break_it(lmdb_log, EVENTS, pack_position(position), record.replace(b"alice", b"alicf"))
        for use in (lambda: reader.version(ALICE), lambda: reader.read_stream(ALICE), lambda: reader.version(BOB)):
            with pytest.raises(Damaged, match=f"event {position} is damaged: its checksum is wrong"):
                use()
        break_it(lmdb_log, EVENTS, pack_position(position), record)
    break_it(lmdb_log, EVENTS, pack_position(2), None)
    with pytest.raises(Damaged, match="event 2 is damaged: it is missing"):
        reader.version(ALICE)


def test_a_writer_does_not_take_over_a_log_with_a_damaged_end(lmdb_log: LmdbLog, tmp_path: Path) -> None:
    fill(lmdb_log, 1)
    record = lmdb_log.read(4, 1)[0]
    break_it(lmdb_log, EVENTS, pack_position(5), record[:-1] + bytes([record[-1] ^ 1]))
    lmdb_log.close()
    log = open_log(tmp_path / "log", "partition 3")
    with pytest.raises(Damaged, match="event 5 is damaged: its checksum is wrong"):
        log.activate()
    assert (log.epoch(), log.head()) == (1, 40)
    log.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One partition, none of whose 9 events is in the stream index: of alice 1, 2, 3 with a snapshot, and of bob."""
    store = create_or_open_store(tmp_path / "store", 1)
    log = store.open_log(0)
    epoch = log.activate()
    for amount in range(1, 4):
        append = deposits(ALICE, amount)._replace(snapshot=b"state", snapshot_schema=b"s")
        log.append(epoch, [append, deposits(BOB, 10, 20)])
    assert entries(log) == 0
    log.close()
    return store


def test_verify_looks_at_the_versions_that_the_index_does_not_hold_yet(store: Store) -> None:
    good = verify_store(store.path).partitions[0]
    assert (good.problems, good.warnings, good.events, good.streams, good.snapshots) == ([], [], 9, 2, 3)
    log = store.open_log(0)
    old = decode_record(log.read(6, 1)[0])
    before = log.read(5, 1)[0][12:44]
    ids = (old.command_id, old.correlation_id, old.causation_id)
    forged = encode_record((7, before, ALICE, 7, old.recorded_at_us, *ids), deposits(ALICE, 3).events[0])
    break_it(log, EVENTS, pack_position(7), forged)
    log.close()
    problems = verify_store(store.path).partitions[0].problems
    told = "it is Account/alice version 7, but the version before it in the log is 2"
    assert ("events", "7", "index", told) in [problem[1:] for problem in problems]


def test_verify_finds_what_the_index_should_hold_by_now(store: Store) -> None:
    log = store.open_log(0)
    value = encode_meta(META_INDEXED, pack_position(9) * GROUPS)
    break_it(log, META, META_INDEXED, value)
    log.close()
    problems = [problem for problem in verify_store(store.path).partitions[0].problems if problem.kind == "index"]
    assert len(problems) == 9
    assert problems[0].what == "it is Account/alice version 1, but the stream index does not lead to it"


def test_a_stream_of_another_partition_is_warned_of_before_it_is_indexed(tmp_path: Path) -> None:
    store = create_or_open_store(tmp_path / "store", 2)
    elsewhere = next(stream for stream in MANY if partition_of(stream, 2) == 0)
    log = store.open_log(1)
    log.append(log.activate(), [deposits(elsewhere, 1)])
    log.close()
    report = verify_store(store.path).partitions[1]
    assert [(one.key, one.what) for one in report.warnings] == [(str(elsewhere), "commands to it go to partition 0")]


# --- other ways into a log ----------------------------------------------------------------------------------------


def as_format_1(log: LmdbLog) -> None:
    """Make of a log whose index holds everything one as it was written before the index lagged."""
    break_it(log, META, META_FORMAT, encode_meta(META_FORMAT, pack_position(1)))
    break_it(log, META, META_INDEXED, None)


def test_a_log_of_format_1_is_read_as_it_is_and_becomes_one_of_the_present_format_when_it_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create_or_open_store(tmp_path / "store", 1)
    with monkeypatch.context() as patch:
        patch.setattr(index_buffer, "BYTES_A_ROUND", 1)
        log = store.open_log(0)
        fill(log, 3)
        as_format_1(log)
        log.close()
    reader = store.open_reader(0)
    assert (reader.version(MANY[1]), amounts_of(reader.read_stream(MANY[1]))) == (1, [1])
    assert verify_store(store.path).ok
    reader.close()
    log = store.open_log(0)
    epoch = log.activate()
    assert set(indexed(log)) == {120}
    log.append(epoch, [deposits(MANY[1], 5, expected=1)])
    assert entries(log) == 120, "the new one is not due"
    assert amounts_of(cold(log).read_stream(MANY[1])) == [1, 5]
    formats = log.environment.read(lambda txn: txn.get(META_FORMAT, db=log.environment.database(META)))
    assert formats == encode_meta(META_FORMAT, pack_position(FORMAT_VERSION))
    log.close()
    assert verify_store(store.path).ok


@pytest.mark.parametrize("way", [lambda log: None, as_format_1])
def test_a_segment_is_added_to_a_log_of_either_format(tmp_path: Path, way: Callable[[LmdbLog], None]) -> None:
    store, other = (create_or_open_store(tmp_path / name, 1) for name in ("one", "other"))
    source, target = store.open_log(0), other.open_log(0)
    fill(source, 4)
    first = read_log_segment(source, 0, 80)
    assert first is not None
    target.add_segment(first)
    way(target)
    target_epoch = target.activate()
    assert entries(target) == 80
    rest = read_log_segment(source, 80, 160)
    assert rest is not None
    target.add_segment(rest)
    assert (entries(target), set(indexed(target))) == (160, {160})
    target.append(target_epoch, [deposits(ALICE, 9)])
    assert cold(target).version(ALICE) == target.version(ALICE) == 1
    for log in (source, target):
        log.close()
    assert verify_store(other.path).ok


def test_a_segment_after_appends_that_are_not_indexed_yet_indexes_them_too(tmp_path: Path) -> None:
    stores = [create_or_open_store(tmp_path / name, 1) for name in ("one", "other")]
    moment = 1_700_000_000_000_000
    logs = [open_log(store.partition_path(0), "partition 0", now_us=lambda: moment) for store in stores]
    same = [deposits(stream, 1) for stream in MANY[:50]]
    for log in logs:
        log.append(log.activate(), same)
    source, target = logs
    source.append(1, [deposits(stream, 2) for stream in MANY[:50]])
    segment = read_log_segment(source, 50, 100)
    assert segment is not None
    assert entries(target) == 0
    target.add_segment(segment)
    assert (entries(target), set(indexed(target))) == (100, {100})
    assert amounts_of(target.read_stream(MANY[7])) == [1, 2]
    for log in logs:
        log.close()
    assert verify_store(stores[1].path).ok
