"""A read model in LMDB: `self.rows`, a mapping of text to plain values, sorted by key, that may outgrow memory.

One of the stores of `domain/read_store.py`. The rows and the checkpoint are two databases of one environment, so they
change in one transaction. A stored value is crc (4) over key and value | the value in msgpack, with the tags of
`saved_state.py`: what comes back equals what went in, in type too.

Rules kept here:
- `sync=True, metasync=False`: a power cut never damages it, and takes the last page back at most, data and position
  alike; the log has that page. (The log itself is opened with `metasync=True`: there nothing may be lost.)
- half of the map is free when a transaction begins, so that a page does not meet a full map
- after a commit that failed it is opened again: what is stored then is what counts, and LMDB answers nothing any more
  when its meta page was not written
- one process at a time: LMDB alone would let a second projector write into the same read model

Why this file imports lmdb, which else only `runtime/log/` does: docs/decisions/0009-read-stores.md.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any, Final

import lmdb
import msgpack

from ...encoding.saved_state import pack_value, unpack_value
from ...errors import Damaged, InvalidMessage, StorageFailed, StoreInUse
from ...private import FILE_MODE, open_private

__all__ = ["KEY_BYTES_MAX", "LmdbStore", "Rows"]

KEY_BYTES_MAX: Final = 511
"""The size of a row's key in UTF-8: what LMDB can hold."""

VALUE_BYTES_MAX: Final = 16 << 20
"""The size of one packed value: it is read and written whole."""

_MAP_BYTES_START: Final = 1 << 30
_MAP_BYTES_MAX: Final = 1 << 42
_LMDB_ENGINE: Final = 0
"""As for the log: the 0.9 engine, whose files and those of 1.0 are incompatible."""

_ROWS: Final = b"rows"
_CHECKPOINT: Final = b"checkpoint"
_SCANNED: Final = 256
"""Rows that an iteration reads ahead of its caller, so that the caller may change rows meanwhile."""


class Rows(MutableMapping[str, Any]):
    """`self.rows` of a projection in LMDB: a sorted mapping of text to values. Usable only while a handler runs.

    Keys have 1 to 511 bytes and are sorted by their UTF-8. A value is None, a bool, a number, text, bytes, a date
    or time, a Decimal, a UUID, an enum's value, or a list, tuple, set or dict of those. A value that is read is a
    copy: change it and assign it back. Raises `InvalidMessage` for other keys and values, `Damaged` for a value
    that is not what was written.

    Example:
        row = self.rows[recorded.aggregate_id]
        row["deposits"] += 1
        self.rows[recorded.aggregate_id] = row
    """

    given_by_a_store = True
    """An attribute that is annotated with this class is not a field of the projection."""

    def __init__(self, store: LmdbStore) -> None:
        self._store = store

    def __getitem__(self, key: str) -> Any:
        """The value of a key. Raises `KeyError`, and `Damaged` for a value that is not what was written."""
        packed_key = _packed_key(key)
        stored = self._store.transaction().get(packed_key, db=self._store.rows_database)
        if stored is None:
            raise KeyError(key)
        return _unpacked(packed_key, stored)

    def __setitem__(self, key: str, value: Any) -> None:
        """Store a value. Raises `InvalidMessage` for a key over 511 bytes and for what cannot be stored."""
        packed_key = _packed_key(key)
        stored = _packed(packed_key, value)
        with self._store.errors():
            self._store.transaction().put(packed_key, stored, db=self._store.rows_database)

    def __delitem__(self, key: str) -> None:
        """Remove a key. Raises `KeyError`."""
        with self._store.errors():
            if not self._store.transaction().delete(_packed_key(key), db=self._store.rows_database):
                raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        """Whether there is such a row; does not read its value."""
        if not isinstance(key, str):
            return False
        return self._store.transaction().get(_packed_key(key), db=self._store.rows_database) is not None

    def __len__(self) -> int:
        """How many rows there are; takes no longer for many."""
        return int(self._store.transaction().stat(self._store.rows_database)["entries"])

    def __iter__(self) -> Iterator[str]:
        """The keys, in the order of their UTF-8."""
        return (key for key, _ in self.starting_with(""))

    def starting_with(self, prefix: str, after: str = "") -> Iterator[tuple[str, Any]]:
        """Keys and values of the rows whose keys start with `prefix`, in order, from the first beyond `after`."""
        start = prefix.encode()
        seek = max(start, after.encode() + b"\0") if after else start
        while True:
            page = self._page(start, seek)
            for key, stored in page:
                yield key.decode(), _unpacked(key, stored)
            if len(page) < _SCANNED:
                return
            seek = page[-1][0] + b"\0"

    def _page(self, start: bytes, seek: bytes) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        cursor = self._store.transaction().cursor(self._store.rows_database)
        if cursor.set_range(seek) if seek else cursor.first():
            for key, stored in cursor.iternext():
                if not key.startswith(start) or len(found) == _SCANNED:
                    break
                found.append((key, stored))
        return found


class LmdbStore:
    """The `ReadStore` of `domain/read_store.py` over LMDB."""

    def __init__(self) -> None:
        self.rows_database: Any = None
        self._checkpoints: Any = None
        """Both from `open` on."""
        self._environment: lmdb.Environment | None = None
        self._transaction: lmdb.Transaction[bytes] | None = None
        self._lock: int | None = None
        self._path = ""
        self._commit_failed = False
        """LMDB may answer nothing but `PanicError` from now on: it is opened again before it is used."""

    def open(self, model: Any, directory: Path | None) -> bytes | None:
        """See `ReadStore`. Gives the projection `rows`. Raises `StoreInUse` while another process has it open."""
        if directory is None:
            directory = Path(tempfile.mkdtemp(prefix="rayfold-rows-"))
            weakref.finalize(self, _remove_if_made_here, directory, os.getpid())
        self._path = str(directory)
        self._hold(directory)
        model.__dict__["rows"] = Rows(self)
        self._open_environment()
        return self._checkpoint()

    def _open_environment(self) -> None:
        with self.errors():
            self._environment = lmdb.open(
                self._path,
                map_size=_map_bytes(Path(self._path)),
                sync=True,
                metasync=False,
                writemap=False,
                max_dbs=4,
                max_spare_txns=1,
                mode=FILE_MODE,
                lib_version=_LMDB_ENGINE,
            )
            self.rows_database = self._environment.open_db(_ROWS)
            self._checkpoints = self._environment.open_db(_CHECKPOINT)

    def begin(self, *, reading: bool = False) -> None:
        """See `ReadStore`."""
        environment = self._ensure_open()
        with self.errors():
            if not reading:
                self._leave_room(environment)
            self._transaction = _begun(environment) if reading else environment.begin(write=True)

    def commit(self, checkpoint: bytes) -> None:
        """See `ReadStore`."""
        transaction = self.transaction()
        with self.errors():
            transaction.put(_CHECKPOINT, checkpoint, db=self._checkpoints)
            self._transaction = None
            try:
                transaction.commit()
            except lmdb.Error:
                self._commit_failed = True
                raise

    def roll_back(self) -> bytes | None:
        """See `ReadStore`."""
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            transaction.abort()
        return self._checkpoint()

    def close(self) -> None:
        """See `ReadStore`."""
        transaction, self._transaction = self._transaction, None
        environment, self._environment = self._environment, None
        if transaction is not None:
            transaction.abort()
        if environment is not None:
            environment.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def transaction(self) -> lmdb.Transaction[bytes]:
        """The present transaction. Raises `StorageFailed` outside of a handler or answer."""
        if self._transaction is None:
            raise StorageFailed(self._path, "rows are there only while a handler or an answer runs; copy what is kept")
        return self._transaction

    def errors(self) -> _Errors:
        """A context in which LMDB's errors become ours."""
        return _Errors(self._path)

    def _ensure_open(self) -> lmdb.Environment:
        """LMDB's environment, opened again if a commit has failed."""
        if self._environment is None:
            raise StorageFailed(self._path, "the store was closed")
        if self._commit_failed:
            self._environment.close()
            self._open_environment()
            self._commit_failed = False
        return self._environment

    def _checkpoint(self) -> bytes | None:
        with self.errors(), _begun(self._ensure_open()) as transaction:
            return transaction.get(_CHECKPOINT, db=self._checkpoints)

    def _leave_room(self, environment: lmdb.Environment) -> None:
        """Double the map once half of it is used. No transaction is open in this process, and no other has it open."""
        info = environment.info()
        used = (info["last_pgno"] + 1) * environment.stat()["psize"]
        if 2 * used > info["map_size"] and info["map_size"] < _MAP_BYTES_MAX:
            environment.set_mapsize(2 * info["map_size"])

    def _hold(self, directory: Path) -> None:
        """Hold the directory for this process, until `close` or its end."""
        descriptor = open_private(directory / "in-use", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise StoreInUse(self._path, "another projector") from None
        self._lock = descriptor


class _Errors:
    """Turns LMDB's errors into ours. A class: as a generator it took 1.5 us for each row."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(
            error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.InvalidError | lmdb.VersionMismatchError
        ):
            raise Damaged(self._path, f"LMDB reports: {error}") from error
        if isinstance(error, lmdb.ReadonlyError):
            raise StorageFailed(self._path, "a query changes nothing; only @project may") from error
        if isinstance(error, lmdb.Error):
            raise StorageFailed(self._path, str(error)) from error


def _map_bytes(directory: Path) -> int:
    """Four times the file, at least the start."""
    try:
        size_bytes = (directory / "data.mdb").stat().st_size
    except FileNotFoundError:
        size_bytes = 0
    wanted = _MAP_BYTES_START
    while wanted < 4 * size_bytes and wanted < _MAP_BYTES_MAX:
        wanted *= 2
    return wanted


def _begun(environment: lmdb.Environment) -> lmdb.Transaction[bytes]:
    """A transaction for reading."""
    try:
        return environment.begin()
    except lmdb.BadRslotError:  # a forked child has ended, and gave the slot back; this one takes another
        return environment.begin()


def _remove_if_made_here(directory: Path, process: int) -> None:
    """A forked child that ends leaves what its parent uses."""
    if process == os.getpid():
        shutil.rmtree(directory, ignore_errors=True)


def _packed_key(key: str) -> bytes:
    if not isinstance(key, str):
        raise InvalidMessage("a key of rows", f"it is {type(key).__name__}, not str")
    packed = key.encode()
    if not 0 < len(packed) <= KEY_BYTES_MAX:
        what = f"it has {len(packed)} bytes of UTF-8"
        raise InvalidMessage("a key of rows", what, f"a key has 1 to {KEY_BYTES_MAX}")
    return packed


def _packed(key: bytes, value: Any) -> bytes:
    try:
        content = pack_value(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidMessage(f"row {key.decode()!r}", f"its value cannot be stored: {error}") from error
    if len(content) > VALUE_BYTES_MAX:
        what = f"its value has {len(content):,} bytes, over {VALUE_BYTES_MAX:,}"
        raise InvalidMessage(f"row {key.decode()!r}", what, "split it over several rows")
    return zlib.crc32(content, zlib.crc32(key)).to_bytes(4, "big") + content


def _unpacked(key: bytes, stored: bytes) -> Any:
    if zlib.crc32(stored[4:], zlib.crc32(key)) != int.from_bytes(stored[:4], "big"):
        raise Damaged(f"row {key.decode(errors='replace')!r}", "its checksum is wrong")
    try:
        return unpack_value(stored[4:])
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise Damaged(f"row {key.decode(errors='replace')!r}", f"it holds no value: {error}") from error
