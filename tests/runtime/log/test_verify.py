"""`verify_store`: nothing about a good store, and what is wrong where about a bad one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from rayfold.runtime.errors import StoreMissing
from rayfold.runtime.log.format import (
    COMMANDS,
    EVENTS,
    META,
    SNAPSHOTS,
    STREAMS,
    NextRecord,
    chain_of,
    decode_record,
    encode_command,
    encode_record,
    encode_stream_entry,
    pack_position,
)
from rayfold.runtime.store import report, verify
from rayfold.runtime.store.store import Store, create_or_open_store
from rayfold.runtime.store.verify import Problem, Report, verify_store
from rayfold.runtime.stream import StreamId, partition_of
from tests.runtime.log.appends import ALICE, command_id, deposited, deposits, python

pytestmark = pytest.mark.usefixtures("indexed_at_once")

IN_1 = [stream for n in range(40) if partition_of(stream := StreamId("Account", f"in 1, {n}"), 2) == 1]
COMMAND = command_id(7)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two partitions; the second holds events 1..9 of two streams and a snapshot."""
    store = create_or_open_store(tmp_path / "store", 2)
    log = store.open_log(1)
    epoch, (first, second) = log.activate(), IN_1[:2]
    log.append(epoch, [deposits(first, 1, 2), deposits(second, 3)])
    log.append(epoch, [deposits(first, 4, 5, by=COMMAND)._replace(snapshot=b"state", snapshot_schema=b"s")])
    for amount in range(6, 10):
        log.append(epoch, [deposits(second, amount)])
    log.close()
    return store


def spoil(store: Store, work: Callable[[lmdb.Transaction[bytes], Callable[[bytes], lmdb._Database]], object]) -> None:
    """Do something to the second partition below the log."""
    path = str(store.partition_path(1))
    with lmdb.open(path, max_dbs=16, lib_version=0) as env:
        databases = {name: env.open_db(name, create=False) for name in (EVENTS, STREAMS, COMMANDS, SNAPSHOTS, META)}
        with env.begin(write=True) as transaction:
            work(transaction, databases.__getitem__)


def verified(store: Store) -> Report:
    return verify_store(store.path)


def found(store: Store) -> list[tuple[str, str, str, str]]:
    """Database, key, kind and text of every problem, all of them in the second partition."""
    report = verified(store)
    assert not report.ok
    assert {problem.partition for problem in report.problems} == {1}
    return [problem[1:] for problem in report.problems]


# --- good stores --------------------------------------------------------------------------------------------------


def test_a_good_store_has_no_problems_and_its_figures_are_told(store: Store) -> None:
    report = verified(store)
    assert report.ok
    assert (report.path, report.store_id) == (str(store.path), store.store_id)
    empty, full = report.partitions
    assert (empty.events, empty.streams, empty.head, empty.epoch) == (0, 0, 0, 0)
    assert (full.events, full.streams, full.commands, full.snapshots) == (9, 2, 7, 1)
    assert (full.head, full.epoch, full.structure_checked) == (9, 1, True)
    assert (full.problems, full.warnings, full.unlisted) == ([], [], 0)


def test_a_report_is_plain_values_for_json(store: Store) -> None:
    plain = json.loads(json.dumps(verified(store).as_dict()))
    assert (plain["ok"], plain["store_id"], plain["partitions"][1]["events"]) == (True, store.store_id, 9)


def test_a_copy_of_a_store_can_be_verified(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.path, tmp_path / "copy")
    assert verify_store(tmp_path / "copy").partitions[1].events == 9


def test_progress_is_told_up_to_the_end(store: Store) -> None:
    told: list[tuple[int, int]] = []
    verify_store(store.path, lambda done, total: told.append((done, total)))
    assert told[0] == (0, 9 + 7 + 7 + 1)
    assert told[-1] == (24, 24)
    assert told == sorted(told)


def test_a_walk_goes_over_the_borders_of_its_chunks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for pairs in (1, 2, 3, 9):
        monkeypatch.setattr(verify, "CHUNK_PAIRS", pairs)
        report = verified(store)
        assert report.ok
        assert (report.partitions[1].events, report.partitions[1].commands) == (9, 7)


@pytest.mark.slow
def test_a_store_in_use_can_be_verified_and_goes_on(store: Store) -> None:
    code = """
import sys
from rayfold.runtime.store.store import open_store
from tests.runtime.log.appends import deposits
from tests.runtime.log.test_verify import IN_1
store = open_store(sys.argv[1])
with store.hold("busy"):
    log = store.open_log(1)
    epoch = log.activate()
    while True:
        log.append(epoch, [deposits(stream, 1, 2) for stream in IN_1])
        print(log.head(), flush=True)
"""
    writer = python(code, store.path)
    assert writer.stdout is not None
    head = int(writer.stdout.readline())
    for _ in range(3):
        checked = verified(store).partitions[1]
        assert checked.problems == []
        assert checked.events == checked.head >= head
        while head <= checked.head:  # until the writer, which nothing held up, is beyond what was checked
            head = int(writer.stdout.readline())
    writer.kill()
    writer.communicate(timeout=60)
    assert verified(store).ok


def test_a_directory_without_a_store_cannot_be_verified(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreMissing, match="there is no store here"):
        verify_store(tmp_path)
    shutil.rmtree(store.partition_path(0))
    with pytest.raises(StoreMissing, match="the log of partition 0 of 2 is gone"):
        verified(store)


# --- bad events ---------------------------------------------------------------------------------------------------


def test_a_flipped_byte_of_an_event_is_found_where_it_is(store: Store) -> None:
    def flip(txn: lmdb.Transaction[bytes], database: Callable[[bytes], lmdb._Database]) -> None:
        record = txn.get(pack_position(5), db=database(EVENTS))
        assert record is not None
        txn.put(pack_position(5), record[:-1] + bytes([record[-1] ^ 1]), db=database(EVENTS))

    spoil(store, flip)
    assert found(store) == [("events", "5", "checksum", "its checksum is wrong")]


def test_a_missing_event_is_found_from_the_log_and_from_both_indexes(store: Store) -> None:
    spoil(store, lambda txn, database: txn.delete(pack_position(5), db=database(EVENTS)))
    assert found(store) == [
        ("events", "5", "position", "missing: the next is 6"),
        ("streams", f"{IN_1[0]} version 4", "index", "its event 5 is missing"),
        ("commands", COMMAND.hex(), "command", "its last event 5 is missing"),
    ]


def test_a_missing_end_of_the_log_is_found_by_the_indexes(store: Store) -> None:
    spoil(store, lambda txn, database: txn.delete(pack_position(9), db=database(EVENTS)))
    assert [problem[0::2] for problem in found(store)] == [("streams", "index"), ("commands", "command")]


def test_a_record_that_was_rewritten_with_a_good_checksum_breaks_the_chain(store: Store) -> None:
    def forge(txn: lmdb.Transaction[bytes], database: Callable[[bytes], lmdb._Database]) -> None:
        before, record = (txn.get(pack_position(n), db=database(EVENTS)) for n in (3, 4))
        assert before is not None
        assert record is not None
        old = decode_record(record)
        ids = (old.command_id, old.correlation_id, old.causation_id)
        at = NextRecord(4, chain_of(before), old.stream, old.version, old.recorded_at_us, *ids)
        txn.put(pack_position(4), encode_record(at, deposited(1_000_000)), db=database(EVENTS))

    spoil(store, forge)
    assert found(store) == [("events", "5", "chain", "its hash does not follow from the records before it")]


def test_a_key_that_is_no_position_is_found(store: Store) -> None:
    spoil(store, lambda txn, database: txn.put(b"\0\0what", b"is this", db=database(EVENTS)))
    assert ("events", b"\0\0what".hex(), "key", "a key of 6 bytes is not a position") in found(store)


# --- bad indexes --------------------------------------------------------------------------------------------------


def test_a_missing_entry_of_the_stream_index_is_found_from_both_sides(store: Store) -> None:
    key = IN_1[1].key + pack_position(2)
    spoil(store, lambda txn, database: txn.delete(key, db=database(STREAMS)))
    stream = IN_1[1]
    assert found(store) == [
        ("events", "6", "index", f"it is {stream} version 2, but the stream index does not lead to it"),
        ("streams", f"{stream} version 3", "index", "it covers versions 3..3, but the entry before it ends at 1"),
    ]


def test_a_stream_index_that_leads_elsewhere_is_found(store: Store) -> None:
    key = IN_1[1].key + pack_position(3)
    spoil(store, lambda txn, database: txn.put(key, encode_stream_entry(key, 8, 1), db=database(STREAMS)))
    kinds = [(problem[0], problem[1], problem[2]) for problem in found(store)]
    assert ("events", "7", "index") in kinds
    assert ("streams", f"{IN_1[1]} version 3", "index") in kinds


def test_a_flipped_byte_of_the_stream_index_is_found(store: Store) -> None:
    key = IN_1[1].key + pack_position(3)
    spoil(store, lambda txn, database: txn.put(key, b"\0" * 16, db=database(STREAMS)))
    assert found(store) == [("streams", f"{IN_1[1]} version 3", "checksum", "its checksum is wrong")]


def test_a_missing_command_is_found_at_its_events(store: Store) -> None:
    spoil(store, lambda txn, database: txn.delete(COMMAND, db=database(COMMANDS)))
    what = f"its command {COMMAND.hex()} is not in the command index"
    assert found(store) == [("events", "4", "command", what), ("events", "5", "command", what)]


def test_a_command_that_is_said_to_end_elsewhere_is_found_from_both_sides(store: Store) -> None:
    value = encode_command(COMMAND, bytes(16), 7, 4)
    spoil(store, lambda txn, database: txn.put(COMMAND, value, db=database(COMMANDS)))
    assert [(problem[0], problem[1], problem[2]) for problem in found(store)] == [
        ("events", "4", "command"),
        ("events", "5", "command"),
        ("commands", COMMAND.hex(), "command"),
    ]


def test_a_command_without_events_is_found(store: Store) -> None:
    stray = command_id(99)
    value = encode_command(stray, bytes(16), 77, 4)
    spoil(store, lambda txn, database: txn.put(stray, value, db=database(COMMANDS)))
    assert found(store) == [("commands", stray.hex(), "command", "its last event 77 is missing")]


def test_a_flipped_byte_of_a_command_is_found(store: Store) -> None:
    spoil(store, lambda txn, database: txn.put(COMMAND, b"\0" * 36, db=database(COMMANDS)))
    assert found(store) == [("commands", COMMAND.hex(), "checksum", "its checksum is wrong")]


# --- what is only a warning ---------------------------------------------------------------------------------------


def test_a_damaged_snapshot_is_a_warning_and_the_store_is_good(store: Store) -> None:
    key = IN_1[0].key + pack_position(4)
    spoil(store, lambda txn, database: txn.put(key, b"\0" * 20, db=database(SNAPSHOTS)))
    report = verified(store)
    assert report.ok
    assert report.partitions[1].warnings == [
        Problem(
            1,
            "snapshots",
            f"partition 1, snapshot of {IN_1[0]} version 4",
            "checksum",
            "its checksum is wrong; it is passed over",
        )
    ]


def test_a_stream_in_a_partition_not_its_own_is_a_warning(store: Store) -> None:
    elsewhere = next(stream for n in range(40) if partition_of(stream := StreamId("Account", f"in 0, {n}"), 2) == 0)
    log = store.open_log(1)
    log.append(log.activate(), [deposits(elsewhere, 1)])
    log.close()
    report = verified(store)
    assert report.ok
    what = "commands to it go to partition 0"
    assert report.partitions[1].warnings == [Problem(1, "streams", str(elsewhere), "placement", what)]


# --- bad files ----------------------------------------------------------------------------------------------------


def test_a_damaged_epoch_is_found(store: Store) -> None:
    spoil(store, lambda txn, database: txn.put(b"epoch", b"\0" * 12, db=database(META)))
    assert found(store) == [
        ("meta", "epoch", "checksum", "partition 1, meta 'epoch' is damaged: its checksum is wrong")
    ]


def test_a_partition_of_another_store_is_found(store: Store, tmp_path: Path) -> None:
    other = create_or_open_store(tmp_path / "other", 2)
    shutil.rmtree(store.partition_path(1))
    shutil.copytree(other.partition_path(1), store.partition_path(1))
    ((database, _, kind, what),) = found(store)
    assert (database, kind) == ("file", "open")
    assert f"this is the log '{other.store_id}/00001'" in what


@pytest.mark.parametrize("kept_bytes", [0, 100, 8192, 20_000])
def test_a_file_that_was_cut_off_is_found_without_a_crash(store: Store, kept_bytes: int) -> None:
    os.truncate(store.partition_path(1) / "data.mdb", kept_bytes)
    assert {(problem[0], problem[2]) for problem in found(store)} == {("file", "structure")}


def test_pages_that_were_scribbled_over_are_found_without_a_crash(store: Store) -> None:
    path = store.partition_path(1) / "data.mdb"
    good = path.read_bytes()
    for page in range(len(good) // 4096):
        path.write_bytes(good[: page * 4096] + os.urandom(64) + good[page * 4096 + 64 :])
        report = verified(store)
        assert {problem.kind for problem in report.problems} <= {"structure", "open"}
    path.write_bytes(good[:8192] + os.urandom(len(good) - 8192))
    assert {(problem[0], problem[2]) for problem in found(store)} == {("file", "structure")}


def test_the_list_of_problems_is_bounded_and_the_rest_is_counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PROBLEMS_MAX", 3)
    spoil(store, lambda txn, database: txn.drop(database(COMMANDS), delete=False))
    found = verified(store)
    assert len(found.problems) == 3
    assert found.partitions[1].unlisted == 6


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (b"secret", None, ("secret", "checksum", "it is missing")),
        (b"secret", b"\0" * 36, ("partition 0, meta 'secret'", "checksum", "its checksum is wrong")),
        (
            b"event/Deposited/1",
            b"\0" * 9,
            ("partition 0, meta 'event/Deposited/1'", "checksum", "its checksum is wrong"),
        ),
        (
            b"event/Deposited/1",
            None,
            (
                "event/Deposited/1",
                "holdings",
                "events of that name and version are there, and 'meta' does not name them",
            ),
        ),
        (
            b"aggregate/Account",
            None,
            ("aggregate/Account", "holdings", "streams of that type are there, and 'meta' does not name it"),
        ),
    ],
    ids=range(5),
)
def test_what_a_log_says_of_itself_is_checked(
    tmp_path: Path, key: bytes, value: bytes | None, told: tuple[str, str, str]
) -> None:
    store = create_or_open_store(tmp_path / "one", 1)
    log = store.open_log(0)
    log.append(log.activate(), [deposits(ALICE, 1, 2)])
    meta = log.environment.database(META)
    log.environment.write(lambda txn: txn.delete(key, db=meta) if value is None else txn.put(key, value, db=meta))
    log.close()
    (problem,) = verify_store(store.path).problems
    assert (problem.database, problem.key, problem.kind, problem.what) == ("meta", *told)
