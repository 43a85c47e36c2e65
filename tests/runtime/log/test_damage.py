"""Every byte that is stored, flipped: an error when it is read, never data. Snapshots alone are passed over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import lmdb
import pytest

from rayfold.runtime.errors import Damaged
from rayfold.runtime.log.contract import CommandEntry, Snapshot
from rayfold.runtime.log.folder import open_log, open_reader
from rayfold.runtime.log.format import (
    COMMANDS,
    DATABASES,
    EVENTS,
    META,
    SNAPSHOTS,
    STREAMS,
    decode_record,
)
from rayfold.runtime.log.reader import LmdbReader
from rayfold.runtime.log.writer import LmdbLog
from tests.runtime.log.appends import ALICE, BOB, command_id, deposits

pytestmark = pytest.mark.usefixtures("indexed_at_once")

COMMAND = command_id(7)
Pairs = list[tuple[bytes, bytes]]


@pytest.fixture
def filled(lmdb_log: LmdbLog) -> LmdbLog:
    """Events 1..4, of which alice has 1, 2 (at once, with a snapshot) and 4."""
    epoch = lmdb_log.activate()
    first = deposits(ALICE, 1, 2, by=COMMAND)._replace(snapshot=b"state at 2", snapshot_schema=b"schema")
    lmdb_log.append(epoch, [first, deposits(BOB, 3)])
    lmdb_log.append(epoch, [deposits(ALICE, 4)._replace(snapshot=b"state at 3", snapshot_schema=b"schema")])
    return lmdb_log


def pairs(log: LmdbLog, database: bytes) -> Pairs:
    return log.environment.read(lambda txn: list(txn.cursor(log.environment.database(database)).iternext()))


def put(log: LmdbLog, database: bytes, key: bytes, value: bytes) -> None:
    """Overwrite a value below the log, as a decaying disk would."""
    log.environment.write(lambda txn: txn.put(key, value, db=log.environment.database(database)))


def spoilt(value: bytes) -> Iterator[tuple[str, bytes]]:
    """The value with each byte flipped in one bit and in all, cut short anywhere, and with a byte too many."""
    for at in range(len(value)):
        for mask in (1 << (at % 8), 0xFF):
            yield f"byte {at} flipped", value[:at] + bytes([value[at] ^ mask]) + value[at + 1 :]
    for length in range(0, len(value), 7):
        yield f"cut to {length}", value[:length]
    yield "longer", value + b"\0"


def refused(log: LmdbLog, database: bytes, key: bytes, value: bytes, uses: list[Callable[[], object]]) -> None:
    """Every use of a value that was spoilt in any way is `Damaged`; with the true value each works."""
    for how, wrong in spoilt(value):
        put(log, database, key, wrong)
        for use in uses:
            with pytest.raises(Damaged):
                pytest.fail(f"{how}: answered {use()!r}")
    put(log, database, key, value)
    for use in uses:
        use()


def test_a_flipped_byte_of_an_event_is_an_error(filled: LmdbLog) -> None:
    for position, (key, value) in enumerate(pairs(filled, EVENTS)[:2], 1):
        uses: list[Callable[[], object]] = [
            partial(filled.read, position - 1, 1),
            lambda: filled.read(0, 10),
            partial(filled.read_stream, ALICE, position, position),
        ]
        refused(filled, EVENTS, key, value, uses)


def test_a_flipped_byte_of_a_record_on_its_way_is_an_error(filled: LmdbLog) -> None:
    for how, wrong in spoilt(filled.read(0, 1)[0]):
        with pytest.raises(Damaged):
            pytest.fail(f"{how}: decoded {decode_record(wrong)!r}")


def test_a_writer_does_not_build_on_a_damaged_last_event(filled: LmdbLog) -> None:
    key, value = pairs(filled, EVENTS)[-1]
    put(filled, EVENTS, key, value[:-1] + bytes([value[-1] ^ 4]))
    with pytest.raises(Damaged) as caught:
        filled.append(1, [deposits(BOB, 5)])
    assert str(caught.value) == "partition 3, event 4 is damaged: its checksum is wrong"
    put(filled, EVENTS, key, value)
    assert filled.append(1, [deposits(BOB, 5)])[0].position == 5


def test_a_flipped_byte_of_the_stream_index_is_an_error(filled: LmdbLog) -> None:
    first, last = (pair for pair in pairs(filled, STREAMS) if b"alice" in pair[0])
    refused(filled, STREAMS, *first, [lambda: filled.read_stream(ALICE), lambda: filled.read_stream(ALICE, 2, 2)])
    refused(filled, STREAMS, *last, [lambda: filled.version(ALICE), lambda: filled.read_stream(ALICE, 3)])


def test_a_flipped_byte_of_the_stream_index_stops_an_append_to_that_stream(filled: LmdbLog) -> None:
    (key, value) = next(pair for pair in pairs(filled, STREAMS) if b"bob" in pair[0])
    put(filled, STREAMS, key, bytes([value[0] ^ 1]) + value[1:])
    with pytest.raises(Damaged, match="stream index of Account/bob version 1 is damaged: its checksum is wrong"):
        filled.append(1, [deposits(BOB, 5)])
    assert filled.head() == 4


def test_a_flipped_byte_of_a_command_entry_is_an_error(filled: LmdbLog) -> None:
    value = dict(pairs(filled, COMMANDS))[COMMAND]
    repeat = deposits(ALICE, 1, 2, by=COMMAND)
    refused(
        filled, COMMANDS, COMMAND, value, [lambda: filled.find_command(COMMAND), lambda: filled.append(1, [repeat])]
    )


def test_a_damaged_command_entry_is_found_as_an_error_beside_the_others(filled: LmdbLog) -> None:
    (first, value), *others = pairs(filled, COMMANDS)
    put(filled, COMMANDS, first, bytes([value[0] ^ 1]) + value[1:])
    found = filled.find_commands([first, *(key for key, _ in others)])
    assert isinstance(found.pop(first), Damaged)
    assert len(found) == len(others) > 0
    assert all(isinstance(entry, CommandEntry) for entry in found.values())


def test_a_flipped_byte_of_the_epoch_is_an_error(filled: LmdbLog) -> None:
    value = dict(pairs(filled, META))[b"epoch"]
    refused(filled, META, b"epoch", value, [filled.epoch, lambda: filled.append(1, [])])
    put(filled, META, b"epoch", value[:-1] + b"\x05")
    with pytest.raises(Damaged, match="meta 'epoch' is damaged: its checksum is wrong"):
        filled.activate()


def test_a_flipped_byte_of_how_far_the_stream_index_is_is_an_error(filled: LmdbLog) -> None:
    value, reader = dict(pairs(filled, META))[b"indexed"], LmdbReader(filled.environment)
    refused(filled, META, b"indexed", value, [partial(reader.version, ALICE), partial(reader.read_stream, ALICE)])
    filled.environment.write(lambda txn: txn.delete(b"indexed", db=filled.environment.database(META)))
    with pytest.raises(Damaged, match="meta 'indexed' is damaged: it is missing"):
        reader.version(ALICE)


@pytest.mark.parametrize("key", [b"format", b"identity"])
def test_a_flipped_byte_of_what_a_log_says_of_itself_is_an_error_when_it_is_opened(
    filled: LmdbLog, tmp_path: Path, key: bytes
) -> None:
    value = dict(pairs(filled, META))[key]
    for at in range(len(value)):
        log = filled if at == 0 else open_log(tmp_path / "log", "partition 3")
        put(log, META, key, value[:at] + bytes([value[at] ^ 2]) + value[at + 1 :])
        log.close()
        for opening in (open_log, open_reader):
            with pytest.raises(Damaged, match="partition 3, meta"):
                opening(tmp_path / "log", "partition 3")
        mend(tmp_path / "log", key, value)


def mend(path: Path, key: bytes, value: bytes) -> None:
    """Put a value into a log that can no longer be opened as one."""
    with lmdb.open(str(path), max_dbs=16, lib_version=0) as environment, environment.begin(write=True) as txn:
        txn.put(key, value, db=environment.open_db(META, txn=txn))


def test_a_damaged_snapshot_is_passed_over_for_the_one_before(filled: LmdbLog) -> None:
    (older_key, older), (key, value) = pairs(filled, SNAPSHOTS)
    assert filled.find_snapshot(ALICE, b"schema") == Snapshot(3, b"state at 3")
    for _, wrong in spoilt(value):
        put(filled, SNAPSHOTS, key, wrong)
        assert filled.find_snapshot(ALICE, b"schema") == Snapshot(2, b"state at 2")
    put(filled, SNAPSHOTS, older_key, older[:-1])
    assert filled.find_snapshot(ALICE, b"schema") is None


@pytest.mark.parametrize("database", [STREAMS, COMMANDS])
def test_a_value_under_the_key_of_another_is_an_error(filled: LmdbLog, database: bytes) -> None:
    stored = pairs(filled, database)
    values = [value for _, value in stored]
    for (key, _), value in zip(stored, values[1:] + values[:1], strict=True):
        put(filled, database, key, value)
    uses: dict[bytes, list[Callable[[], object]]] = {
        STREAMS: [lambda: filled.version(ALICE), lambda: filled.version(BOB), lambda: filled.read_stream(ALICE)],
        COMMANDS: [partial(filled.find_command, key) for key, _ in stored],
    }
    for use in uses[database]:
        with pytest.raises(Damaged):
            use()


def test_a_record_under_another_position_is_an_error(filled: LmdbLog) -> None:
    (first_key, _), (_, second) = pairs(filled, EVENTS)[:2]
    put(filled, EVENTS, first_key, second)
    with pytest.raises(Damaged) as caught:
        filled.read(0, 1)
    assert str(caught.value) == "partition 3, event 1 is damaged: the record stored here is that of position 2"


def test_a_missing_event_is_an_error_and_not_a_shorter_answer(filled: LmdbLog) -> None:
    key = pairs(filled, EVENTS)[1][0]
    filled.environment.write(lambda txn: txn.delete(key, db=filled.environment.database(EVENTS)))
    with pytest.raises(Damaged, match="partition 3, event 2 is damaged: it is missing"):
        filled.read(0, 10)
    with pytest.raises(Damaged, match="partition 3, event 2 is damaged: it is missing"):
        filled.read(1, 10)
    with pytest.raises(Damaged, match="event 2 is damaged: it is missing, though it is Account/alice version 2"):
        filled.read_stream(ALICE)


def test_a_missing_entry_of_the_stream_index_is_an_error_for_the_versions_it_covers(filled: LmdbLog) -> None:
    key = next(key for key, _ in pairs(filled, STREAMS) if b"alice" in key)
    filled.environment.write(lambda txn: txn.delete(key, db=filled.environment.database(STREAMS)))
    with pytest.raises(Damaged, match="stream index of Account/alice is damaged: version 1 is missing"):
        filled.read_stream(ALICE)


def test_every_database_was_looked_at_here(filled: LmdbLog) -> None:
    assert set(DATABASES) == {EVENTS, STREAMS, COMMANDS, SNAPSHOTS, META}
    assert all(pairs(filled, database) for database in DATABASES)
