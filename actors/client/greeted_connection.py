"""GreetedConnection: the client's end of a connection on a Unix socket, whatever is asked on it.

Beside steps [2] and [8]. First both ends greet each other (`../sockets/handshake.py`); then a `SocketConnection` has a
partition execute batches, and a `QueryConnection` has a projector answer queries.

Rules kept here: nothing is sent to, and nothing read from, a process of another user; nothing is sent before the other
end has answered the greeting; when the connection is lost, whatever is in flight on it has failed, and its owner is
notified at once.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ...runtime.errors import NotPrivate
from ...runtime.printable import printable_log
from ..sockets.handshake import Handshake
from ..sockets.listening import check_own_user, closed_in_children, let_go

__all__ = ["GreetedConnection"]

log = printable_log(__name__)


class GreetedConnection(asyncio.Protocol):
    """Connected by asyncio; used on the client's event loop only."""

    def __init__(self, service: str, store_id: str = "") -> None:
        """`service`: what listens there; `store_id`: of its store, if it is known."""
        self.lost = False
        """The connection has ended."""
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once something may be sent, and once the connection is lost."""
        self._handshake = Handshake(service, store_id)
        self._service = service
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio has connected us."""
        self._transport = transport
        closed_in_children(self)
        try:
            check_own_user(transport.get_extra_info("socket"))
        except (NotPrivate, ConnectionRefusedError) as error:
            log.warning("a %s's socket is not used, and calls take longer: %s", self._service, error)
            self._transport.abort()
        else:
            self._transport.write(self._handshake.greeting())

    def data_received(self, data: bytes) -> None:
        """Asyncio has read some of what came: a part of an answer, or several of them."""
        if not self._handshake.done:
            self._greet(data)
        elif refused := self.read(data):
            log.warning("a %s's socket is not used any more, and calls take longer: %s", self._service, refused)
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """The other end, or this client, has ended the connection."""
        self.lost = True
        if not self.greeted.done():
            self.greeted.set_result(None)
        self.end()

    def read(self, data: bytes) -> str:
        """Pass on what `data` answers. Returns why the connection has to be ended, if it has."""
        raise NotImplementedError

    def end(self) -> None:
        """Pass on that the connection has ended, and what has failed with it."""
        raise NotImplementedError

    def close_in_child(self) -> None:
        """See `closed_in_children`."""
        let_go([self._transport.get_extra_info("socket").fileno()])

    def close(self) -> None:
        """End the connection; what is in flight on it fails."""
        self._transport.abort()

    def _greet(self, data: bytes) -> None:
        self._handshake.receive(data)
        if self._handshake.refused or self._handshake.rest:  # nothing was asked yet that could be answered
            why = self._handshake.refused or "it speaks unasked"
            log.warning("a %s's socket is not used, and calls take longer: %s", self._service, why)
            self._transport.abort()
        elif self._handshake.done and not self.greeted.done():
            self.greeted.set_result(None)
