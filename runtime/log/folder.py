"""The folder of a log: made, checked for whose log it holds, and opened.

Step [5] of the write path. `open_log` gives the partition its writable log, `open_reader` gives every other process a
reader of it.

Rule kept here: a log that should be there and is not is an error, never a new one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from ..durable_files import fsync_folder
from ..errors import StorageFailed, StoreMissing
from ..private import make_private_folder, tighten
from .environment import MAP_BYTES_START, Environment
from .identity import check_identity, is_new, write_identity
from .reader import LmdbReader
from .writer import LmdbLog

__all__ = ["open_log", "open_reader"]


def open_log(
    path: str | os.PathLike[str],
    name: str,
    *,
    identity: str = "",
    create: bool = True,
    now_us: Callable[[], int] | None = None,
    map_bytes: int = MAP_BYTES_START,
) -> LmdbLog:
    """The writable log in the folder `path`; errors call it `name` ("partition 3").

    `identity` is the expected owner of the log, and is written into a new one. With `create=False` a log that is not
    there is `StoreMissing` instead of a silent new one. `now_us` is the clock of `recorded_at_us`. Raises
    `StoreMissing`, `StoreMismatch`, `Damaged` or `StorageFailed`.
    """
    folder = Path(path)
    if not _is_there(folder):
        if not create:
            raise StoreMissing(str(folder), f"the log of {name} is not here")
        _make_folder(folder)
    else:
        _tighten(folder)
    environment = Environment(folder, name, readonly=False, map_bytes=map_bytes)
    try:
        if create and is_new(environment):
            write_identity(environment, identity)
        check_identity(environment, identity)
    except BaseException:
        environment.close()
        raise
    return LmdbLog(environment, now_us or (lambda: time.time_ns() // 1000))


def open_reader(path: str | os.PathLike[str], name: str, *, identity: str = "") -> LmdbReader:
    """A reader of the log in the folder `path` for a process that is not its writer; sees each commit at once.

    Raises `StoreMissing`, `StoreMismatch`, `Damaged` or `StorageFailed`.
    """
    folder = Path(path)
    if not _is_there(folder):
        raise StoreMissing(str(folder), f"the log of {name} is not here")
    environment = Environment(folder, name, readonly=True, map_bytes=0)
    try:
        check_identity(environment, identity)
    except BaseException:
        environment.close()
        raise
    return LmdbReader(environment)


def _is_there(folder: Path) -> bool:
    """Whether the folder holds an LMDB file. An empty one does not count: LMDB would make a new log of it."""
    try:
        return (folder / "data.mdb").stat().st_size > 0
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StorageFailed(str(folder), error.strerror or str(error)) from error


def _make_folder(folder: Path) -> None:
    """Make a folder for a new log, durably: LMDB fsyncs its files, not the folder that names them."""
    try:
        make_private_folder(folder)
        fsync_folder(folder.parent)
    except OSError as error:
        raise StorageFailed(str(folder), f"cannot make the folder: {error.strerror or error}") from error


def _tighten(folder: Path) -> None:
    """Take the rights of other users away from the folder of a log that this process writes to."""
    try:
        tighten(folder)
    except OSError as error:
        raise StorageFailed(str(folder), error.strerror or str(error)) from error
