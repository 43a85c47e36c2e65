"""The three ways to declare where a read model lives: `InMemory()`, `Lmdb()`, `DuckDb("CREATE TABLE ...")`.

Rule kept here: a declaration is a plain value. What it stands for (and with it lmdb or duckdb) is imported only where
the store is opened, so the domain vocabulary imports neither.

Which one: memory answers a simple query in under a microsecond, and must hold everything; LMDB holds what memory
cannot, at some microseconds a row; DuckDB answers questions over all rows, in SQL, and writes single rows slowly.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..read.stores.contract import ReadStore

__all__ = ["DuckDb", "InMemory", "Lmdb"]


@dataclass(frozen=True, slots=True)
class InMemory:
    """The read model is the declared fields, in memory; checkpoints save the start from reading the whole log."""

    def make(self) -> ReadStore:
        """See `StoreKind`."""
        from ..read.stores.memory import MemoryStore

        return MemoryStore()


@dataclass(frozen=True, slots=True)
class Lmdb:
    """The read model is `self.rows`, a sorted mapping of text to plain values in LMDB: it may outgrow memory."""

    def make(self) -> ReadStore:
        """See `StoreKind`."""
        from ..read.stores.lmdb import LmdbStore

        return LmdbStore()


@dataclass(frozen=True, slots=True)
class DuckDb:
    """The read model is DuckDB tables, reached by `self.sql(...)` and `self.append(...)`. Needs `rayfold[duckdb]`."""

    schema: str = ""
    """SQL that makes the tables and views, run at every opening: say `CREATE TABLE IF NOT EXISTS ...`."""

    def make(self) -> ReadStore:
        """See `StoreKind`."""
        from ..read.stores.duckdb import DuckDbStore

        return DuckDbStore(self.schema)
