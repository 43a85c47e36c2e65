"""A store: a directory with a manifest, a lock, and one folder for each partition's log.

Beside the write path: what is opened before step [5] can begin, and what makes sure that nobody else has.

Rules kept here:
- the manifest is written last and atomically, after every partition's log is on the disk: a crash in the middle of
  creating a store leaves no manifest, and creating it again starts over
- what is missing or wrong is said loudly and never replaced by something new and empty: a partition that is gone, a
  folder of another store, a manifest that decayed, a directory that holds something else
- one runtime at a time: an flock names its holder, ends with the holder's process, and is not handed to children.
  LMDB alone lets two clusters write into one directory without any error

Layout::

    store.json              the manifest
    store.lock              flocked by the runtime that holds the store; one line of JSON says who
    partition-00000/        an LMDB environment: data.mdb, lock.mdb
    partition-00001/
    projections/            read models and their checkpoints, and
    subscriptions/          how far each has acknowledged: both made when needed, no part of the log, not looked at here
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import uuid
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from ..errors import StorageFailed, StoreInUse, StoreMismatch, StoreMissing
from .durable import checksum_of, fsync_folder, write_durably
from .environment import open_log
from .format import FORMAT_VERSION
from .reader import LmdbReader
from .shared import open_shared_reader
from .writer import LmdbLog

__all__ = ["PARTITIONS_MAX", "Hold", "Holder", "Store", "create_or_open_store", "holder_of", "open_store"]

MANIFEST: Final = "store.json"
LOCK: Final = "store.lock"
HASH: Final = "crc32"
"""How streams are spread over partitions: `stream.partition_of`."""

PROJECTIONS: Final = "projections"
SUBSCRIPTIONS: Final = "subscriptions"

PARTITIONS_MAX: Final = 1024
"""Each is an actor with a process of its own: far more than one machine runs, and a bound for a typing error."""

MANIFEST_BYTES_MAX: Final = 65_536
"""A manifest has under 300."""

HOLDER_BYTES_MAX: Final = 65_536
"""The line of a holder has under 1,000."""


@dataclass(frozen=True, slots=True)
class Store:
    """An existing store. A plain value: it holds nothing open and can be sent to other processes."""

    path: Path
    store_id: str
    """A UUID, made with the store; every partition's log carries it too."""
    partitions: int
    """Fixed when the store is created: it decides where each stream lives."""

    def partition_path(self, partition: int) -> Path:
        """The folder of one partition's log."""
        return self.path / f"partition-{partition:05d}"

    def identity(self, partition: int) -> str:
        """What the log of this partition carries to say whose it is."""
        return f"{self.store_id}/{partition:05d}"

    def open_log(self, partition: int) -> LmdbLog:
        """The writable log of a partition. Raises `StoreMissing` if it is gone: it is never made anew."""
        path, name = self.partition_path(partition), f"partition {partition}"
        return open_log(path, name, identity=self.identity(partition), create=False)

    def open_reader(self, partition: int) -> LmdbReader:
        """A reader of a partition's log for a process that is not its writer; as many at once as one likes."""
        path, name = self.partition_path(partition), f"partition {partition}"
        return open_shared_reader(path, name, identity=self.identity(partition))

    def hold(self, holder: str) -> Hold:
        """Hold the store for this process, as `holder`, until the hold is released or the process ends.

        Raises `StoreInUse`, which names the present holder.
        """
        return Hold(self.path, holder)


def create_or_open_store(path: str | os.PathLike[str], partitions: int | None = None) -> Store:
    """The store in this directory, made there if the directory is missing or empty.

    `partitions` is needed to make one; for an existing store it may be left out, else it must be the store's own.
    Raises `StoreMissing`, `StoreMismatch`, `StoreInUse` or `StorageFailed`.
    """
    folder = Path(path).absolute()
    if not _exists(folder / MANIFEST):
        if partitions is None:
            raise StoreMissing(str(folder), "there is no store here; say how many partitions a new one shall have")
        if not 1 <= partitions <= PARTITIONS_MAX:
            remedy = f"choose 1 to {PARTITIONS_MAX:,}"
            raise StoreMismatch(str(folder), f"a store cannot have {partitions} partitions", remedy)
        _create(folder, partitions)
    store = open_store(folder)
    if partitions is not None and partitions != store.partitions:
        raise StoreMismatch(
            str(folder),
            f"the store has {store.partitions} partitions, not {partitions}",
            f"open it with {store.partitions}: the number is fixed when a store is created",
        )
    return store


def open_store(path: str | os.PathLike[str]) -> Store:
    """The store in this directory, which must exist whole. Raises `StoreMissing`, `StoreMismatch`, `StorageFailed`."""
    folder = Path(path).absolute()
    store = _read_manifest(folder)
    for partition in range(store.partitions):
        if not _exists(store.partition_path(partition) / "data.mdb"):
            what = f"the log of partition {partition} of {store.partitions} is gone; restore it from a backup"
            raise StoreMissing(str(store.partition_path(partition)), what)
    return store


# --- the manifest -------------------------------------------------------------------------------------------------


def _read_manifest(folder: Path) -> Store:
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            content = file.read(MANIFEST_BYTES_MAX)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreMissing(str(folder), "there is no store here") from None
    except OSError as error:
        raise StorageFailed(str(path), f"cannot read the manifest: {error.strerror or error}") from error
    remedy = f"restore {MANIFEST} from a backup; the logs beside it are not touched"
    try:
        facts = json.loads(content)
        checksum = facts.pop("checksum")
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise StoreMismatch(str(path), "the manifest is damaged: it is not what was written", remedy) from error
    if checksum != checksum_of(facts):
        raise StoreMismatch(str(path), "the manifest is damaged: its checksum is wrong", remedy)
    if facts.get("format") != FORMAT_VERSION or facts.get("hash") != HASH:
        what = f"the store has format {facts.get('format')} with hash {facts.get('hash')}"
        known = f"this version of Rayfold reads format {FORMAT_VERSION} with hash {HASH}"
        raise StoreMismatch(str(folder), what, known)
    return Store(folder, str(facts["store_id"]), int(facts["partitions"]))


def _write_manifest(store: Store) -> None:
    """Write it beside its place, fsync, move it there, fsync the folder: it is there whole or not at all."""
    facts: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "store_id": store.store_id,
        "partitions": store.partitions,
        "hash": HASH,
    }
    facts["checksum"] = checksum_of(facts)
    write_durably(store.path / MANIFEST, (json.dumps(facts, indent=2) + "\n").encode())


# --- creating -----------------------------------------------------------------------------------------------------


def _create(folder: Path, partitions: int) -> None:
    """Make a store in a folder that is missing, empty, or left over from a creation that was interrupted."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if foreign := _foreign_files(folder):
            what = f"the directory is not empty and holds no store: {', '.join(foreign[:3])}"
            raise StoreMismatch(str(folder), what, "choose an empty directory")
        fsync_folder(folder.parent)
        with Hold(folder, "a runtime that is creating this store"):
            if _exists(folder / MANIFEST):
                return
            _remove_leftovers(folder)
            store = Store(folder, str(uuid.uuid4()), partitions)
            for partition in range(partitions):
                path = store.partition_path(partition)
                open_log(path, f"partition {partition}", identity=store.identity(partition)).close()
                fsync_folder(path)
            fsync_folder(folder)
            _write_manifest(store)
    except OSError as error:
        raise StorageFailed(str(folder), f"cannot make a store here: {error.strerror or error}") from error


def _foreign_files(folder: Path) -> list[str]:
    """What is in the folder and cannot be from creating a store."""
    ours = {LOCK, f"{MANIFEST}.new", PROJECTIONS, SUBSCRIPTIONS}
    return sorted(
        one.name for one in folder.iterdir() if one.name not in ours and not (_is_partition(one) and one.is_dir())
    )


def _is_partition(path: Path) -> bool:
    return path.name.startswith("partition-") and path.name[10:].isdecimal() and len(path.name) == 15


def _remove_leftovers(folder: Path) -> None:
    """Remove partitions of an interrupted creation. Any that was ever used stops everything instead."""
    partitions = sorted(one for one in folder.iterdir() if _is_partition(one))
    for beside in (PROJECTIONS, SUBSCRIPTIONS):
        if _exists(folder / beside):
            what = f"{beside} of a store is here, but {MANIFEST} is gone"
            raise StoreMismatch(str(folder), what, f"restore {MANIFEST} from a backup, or choose an empty directory")
    for path in partitions:
        if not _exists(path / "data.mdb"):
            continue
        log = open_log(path, path.name)
        try:
            used = log.head() or log.epoch()
        finally:
            log.close()
        if used:
            what = f"{path.name} has been in use, but {MANIFEST} is gone"
            raise StoreMismatch(str(folder), what, f"restore {MANIFEST} from a backup, or choose an empty directory")
    for path in partitions:
        shutil.rmtree(path)


def _exists(path: Path) -> bool:
    """Whether it is there. A directory that may not be looked into is an error, not an absence."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StorageFailed(str(path), error.strerror or str(error)) from error
    return True


# --- holding ------------------------------------------------------------------------------------------------------


class Holder(NamedTuple):
    """Who holds a store: one line of JSON in its lock."""

    holder: str
    pid: int
    host: str
    since: str
    """When it began, in ISO 8601 and UTC."""
    connection: dict[str, str] = {}
    """How to reach it; empty until it is up. See `actors/connection.py`."""

    def __str__(self) -> str:
        return f"{self.holder} (process {self.pid} on {self.host}, since {self.since})"


def holder_of(folder: Path) -> Holder | None:
    """Who holds the store in this directory now; None if nobody does. Raises `StoreMissing`, `StorageFailed`."""
    path = folder / LOCK
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        if not _exists(folder / MANIFEST):
            raise StoreMissing(str(folder), "there is no store here") from None
        return None
    except OSError as error:
        raise StorageFailed(str(path), f"cannot open the lock: {error.strerror or error}") from error
    try:
        holder = _holder_named_in(descriptor)
        if holder is None or (holder.host == socket.gethostname() and not Path(f"/proc/{holder.pid}").exists()):
            return None  # it let go, or was killed: then its line is still there
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for a process that was given the id of a dead one
        except BlockingIOError:
            return holder
        return None
    finally:
        os.close(descriptor)


class Hold:
    """A store held by this process. A context manager; `release` ends it, and so does the end of the process."""

    def __init__(self, folder: Path, holder: str) -> None:
        path = folder / LOCK
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            raise StoreMissing(str(folder), "there is no store here") from None
        except OSError as error:
            raise StorageFailed(str(path), f"cannot open the lock: {error.strerror or error}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            present = _holder_named_in(descriptor)
            os.close(descriptor)
            raise StoreInUse(str(folder), str(present or "a runtime that has not written its name yet")) from None
        except OSError as error:
            os.close(descriptor)
            raise StorageFailed(str(path), f"cannot lock: {error.strerror or error}") from error
        self._descriptor: int | None = descriptor
        _holds.add(self)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self._holder = Holder(holder, os.getpid(), socket.gethostname(), since)
        self._write()

    def publish(self, connection: Mapping[str, str]) -> None:
        """Say how another process of this user reaches the runtime that holds the store (`holder_of`)."""
        self._holder = self._holder._replace(connection=dict(connection))
        self._write()

    def _write(self) -> None:
        """Say who holds it, for the one who is refused."""
        assert self._descriptor is not None
        line = (json.dumps(self._holder._asdict()) + "\n").encode()
        try:
            os.pwrite(self._descriptor, line, 0)
            os.ftruncate(self._descriptor, len(line))
        except OSError as error:
            self.release()
            raise StorageFailed(LOCK, f"cannot name the holder: {error.strerror or error}") from error

    def release(self) -> None:
        """Let others have the store. Releasing twice is fine."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def _forget(self) -> None:
        """In a forked child: close the inherited copy, which else would hold the store beyond the parent's end."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


_holds: weakref.WeakSet[Hold] = weakref.WeakSet()


def _forget_in_child() -> None:
    for hold in list(_holds):
        hold._forget()


os.register_at_fork(after_in_child=_forget_in_child)


def _holder_named_in(descriptor: int) -> Holder | None:
    """The holder that the lock file names; none if it names nobody, or not yet."""
    try:
        facts = json.loads(os.pread(descriptor, HOLDER_BYTES_MAX, 0).partition(b"\n")[0])
        return Holder(
            str(facts["holder"]),
            int(facts["pid"]),
            str(facts["host"]),
            str(facts["since"]),
            {str(name): str(value) for name, value in dict(facts.get("connection") or {}).items()},
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
