"""QueryConnection: the Unix socket over which a client on the same machine reaches a projector, without Ray in
between.

Step [8] of the read path, the caller's half. Before it: a `ReplicaPool` (`replica_pool.py`) has queries. After it: the
projector's `QueryServer` (`../projection/query_server.py`), which answers on the same connection.

What travels to the projector is what a Ray call would carry, in msgpack; what comes back are pickled answers, as
through Ray: the socket is in a folder that only this user can enter. What the bytes mean is decided by
`QueryClientProtocol` (`query_protocol.py`); here they are only moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .greeted_connection import GreetedConnection
from .query_protocol import Answered, CallFailed, QueryClientProtocol, Reached, SomeAnswered

__all__ = ["Answer", "QueryConnection"]

Answer = Answered | SomeAnswered | CallFailed | None
"""What a call gets: None once the connection is lost. A `SomeAnswered` with some left is followed by others."""


class QueryConnection(GreetedConnection):
    """The client's end of one connection. Made by a replica of a `ReplicaPool`."""

    protocol_class: type[QueryClientProtocol] = QueryClientProtocol

    def __init__(
        self,
        on_reached: Callable[[Reached], None],
        on_lost: Callable[[QueryConnection], None],
        store_id: str = "",
    ) -> None:
        """`store_id`: that of the projector's store, if it is known."""
        super().__init__("projector", store_id)
        self._protocol = self.protocol_class()
        self._on_reached, self._on_lost = on_reached, on_lost
        self._calls: dict[int, Callable[[Answer], None]] = {}
        self._retired = False

    @property
    def answered(self) -> bool:
        """Something came back: it is a projector that listens there."""
        return self._protocol.answered

    def ask(
        self, batch: bytes, needs: Mapping[int, int], alone: bool, apart: bool, came_back: Callable[[Answer], None]
    ) -> None:
        """Have a batch answered at once."""
        call, frame = self._protocol.ask(batch, needs, alone, apart)
        self._calls[call] = came_back
        self._transport.write(frame)

    def wait(
        self, batch: bytes, waits: Sequence[tuple[float, Mapping[int, int]]], came_back: Callable[[Answer], None]
    ) -> None:
        """Have each query answered once its positions are there, for as long as it has time left."""
        call, frame = self._protocol.wait(batch, waits)
        self._calls[call] = came_back
        self._transport.write(frame)

    def retire(self) -> None:
        """Close it as soon as nothing is in flight on it."""
        self._retired = True
        if not self._calls:
            self.close()

    def read(self, data: bytes) -> str:
        """See `GreetedConnection`."""
        for call, answer in self._protocol.receive(data):
            if isinstance(answer, Reached):
                self._on_reached(answer)
            elif isinstance(answer, SomeAnswered) and answer.left:
                self._calls[call](answer)
            else:
                self._calls.pop(call)(answer)
        if self._retired and not self._calls:
            self.close()
        return self._protocol.refused

    def end(self) -> None:
        """See `GreetedConnection`."""
        self._on_lost(self)
        for call in self._protocol.end():
            self._calls.pop(call)(None)
