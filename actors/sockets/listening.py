"""ListeningSocket: a Unix socket at a fresh path, at which a process listens for clients of its own machine.

Beside steps [3] and [8]. Around it: the servers of a partition and of a projector, which accept from it.

Who may come in is decided by the file system: the socket has mode 0600, in a folder of mode 0700 that belongs to the
user of the process. Where such a folder cannot be made there is no socket, and clients use Ray.

Rule kept here: what dead processes have left is removed only where nothing listens any more. A child that user code
forks closes what it has inherited.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

from ...runtime.errors import NotPrivate
from ...runtime.printable import printable_log
from ...runtime.private import private_temporary_folder

__all__ = [
    "CONNECTIONS_MAX",
    "REFUSED_AT_ONCE_MAX",
    "CREDENTIALS",
    "ListeningSocket",
    "check_own_user",
    "closed_in_children",
    "full",
    "let_go",
    "open_listening_socket",
    "other_end",
]

log = printable_log(__name__)

CONNECTIONS_MAX: Final = 64
"""Programs on one machine that are connected to one partition or projector. Others use Ray, or the relay."""

REFUSED_AT_ONCE_MAX: Final = 16
"""Connections beyond them whose greeting is awaited, to be refused with the reason. More are ended at once."""

_BACKLOG: Final = 512
"""How many may have connected before the other end has come to them, in a burst."""

_STARTING_MAX_S: Final = 60.0
"""How young another process's socket may be to be just about to listen."""

_PATH_BYTES_MAX: Final = 107
"""The size of a socket's path in Linux."""

CREDENTIALS: Final = struct.Struct("iII")
"""What the kernel knows of the process at the other end: its id, its user, its group."""

_NO_USER: Final = 0xFFFFFFFF
"""What the kernel names of a socket that is not connected."""


class ListeningSocket:
    """A bound socket, at which nothing listens before `listen`."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError`."""
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.bind(os.fspath(path))
            path.chmod(0o600)  # no client can have connected: it does not listen yet
            self.socket.listen(_BACKLOG)
            self._place = _place_of(path)
        except OSError:
            self.socket.close()
            raise
        self._warned = False
        """That its file is gone, and cannot be made again."""

    def is_in_place(self) -> bool:
        """Whether a program that connects to the path comes here: its file may have been removed, as what is old in a
        temporary folder is by some systems."""
        return _place_of(self.path) == self._place

    def put_back(self) -> ListeningSocket:
        """This one; or, if its file is gone, another one at the same path, for its server to accept from instead. This
        one too where that cannot be, which the log has once."""
        if self.is_in_place():
            return self
        try:
            private_temporary_folder()  # it may have been removed with its content
            fresh = ListeningSocket(self.path)
        except (OSError, NotPrivate) as error:  # also where there is another file now
            if not self._warned:
                self._warned = True
                log.warning("%s was removed, and cannot be made again: %s", self.path, error)
            return self
        log.warning("%s was removed, and is made again", self.path)
        return fresh

    def close(self) -> None:
        """Accept no connection any more: a thread that waits in `accept` is woken. Its file is removed, and no other
        one that is there by now. Closing twice is allowed."""
        in_place = self.is_in_place()
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        if in_place:
            with contextlib.suppress(OSError):  # the folder may be read-only by now
                self.path.unlink(missing_ok=True)


def _place_of(path: Path) -> tuple[int, int] | None:
    """Which file is there; None if there is none, or it cannot be seen."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def other_end(connected: socket.socket) -> tuple[int, int]:
    """The id and the user of the process at the other end."""
    process_id, user, _ = CREDENTIALS.unpack(
        connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    )
    return process_id, user


def full(most: int) -> str:
    """Why a program is refused beyond so many."""
    return f"{most} programs are connected, and no more are taken in"


def check_own_user(connected: socket.socket) -> None:
    """Raises `NotPrivate` if a process of another user listens at the other end. What it gives is imported here, and
    its answers are unpickled; and what it is given are the events of a store. Raises `ConnectionRefusedError` if there
    is no other end: asyncio takes a socket for connected that Linux has refused, since as many wait to be accepted as
    may."""
    _, user = other_end(connected)
    if user == _NO_USER:
        raise ConnectionRefusedError(
            "the process that listens there takes no connection; it may be frozen, or too busy"
        )
    if user != os.geteuid():
        what = f"user {user} runs the process that listens there, and this one is of user {os.geteuid()}"
        raise NotPrivate(connected.getpeername(), what, "run both as the same user")


_open_here: Final[WeakSet[Any]] = WeakSet()


def closed_in_children(end: Any) -> None:
    """Have its `close_in_child` called in each child that user code forks: what that has inherited is its parent's, and
    the other ends would wait for the child as well before they know that the parent has ended."""
    _open_here.add(end)


def let_go(descriptors: Iterable[int]) -> None:
    """In such a child: close these sockets. Their numbers stay taken: objects of the parent's close them again some
    time. Negative ones are closed already."""
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in descriptors:
        if descriptor >= 0:
            os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)


def _close_in_child() -> None:
    for end in list(_open_here):
        end.close_in_child()


os.register_at_fork(after_in_child=_close_in_child)


def open_listening_socket(name: str) -> ListeningSocket | None:
    """Listen at a fresh path. Returns None, and logs why, if no private socket folder is available.

    `name` is that of the partition or projector: what its dead processes have left is removed.
    """
    try:
        folder = private_temporary_folder()
        _remove_dead(folder, name)
        path = folder / f"{name}.{secrets.token_hex(4)}"
        if len(os.fsencode(path)) > _PATH_BYTES_MAX:
            raise OSError(f"{path} is too long for a socket, over {_PATH_BYTES_MAX} bytes; set TMPDIR to a shorter one")
        return ListeningSocket(path)
    except (OSError, NotPrivate) as error:
        log.warning("no socket for %s, so its clients use Ray: %s", name, error)
        return None


def _remove_dead(folder: Path, name: str) -> None:
    """Remove the sockets of this name, and old ones of any, at which no process listens any more."""
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process removes it too
            if not path.is_socket():  # such as the folder of code
                continue
            if not path.name.startswith(f"{name}.") and time.time() - path.lstat().st_mtime < _STARTING_MAX_S:
                continue
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trying, contextlib.suppress(OSError):
            trying.setblocking(False)  # one that is stopped, with a full backlog, would have us wait
            try:
                trying.connect(os.fspath(path))
            except ConnectionRefusedError:
                path.unlink()
