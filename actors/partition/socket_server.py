"""SocketServer: where a partition listens for clients of its own machine, on a Unix socket.

Beside step [3] of the write path. Before it: a client's `SocketConnection` (`socket_client.py`). After it: the
partition's `execute`, which sees no difference to a call through Ray.

Who may come in is decided by the file system: the socket has mode 0600, in a folder of mode 0700 that belongs to the
user of the process. Where such a folder cannot be made there is no server, and clients use Ray.

What the bytes mean is decided by `ServerProtocol` (`socket_protocol.py`); here they are moved, and requests executed.

A client is greeted first (`../sockets/handshake.py`): one of another release, or of another store, is refused by name.

Rules kept here: connections are bounded, each has one frame in memory, and a client that does not read its answers
stops only itself. A request that cannot be executed ends its connection; the client sends again, through Ray.

Why a thread for each connection: it blocks in `recv`, so an idle one costs nothing, and nothing polls. An asyncio loop
in the actor would be one more thing that needs the interpreter before a commit may begin.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final
from weakref import WeakSet

from ...runtime.errors import NotPrivate
from ...runtime.printable import printable_log
from ...runtime.private import private_temporary_folder
from ..sockets.greeting import greet_client
from ..sockets.handshake import Handshake
from .socket_protocol import ServerProtocol

__all__ = ["CONNECTIONS_MAX", "SocketServer", "open_socket_server"]

log = printable_log(__name__)

CONNECTIONS_MAX: Final = 64
"""Programs on one machine that write to one partition over a socket: a thread and at most 1 MiB each. Others use
Ray."""

_PAUSE_S: Final = 1.0
"""Pause after an `accept` that failed, for example for want of file descriptors."""

_STARTING_MAX_S: Final = 60.0
"""How young another partition's socket may be to be just about to listen."""

_PATH_BYTES_MAX: Final = 107
"""The size of a socket's path in Linux."""


class SocketServer:
    """A listening socket and the threads that serve its connections."""

    def __init__(self, path: Path, store_id: str, execute: Callable[[bytes, int, int, bytes], bytes]) -> None:
        """Listen at `path` and `execute(client, attempt, predecessor, batch)`, on many threads. Raises `OSError`."""
        self.path = path
        self._store_id = store_id
        self._execute = execute
        self._connections: set[socket.socket] = set()
        self._closed = threading.Event()
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listening.bind(os.fspath(path))
            path.chmod(0o600)  # no client can have connected: it does not listen yet
            self._listening.listen(CONNECTIONS_MAX)
        except OSError:
            self._listening.close()
            raise
        _open_here.add(self)
        try:
            threading.Thread(target=self._accept, name="rayfold-socket-server", daemon=True).start()
        except RuntimeError as error:  # there may be no more threads
            self.close()
            raise OSError(str(error)) from error

    def close(self) -> None:
        """Accept no connection any more, and end every one. Closing twice is allowed."""
        self._closed.set()
        for one in (self._listening, *list(self._connections)):
            with contextlib.suppress(OSError):  # which also wakes the thread that waits there
                one.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with contextlib.suppress(OSError):  # the folder may be read-only by now
            self.path.unlink(missing_ok=True)

    def close_in_child(self) -> None:
        """In a child that user code has forked: what it inherited is its parent's, whose clients would wait for the
        child as well before they know that the parent has ended."""
        for one in (self._listening, *self._connections):
            one.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._listening.accept()
            except OSError as error:
                if not self._closed.is_set():
                    log.warning("%s accepts no connection for now: %s", self.path, error)
                    self._closed.wait(_PAUSE_S)
                continue
            if len(self._connections) >= CONNECTIONS_MAX or self._closed.is_set():
                connection.close()
                continue
            self._connections.add(connection)
            try:
                threading.Thread(
                    target=self._serve, args=(connection,), name="rayfold-socket-connection", daemon=True
                ).start()
            except RuntimeError as error:  # there may be no more threads
                log.warning("%s closes a client's connection, which continues through Ray: %s", self.path, error)
                self._connections.discard(connection)
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        """Answer the attempts of one client, in order, until it goes."""
        protocol = ServerProtocol()
        try:
            if refused := greet_client(connection, Handshake("partition", self._store_id)):
                log.warning("%s refuses a client: %s", self.path, refused)
                return
            while data := connection.recv(protocol.wanted_bytes, socket.MSG_WAITALL):
                request = protocol.receive(data)
                if request is not None:
                    connection.sendall(protocol.answer(request, self._execute(*request)))
                elif protocol.refused:
                    log.warning("%s: %s", self.path, protocol.refused)
                    return
        except OSError as error:
            if not self._closed.is_set():
                log.debug("%s: a client has gone: %s", self.path, error)
        except Exception:
            log.exception("%s: a batch could not be executed; its client will send it again", self.path)
        finally:
            self._connections.discard(connection)
            connection.close()


_open_here: Final[WeakSet[SocketServer]] = WeakSet()


def _close_in_child() -> None:
    for server in list(_open_here):
        server.close_in_child()


os.register_at_fork(after_in_child=_close_in_child)


def open_socket_server(
    name: str, store_id: str, execute: Callable[[bytes, int, int, bytes], bytes]
) -> SocketServer | None:
    """Open a server on a fresh path. Returns None, and logs why, if no private socket folder is available.

    `name` is that of the partition: what its dead activations have left is removed.
    """
    try:
        folder = private_temporary_folder()
        _remove_dead(folder, name)
        path = folder / f"{name}.{secrets.token_hex(4)}"
        if len(os.fsencode(path)) > _PATH_BYTES_MAX:
            raise OSError(f"{path} is too long for a socket, over {_PATH_BYTES_MAX} bytes; set TMPDIR to a shorter one")
        return SocketServer(path, store_id, execute)
    except (OSError, NotPrivate) as error:
        log.warning("no socket for %s, so its clients use Ray: %s", name, error)
        return None


def _remove_dead(folder: Path, name: str) -> None:
    """Remove the sockets of this partition, and old ones of any, at which no process listens any more."""
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
