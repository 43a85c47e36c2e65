"""PartitionTransport: how a router reaches one actor: over a socket where there is one, else through Ray.

Step [2] of the write path, second half. Before it: the router has made an attempt. After it: the actor ([3]).

A partition reports, through Ray, the socket at which it listens (`socket_server.py`). If this process can open that
(`socket_search.py`), attempts use the socket connection; if not, for example because it is on another node, they use
Ray. A connection that is lost, with its partition, fails the attempts on it at once; the next ones use Ray until a new
connection is made. Which of the two is used, and when a connection is tried, is decided by `TransportChoice`
(`../sockets/transport_choice.py`).

Rule kept here: on either transport, the result of an attempt is reported exactly once, and an attempt that overtakes
another on a change of the transport is refused by the actor (`request_order.py`) like any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future as ThreadFuture
from functools import partial
from typing import Any

from ..sockets.transport_choice import TransportChoice
from .socket_client import SocketConnection
from .socket_search import SocketSearch

__all__ = ["PartitionTransport"]


class PartitionTransport:
    """Delivers attempts to one actor. Used on the router's event loop only."""

    choice_class: type[TransportChoice[SocketConnection]] = TransportChoice
    connection_class: type[SocketConnection] = SocketConnection

    def __init__(
        self,
        actor: Any,
        client: bytes,
        batch_done: Callable[[int, bytes | None], None],
        *,
        by_socket: bool,
        store_id: str = "",
    ) -> None:
        """`batch_done(attempt, answer)` is called once for each attempt, later; the answer is None if it failed.
        `by_socket`: the actor has a method `socket_path` that returns its socket. `store_id`: that of its store."""
        self.actor = actor
        self.died = False
        """Ray has reported that its process ended for good."""
        self._client, self._store_id = client, store_id
        self._came_back = batch_done
        self._loop = asyncio.get_running_loop()
        self._search = SocketSearch(actor, self.choice_class(by_socket=by_socket), self._new_connection)
        self._search.look()

    def has_socket(self) -> bool:
        """Whether attempts use a socket connection now."""
        return self._search.connection is not None

    def execute(self, attempt: int, predecessor: int, blob: bytes) -> None:
        """Start an attempt on its way. Returns at once and never raises."""
        connection = self._search.connection
        if connection is not None:
            connection.send(attempt, predecessor, blob)
            return
        try:
            sent = self.actor.execute.remote(self._client, attempt, predecessor, blob)
            sent.future().add_done_callback(partial(self._wake, attempt))
        except Exception:  # the actor is gone for good, or Ray is
            self._loop.call_soon(self._came_back, attempt, None)

    def retire(self) -> None:
        """Another way has taken its place: attempts on this one still come back, and its connection ends with its
        partition."""
        self._search.retire()

    def close(self) -> None:
        """Close the connection; attempts on it fail."""
        self._search.close()

    def _wake(self, attempt: int, answer: ThreadFuture[bytes]) -> None:
        """On a thread of Ray's: continue on the event loop, if there still is one."""
        try:
            self._loop.call_soon_threadsafe(self._answered, attempt, answer)
        except RuntimeError:
            answer.exception()

    def _answered(self, attempt: int, answer: ThreadFuture[bytes]) -> None:
        failure = answer.exception()
        failed = failure is not None
        self.died = self.died or type(failure).__name__ == "ActorDiedError"
        self._came_back(attempt, None if failed else answer.result())
        if not failed:
            self._search.look()

    def _new_connection(self) -> SocketConnection:
        return self.connection_class(self._client, self._came_back, self._lost, self._store_id)

    def _lost(self, connection: SocketConnection) -> None:
        """The partition has ended, or its socket server is full."""
        self._search.lost(connection, answered=connection.answered)
