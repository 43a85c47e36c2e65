"""SocketConnection: the Unix socket over which a client on the same machine reaches a partition, without Ray in
between.

Between steps [2] and [3] of the write path. Before it: a `PartitionTransport` (`transport.py`) has an attempt to
deliver. After it: the partition's `SocketServer` (`socket_server.py`), which executes it and answers on the same
connection.

What travels after the greetings (`greeted_connection.py`) is what a Ray call would carry: an attempt's numbers and a
batch in msgpack, and back what a batch costs and its outcomes in msgpack; nothing is unpickled. What the bytes mean is
decided by `ClientProtocol` (`socket_protocol.py`); here they are only moved.

Why beside Ray: a call through Ray takes 0.6 ms and 0.28 ms of CPU, one over a socket 0.03 ms
(docs/decisions/0008-a-socket-beside-ray.md).
"""

from __future__ import annotations

from collections.abc import Callable

from .greeted_connection import GreetedConnection
from .socket_protocol import ClientProtocol

__all__ = ["SocketConnection"]


class SocketConnection(GreetedConnection):
    """The client's end of one connection. Made by `PartitionTransport`; used on the client's event loop only."""

    protocol_class: type[ClientProtocol] = ClientProtocol

    def __init__(
        self,
        client: bytes,
        batch_done: Callable[[int, bytes | None], None],
        on_lost: Callable[[SocketConnection], None],
        store_id: str = "",
    ) -> None:
        """`store_id`: that of the partition's store, if it is known."""
        super().__init__("partition", store_id)
        self._protocol = self.protocol_class(client)
        self._came_back, self._on_lost = batch_done, on_lost

    @property
    def answered(self) -> bool:
        """Something came back: it is a partition that listens there."""
        return self._protocol.answered

    def send(self, attempt: int, predecessor: int, blob: bytes) -> None:
        """Send an attempt. `batch_done` gets its answer, or None if the connection is lost before."""
        self._transport.write(self._protocol.send(attempt, predecessor, blob))

    def read(self, data: bytes) -> str:
        """See `GreetedConnection`."""
        for attempt, answer in self._protocol.receive(data):
            self._came_back(attempt, answer)
        return self._protocol.refused

    def end(self) -> None:
        """See `GreetedConnection`: what is in flight has failed."""
        self._on_lost(self)
        for attempt in self._protocol.end():
            self._came_back(attempt, None)
