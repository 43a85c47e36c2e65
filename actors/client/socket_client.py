"""SocketConnection: the Unix socket over which a client on the same machine reaches a partition, without Ray in
between.

Between steps [2] and [3] of the write path. Before it: a `PartitionTransport` (`transport.py`) has an attempt to
deliver. After it: the partition's `SocketServer` (`socket_server.py`), which executes it and answers on the same
connection.

First both ends greet each other (`../sockets/handshake.py`). Then what travels is what a Ray call would carry: an
attempt's numbers and a batch in msgpack, and back what a batch costs and its outcomes in msgpack; nothing is unpickled.
What the bytes mean is decided by `ClientProtocol` (`socket_protocol.py`); here they are only moved.

Rules kept here: nothing is sent before the partition has answered the greeting; when the connection is lost, every
attempt on it has failed, and its owner is notified at once.

Why beside Ray: a call through Ray takes 0.6 ms and 0.28 ms of CPU, one over a socket 0.03 ms
(docs/decisions/0008-a-socket-beside-ray.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ...runtime.printable import printable_log
from ..sockets.handshake import Handshake
from .socket_protocol import ClientProtocol

__all__ = ["SocketConnection"]

log = printable_log(__name__)


class SocketConnection(asyncio.Protocol):
    """The client's end of one connection. Made by `PartitionTransport`; used on the client's event loop only."""

    protocol_class: type[ClientProtocol] = ClientProtocol

    def __init__(
        self,
        client: bytes,
        batch_done: Callable[[int, bytes | None], None],
        tell_lost: Callable[[SocketConnection], None],
        store_id: str = "",
    ) -> None:
        """`store_id`: that of the partition's store, if it is known."""
        self.lost = False
        """The connection has ended."""
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once attempts may be sent, and once the connection is lost."""
        self._handshake = Handshake("partition", store_id)
        self._protocol = self.protocol_class(client)
        self._came_back, self._tell_lost = batch_done, tell_lost
        self._transport: Any = None

    @property
    def answered(self) -> bool:
        """Something came back: it is a partition that listens there."""
        return self._protocol.answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio has connected us."""
        self._transport = transport
        self._transport.write(self._handshake.greeting())

    def send(self, attempt: int, predecessor: int, blob: bytes) -> None:
        """Send an attempt. `batch_done` gets its answer, or None if the connection is lost before."""
        self._transport.write(self._protocol.send(attempt, predecessor, blob))

    def data_received(self, data: bytes) -> None:
        """Asyncio has read some of what came: a part of an answer, or several of them."""
        if not self._handshake.done:
            self._greet(data)
            return
        for attempt, answer in self._protocol.receive(data):
            self._came_back(attempt, answer)
        if self._protocol.refused:
            self._transport.abort()  # the process that listens there is no partition of this system

    def connection_lost(self, error: Exception | None) -> None:
        """The partition, its socket server or this client has ended the connection: what is in flight has failed."""
        self.lost = True
        if not self.greeted.done():
            self.greeted.set_result(None)
        self._tell_lost(self)
        for attempt in self._protocol.end():
            self._came_back(attempt, None)

    def close(self) -> None:
        """End the connection; attempts on it fail."""
        self._transport.abort()

    def _greet(self, data: bytes) -> None:
        self._handshake.receive(data)
        if self._handshake.refused or self._handshake.rest:  # nothing was asked yet that could be answered
            log.warning("a partition's socket is not used, but Ray: %s", self._handshake.refused or "it speaks unasked")
            self._transport.abort()
        elif self._handshake.done and not self.greeted.done():
            self.greeted.set_result(None)
