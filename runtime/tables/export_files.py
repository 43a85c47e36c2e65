"""Export files: rows of events into Parquet or lines of JSON, in one file or in one for each type of event.

Beside the write path. Before it: a bulk read, of events or of what is stored. After it: files for other programs.

Rules kept here: the files appear when all of them are whole, and none of them if anything fails before (`new_file.py`).
What is in memory is bounded whatever the size of the log: some pages of rows, and row groups of all files together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from ..domain.recorded import Recorded
from ..errors import CallerError, StorageFailed
from ..log.contract import StoredEvent
from ..private import make_private_folder
from ..read.unreadable import UnreadableEvent
from ..stream import TYPE_NAME_PATTERN
from .columns import pyarrow
from .event_tables import id_text, stored_payload
from .new_file import NewFile
from .plain import encode_plain, plain

__all__ = ["Exported", "Tables", "export_rows"]

GROUP_ROWS: Final = 131_072
"""Rows of one row group of Parquet, which readers take as a whole."""

GROUPS_BYTES: Final = 64 << 20
"""Rows of all files that wait for their row group to be full; then the largest is written as it is."""

PAGES: Final = 8
"""Pages of events that are made into columns at once: up to 4,096 rows, of 8 MiB as they are stored."""


class Exported(NamedTuple):
    """What an export has written.

    Example:
        done = bank.events(since=place).to_parquet("deposits.parquet")
        place = done.until
    """

    files: tuple[str, ...]
    """Paths of the files, in order."""
    events: int
    """Rows of all of them."""
    unreadable: int
    """How many of these no class could read."""
    size_bytes: int
    """Of all files together."""
    since: dict[int, int]
    """Partition -> the position after which it began."""
    until: dict[int, int]
    """Partition -> the last position that is in it: `since=` of the next export."""


class Table(Protocol):
    """How rows become columns (`event_tables.py`)."""

    @property
    def schema(self) -> Any:
        """The `pyarrow.Schema`."""
        ...

    def batch(self, rows: Sequence[Any]) -> Any:
        """The `pyarrow.RecordBatch` of these rows."""
        ...


class Tables(NamedTuple):
    """The table of one file of everything, and that of the file of one name of event."""

    whole: Callable[[], Table]
    of: Callable[[str], Table]


class RowWriter(Protocol):
    """One way to write rows."""

    def write(self, rows: Sequence[tuple[Any, Recorded]]) -> None:
        """Take these rows in."""
        ...

    def close(self) -> None:
        """Complete the files, which are not in their places yet."""
        ...

    def abandon(self) -> None:
        """Release what is not complete; nothing if all is."""
        ...

    @property
    def files(self) -> Sequence[NewFile]:
        """Its files."""
        ...


def export_rows(
    pages: Iterable[Sequence[tuple[Any, Recorded]]],
    path: Path,
    tables: Tables,
    *,
    overwrite: bool,
    advance: Callable[[], None] = lambda: None,
) -> tuple[tuple[str, ...], int, int, int]:
    """Write the rows of all pages. Returns the paths, the number of rows, of unreadable ones, and the size in bytes.

    `path`: a file ending in .parquet or .jsonl; any other is a folder, which gets one Parquet file for each name of
    event. `advance` is called now and then, and may raise to end it. Raises `CallerError`, `StorageFailed`, and what
    the pages raise; then there is no file.
    """
    writer = _writer(path, tables, overwrite)
    events = unreadable = 0
    try:
        rows: list[tuple[Any, Recorded]] = []
        for number, page in enumerate(pages, 1):
            rows += page
            if number % PAGES == 0:
                writer.write(rows)
                events, unreadable = events + len(rows), unreadable + _unreadable(rows)
                rows = []
            advance()
        writer.write(rows)
        events, unreadable = events + len(rows), unreadable + _unreadable(rows)
        writer.close()
        size_bytes = sum(file.complete() for file in writer.files)
        for file in writer.files:
            file.publish()
    except OSError as error:
        raise StorageFailed(str(path), f"cannot write it: {error.strerror or error}") from error
    finally:
        writer.abandon()
        for file in writer.files:
            file.discard()
    return tuple(str(file.path) for file in writer.files), events, unreadable, size_bytes


def _unreadable(rows: Sequence[tuple[Any, Recorded]]) -> int:
    return sum(isinstance(event, UnreadableEvent) for event, _ in rows)


def _writer(path: Path, tables: Tables, overwrite: bool) -> RowWriter:
    if path.suffix == ".jsonl":
        return _JsonLines(NewFile(path, overwrite=overwrite))
    if path.suffix == ".parquet":
        return _ParquetFiles(lambda _: path, lambda _: tables.whole(), overwrite, one=True)
    if path.suffix or path.is_file():
        what = f"{path} is neither a .parquet or .jsonl file nor a folder"
        raise CallerError(f"{what}; give FILE.parquet, FILE.jsonl, or a folder for one file of each type of event")
    return _ParquetFiles(lambda name: path / f"{_checked(name)}.parquet", tables.of, overwrite)


def _checked(name: str) -> str:
    """The name of an event, which becomes that of a file. Raises `CallerError`."""
    if not TYPE_NAME_PATTERN.fullmatch(name):
        raise CallerError(f"{name!r} is not a name of events, so no file is made for it; export to one file instead")
    return name


class _ParquetFile:
    """One of them."""

    def __init__(self, path: Path, table: Table, overwrite: bool) -> None:
        from pyarrow import parquet

        self.table = table
        self.new_file = NewFile(path, overwrite=overwrite)
        try:
            self._writer = parquet.ParquetWriter(self.new_file.file, table.schema, compression="zstd")
        except BaseException:
            self.new_file.discard()
            raise
        self._batches: list[Any] = []
        self._rows = 0
        self.pending_bytes = 0

    def write(self, rows: Sequence[Any]) -> None:
        """As one batch, and as a row group once there are enough."""
        batch = self.table.batch(rows)
        self._batches.append(batch)
        self._rows += len(rows)
        self.pending_bytes += batch.nbytes
        if self._rows >= GROUP_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what waits as a row group."""
        if self._batches:
            self._writer.write_table(pyarrow().Table.from_batches(self._batches, self.table.schema), GROUP_ROWS)
        self._batches, self._rows, self.pending_bytes = [], 0, 0

    def close(self) -> None:
        """Complete the file."""
        self.flush()
        self._writer.close()

    def abandon(self) -> None:
        """Have the writer write no more: it would, when it is freed, into a file that is closed."""
        if self._writer.is_open:
            with suppress(Exception):
                self._writer.close()
            self._writer.is_open = False


class _ParquetFiles:
    """The rows by name of event, each in its file; or all in one."""

    def __init__(
        self, path: Callable[[str], Path], table: Callable[[str], Table], overwrite: bool, *, one: bool = False
    ) -> None:
        self._path, self._table, self._overwrite, self._one = path, table, overwrite, one
        self._files: dict[str, _ParquetFile] = {}
        if one:
            self._file("")  # also where there is no event
        else:
            pyarrow()
            folder = path("_").parent
            try:
                if not folder.is_dir():
                    make_private_folder(folder)
            except OSError as error:
                raise StorageFailed(str(folder), f"cannot make the folder: {error.strerror or error}") from error

    @property
    def files(self) -> Sequence[NewFile]:
        """See `RowWriter`."""
        return [self._files[name].new_file for name in sorted(self._files)]

    def write(self, rows: Sequence[tuple[Any, Recorded]]) -> None:
        """See `RowWriter`."""
        if self._one:
            parts = {"": rows} if rows else {}
        else:
            parts = {}
            for row in rows:
                parts.setdefault(_name_of(row[0]), []).append(row)  # type: ignore[attr-defined]  # made here
        for name, part in parts.items():
            self._file(name).write(part)
        while sum(one.pending_bytes for one in self._files.values()) > GROUPS_BYTES:
            max(self._files.values(), key=lambda one: one.pending_bytes).flush()

    def close(self) -> None:
        """See `RowWriter`."""
        for one in self._files.values():
            one.close()

    def abandon(self) -> None:
        """See `RowWriter`."""
        for one in self._files.values():
            one.abandon()

    def _file(self, name: str) -> _ParquetFile:
        if name not in self._files:
            self._files[name] = _ParquetFile(self._path(name), self._table(name), self._overwrite)
        return self._files[name]


class _JsonLines:
    """One line of JSON for each row."""

    def __init__(self, new_file: NewFile) -> None:
        self._new_file = new_file
        self.files: Sequence[NewFile] = (new_file,)

    def write(self, rows: Sequence[tuple[Any, Recorded]]) -> None:
        """See `RowWriter`."""
        lines = (encode_plain(_line(event, recorded)) for event, recorded in rows)
        self._new_file.file.write("".join(f"{line}\n" for line in lines).encode())

    def close(self) -> None:
        """See `RowWriter`."""

    def abandon(self) -> None:
        """See `RowWriter`."""


def _line(event: Any, recorded: Recorded) -> Mapping[str, Any]:
    line: dict[str, Any] = {
        "partition": recorded.partition,
        "position": recorded.position,
        "stream": str(recorded.stream),
        "version": recorded.version,
        "event": _name_of(event),
        "recorded_at": recorded.recorded_at.isoformat(timespec="microseconds"),
        "command_id": id_text(recorded.command_id),
        "correlation_id": id_text(recorded.correlation_id),
        "causation_id": id_text(recorded.causation_id),
    }
    if isinstance(event, StoredEvent):
        return line | {"schema_version": event.schema_version, "payload": stored_payload(event)}
    if isinstance(event, UnreadableEvent):
        rest = {"schema_version": event.stored_version, "payload": plain(event.fields), "unreadable": event.why}
        return line | rest
    return line | {"schema_version": event.schema_version, "payload": plain(event)}


def _name_of(event: Any) -> str:
    if isinstance(event, StoredEvent):
        return event.name
    return event.event if isinstance(event, UnreadableEvent) else str(event.message_name)
