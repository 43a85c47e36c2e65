"""SocketSearch: finds the socket at which an actor listens, and connects to it, in the background.

Beside steps [2] and [8]. Around it: a `PartitionTransport` (`transport.py`) or a replica of a `ReplicaPool`
(`replica_pool.py`). When to search is decided by `TransportChoice` (`../sockets/transport_choice.py`).

The actor reports its socket through Ray. If this process can open that, there is a connection; if not, for example
because the actor is on another node, there is none, and Ray is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from ..sockets.transport_choice import TransportChoice
from .greeted_connection import GreetedConnection

__all__ = ["SocketSearch"]

_LOOK_TIMEOUT_S: Final = 10.0
"""For asking an actor and connecting: longer than a killed one takes to come back."""

Connection = TypeVar("Connection", bound=GreetedConnection)


class SocketSearch(Generic[Connection]):
    """Between one client and one actor. Used on the client's event loop only."""

    def __init__(
        self, actor: Any, choice: TransportChoice[Connection], new_connection: Callable[[], Connection]
    ) -> None:
        """`new_connection`: makes the client's end, which reports to `lost`."""
        self._actor, self._choice, self._new_connection = actor, choice, new_connection
        self._loop = asyncio.get_running_loop()
        self._looking: asyncio.Task[None] | None = None

    @property
    def connection(self) -> Connection | None:
        """What there is; None: Ray is used."""
        return self._choice.connection

    @property
    def open(self) -> bool:
        """There is a connection, or may be one in a moment."""
        return self._looking is not None or self._choice.connection is not None

    def look(self) -> None:
        """Try to open a connection in the background, if it is time to."""
        if self._choice.begin_look(self._loop.time()):
            self._looking = self._loop.create_task(self._find())

    def lost(self, connection: Connection, *, answered: bool) -> None:
        """The actor has ended, or its socket server is full. `answered`: it had answered before."""
        self._choice.lost(connection, self._loop.time(), answered=answered)

    def retire(self) -> None:
        """Look no more; an open connection ends with its actor."""
        self._choice.stop_looking()

    def close(self) -> None:
        """Look no more, and close the connection: what is in flight on it fails."""
        self._choice.stop_looking()
        if self._looking is not None:
            self._looking.cancel()
        if self._choice.connection is not None:
            self._choice.connection.close()

    async def _find(self) -> None:
        """Ask the actor where its socket is, and open it. Whatever fails, Ray is there."""
        found: Connection | None = None
        try:
            async with asyncio.timeout(_LOOK_TIMEOUT_S):
                path = await asyncio.wrap_future(self._actor.socket_path.remote().future())
                if path:
                    found = await self._connected(path)
        except Exception:  # of Ray's there are many, and of sockets
            found = None
        finally:
            self._looking = None
        if found is None:
            self._choice.not_found(self._loop.time())
        else:
            self._choice.found(found)

    async def _connected(self, path: str) -> Connection | None:
        connection = self._new_connection()
        await self._loop.create_unix_connection(lambda: connection, path)
        try:
            await connection.greeted
        except BaseException:  # it took too long, or the search was closed meanwhile
            connection.close()
            raise
        return None if connection.lost else connection
