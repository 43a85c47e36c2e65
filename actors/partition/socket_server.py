"""SocketServer: where a partition listens for clients of its own machine, on a Unix socket.

Beside step [3] of the write path. Before it: a client's `SocketConnection` (`socket_client.py`). After it: the
partition's `execute`, which sees no difference to a call through Ray.

Who may come in is decided by the file system (`../sockets/listening.py`). What the bytes mean is decided by
`ServerProtocol` (`socket_protocol.py`); here they are moved, and requests executed.

A client is greeted first (`../sockets/handshake.py`): one of another release, or of another store, is refused by name.

Rules kept here: connections are bounded, each has one frame in memory, and a client that does not read its answers
stops only itself. A request that cannot be executed ends its connection; the client sends again, through Ray.

Why a thread for each connection: it blocks in `recv`, so an idle one costs nothing, and nothing polls. An asyncio loop
in the actor would be one more thing that needs the interpreter before a commit may begin.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Final

from ...runtime.printable import printable_log
from ..sockets.greeting import greet_client
from ..sockets.handshake import Handshake
from ..sockets.listening import (
    CONNECTIONS_MAX,
    REFUSED_AT_ONCE_MAX,
    ListeningSocket,
    closed_in_children,
    full,
    open_listening_socket,
)
from .socket_protocol import ServerProtocol

__all__ = ["SocketServer", "open_socket_server"]

log = printable_log(__name__)

_PAUSE_S: Final = 1.0
"""Pause after an `accept` that failed, for example for want of file descriptors."""


class SocketServer:
    """A listening socket and the threads that serve its connections."""

    def __init__(
        self, listening: ListeningSocket, store_id: str, execute: Callable[[bytes, int, int, bytes], bytes]
    ) -> None:
        """Serve at once, and `execute(client, attempt, predecessor, batch)`, on many threads. Raises `OSError`."""
        self.path = listening.path
        self._store_id = store_id
        self._execute = execute
        self._connections: set[socket.socket] = set()
        self._closed = threading.Event()
        self._listening = listening
        closed_in_children(self)
        try:
            threading.Thread(target=self._accept, name="rayfold-socket-server", daemon=True).start()
        except RuntimeError as error:  # there may be no more threads
            self.close()
            raise OSError(str(error)) from error

    def put_back(self) -> None:
        """Make the file of the socket again if it was removed; who is connected stays. By one thread at a time."""
        before, self._listening = self._listening, self._listening.put_back()
        if before is not self._listening:
            before.close()  # which wakes the thread that accepts
            if self._closed.is_set():  # meanwhile
                self._listening.close()

    def close(self) -> None:
        """Accept no connection any more, and end every one. Closing twice is allowed."""
        self._closed.set()
        for one in list(self._connections):
            with contextlib.suppress(OSError):  # which also wakes the thread that waits there
                one.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def close_in_child(self) -> None:
        """See `closed_in_children`."""
        for one in (self._listening.socket, *self._connections):
            one.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            listening = self._listening
            try:
                connection, _ = listening.socket.accept()
            except OSError as error:
                if not self._closed.is_set() and listening is self._listening:
                    log.warning("%s accepts no connection for now: %s", self.path, error)
                    self._closed.wait(_PAUSE_S)
                continue
            why_not = full(CONNECTIONS_MAX) if len(self._connections) >= CONNECTIONS_MAX else ""
            if len(self._connections) >= CONNECTIONS_MAX + REFUSED_AT_ONCE_MAX or self._closed.is_set():
                connection.close()
                continue
            self._connections.add(connection)
            try:
                threading.Thread(
                    target=self._serve, args=(connection, why_not), name="rayfold-socket-connection", daemon=True
                ).start()
            except RuntimeError as error:  # there may be no more threads
                log.warning("%s closes a client's connection, which continues through Ray: %s", self.path, error)
                self._connections.discard(connection)
                connection.close()

    def _serve(self, connection: socket.socket, why_not: str) -> None:
        """Answer the attempts of one client, in order, until it goes. `why_not`: it is not taken in, and why."""
        protocol = ServerProtocol()
        try:
            if refused := greet_client(connection, Handshake("partition", self._store_id), why_not):
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
        except BaseException:  # on this thread nothing else would see it
            log.exception("%s: a batch could not be executed; its client will send it again", self.path)
        finally:
            self._connections.discard(connection)
            connection.close()


def open_socket_server(
    name: str, store_id: str, execute: Callable[[bytes, int, int, bytes], bytes]
) -> SocketServer | None:
    """Open a server on a fresh path. Returns None, and logs why, if no private socket folder is available.

    `name` is that of the partition: what its dead activations have left is removed.
    """
    listening = open_listening_socket(name)
    if listening is None:
        return None
    try:
        return SocketServer(listening, store_id, execute)
    except OSError as error:
        log.warning("no socket for %s, so its clients use Ray: %s", name, error)
        return None
