"""StoreLock: one runtime at a time has a store, and is named in the lock.

Beside the write path: taken before anything of a store is opened. An flock that names its holder, ends with the
holder's process, and is not handed to children. LMDB alone lets two clusters write into one directory without an error.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from ..errors import StorageFailed, StoreInUse, StoreMissing
from ..private import open_private, tighten

__all__ = ["LOCK", "MANIFEST", "StoreLock", "Holder", "exists", "failure_of_last_start", "holder_of", "pids_here"]

MANIFEST: Final = "store.json"
LOCK: Final = "store.lock"

_LOCK_TRIES: Final = 4
_LOCK_AGAIN_S: Final = 0.01
"""Between two tries to lock a store: a hundred times as long as a look takes."""

HOLDER_BYTES_MAX: Final = 65_536
"""The line of a holder has under 1,000."""


class Holder(NamedTuple):
    """Who holds a store: one line of JSON in its lock."""

    holder: str
    pid: int
    host: str
    since: str
    """When it began, in ISO 8601 and UTC."""
    connection: dict[str, str] = {}
    """How to reach it; empty until it is up. See `actors/observe/attach.py`."""
    pids: str = ""
    """The namespace of its process ids: in another one, as of a container, the same number is another process."""
    failed: str = ""
    """What has ended its start, as `publish_failure` was given it."""

    def __str__(self) -> str:
        process = "" if self.holder.endswith(f"process {self.pid}") else f"process {self.pid} "
        return f"{self.holder} ({process}on {self.host}, since {self.since})"

    def path_here(self, path: str) -> str:
        """Where this process finds the file that the holder has at `path`: there, or, if the holder has a folder for
        temporary files of its own (`PrivateTmp` of systemd), in what that process sees."""
        inside = f"/proc/{self.pid}/root{path}"
        if self.pids == pids_here() and not os.path.lexists(path) and os.path.lexists(inside):
            return inside
        return path


def holder_of(folder: Path) -> Holder | None:
    """The present holder of the store in this directory; None if there is none. Raises `StoreMissing`,
    `StorageFailed`."""
    path = folder / LOCK
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        if not exists(folder / MANIFEST):
            raise StoreMissing(str(folder), "there is no store here") from None
        return None
    except OSError as error:
        raise StorageFailed(str(path), f"cannot open the lock: {error.strerror or error}") from error
    try:
        holder = _holder_named_in(descriptor)
        if holder is None or (holder.pids == pids_here() and not Path(f"/proc/{holder.pid}").exists()):
            return None  # it released the lock, or was killed: then its line is left
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for a process that was given the id of a dead one
        except BlockingIOError:
            return holder
        return None
    finally:
        os.close(descriptor)


def failure_of_last_start(folder: Path) -> str:
    """What the last holder of this store has left with `publish_failure`; empty if it has left nothing."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        holder = _holder_named_in(descriptor)
        return "" if holder is None else holder.failed
    finally:
        os.close(descriptor)


class StoreLock:
    """A store held by this process. A context manager; `release` ends it, and so does the end of the process."""

    def __init__(self, folder: Path, holder: str) -> None:
        path = folder / LOCK
        try:
            tighten(folder)
            descriptor = open_private(path, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            raise StoreMissing(str(folder), "there is no store here") from None
        except OSError as error:
            raise StorageFailed(str(path), f"cannot open the lock: {error.strerror or error}") from error
        self._path = path
        self._folder_descriptor: int | None = None
        try:
            _lock(descriptor)
            self._lock_folder(folder)
        except OSError as error:
            present = _holder_named_in(descriptor)
            self._close(descriptor)
            if isinstance(error, BlockingIOError):
                who = str(present or "a runtime that has not written its name yet, or whose lock was removed")
                raise StoreInUse(str(folder), who) from None
            raise StorageFailed(str(path), f"cannot lock: {error.strerror or error}") from error
        self._descriptor: int | None = descriptor
        _holds.add(self)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self._holder = Holder(holder, os.getpid(), socket.gethostname(), since, pids=pids_here())
        try:
            self._write()
        except StorageFailed:
            self.release()
            raise

    def publish(self, connection: Mapping[str, str]) -> None:
        """Publish how another process of this user reaches the runtime that holds the store (`holder_of`). Raises
        `StorageFailed`; the store is held all the same."""
        self._holder = self._holder._replace(connection=dict(connection))
        self._write()

    def publish_failure(self, failed: str) -> None:
        """Publish what has ended the start of this holder. It stays when the store is released, until the next holder
        has it. Raises `StorageFailed`."""
        self._holder = self._holder._replace(failed=failed)
        self._write()

    def _write(self) -> None:
        """Name the holder, for the error of a second runtime."""
        assert self._descriptor is not None  # until it is released
        line = (json.dumps(self._holder._asdict()) + "\n").encode()
        try:
            os.pwrite(self._descriptor, line, 0)
            os.ftruncate(self._descriptor, len(line))
        except OSError as error:
            raise StorageFailed(str(self._path), f"cannot name the holder: {error.strerror or error}") from error

    def release(self) -> None:
        """Let others have the store. Releasing twice is allowed."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            if not self._holder.failed:
                os.ftruncate(descriptor, 0)
            self._close(descriptor)

    def _lock_folder(self, folder: Path) -> None:
        """Lock the folder as well: removing the lock file does not end its holder. Raises `BlockingIOError`."""
        try:
            self._folder_descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._folder_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # not every file system locks folders; the lock itself is held
            return

    def _close(self, descriptor: int) -> None:
        folder_descriptor, self._folder_descriptor = self._folder_descriptor, None
        if folder_descriptor is not None:
            os.close(folder_descriptor)
        os.close(descriptor)

    def _forget(self) -> None:
        """In a forked child: close the inherited copy, which else would hold the store beyond the parent's end."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


_holds: weakref.WeakSet[StoreLock] = weakref.WeakSet()


def _forget_in_child() -> None:
    for hold in list(_holds):
        hold._forget()


os.register_at_fork(after_in_child=_forget_in_child)


def _lock(descriptor: int) -> None:
    """Lock it for this process alone. A program that reads the holder (`holder_of`) may have it for some
    microseconds. Raises `BlockingIOError` if another process holds it."""
    for _ in range(_LOCK_TRIES - 1):
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_LOCK_AGAIN_S)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder_named_in(descriptor: int) -> Holder | None:
    """The holder that the lock file names; none if the file is empty, or not written yet."""
    try:
        facts = json.loads(os.pread(descriptor, HOLDER_BYTES_MAX, 0).partition(b"\n")[0])
        return Holder(
            str(facts["holder"]),
            int(facts["pid"]),
            str(facts["host"]),
            str(facts["since"]),
            {str(name): str(value) for name, value in dict(facts.get("connection") or {}).items()},
            str(facts.get("pids", "")),
            str(facts.get("failed", "")),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def pids_here() -> str:
    """Names the namespace of this process's id, on this machine since its last start."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return "unknown here"


def exists(path: Path) -> bool:
    """Whether it exists. A directory without the right to read it is an error, not an absence."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StorageFailed(str(path), error.strerror or str(error)) from error
    return True
