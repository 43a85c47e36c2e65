"""Where a read model is kept: what a store of one must do, and the three ways to declare one in a class line.

`InMemory()`, `Lmdb()` and `DuckDb("CREATE TABLE ...")` are the declarations. Which one: memory answers a simple query
in under a microsecond, and must hold everything; LMDB holds what memory cannot, at some microseconds a row; DuckDB
answers questions over all rows, in SQL, and writes single rows slowly. `docs/read-models.md` shows a fourth store over
sqlite3, and one test suite runs on all of them. Stores are used in step [7] of the read path (`read/read_model.py`).

Rules kept here:
- a declaration is a plain value. What it stands for (and with it lmdb or duckdb) is imported only where the store is
  opened, so the domain vocabulary imports neither. These three imports inside `make` are the only ones that lead from
  this room to a later one
- the read model and its checkpoint are committed in ONE transaction, so that every event takes effect exactly once,
  whatever is killed whenever
- a checkpoint is opaque bytes to a store: what they mean, and whether they may be used, is the read model's business
- all calls come one at a time, but from any thread; `begin` to `commit` or `roll_back` is one thread

A store never learns which code wrote what it holds: each version of the code has a directory of its own (named by the
fingerprint), so a store that was written by other code is never even opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import DefinitionError
from ..printable import shown

__all__ = ["DuckDb", "InMemory", "Lmdb", "ReadStore", "StoreKind"]


class ReadStore(Protocol):
    """An open store of one read model. What a store of your own has to implement.

    All that is asked of it: the changes between `begin` and `commit` and the checkpoint are committed together or
    not at all, and nothing stays that happens after `begin(reading=True)`. What it raises stops the projection.

    Example:
        class SqliteStore:  # docs/read-models.md has the whole of it
            def open(self, model: Projection, directory: Path | None) -> bytes | None: ...
            def begin(self, *, reading: bool = False) -> None: ...
            def commit(self, checkpoint: bytes) -> None: ...
            def roll_back(self) -> bytes | None: ...
            def close(self) -> None: ...
    """

    def open(self, model: Any, directory: Path | None) -> bytes | None:
        """Make the store ready in `directory`, which exists, and hand `model` (the projection) what its handlers reach
        the store by, as attributes. Without a directory the store is a temporary one.

        Returns the checkpoint that was committed last, or None for a store that is empty. Raises `StoreError`:
        `Damaged` for what has to be made from the log again, `StorageFailed` for what could be opened another time.
        """
        ...

    def begin(self, *, reading: bool = False) -> None:
        """Begin a transaction. With `reading` for queries: whatever they change must not stay."""
        ...

    def commit(self, checkpoint: bytes) -> None:
        """Commit what was changed since `begin`, together with the checkpoint; both or neither.

        Raises `StorageFailed` when the disk refused; anything else it raises counts against the events of this page.
        """
        ...

    def roll_back(self) -> bytes | None:
        """Forget what was changed since `begin`, and end the transaction. Returns the checkpoint that the store is at
        now, as `open` does: the one committed last or, for a store in memory, an earlier one."""
        ...

    def close(self) -> None:
        """Release every resource and drop uncommitted changes. Closing twice is allowed."""
        ...


class StoreKind(Protocol):
    """What `store=` in a projection's class line takes: a plain value that can be pickled with the class.

    Its `repr` goes into the fingerprint: a projection whose declared store changes is rebuilt.

    Example:
        @dataclass(frozen=True)
        class Sqlite:
            schema: str

            def make(self) -> ReadStore:
                return SqliteStore(self.schema)
    """

    def make(self) -> ReadStore:
        """A store that is not open yet. Imports what it needs here, not at the top of its module."""
        ...


@dataclass(frozen=True, slots=True)
class InMemory:
    """The read model is the declared fields, in memory. Checkpoints spare the start from reading the whole log.

    Example:
        class Balances(Projection, store=InMemory()):  # the default
            balances: dict[str, int] = {}
    """

    def make(self) -> ReadStore:
        """See `StoreKind`."""
        from ..read.stores.memory import MemoryStore

        return MemoryStore()


@dataclass(frozen=True, slots=True)
class Lmdb:
    """The read model is `self.rows`, a sorted mapping of text to plain values in LMDB (see `Rows`). It may outgrow
    memory.

    Example:
        class Owners(Projection, store=Lmdb()):
            @project
            def opened(self, event: Opened, recorded: Recorded) -> None:
                self.rows[recorded.aggregate_id] = event.owner
    """

    def make(self) -> ReadStore:
        """See `StoreKind`."""
        from ..read.stores.lmdb import LmdbStore

        return LmdbStore()


@dataclass(frozen=True, slots=True)
class DuckDb:
    """The read model is DuckDB tables, reached by `self.sql(...)` and `self.append(...)`. Needs `rayfold[duckdb]`.

    Example:
        class Deposits(Projection, store=DuckDb("CREATE TABLE IF NOT EXISTS deposits (account VARCHAR)")):
            @project
            def deposited(self, event: Deposited, recorded: Recorded) -> None:
                self.append("deposits", (recorded.aggregate_id,))
    """

    schema: str = ""
    """SQL that makes the tables and views, run at every opening: write `CREATE TABLE IF NOT EXISTS ...`."""

    def __post_init__(self) -> None:
        """Refuse what is not SQL. Raises `DefinitionError`."""
        if not isinstance(self.schema, str):
            raise DefinitionError("DuckDb", f"{shown(self.schema)} is not SQL", 'write DuckDb("CREATE TABLE ...")')

    def make(self) -> ReadStore:
        """See `StoreKind`."""
        from ..read.stores.duckdb import DuckDbStore

        return DuckDbStore(self.schema)
