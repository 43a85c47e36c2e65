"""One environment for all readers of a log within a process.

Beside the write path. LMDB refuses to open an environment twice in one process, and a process may have several uses for
the same log at once: an embedded replica, subscriptions, the status, a read of a history. So a reader that is opened
through a `Store` shares the environment with those that are open already, and the last one to close releases it.

Rules kept here: each reader is closed for itself. Closing one twice takes nothing from the others, and using a closed
one is an error even while they keep the environment open. What is shared is the environment of a file, not of a path: a
partition that went to another node and came back has another file under the same path.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Any, NoReturn

from ..errors import StorageFailed
from ..log.environment import Environment
from ..log.folder import open_reader
from ..log.identity import check_identity
from ..log.reader import LmdbReader

__all__ = ["open_shared_reader"]


_File = tuple[int, int]
"""Device and inode of a log's file."""


class _Shared:
    """An open environment and how many readers use it."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.process = os.getpid()
        self.readers = 0


_lock = threading.Lock()
_open: dict[_File, _Shared] = {}
"""As many as this process has logs open for reading."""


def open_shared_reader(path: str | os.PathLike[str], name: str, *, identity: str = "") -> LmdbReader:
    """Like `open_reader`, as often as one likes. Raises `StoreMissing`, `StoreMismatch`, `Damaged`, `StorageFailed`."""
    with _lock:
        key = _file_at(Path(path))
        shared = _open.get(key)
        if shared is None or shared.process != os.getpid():  # what a fork has inherited is of no use
            shared = _Shared(open_reader(Path(path), name, identity=identity).environment)
            _open[key] = shared
        else:
            check_identity(shared.environment, identity)
        shared.readers += 1
    return _SharedReader(key, shared)


def _file_at(path: Path) -> _File:
    """The head of a missing log: there is no file, and opening it raises the error."""
    with contextlib.suppress(OSError):
        found = (path / "data.mdb").stat()
        return found.st_dev, found.st_ino
    return 0, 0


class _SharedReader(LmdbReader):
    """A reader over an environment that others may be using too."""

    def __init__(self, key: _File, shared: _Shared) -> None:
        super().__init__(shared.environment)
        self._key = key
        self._shared: _Shared | None = shared

    def close(self) -> None:
        """Release the reader. The environment is closed with the last of its readers. Closing twice is allowed."""
        with _lock:
            shared, self._shared = self._shared, None
            if shared is None:
                return
            closed: Any = _Closed(shared.environment)
            self.environment = closed
            shared.readers -= 1
            if shared.readers:
                return
            if _open.get(self._key) is shared:
                del _open[self._key]
            shared.environment.close()


class _Closed:
    """What a closed reader has in place of its environment: every use of it is an error."""

    def __init__(self, environment: Environment) -> None:
        self.name, self.path = environment.name, environment.path

    def close(self) -> None:
        """Nothing is left to be closed."""

    def __getattr__(self, attribute: str) -> NoReturn:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise StorageFailed(str(self.path), f"{self.name} was closed")
