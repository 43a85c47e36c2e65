"""A read model in DuckDB: tables that handlers write with SQL and queries read with SQL, Arrow or pandas.

One of the stores of `domain/read_store.py`. The tables and the checkpoint are in one database file, so they change in
one transaction. A query runs in a read-only transaction of its own.

Rules kept here:
- handlers never end the transaction: BEGIN, COMMIT, ROLLBACK and CHECKPOINT are refused
- rows that were appended are in the table before any SQL runs and before the page is committed
- a row that its table refuses is found at the end of the page; the events are then taken in one by one

Why `append`: DuckDB is made for many rows at once. One INSERT of one row takes 400 to 1,400 us, an appended row 3 us.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from ...domain.sql import Sql
from ...errors import Damaged, DefinitionError, InvalidMessage, StorageFailed, StoreInUse
from ...private import FILE_MODE

__all__ = ["DuckDbStore"]

FILE: Final = "model.duckdb"

_REFUSALS: Final = (
    errno.EACCES,
    errno.EDQUOT,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.EPERM,
    errno.EROFS,
)
"""By which the machine refuses to open a file."""

APPENDED_MAX: Final = 4_096
"""Rows in the buffer of one table. A page of events that each append many rows is written in several strokes."""

_ENDS_TRANSACTIONS: Final = frozenset({"BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "CHECKPOINT", "ATTACH"})


_OF_THE_DISK: Final = (
    "no space left",
    "could not write",
    "cannot write",
    "failed to offload",
    "disk quota exceeded",
    "file too large",
    "input/output error",
    "fsync",
)
"""Texts of DuckDB's errors when the disk is full or broken: its errors have no number."""

_CHECKPOINT_TABLE: Final = """
CREATE TABLE IF NOT EXISTS rayfold_checkpoint (content BLOB);
INSERT INTO rayfold_checkpoint SELECT NULL WHERE NOT EXISTS (FROM rayfold_checkpoint)
"""
"""One row: updating it takes half of what deleting and inserting it does."""


class DuckDbStore:
    """The `ReadStore` of `domain/read_store.py` over DuckDB."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._imported: ModuleType | None = None
        self._connection: Any = None
        self._path = ""
        self._open = False
        self._appended: dict[str, list[tuple[Any, ...]]] = {}

    def open(self, model: Any, directory: Path | None) -> bytes | None:
        """See `ReadStore`. Gives the projection `sql` and `append`. Raises `DefinitionError` without duckdb, or for a
        schema that DuckDB refuses, and `StoreInUse` while another process has the file open."""
        self._imported = _duckdb()
        self._path = ":memory:" if directory is None else str(directory / FILE)
        try:
            self._connection = self._imported.connect(self._path)
        except self._errors.IOException as error:
            if "lock" in str(error):
                raise StoreInUse(self._path, "another projector") from error
            raise (StorageFailed if _is_of_the_system(error) else Damaged)(self._path, str(error)) from error
        except self._errors.OutOfMemoryException as error:
            raise StorageFailed(self._path, str(error)) from error
        except self._errors.Error as error:
            raise Damaged(self._path, str(error)) from error
        if directory is not None:
            (directory / FILE).chmod(FILE_MODE)  # DuckDB asks the umask; its folder is private already
        model.__dict__["sql"] = Sql(self.run)
        model.__dict__["append"] = self.append
        try:
            self._connection.execute(_CHECKPOINT_TABLE)
            if self._schema:
                self._connection.execute(self._schema)
        except self._errors.Error as error:
            where = f"{type(model).__name__}, store=DuckDb(...)"
            raise DefinitionError(where, f"DuckDB refuses its SQL: {error}", "it runs at every opening") from error
        return self._checkpoint()

    @property
    def _errors(self) -> ModuleType:
        """DuckDB itself, which has its errors. REQUIRES: `open` was called."""
        assert self._imported is not None
        return self._imported

    def begin(self, *, reading: bool = False) -> None:
        """See `ReadStore`. A query that writes is refused by DuckDB."""
        self._run("BEGIN TRANSACTION READ ONLY" if reading else "BEGIN TRANSACTION")
        self._open = True

    def commit(self, checkpoint: bytes) -> None:
        """See `ReadStore`. Raises what DuckDB raises for appended rows that their table refuses."""
        try:
            self._flush()
            self._connection.execute("UPDATE rayfold_checkpoint SET content = ?", [checkpoint])
            self._connection.execute("COMMIT")
        except (self._errors.IOException, self._errors.OutOfMemoryException, self._errors.FatalException) as error:
            raise StorageFailed(self._path, str(error)) from error
        self._open = False

    def run(self, query: str, act: Callable[[Any], Any]) -> Any:
        """What a query of a handler or an answer gives. What the disk refuses is `StorageFailed`, which is not the
        handler's fault: the event is taken in later, and is not put into quarantine."""
        try:
            return act(self.ready(query))
        except self._errors.Error as error:
            if self._is_of_the_disk(error):
                raise StorageFailed(self._path, str(error)) from error
            raise

    def _is_of_the_disk(self, error: Exception) -> bool:
        """Whether the disk has refused, and not the query: a file that a query names and that is missing is an
        `IOException` too."""
        text = str(error).lower()
        return isinstance(error, self._errors.FatalException) or any(words in text for words in _OF_THE_DISK)

    def roll_back(self) -> bytes | None:
        """See `ReadStore`."""
        self._appended.clear()
        if self._open:
            self._open = False
            self._run("ROLLBACK")
        return self._checkpoint()

    def close(self) -> None:
        """See `ReadStore`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def append(self, table: str, row: Sequence[Any]) -> None:
        """Put a row at the end of a table: a value for each column, in order. It is there before any SQL runs."""
        if not self._open:
            raise StorageFailed(self._path, "rows are appended only while a handler runs")
        rows = self._appended.setdefault(table, [])
        rows.append(tuple(row))
        if len(rows) >= APPENDED_MAX:
            self.run("", lambda _: None)  # which flushes

    def ready(self, query: str) -> Any:
        """The connection, for a query that may run now, with all appended rows in their tables."""
        word = query.split(None, 1)[0].upper().rstrip(";") if query.strip() else ""
        if word in _ENDS_TRANSACTIONS:
            what = f"{word} belongs to Rayfold: the page of events is one transaction"
            raise InvalidMessage("sql", what, "leave it out")
        if not self._open:
            raise StorageFailed(self._path, "sql is there only while a handler or an answer runs")
        self._flush()
        return self._connection

    def _flush(self) -> None:
        appended, self._appended = self._appended, {}
        self._connection.complete()  # a result that was not fetched to its end is in the way of the next statement
        for table, rows in appended.items():
            appender = self._connection.appender(table)
            try:
                appender.append_rows(rows)
                appender.flush()
            finally:
                appender.clear()

    def _checkpoint(self) -> bytes | None:
        found = self._run("SELECT content FROM rayfold_checkpoint").fetchone()
        return bytes(found[0]) if found and found[0] else None

    def _run(self, statement: str) -> Any:
        """One of our own statements, which fail only if the disk or DuckDB itself does."""
        if self._connection is None:
            raise StorageFailed(self._path, "the store was closed")
        try:
            self._connection.complete()
            return self._connection.execute(statement)
        except self._errors.Error as error:
            raise StorageFailed(self._path, str(error)) from error


def _duckdb() -> ModuleType:
    """DuckDB, which is not installed with Rayfold itself. Raises `DefinitionError`."""
    remedy = "pip install rayfold[duckdb]"
    try:
        import duckdb
    except ImportError as error:
        raise DefinitionError("store=DuckDb(...)", "duckdb is not installed", remedy) from error
    if not hasattr(duckdb, "Appender"):
        raise DefinitionError("store=DuckDb(...)", f"duckdb {duckdb.__version__} is too old, 2.0 is needed", remedy)
    return duckdb


def _is_of_the_system(error: Exception) -> bool:
    """Whether the machine refuses to open a file, which is not proof of damage. DuckDB has one exception for that and
    for damage, with the system's own words in it."""
    return any(os.strerror(one) in str(error) for one in _REFUSALS)
