"""PartitionTransport: how a router reaches one actor: over a socket where there is one, else through Ray.

Step [2] of the write path, second half. Before it: the router has made an attempt. After it: the actor ([3]).

A partition reports, through Ray, the socket at which it listens (`socket_server.py`). If this process can open that,
attempts use the socket connection; if not, for example because it is on another node, they use Ray. A connection that
is lost, with its partition, fails the attempts on it at once; the next ones use Ray until a new connection is made.
Which of the two is used, and when a connection is tried, is decided by `TransportChoice` (`transport_choice.py`).

Rule kept here: on either transport, the result of an attempt is reported exactly once, and an attempt that overtakes
another on a change of the transport is refused by the actor (`request_order.py`) like any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future as ThreadFuture
from functools import partial
from typing import Any, Final

from .socket_client import SocketConnection
from .transport_choice import TransportChoice

__all__ = ["PartitionTransport"]

_LOOK_TIMEOUT_S: Final = 10.0
"""For asking a partition and connecting: longer than a killed one takes to come back."""


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
        self._choice = self.choice_class(by_socket=by_socket)
        self._looking: asyncio.Task[None] | None = None
        self._look()

    def has_socket(self) -> bool:
        """Whether attempts use a socket connection now."""
        return self._choice.connection is not None

    def execute(self, attempt: int, predecessor: int, blob: bytes) -> None:
        """Start an attempt on its way. Returns at once and never raises."""
        connection = self._choice.connection
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
        self._choice.stop_looking()

    def close(self) -> None:
        """Close the connection; attempts on it fail."""
        self._choice.stop_looking()
        if self._looking is not None:
            self._looking.cancel()
        if self._choice.connection is not None:
            self._choice.connection.close()

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
            self._look()

    def _look(self) -> None:
        """Try to open a socket connection in the background, if it is time to."""
        if self._choice.begin_look(self._loop.time()):
            self._looking = self._loop.create_task(self._find_socket())

    async def _find_socket(self) -> None:
        """Ask the actor where its socket is, and open it. Whatever fails, Ray is there."""
        found: SocketConnection | None = None
        try:
            async with asyncio.timeout(_LOOK_TIMEOUT_S):
                path = await asyncio.wrap_future(self.actor.socket_path.remote().future())
                if path:
                    connection = self.connection_class(self._client, self._came_back, self._lost, self._store_id)
                    await self._loop.create_unix_connection(lambda: connection, path)
                    await connection.greeted
                    found = None if connection.lost else connection
        except Exception:  # of Ray's there are many, and of sockets
            found = None
        finally:
            self._looking = None
        if found is None:
            self._choice.not_found(self._loop.time())
        else:
            self._choice.found(found)

    def _lost(self, connection: SocketConnection) -> None:
        """The partition has ended, or its socket server is full."""
        self._choice.lost(connection, self._loop.time(), answered=connection.answered)
