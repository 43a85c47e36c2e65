"""The one writer: fenced by a later one, also from another process, and killed in the middle of its work."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from rayfold.runtime.errors import Conflict, Fenced
from rayfold.runtime.log import plan
from rayfold.runtime.log.contract import Appended
from rayfold.runtime.log.folder import open_log
from rayfold.runtime.log.format import CHAIN_START, chain_of, next_chain
from rayfold.runtime.log.writer import LmdbLog
from rayfold.runtime.stream import StreamId
from tests.runtime.log.appends import ALICE, BOB, amounts_of, deposits, positions_of, python

WRITER = """
import sys
from rayfold.runtime.errors import StoreError
from rayfold.runtime.log.folder import open_log
from tests.runtime.log.appends import ALICE, deposits
log = open_log(sys.argv[1], "partition 3")
epoch = log.activate()
print(log.append(epoch, [deposits(ALICE, 1, by=b"of another proc.")])[0].position, flush=True)
for _ in sys.stdin:
    try:
        print(log.append(epoch, [deposits(ALICE, 2)])[0].position, flush=True)
    except StoreError as error:
        print(error, flush=True)
"""


@pytest.mark.slow
def test_a_writer_in_another_process_is_fenced_by_a_later_activation(lmdb_log: LmdbLog, tmp_path: Path) -> None:
    other = python(WRITER, tmp_path / "log")
    assert other.stdout is not None
    assert other.stdin is not None
    assert other.stdout.readline() == "1\n"
    epoch = lmdb_log.activate()
    assert lmdb_log.append(epoch, [deposits(ALICE, 10, expected=1)])[0].position == 2
    other.stdin.write("go on\n")
    other.stdin.flush()
    assert other.stdout.readline() == "partition 3: epoch 1 may not append, epoch 2 has taken over\n"
    assert lmdb_log.append(epoch, [deposits(ALICE, 11, expected=2)])[0].position == 3
    other.communicate(timeout=60)
    assert positions_of(lmdb_log.read(0, 9)) == [1, 2, 3]


@pytest.mark.slow
def test_what_a_writer_remembers_does_not_count_once_somebody_else_has_written(
    lmdb_log: LmdbLog, tmp_path: Path
) -> None:
    """Two writers of one epoch cannot be by design; were there two, the log stays whole all the same."""
    epoch = lmdb_log.activate()
    lmdb_log.append(epoch, [deposits(ALICE, 1)])
    code = """
import sys
from rayfold.runtime.log.folder import open_log
from tests.runtime.log.appends import ALICE, deposits
print(open_log(sys.argv[1], "partition 3").append(int(sys.argv[2]), [deposits(ALICE, 2)])[0].position)
"""
    assert python(code, tmp_path / "log", epoch).communicate(timeout=60)[0] == "2\n"
    with pytest.raises(Conflict, match="expected version 1 of Account/alice, but the stream is at 2"):
        lmdb_log.append(epoch, [deposits(ALICE, 3, expected=1)])
    assert lmdb_log.append(epoch, [deposits(ALICE, 3)])[0].position == 3
    assert_chained(lmdb_log)


def assert_chained(log: LmdbLog) -> None:
    """Each record's hash follows from those before it."""
    chain = CHAIN_START
    for record in log.read(0, 1_000_000):
        assert chain_of(record) == next_chain(chain, record)
        chain = chain_of(record)


def test_after_a_refused_batch_the_next_one_follows_from_what_is_stored(lmdb_log: LmdbLog) -> None:
    epoch = lmdb_log.activate()
    lmdb_log.append(epoch, [deposits(ALICE, 1)])
    with pytest.raises(Conflict):
        lmdb_log.append(epoch, [deposits(ALICE, 2), deposits(BOB, 3, expected=5)])
    assert lmdb_log.append(epoch, [deposits(ALICE, 4, expected=1)])[0].position == 2
    assert amounts_of(lmdb_log.read(0, 9)) == [1, 4]
    assert_chained(lmdb_log)


def test_batches_that_store_nothing_do_not_confuse_what_the_writer_remembers(lmdb_log: LmdbLog) -> None:
    epoch = lmdb_log.activate()
    first = deposits(ALICE, 1)
    lmdb_log.append(epoch, [first])
    for _ in range(3):
        assert lmdb_log.append(epoch, [first, deposits(BOB)]) == [Appended(1, 1, (), True), Appended(0, 0, ())]
    assert lmdb_log.append(epoch, [deposits(ALICE, 2, expected=1)])[0].position == 2


def test_a_writer_remembers_a_bounded_number_of_streams(lmdb_log: LmdbLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "STREAMS_KNOWN_MAX", 10)
    epoch = lmdb_log.activate()
    streams = [StreamId("Account", f"account-{number}") for number in range(25)]
    for expected in range(3):
        lmdb_log.append(epoch, [deposits(stream, 1, expected=expected) for stream in streams])
    assert lmdb_log._tail is not None
    assert len(lmdb_log._tail.streams) <= 10
    assert [lmdb_log.version(stream) for stream in streams] == [3] * 25


def test_appends_from_several_threads_take_their_turn(lmdb_log: LmdbLog) -> None:
    epoch = lmdb_log.activate()
    threads = [
        threading.Thread(target=lambda: [lmdb_log.append(epoch, [deposits(ALICE, 1, 2)]) for _ in range(20)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert lmdb_log.version(ALICE) == 160
    assert positions_of(lmdb_log.read(0, 999)) == list(range(1, 161))


BUSY_WRITER = """
import sys
from rayfold.runtime.log.folder import open_log
from rayfold.runtime.stream import StreamId
from tests.runtime.log.appends import deposits
log = open_log(sys.argv[1], "partition 3")
epoch, number = log.activate(), log.head()
while True:
    numbers = range(number, number + 40, 2)
    batch = [deposits(StreamId("Account", str(n % 5)), n, n, by=n.to_bytes(16, "big")) for n in numbers]
    number = log.append(epoch, batch)[-1].position
    print(number, flush=True)
"""


@pytest.mark.slow
def test_a_writer_killed_in_the_middle_loses_nothing_that_it_had_acknowledged(tmp_path: Path) -> None:
    acknowledged = 0
    for round_ in range(1, 4):
        writer = python(BUSY_WRITER, tmp_path / "log")
        assert writer.stdout is not None
        for _ in range(5 * round_):
            acknowledged = int(writer.stdout.readline())
        writer.kill()
        acknowledged = max([acknowledged, *map(int, writer.stdout.read().split())])  # what was read ahead, too
        writer.wait(60)
        log = open_log(tmp_path / "log", "partition 3", create=False)
        assert acknowledged <= log.head() <= acknowledged + 40
        assert log.head() % 40 == 0, "a batch is there in part"
        assert positions_of(log.read(0, 1_000_000)) == list(range(1, log.head() + 1))
        assert sum(log.version(StreamId("Account", str(n))) for n in range(5)) == log.head()
        assert log.find_command((acknowledged - 2).to_bytes(16, "big")) is not None
        assert_chained(log)
        assert log.activate() == 2 * round_
        log.close()


@pytest.mark.slow
def test_a_later_writer_is_not_stopped_by_one_killed_inside_its_transaction(tmp_path: Path) -> None:
    code = """
import sys
from rayfold.runtime.log.folder import open_log
from tests.runtime.log.appends import ALICE, deposits
log = open_log(sys.argv[1], "partition 3")
def stay(transaction):
    log._append(transaction, log.epoch(), [deposits(ALICE, 1)], 0, None, True)
    print("inside", flush=True)
    sys.stdin.read()
log.activate()
log.environment.write(stay)
"""
    open_log(tmp_path / "log", "partition 3").close()
    stuck = python(code, tmp_path / "log")
    assert stuck.stdout is not None
    assert stuck.stdout.readline() == "inside\n"
    stuck.kill()
    stuck.communicate(timeout=60)
    log = open_log(tmp_path / "log", "partition 3")
    assert log.head() == 0
    epoch = log.activate()
    assert log.append(epoch, [deposits(ALICE, 1, expected=0)])[0].position == 1
    with pytest.raises(Fenced):
        log.append(epoch - 1, [deposits(ALICE, 1)])
    log.close()


def test_streams_without_events_are_looked_up_at_once_and_count_for_the_next_append_alone(lmdb_log: LmdbLog) -> None:
    epoch = lmdb_log.activate()
    bad = StreamId("Account", "")
    assert lmdb_log.new_streams([ALICE, BOB, bad]) == {ALICE, BOB}
    [done] = lmdb_log.append(epoch, [deposits(ALICE, 1, 2)])
    assert (done.version, lmdb_log.new_streams([ALICE, BOB])) == (2, {BOB})
    done, again = lmdb_log.append(epoch, [deposits(BOB, 3), deposits(BOB, 4, expected=1)])
    assert (done.version, again.version) == (1, 2)
    with pytest.raises(Conflict):
        lmdb_log.append(epoch, [deposits(BOB, 5, expected=0)])
    for _ in range(70):  # beyond what the index lacks
        lmdb_log.append(epoch, [deposits(StreamId("Account", "carol"), *range(100))])
    assert lmdb_log.new_streams([ALICE, BOB, StreamId("Account", "alic")]) == {StreamId("Account", "alic")}


@pytest.mark.slow
def test_a_stream_that_was_new_is_not_once_somebody_else_has_written(lmdb_log: LmdbLog, tmp_path: Path) -> None:
    epoch = lmdb_log.activate()
    code = """
import sys
from rayfold.runtime.log.folder import open_log
from tests.runtime.log.appends import BOB, deposits
log = open_log(sys.argv[1], "partition 3")
log.append(int(sys.argv[2]), [deposits(BOB, 1, by=b"of another proc.")])
"""
    assert lmdb_log.new_streams([BOB]) == {BOB}
    assert python(code, tmp_path / "log", epoch).wait(60) == 0
    [done] = lmdb_log.append(epoch, [deposits(BOB, 2)])
    assert (done.position, done.version) == (2, 2)
