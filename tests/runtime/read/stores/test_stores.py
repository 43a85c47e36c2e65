"""What every read store keeps: data and position together; used by the same code for the same log, or not at all."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayfold import DuckDb
from rayfold.runtime.domain.projection import Projection, answer, project
from rayfold.runtime.domain.recorded import Recorded
from rayfold.runtime.errors import StorageFailed, Unavailable
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.read.read_model import ReadModel
from rayfold.runtime.read.stores.checkpoint import Checkpoint
from tests.bank import Deposited
from tests.other_user import needs_root
from tests.runtime.read.stores.tallies import TALLIES, Broken, LmdbTally, Seen, SumOf, Tally, ask, deposit, tally_of


@pytest.fixture(params=TALLIES, ids=lambda tally: tally.__name__)
def tally(request: pytest.FixtureRequest) -> Iterator[type[Projection]]:
    """The same projection in each kind of store."""
    yield request.param
    Broken.accounts, Broken.calls = set(), 0


@pytest.fixture
def log() -> MemoryLog:
    """A log of ten deposits to two accounts."""
    log = MemoryLog()
    deposit(log, ["alice", "bob"] * 5)
    return log


def reopened(read_model: ReadModel, tally: type[Projection], log: MemoryLog, directory: Path) -> ReadModel:
    """What a restart does, short of catching up."""
    read_model.checkpoint()
    read_model.close()
    again = tally_of(tally, MemoryLogWithoutTail(log), directory)
    again._kept._readers[0].hidden = False  # type: ignore[attr-defined]
    return again


class MemoryLogWithoutTail(MemoryLog):
    """A log whose reader sees no event but those that are asked for one by one, until it is shown."""

    def __init__(self, log: MemoryLog) -> None:
        super().__init__()
        self._records, self._streams, self.hidden, self.read_from = log._records, log._streams, True, list[int]()

    def read(self, after: int, limit: int, bytes_max: int = 1 << 62) -> list[bytes]:
        if limit > 1:
            self.read_from.append(after)
        return [] if self.hidden and limit > 1 else super().read(after, limit, bytes_max)


def test_a_store_without_a_directory_is_a_temporary_one(tally: type[Projection], log: MemoryLog) -> None:
    for _ in range(2):
        read_model = tally_of(tally, log)
        assert ask(read_model, Seen()) == list(range(1, 11))
        assert ask(read_model, SumOf(account="alice")) == 50
        assert read_model.checkpoint() == 0
        read_model.close()


def test_what_was_taken_in_is_there_after_a_restart_and_only_the_rest_is_read(
    tally: type[Projection], log: MemoryLog, tmp_path: Path
) -> None:
    again = reopened(tally_of(tally, log, tmp_path), tally, log, tmp_path)
    assert again.positions == {0: 10}
    assert ask(again, Seen()) == list(range(1, 11))
    deposit(log, ["alice"])
    again.catch_up(0)
    assert ask(again, Seen()) == list(range(1, 12))
    assert ask(again, SumOf(account="alice")) == 60
    assert min(again._kept._readers[0].read_from) == 10  # type: ignore[attr-defined]
    again.close()


def test_a_checkpoint_of_other_code_is_not_used_and_is_removed(
    tally: type[Projection], log: MemoryLog, tmp_path: Path
) -> None:
    first = tally_of(tally, log, tmp_path)
    first.checkpoint()
    first.close()
    changed = type(tally.__name__, (tally,), {"__module__": __name__}, version=2)
    read_model = ReadModel(changed, first._catalogue, {0: log}, directory=tmp_path)
    read_model.open()
    assert read_model.positions == {0: 0}
    assert len(list(tmp_path.iterdir())) == 1
    read_model.close()


def test_a_store_that_is_ahead_of_the_log_is_made_anew(
    tally: type[Projection], log: MemoryLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = tally_of(tally, log, tmp_path)
    first.checkpoint()
    first.close()
    restored = MemoryLog()
    deposit(restored, ["carol"] * 3)
    with caplog.at_level(logging.WARNING):
        read_model = tally_of(tally, restored, tmp_path)
    assert ask(read_model, Seen()) == [1, 2, 3]
    assert ask(read_model, SumOf(account="alice")) == 0
    assert "the log of partition 0 is not the one that it followed up to 10" in caplog.text
    assert read_model.other_history == "the log of partition 0 is not the one that it followed up to 10"
    read_model.close()


def test_a_store_of_another_history_of_the_same_length_is_made_anew(
    tally: type[Projection], log: MemoryLog, tmp_path: Path
) -> None:
    first = tally_of(tally, log, tmp_path)
    first.checkpoint()
    first.close()
    other = MemoryLog()
    deposit(other, ["alice"] * 12)
    read_model = tally_of(tally, other, tmp_path)
    assert ask(read_model, SumOf(account="alice")) == 120
    assert read_model.other_history
    assert not first.other_history
    read_model.close()


def test_damage_in_the_file_is_said_and_the_read_model_is_made_from_the_log(
    tally: type[Projection], log: MemoryLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = tally_of(tally, log, tmp_path)
    first.checkpoint()
    first.close()
    (folder,) = tmp_path.iterdir()
    files = [path for path in folder.iterdir() if path.name in ("checkpoint", "data.mdb", "model.duckdb")]
    if not files:
        pytest.skip("SQLite has no checksums")
    data = bytearray(files[0].read_bytes())
    for place in range(0, len(data), 7):
        data[place] ^= 0x55
    files[0].write_bytes(data)
    with caplog.at_level(logging.WARNING):
        read_model = tally_of(tally, log, tmp_path)
    assert ask(read_model, Seen()) == list(range(1, 11))
    assert "not used, the log is read instead" in caplog.text
    read_model.close()


TIGHT = """
import os, resource, sys
from pathlib import Path
from rayfold.runtime.errors import StorageFailed
from rayfold.runtime.log.memory import MemoryLog
from tests.runtime.read.stores.tallies import LmdbTally, tally_of
tally_of(LmdbTally, MemoryLog()).close()  # whatever is imported at the first use
used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), resource.RLIM_INFINITY))
try:
    tally_of(LmdbTally, MemoryLog(), Path(sys.argv[1]))
except StorageFailed as error:
    print(error)
"""


@pytest.mark.slow
def test_what_cannot_be_opened_now_is_kept(log: MemoryLog, tmp_path: Path) -> None:
    tally_of(LmdbTally, log, tmp_path).close()
    done = subprocess.run([sys.executable, "-c", TIGHT, tmp_path], capture_output=True, text=True, check=False)
    assert "Cannot allocate memory" in done.stdout, done.stderr
    again = tally_of(LmdbTally, MemoryLogWithoutTail(log), tmp_path)
    assert again.positions == {0: 10}
    again.close()


@pytest.mark.slow
@needs_root
def test_a_file_of_duckdb_that_may_not_be_opened_is_not_damaged(tmp_path: Path) -> None:
    store = DuckDb("").make()
    store.open(Tally(), tmp_path)
    store.close()
    code = (
        "import os, sys, duckdb; from pathlib import Path\n"
        "from rayfold.runtime.read.stores.duckdb import DuckDbStore\n"
        "from rayfold.runtime.errors import StorageFailed\n"
        "os.chdir(sys.argv[1]); os.seteuid(65534)\n"
        "try: DuckDbStore('').open(object(), Path('.'))\n"
        "except StorageFailed as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert "Permission denied" in done.stdout, done.stderr


def test_a_row_that_decayed_stops_the_projection_and_the_next_opening_starts_over(
    log: MemoryLog, tmp_path: Path
) -> None:
    read_model = tally_of(LmdbTally, log, tmp_path)
    store: Any = read_model._kept.store
    store.begin()
    store.transaction().put(b"sum/alice", b"????0", db=store.rows_database)
    store.commit(read_model._kept._at.packed())
    deposit(log, ["alice"])
    read_model.catch_up(0)
    assert str(read_model.failed) == "row 'sum/alice' is damaged: its checksum is wrong"
    assert read_model.quarantined == ()
    read_model.close()
    again = tally_of(LmdbTally, log, tmp_path)
    assert ask(again, SumOf(account="alice")) == 60
    again.close()


def test_events_are_taken_in_and_queries_answered_while_a_checkpoint_is_written(
    log: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_model = tally_of(Tally, log, tmp_path)
    written: list[list[int]] = []
    fsync = os.fsync

    def meanwhile(descriptor: int) -> None:
        if not written:
            deposit(log, ["alice"])
            read_model.catch_up(0)
            written.append(ask(read_model, Seen()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    assert read_model.checkpoint() > 0
    assert written == [list(range(1, 12))]
    read_model.close()
    again = ReadModel(Tally, read_model._catalogue, {0: log}, directory=tmp_path)
    again.open()
    assert again.positions == {0: 10}, "what was encoded is what is stored"
    assert ask(again, Seen()) == list(range(1, 11))


def test_a_query_that_writes_changes_nothing(log: MemoryLog, tmp_path: Path) -> None:
    for tally in TALLIES[1:]:
        writing = type(tally.__name__, (tally,), {"__module__": __name__, "sum_of": _writing_sum})
        read_model = tally_of(writing, log, tmp_path / tally.__name__)
        told = ask(read_model, SumOf(account="alice"))
        assert told == 0 or "read-only" in str(told) or "a query changes nothing" in str(told), told
        assert ask(read_model, Seen()) == list(range(1, 11))
        read_model.close()


@answer
def _writing_sum(self: Any, query: SumOf) -> int:
    if hasattr(self, "rows"):
        self.rows.clear()
    elif hasattr(self, "sql"):
        self.sql("DELETE FROM deposits")
    else:
        self.db.execute("DELETE FROM deposits")
    return 0


def test_a_closed_read_model_says_so(tally: type[Projection], log: MemoryLog, tmp_path: Path) -> None:
    read_model = tally_of(tally, log, tmp_path)
    read_model.close()
    read_model.close()
    assert str(ask(read_model, Seen())) == f"{tally.__name__}: this read model was closed"
    with pytest.raises(Unavailable, match="this read model was closed"):
        read_model.catch_up(0)
    with pytest.raises(Unavailable, match="this read model was closed"):
        read_model.wait_for({0: 11}, 30)
    with pytest.raises(Unavailable, match="this read model was closed"):
        read_model.open()
    assert read_model.checkpoint() == 0


@pytest.mark.parametrize("tally", TALLIES[1:])
def test_a_disk_that_refuses_a_page_is_an_error_and_no_stop(
    tally: type[Projection], log: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_model = tally_of(tally, log, tmp_path)
    deposit(log, ["alice"])
    with monkeypatch.context() as patched:

        def refuse(checkpoint: bytes) -> None:
            raise StorageFailed("disk", "no space left on device")

        patched.setattr(read_model._kept.store, "commit", refuse)
        with pytest.raises(StorageFailed, match="no space left"):
            read_model.catch_up(0)
        assert ask(read_model, Seen()) == list(range(1, 11))
    read_model.catch_up(0)
    assert ask(read_model, Seen()) == list(range(1, 12))
    read_model.close()


def test_a_checkpoint_comes_back_from_its_bytes_and_from_no_others() -> None:
    checkpoint = Checkpoint({0: 3, 1: 0}, {0: b"x" * 32}, {0: 17, 1: 0})
    packed = checkpoint.packed()
    assert Checkpoint.unpacked(packed) == checkpoint
    for place in range(len(packed)):
        assert Checkpoint.unpacked(packed[:place] + bytes([packed[place] ^ 1]) + packed[place + 1 :]) is None
        assert Checkpoint.unpacked(packed[:place]) is None


def test_progress_tells_how_far_it_is(log: MemoryLog, tmp_path: Path) -> None:
    read_model = tally_of(Tally, log, tmp_path)
    progress = read_model.progress()
    assert (progress.positions, progress.events_applied, progress.quarantined) == ({0: 10}, 10, 0)
    assert progress.failed is None
    assert not progress.replaying
    assert progress.last_recorded_at_us[0] > 1_700_000_000_000_000
    read_model.checkpoint()
    read_model.close()
    deposit(log, ["bob"] * 2)
    again = ReadModel(Tally, read_model._catalogue, {0: log}, directory=tmp_path)
    again.open()
    assert again.progress().replaying
    assert again.progress().events_applied == 0
    again.catch_up(0)
    assert (again.progress().events_applied, again.progress().replaying) == (2, False)


def test_a_checkpoint_is_due_after_many_events_or_after_a_while_with_any(
    log: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_model = tally_of(Tally, log, tmp_path)
    assert not read_model.checkpoint_due()
    monkeypatch.setattr("rayfold.runtime.read.read_model.CHECKPOINT_EVENTS", 10)
    assert read_model.checkpoint_due()
    assert read_model.checkpoint() > 0
    assert not read_model.checkpoint_due()
    monkeypatch.setattr("rayfold.runtime.read.read_model.CHECKPOINT_S", 0.0)
    assert not read_model.checkpoint_due(), "there was no event"
    deposit(log, ["bob"])
    read_model.catch_up(0)
    events, at_s, _ = read_model._checkpoint_at
    read_model._checkpoint_at = (events, at_s, 0.0)
    assert read_model.checkpoint_due()
    read_model._checkpoint_at = (events, at_s, 60.0)
    assert not read_model.checkpoint_due(), "the last one held the lock for a minute"


class Unsaveable(Tally, name="Tally"):
    """Its field cannot be in a checkpoint."""

    anything: object = None

    @project
    def deposited(self, event: Deposited, recorded: Recorded) -> None:
        self.anything = iter(())


def test_a_state_that_cannot_be_saved_is_said_once_and_read_from_the_log_at_each_start(
    log: MemoryLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_model = tally_of(Unsaveable, log, tmp_path)
    with caplog.at_level(logging.WARNING):
        assert [read_model.checkpoint() for _ in range(3)] == [0, 0, 0]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("projection Tally has no checkpoint, each start reads the whole log: ")
    assert not read_model.checkpoint_due()
