"""Opening a log, growing it, and what its disk and its neighbours can do to it: with real files and processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path

import lmdb
import pytest
from lmdb import verify as lmdb_verify

from rayfold.runtime.errors import Damaged, StorageFailed, StoreMismatch, StoreMissing
from rayfold.runtime.log import environment as environment_module
from rayfold.runtime.log.contract import Append
from rayfold.runtime.log.folder import open_log, open_reader
from rayfold.runtime.log.format import META, META_FORMAT, decode_record, encode_meta
from rayfold.runtime.log.reader import LmdbReader
from rayfold.runtime.log.writer import LmdbLog
from tests.runtime.log.appends import ALICE, amounts_of, deposits, positions_of, python

# --- opening ------------------------------------------------------------------------------------------------------


def test_what_was_appended_is_there_after_reopening(lmdb_log: LmdbLog, tmp_path: Path) -> None:
    lmdb_log.append(lmdb_log.activate(), [deposits(ALICE, 1, 2)])
    lmdb_log.close()
    log = open_log(tmp_path / "log", "partition 3")
    assert amounts_of(log.read_stream(ALICE)) == [1, 2]
    assert log.activate() == 2
    assert log.append(2, [deposits(ALICE, 3, expected=2)])[0].position == 3
    log.close()


def test_what_a_commit_takes_is_an_average_of_the_last_ones(lmdb_log: LmdbLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by 2 s during each commit, and during nothing else."""
    clock = count(0.0, 2.0)
    monkeypatch.setattr("rayfold.runtime.log.environment.time.perf_counter", lambda: next(clock))
    before_s = lmdb_log.environment.commit_s
    epoch = lmdb_log.activate()
    once_s = lmdb_log.environment.commit_s
    assert once_s == pytest.approx(before_s + (2 - before_s) * 0.1)
    for version in range(60):
        lmdb_log.append(epoch, [deposits(ALICE, 1, expected=version)])
    assert 1.99 < lmdb_log.environment.commit_s < 2


def test_the_clock_is_read_once_for_a_batch(tmp_path: Path) -> None:
    ticks = iter([1_000, 2_000])
    log = open_log(tmp_path, "partition 0", now_us=lambda: next(ticks))
    log.activate()
    log.append(1, [deposits(ALICE, 1), deposits(ALICE, 2)])
    log.append(1, [deposits(ALICE, 3)])
    assert [decode_record(record).recorded_at_us for record in log.read(0, 9)] == [1_000, 1_000, 2_000]
    log.close()


@pytest.mark.parametrize("present", ["nothing", "empty folder", "empty file"])
def test_a_log_that_must_exist_is_never_made_anew(tmp_path: Path, present: str) -> None:
    path = tmp_path / "log"
    if present != "nothing":
        path.mkdir()
    if present == "empty file":
        (path / "data.mdb").touch()
    with pytest.raises(StoreMissing) as caught:
        open_log(path, "partition 3", create=False)
    assert str(caught.value) == f"{path}: the log of partition 3 is not here"
    with pytest.raises(StoreMissing):
        open_reader(path, "partition 3")
    assert not (path / "lock.mdb").exists()


def test_a_log_opened_twice_in_one_process_is_refused_with_the_remedy(lmdb_log: LmdbLog, tmp_path: Path) -> None:
    for opening in (open_log, open_reader):
        with pytest.raises(StorageFailed) as caught:
            opening(tmp_path / "log", "partition 3")
        assert str(caught.value) == (
            f"{tmp_path / 'log'}: it is already open in this process; use that log, which is a reader too,"
            " or close it first"
        )
    assert lmdb_log.activate() == 1


def test_a_closed_log_says_so_and_may_be_closed_again(lmdb_log: LmdbLog) -> None:
    lmdb_log.close()
    lmdb_log.close()
    with pytest.raises(StorageFailed, match="partition 3 was closed"):
        lmdb_log.head()
    with pytest.raises(StorageFailed, match="partition 3 was closed"):
        lmdb_log.append(1, [])


def test_a_log_of_another_identity_is_refused(tmp_path: Path) -> None:
    open_log(tmp_path, "partition 0", identity="store a/00000").close()
    for opening in (open_log, open_reader):
        with pytest.raises(StoreMismatch) as caught:
            opening(tmp_path, "partition 0", identity="store b/00000")
        assert str(caught.value) == (
            f"{tmp_path}: this is the log 'store a/00000', not 'store b/00000';"
            " partition folders must not be moved between stores; put the right one back"
        )
    open_log(tmp_path, "partition 0", identity="store a/00000").close()


def test_a_foreign_lmdb_environment_is_refused_and_left_alone(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path), max_dbs=4, lib_version=0) as environment:
        environment.open_db(b"other")
        before = environment.info()["last_txnid"]
    with pytest.raises(StoreMismatch, match="this LMDB environment is not a log of Rayfold"):
        open_reader(tmp_path, "partition 0")
    with pytest.raises(StoreMismatch, match="this LMDB environment is not a log of Rayfold"):
        open_log(tmp_path, "partition 0")
    with lmdb.open(str(tmp_path), max_dbs=4, lib_version=0) as environment:
        assert environment.info()["last_txnid"] == before


def test_a_log_of_another_format_is_refused(lmdb_log: LmdbLog, tmp_path: Path) -> None:
    value = encode_meta(META_FORMAT, (4).to_bytes(8, "big"))
    database = lmdb_log.environment.database(META)
    lmdb_log.environment.write(lambda txn: txn.put(META_FORMAT, value, db=database))
    lmdb_log.close()
    with pytest.raises(StoreMismatch, match="its log has format 4, this version of Rayfold reads formats 1, 2, 3"):
        open_log(tmp_path / "log", "partition 3")


def test_a_file_of_the_other_lmdb_engine_is_refused(tmp_path: Path) -> None:
    lmdb.open(str(tmp_path), lib_version=1).close()
    with pytest.raises((StoreMismatch, Damaged)):
        open_log(tmp_path, "partition 0")


@pytest.mark.parametrize("kept_bytes", [100, 4096, 8192, 65536])
def test_a_file_that_was_cut_off_is_damaged_and_does_not_kill_the_process(
    lmdb_log: LmdbLog, tmp_path: Path, kept_bytes: int
) -> None:
    epoch = lmdb_log.activate()
    for _ in range(3):
        lmdb_log.append(epoch, [deposits(ALICE, *range(500))])
    lmdb_log.close()
    os.truncate(tmp_path / "log" / "data.mdb", kept_bytes)
    for opening in (open_log, open_reader):
        with pytest.raises(Damaged, match="partition 3"):
            opening(tmp_path / "log", "partition 3")


@pytest.mark.parametrize("opening", [open_log, open_reader])
def test_a_file_that_was_cut_off_within_a_large_value_does_not_kill_the_process(
    lmdb_log: LmdbLog, tmp_path: Path, opening: Callable[[Path, str], LmdbReader]
) -> None:
    """LMDB's verifier looks only at where such a value begins. The small appends before it leave free pages, so that
    nothing but the value has to go to the end of the file."""
    epoch = lmdb_log.activate()
    for amount in range(9):
        lmdb_log.append(epoch, [deposits(ALICE, amount)])
    large = deposits(ALICE, 1).events[0]._replace(payload=bytes(100_000))
    lmdb_log.append(epoch, [deposits(ALICE, 1)._replace(events=(large,))])
    lmdb_log.close()
    path = tmp_path / "log" / "data.mdb"
    os.truncate(path, path.stat().st_size - 8192)
    found = list(lmdb_verify.verify(str(path.parent)))  # type: ignore[no-untyped-call]
    assert not found, "the verifier finds it by now"
    log = opening(tmp_path / "log", "partition 3")
    for use in (lambda: log.read(0, 10), lambda: log.version(ALICE)):
        with pytest.raises(Damaged, match="event 10 is damaged: its checksum is wrong"):
            use()
    assert len(log.read(0, 9)) == 9
    log.close()


def test_a_folder_that_cannot_be_made_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageFailed) as caught:
        open_log(tmp_path / "file" / "log", "partition 0")
    assert str(caught.value) == f"{tmp_path}/file/log: cannot make the folder: Not a directory"


@pytest.mark.slow
def test_a_log_used_after_a_fork_says_so(tmp_path: Path) -> None:
    code = """
import os, sys
from rayfold.runtime.log.folder import open_log
log = open_log(sys.argv[1], "partition 3")
parent, child = os.getpid(), os.fork()
if child == 0:
    try:
        log.head()
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    log.close()
    os._exit(0)
os.waitpid(child, 0)
print(parent, log.activate(), flush=True)
"""
    said, ends = (python(code, tmp_path).communicate(timeout=60)[0]).splitlines()
    parent = ends.split()[0]
    assert said == (f"StorageFailed {tmp_path}: partition 3 was opened by process {parent}; open it again after a fork")
    assert ends == f"{parent} 1"


@pytest.mark.slow
@pytest.mark.parametrize("opened", ["open_log", "open_reader"])
def test_a_forked_child_that_ends_takes_no_read_from_its_parent(tmp_path: Path, opened: str) -> None:
    open_log(tmp_path, "partition 3").close()
    code = f"""
import os, sys
from rayfold.runtime.log.folder import {opened}
log = {opened}(sys.argv[1], "partition 3")
log.head()
if os.fork() == 0:
    sys.exit(0)  # which releases what was inherited, LMDB's spare transaction as well
os.wait()
print(log.head(), log.head())
"""
    assert python(code, tmp_path).communicate(timeout=60)[0] == "0 0\n"


# --- readers ------------------------------------------------------------------------------------------------------

READER = """
import sys
from rayfold.runtime.log.folder import open_reader
from rayfold.runtime.log.format import decode_record
log = open_reader(sys.argv[1], "partition 3")
wanted, seen, heads = int(sys.argv[2]), [], [0]
print("ready", flush=True)
while len(seen) < wanted:
    heads.append(log.head())
    seen += [decode_record(record).position for record in log.read(len(seen), 100_000)]
    assert len(seen) >= heads[-1] >= heads[-2], "the log went backwards"
print("positions 1..n" if seen == list(range(1, len(seen) + 1)) else seen, flush=True)
"""


@pytest.mark.slow
def test_readers_in_other_processes_see_positions_1_to_n_and_nothing_late(lmdb_log: LmdbLog, tmp_path: Path) -> None:
    epoch, total = lmdb_log.activate(), 3_000
    readers = [python(READER, tmp_path / "log", total) for _ in range(2)]
    assert [reader.stdout.readline() for reader in readers if reader.stdout] == ["ready\n"] * 2
    appended = 0
    while appended < total:
        batch = [deposits(ALICE, *range(1 + number % 3)) for number in range(1 + appended % 7)]
        appended = lmdb_log.append(epoch, batch)[-1].position
    for reader in readers:
        assert reader.communicate(timeout=60)[0] == "positions 1..n\n"
        assert reader.returncode == 0


def test_a_read_transaction_that_two_commits_passed_is_taken_anew(
    lmdb_log: LmdbLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where LMDB picked the meta page that the second of them overwrites, before it is synced, is not to be seen."""
    epoch, is_overtaken = lmdb_log.activate(), environment_module._is_overtaken
    seen: list[bool] = []

    def begun_long_ago(environment: lmdb.Environment, transaction: lmdb.Transaction[bytes]) -> bool:
        while len(seen) < 3:
            lmdb_log.append(epoch, [deposits(ALICE, 1)])
            seen.append(is_overtaken(environment, transaction))
        return is_overtaken(environment, transaction)

    monkeypatch.setattr(environment_module, "_is_overtaken", begun_long_ago)
    assert lmdb_log.head() == 3
    assert seen == [False, True, True]


@pytest.mark.slow
def test_a_reader_sees_a_commit_of_another_process_at_once(lmdb_log: LmdbLog, tmp_path: Path) -> None:
    code = """
import sys
from rayfold.runtime.log.folder import open_reader
log = open_reader(sys.argv[1], "partition 3")
for _ in sys.stdin:
    print(log.head(), len(log.read(0, 100)), flush=True)
"""
    epoch = lmdb_log.activate()
    reader = python(code, tmp_path / "log")
    assert reader.stdin is not None
    assert reader.stdout is not None
    for number in range(1, 20):
        lmdb_log.append(epoch, [deposits(ALICE, number)])
        reader.stdin.write("now\n")
        reader.stdin.flush()
        assert reader.stdout.readline() == f"{number} {number}\n"
    reader.communicate(timeout=60)


def test_threads_read_while_the_writer_appends_and_grows(tmp_path: Path) -> None:
    log = open_log(tmp_path, "partition 0", map_bytes=1 << 20)
    epoch, total, failures = log.activate(), 200, []

    def follow() -> None:
        seen: list[bytes] = []
        try:
            while len(seen) < total:
                seen += log.read(len(seen), 50)
            assert positions_of(seen) == list(range(1, total + 1))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=follow) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(total):
        log.append(epoch, [heavy(20_000)])
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert log.environment.map_bytes() > 1 << 20
    log.close()


READS_ONCE = """
import sys
from rayfold.runtime.errors import StorageFailed
from rayfold.runtime.log.folder import open_reader
try:
    log = open_reader(sys.argv[1], "partition 0")
    print(log.head(), flush=True)
    sys.stdin.read()
except StorageFailed as error:
    print(error, flush=True)
"""


@pytest.mark.slow
def test_reader_slots_that_are_all_taken_are_an_error_until_the_writer_frees_those_of_the_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment_module, "READERS_MAX", 2)  # one is this process's own
    log = open_log(tmp_path, "partition 0")
    first = python(READS_ONCE, tmp_path)
    assert first.stdout is not None
    assert first.stdout.readline() == "0\n"
    refused = python(READS_ONCE, tmp_path).communicate(timeout=60)[0]
    assert refused.startswith(f"{tmp_path}: all ")
    assert refused.endswith(" reader slots are taken; fewer processes may read one partition at once\n")
    first.kill()
    first.communicate(timeout=60)
    for _ in range(environment_module.READER_CHECK_EVERY):  # the writer frees what the dead have left
        log.activate()
    assert python(READS_ONCE, tmp_path).communicate(timeout=60)[0] == "0\n"
    log.close()


def test_a_long_read_does_not_hold_up_an_append(lmdb_log: LmdbLog) -> None:
    epoch = lmdb_log.activate()
    with lmdb_log.environment._lock:  # as a read in another thread holds it
        append = threading.Thread(target=lambda: lmdb_log.append(epoch, [deposits(ALICE, 1)]))
        append.start()
        append.join(30)
        assert not append.is_alive()
    assert lmdb_log.head() == 1


# --- growing ------------------------------------------------------------------------------------------------------


def heavy(size_bytes: int) -> Append:
    """An append of one event of this size."""
    append = deposits(ALICE, 1)
    return append._replace(events=(append.events[0]._replace(payload=bytes(size_bytes)),))


@pytest.mark.slow
def test_a_full_map_grows_while_a_reader_in_another_process_goes_on(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log", "partition 3", map_bytes=1 << 20)
    epoch, total = log.activate(), 160
    reader = python(READER, tmp_path / "log", total)
    assert reader.stdout is not None
    assert reader.stdout.readline() == "ready\n"
    for _ in range(total // 4):
        log.append(epoch, [heavy(50_000) for _ in range(4)])
    assert log.environment.map_bytes() >= 8 << 20
    assert reader.communicate(timeout=60)[0] == "positions 1..n\n"
    assert log.version(ALICE) == total
    log.close()


def test_a_batch_far_larger_than_the_map_grows_it_several_times_and_is_stored_once(tmp_path: Path) -> None:
    log = open_log(tmp_path, "partition 0", map_bytes=1 << 20)
    outcomes = log.append(log.activate(), [heavy(500_000) for _ in range(12)])
    assert [one.position for one in outcomes] == list(range(1, 13))
    assert positions_of(log.read(0, 99)) == list(range(1, 13))
    assert log.environment.map_bytes() == 8 << 20
    log.close()


@pytest.mark.slow
def test_a_writer_goes_on_after_another_process_has_grown_the_map(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log", "partition 3", map_bytes=1 << 20)
    log.append(log.activate(), [deposits(ALICE, 1)])
    code = """
import sys
from rayfold.runtime.log.folder import open_log
from tests.runtime.log.test_environment import heavy
log = open_log(sys.argv[1], "partition 3", map_bytes=1 << 20)
epoch = log.activate()
for _ in range(8):
    log.append(epoch, [heavy(500_000)])
"""
    other = python(code, tmp_path / "log")
    other.communicate(timeout=60)
    assert other.returncode == 0
    assert log.head() == 9
    assert log.append(log.activate(), [deposits(ALICE, 2)])[0].position == 10
    log.close()


def test_an_open_log_leaves_room_over_what_its_file_already_has(tmp_path: Path) -> None:
    log = open_log(tmp_path, "partition 0", map_bytes=1 << 20)
    log.append(log.activate(), [heavy(500_000) for _ in range(12)])
    log.close()
    log = open_log(tmp_path, "partition 0", map_bytes=1 << 20)
    assert log.environment.map_bytes() == 16 << 20
    log.close()


# --- a disk that refuses ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_disk_that_takes_no_more_is_an_error_and_nothing_is_half_written(tmp_path: Path) -> None:
    code = """
import os, resource, sys
from rayfold.runtime.errors import StorageFailed
from rayfold.runtime.log.folder import open_log
from tests.runtime.log.appends import ALICE, deposits
from tests.runtime.log.test_environment import heavy
log = open_log(sys.argv[1], "partition 3")
epoch = log.activate()
log.append(epoch, [deposits(ALICE, 1)])
size = os.path.getsize(sys.argv[1] + "/data.mdb")
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100_000, limits[1]))
refused = [heavy(1_000_000)]
try:
    log.append(epoch, refused)
except StorageFailed as error:
    print(error, flush=True)
print(log.head(), log.find_command(refused[0].command_id), log.append(epoch, [deposits(ALICE, 2)])[0].position)
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
print(log.append(epoch, refused)[0].position, log.version(ALICE))
"""
    said = python(code, tmp_path).communicate(timeout=60)[0].splitlines()
    assert said[0].startswith(f"{tmp_path}: mdb_txn_commit: ")
    assert said[1:] == ["1 None 2", "3 3"]


@pytest.mark.slow
def test_an_environment_whose_meta_page_could_not_be_written_is_opened_again(tmp_path: Path) -> None:
    code = """
import fcntl, os, sys
from rayfold.runtime.errors import StorageFailed
from rayfold.runtime.log.folder import open_log
from tests.runtime.log.appends import ALICE, deposits
log = open_log(sys.argv[1], "partition 3")
epoch = log.activate()
log.append(epoch, [deposits(ALICE, 1)])
data = os.path.realpath(sys.argv[1] + "/data.mdb")
for name in os.listdir("/proc/self/fd"):
    try:
        if os.readlink("/proc/self/fd/" + name) == data and fcntl.fcntl(int(name), fcntl.F_GETFL) & os.O_DSYNC:
            os.dup2(os.open(data, os.O_RDONLY), int(name))
            print("the meta page cannot be written now")
    except OSError:
        pass
refused = deposits(ALICE, 2)
try:
    log.append(epoch, [refused])
except StorageFailed as error:
    print("StorageFailed")
print(log.head(), log.version(ALICE), log.append(epoch, [refused])[0].position, log.activate())
"""
    said = python(code, tmp_path).communicate(timeout=60)[0].splitlines()
    assert said == ["the meta page cannot be written now", "StorageFailed", "1 1 2 2"]
