"""SubscriptionRows: what subscriptions of a name keep in a log, in its `meta`, as rows that are no events.

Beside step [5]. What the rows mean: `feed/group_coordinator.py`. They are in the log's own environment, so that they
are fenced by the same epoch, are in the same place after a move, and never refer to another history than the log's.

Rules kept here: rows are few and small, and both bounds are checked in the transaction that would break them; a value
has a checksum, and one that decayed is `Damaged`.

Layout in `meta`: `subscription/NAME/...` -> the content, made and read elsewhere. Names have no slash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from ..errors import InvalidMessage, StorageFailed
from .environment import Environment
from .format import META, decode_meta, encode_meta

if TYPE_CHECKING:
    import lmdb

__all__ = ["ROWS_MAX", "Change", "MemoryRows", "StoredRows", "SubscriptionRows", "change_rows"]

PREFIX: Final = b"subscription/"

ROWS_MAX: Final = 10_000
"""Rows of one log: a thousand names with a few members each."""

KEY_BYTES_MAX: Final = 256
"""Bytes of a key: names have at most 64, and LMDB takes 511."""

ROW_BYTES_MAX: Final = 65_536
"""Content of one row. The largest has a position and a link for each of 1,024 partitions, under 30,000 bytes."""

Result = TypeVar("Result")


class SubscriptionRows(Protocol):
    """The rows, as one transaction sees and changes them."""

    def find(self, key: str) -> bytes | None:
        """The content of a row; None if there is none."""
        ...

    def beginning(self, prefix: str) -> dict[str, bytes]:
        """The rows whose keys begin so, in the order of their keys."""
        ...

    def put(self, key: str, content: bytes) -> None:
        """Put a row in place of any that is there. Raises `StorageFailed` for one too many, or too large."""
        ...

    def remove(self, key: str) -> None:
        """Remove a row, if it is there."""
        ...


Change = Callable[[SubscriptionRows], Result]
"""Reads and changes rows in one transaction; it may run again, and changes nothing else."""


class StoredRows:
    """The rows of a log in LMDB."""

    def __init__(self, transaction: lmdb.Transaction[bytes], meta: lmdb._Database, log: str) -> None:
        self._transaction, self._meta, self._log = transaction, meta, log
        self.changed = False
        """Whether anything was put or removed."""

    def find(self, key: str) -> bytes | None:
        """See `SubscriptionRows`. Raises `Damaged`."""
        full = _full(key)
        stored = self._transaction.get(full, db=self._meta)
        return None if stored is None else decode_meta(full, stored, self._log)

    def beginning(self, prefix: str) -> dict[str, bytes]:
        """See `SubscriptionRows`. Raises `Damaged`."""
        full, found = _full(prefix), dict[str, bytes]()
        cursor = self._transaction.cursor(self._meta)
        for key, value in cursor.iternext() if cursor.set_range(full) else ():
            if not key.startswith(full):
                break
            found[key[len(PREFIX) :].decode(errors="replace")] = decode_meta(key, value, self._log)
        return found

    def put(self, key: str, content: bytes) -> None:
        """See `SubscriptionRows`."""
        full = _full(key)
        if self._transaction.get(full, db=self._meta) is None:
            _check_count(self._count(), self._log)
        _check_size(content, self._log)
        self._transaction.put(full, encode_meta(full, content), db=self._meta)
        self.changed = True

    def _count(self) -> int:
        cursor, rows = self._transaction.cursor(self._meta), 0
        for key in cursor.iternext(values=False) if cursor.set_range(PREFIX) else ():
            if not key.startswith(PREFIX):
                break
            rows += 1
        return rows

    def remove(self, key: str) -> None:
        """See `SubscriptionRows`."""
        self.changed |= self._transaction.delete(_full(key), db=self._meta)


class MemoryRows:
    """The rows of a log in memory."""

    def __init__(self, kept: Mapping[str, bytes]) -> None:
        self.kept = dict(kept)

    def find(self, key: str) -> bytes | None:
        """See `SubscriptionRows`."""
        return self.kept.get(key)

    def beginning(self, prefix: str) -> dict[str, bytes]:
        """See `SubscriptionRows`."""
        return {key: content for key, content in sorted(self.kept.items()) if key.startswith(prefix)}

    def put(self, key: str, content: bytes) -> None:
        """See `SubscriptionRows`."""
        if key not in self.kept:
            _check_count(len(self.kept), "memory log")
        _check_size(content, "memory log")
        self.kept[key] = content

    def remove(self, key: str) -> None:
        """See `SubscriptionRows`."""
        self.kept.pop(key, None)


def _full(key: str) -> bytes:
    """The key in `meta`. Raises `InvalidMessage` for one that LMDB would refuse, and close the log for."""
    full = PREFIX + key.encode()
    if len(full) > KEY_BYTES_MAX:
        raise InvalidMessage("subscription", f"a key of {len(full):,} bytes is over {KEY_BYTES_MAX}")
    return full


def change_rows(environment: Environment, change: Change[Result]) -> Result:
    """What `change` makes of the rows of a log that no process serves, in one transaction. The environment may have
    been opened to be read. Calls must not overlap. Raises `StorageFailed`, and what `change` raises."""
    environment.make_writable()
    return environment.write(
        lambda transaction: change(StoredRows(transaction, environment.database(META), environment.name))
    )


def _check_count(rows: int, log: str) -> None:
    if rows >= ROWS_MAX:
        what = f"it keeps {rows:,} rows of subscriptions, and no more; forget names that are not used any more"
        raise StorageFailed(log, what)


def _check_size(content: bytes, log: str) -> None:
    if len(content) > ROW_BYTES_MAX:
        raise StorageFailed(log, f"a row of a subscription has {len(content):,} bytes, over {ROW_BYTES_MAX:,}")
