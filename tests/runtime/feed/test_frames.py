"""A bulk read as frames and files: the same rows, whole files or none, bounded, clear where a package is missing."""

from __future__ import annotations

import errno
import json
import os
import resource
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack
import pandas
import polars
import pyarrow as pa
import pytest
from pyarrow import parquet

from rayfold import (
    BlockingEvents,
    CallerError,
    Damaged,
    Event,
    InvalidMessage,
    StorageFailed,
    UnknownEvent,
    UnknownName,
    read_events,
)
from rayfold.runtime.feed.stored_range import open_stored
from rayfold.runtime.log.contract import NewEvent
from rayfold.runtime.log.reader import LmdbReader
from rayfold.runtime.store.store import Store, create_or_open_store, open_store
from rayfold.runtime.tables import export_files
from tests.bank import Account, Deposited, Opened, Withdrawn
from tests.runtime.log.old_logs import STORED, Stock, old_store
from tests.support.written import Told, write

OLD = NewEvent("Deposited", 1, msgpack.packb({"amount": 9}))
LATER = NewEvent("Withdrawn", 7, msgpack.packb({"amount": 1, "why": b"\x01"}))
NAMES = [f"account {number}" for number in range(6)]
HISTORY: list[Told] = [
    *((name, Opened(owner=name)) for name in NAMES),
    *((name, Deposited(amount=number, currency="USD")) for number, name in enumerate(NAMES * 200)),
    ("account 1", OLD),
    ("account 2", LATER),
    *((name, Withdrawn(amount=1)) for name in NAMES),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = create_or_open_store(tmp_path_factory.mktemp("frames") / "bank-data", 2)
    write(store, HISTORY)
    return store


def of(store: Store, **options: Any) -> BlockingEvents:
    return read_events(store.path, aggregates=[Account], **options)


def places(rows: list[dict[str, Any]]) -> list[tuple[int, int, str, int]]:
    return [(row["_partition"], row["_position"], row["_stream"], row["_version"]) for row in rows]


def test_a_table_of_one_type_has_its_fields_as_columns_and_old_versions_as_they_are_now(store: Store) -> None:
    expected = [*of(store, types=Deposited)]
    rows = of(store, types=Deposited).to_arrow().to_pylist()
    assert [Deposited(amount=row["amount"], currency=row["currency"]) for row in rows] == [one for one, _ in expected]
    assert places(rows) == [(at.partition, at.position, str(at.stream), at.version) for _, at in expected]
    assert [row["_recorded_at"] for row in rows] == [at.recorded_at for _, at in expected]
    assert [row["_command_id"] for row in rows] == [str(at.command_uuid) for _, at in expected]
    assert {row["_event"] for row in rows} == {"Deposited"}
    assert [row["currency"] for row in rows if row["amount"] == 9 and row["currency"] == "EUR"] == ["EUR"]


def test_a_table_of_several_types_has_them_as_json_and_what_cannot_be_read_as_it_is_stored(store: Store) -> None:
    rows = of(store).to_arrow().to_pylist()
    assert len(rows) == len(HISTORY)
    [unreadable] = [row for row in rows if row["_payload"] is None]
    assert json.loads(unreadable["_rest"]) == {
        "why": "Withdrawn is only at version 1; deploy newer code",
        "version": 7,
        "fields": {"amount": 1, "why": "01"},
    }
    assert unreadable["_event"] == "Withdrawn"
    assert {row["_payload"] for row in rows if row["_event"] == "Opened"} == {
        f'{{"owner":"account {number}"}}' for number in range(6)
    }


def test_frames_are_the_table_with_exact_numbers(store: Store) -> None:
    table = of(store, types=Withdrawn, unreadable="yield").to_arrow()
    frame = of(store, types=Withdrawn, unreadable="yield").to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert (len(frame), str(frame.dtypes["amount"])) == (table.num_rows, "Int64"), "though one of them is missing"
    assert frame.dtypes["_recorded_at"] == "datetime64[us, UTC]"
    polar = of(store, types=Withdrawn, unreadable="yield").to_polars()
    assert polar.schema["amount"] == polars.Int64
    assert polar.to_arrow()["amount"].to_pylist() == table["amount"].to_pylist()


def test_a_frame_has_the_rest_of_what_was_begun_and_ends_the_read(store: Store) -> None:
    events = of(store)
    begun = [next(events) for _ in range(700)]
    table = events.to_arrow()
    assert len(begun) + table.num_rows == len(HISTORY)
    assert [*events] == []
    assert of(store, since=events.positions).to_arrow().num_rows == 0


def test_batches_are_read_as_they_are_asked_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayfold.runtime.feed.frames.PAGES", 1)
    events = of(store, types=Deposited)
    reader = events.to_reader()
    assert isinstance(reader, pa.RecordBatchReader)
    first = reader.read_next_batch()
    assert 0 < first.num_rows <= 512
    assert sum(events.positions.values()) < len(HISTORY)
    assert first.num_rows + reader.read_all().num_rows == 1_201


def test_a_reader_keeps_open_what_it_reads_from_and_raises_what_iterating_raises(store: Store) -> None:
    assert of(store).to_reader().read_all().num_rows == len(HISTORY), "nothing else refers to the events"
    with pytest.raises(UnknownEvent, match="'Withdrawn' version 7 cannot be read"):
        of(store, unreadable="raise").to_reader().read_all()
    with pytest.raises(UnknownEvent, match="'Withdrawn' version 7 cannot be read"):
        of(store, unreadable="raise").to_arrow()


def test_parquet_is_one_file_or_one_for_each_type(store: Store, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    done = of(store).to_parquet(tmp_path / "all.parquet", progress=lambda *at: seen.append(at))
    assert (done.events, done.unreadable, done.files) == (len(HISTORY), 1, (str(tmp_path / "all.parquet"),))
    assert parquet.read_table(done.files[0]) == of(store).to_arrow()
    assert seen[-1] == (len(HISTORY), len(HISTORY))
    assert done.size_bytes == Path(done.files[0]).stat().st_size
    assert (done.since, sum(done.until.values())) == ({0: 0, 1: 0}, len(HISTORY))

    done = of(store).to_parquet(tmp_path / "by type")
    assert [Path(file).name for file in done.files] == ["Deposited.parquet", "Opened.parquet", "Withdrawn.parquet"]
    assert parquet.read_table(done.files[0]) == of(store, types=Deposited).to_arrow()
    assert parquet.read_table(done.files[2]) == of(store, types=Withdrawn, unreadable="yield").to_arrow()


def test_lines_of_json_need_no_package(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = of(store).to_parquet(tmp_path / "all.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert len(lines) == done.events == len(HISTORY)
    [first] = [line for line in lines if line["stream"] == "Account/account 1" and line["version"] == 1]
    assert (first["event"], first["payload"]) == ("Opened", {"owner": "account 1"})
    [unreadable] = [line for line in lines if "unreadable" in line]
    assert (unreadable["schema_version"], unreadable["payload"]) == (7, {"amount": 1, "why": "01"})


@pytest.mark.parametrize(
    ("package", "use", "text"),
    [
        ("pyarrow", "to_arrow", r"tables of events need the package pyarrow: pip install rayfold\[arrow\]"),
        ("pandas", "to_pandas", r"to_pandas needs the package pandas: pip install rayfold\[pandas\]"),
        ("polars", "to_polars", r"to_polars needs the package polars: pip install rayfold\[polars\]"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra_and_nothing_is_read(
    store: Store, monkeypatch: pytest.MonkeyPatch, package: str, use: str, text: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    events = of(store)
    with pytest.raises(CallerError, match=text):
        getattr(events, use)()
    assert events.positions == {0: 0, 1: 0}
    events.close()


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "folder"])
def test_after_an_error_or_ctrl_c_there_is_no_file_and_what_was_there_stays(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    target = tmp_path / name
    of(store).to_parquet(target)
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}

    def interrupted(done: int, _of: int) -> None:
        if done > 500:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        of(store).to_parquet(target, overwrite=True, progress=interrupted)
    monkeypatch.setattr(LmdbReader, "read", damaged_at(600))
    with pytest.raises(Damaged):
        of(store).to_parquet(target, overwrite=True)
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


def damaged_at(position: int) -> Any:
    read = LmdbReader.read

    def reading(self: LmdbReader, after: int, limit: int, bytes_max: int = 1 << 62) -> list[bytes]:
        if after < position <= after + limit:
            raise Damaged(f"event {position}", "its checksum is wrong")
        return read(self, after, limit, bytes_max)

    return reading


def test_a_file_that_exists_is_replaced_only_if_that_is_allowed(store: Store, tmp_path: Path) -> None:
    (tmp_path / "mine.parquet").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine too")
    (folder := tmp_path / "folder").mkdir()
    (folder / "Withdrawn.parquet").write_text("of yesterday")
    for target, name in ((tmp_path / "mine.parquet", "mine"), (folder, "folder/Withdrawn")):
        with pytest.raises(CallerError, match=f"{name}.parquet exists; choose another place, or allow it to be repl"):
            of(store).to_parquet(target)
    assert sorted(os.listdir(tmp_path)) == ["folder", "mine.parquet", "notes.txt"]
    assert os.listdir(folder) == ["Withdrawn.parquet"]
    of(store).to_parquet(tmp_path / "mine.parquet", overwrite=True)
    of(store).to_parquet(folder, overwrite=True)
    assert parquet.read_table(tmp_path / "mine.parquet").num_rows == len(HISTORY)
    assert parquet.read_table(folder / "Withdrawn.parquet").num_rows == 7
    assert (tmp_path / "notes.txt").read_text() == "mine too"


def test_files_of_a_folder_that_are_not_written_do_not_stand_in_the_way(store: Store, tmp_path: Path) -> None:
    (tmp_path / "mine.parquet").write_text("mine")
    (tmp_path / "Opened.parquet").write_text("of yesterday")
    done = of(store, types=Deposited).to_parquet(tmp_path)
    assert done.files == (str(tmp_path / "Deposited.parquet"),)
    assert [(tmp_path / name).read_text() for name in ("mine.parquet", "Opened.parquet")] == ["mine", "of yesterday"]


@pytest.mark.parametrize("name", ["dir.parquet", "dir.jsonl"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_in_place_of_a_file_is_refused_before_anything_is_read(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, overwrite: bool
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setattr(LmdbReader, "read", damaged_at(1))
    with pytest.raises(CallerError, match=f"{name} is a folder, which no file replaces; give the path of a file"):
        of(store, since=datetime(2020, 1, 1, tzinfo=UTC)).to_parquet(tmp_path / name, overwrite=overwrite)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("path", ["", None, 3])
def test_a_path_that_is_none_is_named(store: Store, path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidMessage, match=f"path: is {path!r}; give FILE.parquet, FILE.jsonl, or a folder"):
        of(store).to_parquet(path)


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "folder"])
def test_a_full_disk_is_a_failure_of_the_storage_and_leaves_nothing(store: Store, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit_bytes in (0, 1_000, 4_096):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
        try:
            with pytest.raises(StorageFailed, match=rf"{name}.*: cannot write .*: File too large"):
                of(store).to_parquet(tmp_path / name)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_no_file_of_a_folder_appears_before_all_of_them_are_on_the_disk(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []

    def fails_at_the_last(descriptor: int) -> None:
        files.append(descriptor)
        if len(files) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("rayfold.runtime.tables.new_file.os.fsync", fails_at_the_last)
    with pytest.raises(StorageFailed, match="Withdrawn.parquet: cannot write the file: No space left on device"):
        of(store).to_parquet(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_file_that_comes_while_it_is_written_is_not_replaced(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"
    with pytest.raises(CallerError, match="out.parquet exists"):
        of(store).to_parquet(target, progress=lambda *_: target.touch())
    assert target.read_bytes() == b""
    assert os.listdir(tmp_path) == ["out.parquet"]


def test_a_place_that_cannot_be_written_to_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="nowhere/x.parquet: cannot write there"):
        of(store).to_parquet(tmp_path / "nowhere" / "x.parquet")
    with pytest.raises(CallerError, match=r"x.csv is neither a .parquet or .jsonl file nor a folder"):
        of(store).to_parquet(tmp_path / "x.csv")


def test_row_groups_are_bounded_and_a_large_log_is_never_in_memory(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_files, "PAGES", 1)
    monkeypatch.setattr(export_files, "GROUPS_BYTES", 10_000)
    of(store).to_parquet(tmp_path / "x.parquet")
    metadata = parquet.ParquetFile(tmp_path / "x.parquet").metadata
    assert metadata.num_rows == len(HISTORY)
    assert max(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)) <= 512


# Without classes


def test_what_is_stored_is_exported_without_the_classes(store: Store, tmp_path: Path) -> None:
    done = open_stored(store).to_files(tmp_path / "all")
    assert [Path(file).name for file in done.files] == ["Deposited.parquet", "Opened.parquet", "Withdrawn.parquet"]
    rows = [row for file in done.files for row in parquet.read_table(file).to_pylist()]
    assert len(rows) == len(HISTORY)
    assert [row["_payload"] for row in rows if row["_schema_version"] == 1 and row["_event"] == "Deposited"] == [
        '{"amount":9}'
    ]
    assert [row["_payload"] for row in rows if row["_schema_version"] == 7] == ['{"amount":1,"why":"01"}']
    some = open_stored(store, types=["Opened"], streams=["Account/account 3"]).to_files(tmp_path / "some.jsonl")
    [line] = (tmp_path / "some.jsonl").read_text().splitlines()
    assert some.events == 1
    assert json.loads(line)["payload"] == {"owner": "account 3"}
    with pytest.raises(UnknownName, match="no stored event is named 'Deposed'"):
        open_stored(store, types=["Deposed"])
    with pytest.raises(UnknownName, match="no stored aggregate is named 'Accounts'"):
        open_stored(store, streams=["Accounts"])


@pytest.mark.parametrize("log_format", [1, 2])
def test_stores_of_earlier_formats_are_exported_as_they_are(tmp_path: Path, log_format: int) -> None:
    old_store(tmp_path / "old", log_format)
    store = open_store(tmp_path / "old")
    done = open_stored(store).to_files(tmp_path / "all.parquet")
    events: list[tuple[Event, Any]] = [*read_events(store.path, aggregates=[Stock])]
    assert done.events == len(events) > len(STORED) / 2
    rows = parquet.read_table(tmp_path / "all.parquet").to_pylist()
    assert [json.loads(row["_payload"]) for row in rows] == [event.model_dump() for event, _ in events]
