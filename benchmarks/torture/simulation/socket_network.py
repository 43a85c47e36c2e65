"""Socket network: connections whose bytes take their time, come in pieces, and end in the middle of a frame.

What one end writes the other end reads in order, or a beginning of it: that is all that a Unix socket promises. Where
the pieces end, how long each takes, and how much of what was on its way still arrives after the end, the seed decides.
The client's end is the real `SocketConnection`, called as asyncio calls it; the partition's end reads as the real
`SocketServer` does, no more at a time than its protocol asks for.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

from rayfold.actors.client.greeted_connection import GreetedConnection
from rayfold.actors.client.socket_client import SocketConnection
from rayfold.actors.partition.socket_protocol import Request, ServerProtocol
from rayfold.actors.sockets.handshake import Handshake
from rayfold.actors.sockets.listening import CREDENTIALS

from .clock import SimulatedLoop
from .network import LATE_S, Network, ProcessEnded

__all__ = ["ClientLink", "Link", "OwnSocket", "RecordedConnection", "SimulatedLink", "SocketLoop", "Stream"]


class OwnSocket:
    """As much of a socket as a client checks before it sends anything: the other end is of its own user."""

    def getsockopt(self, *_: int) -> bytes:
        """The credentials of the other end's process."""
        return CREDENTIALS.pack(os.getpid(), os.geteuid(), os.getegid())


class SocketLoop(SimulatedLoop):
    """A simulated event loop that can connect to simulated sockets."""

    connect: Callable[[Any, str], Awaitable[None]]
    """Has a protocol connected to what listens at a path, or raises `OSError`."""

    async def create_unix_connection(self, protocol_factory: Any, path: Any = None, **_: Any) -> Any:
        """As asyncio's, with nothing real in it."""
        protocol = protocol_factory()
        await self.connect(protocol, path)
        return None, protocol


class RecordedConnection(SocketConnection):
    """The client's end, with a record of the answers that it was given."""

    def __init__(
        self,
        client: bytes,
        batch_done: Callable[[int, bytes | None], None],
        on_lost: Callable[[SocketConnection], None],
        store_id: str = "",
    ) -> None:
        self.answers: list[tuple[int, bytes]] = []

        def record(attempt: int, answer: bytes | None) -> None:
            if answer is not None:
                self.answers.append((attempt, answer))
            batch_done(attempt, answer)

        super().__init__(client, record, on_lost, store_id)

    @property
    def refused(self) -> str:
        """Why the client has ended the connection, if it has."""
        return self._protocol.refused


class Stream:
    """One direction of a connection."""

    def __init__(
        self, network: Network, partition: int, name: str, read: Callable[[bytes], None], end: Callable[[], None]
    ) -> None:
        self._network, self._partition, self._name = network, partition, f"{name} of {partition}"
        self._read, self._end = read, end
        self._written = bytearray()
        self._arrived = 0
        self._last_s = 0.0
        self._ends_at: int | None = None
        self._ended = False

    @property
    def under_way_bytes(self) -> int:
        """What was written and has not arrived."""
        return len(self._written) - self._arrived

    def write(self, data: bytes) -> None:
        """Send bytes: in one piece, in pieces, or with what was written before."""
        if self._ends_at is not None:
            return
        at = len(self._written)
        self._written += data
        while at < len(self._written):
            piece = len(self._written) - at
            chance = self._network.chance(f"pieces of {self._name}")
            if chance > 0.6:  # within a header as often as anywhere else
                longest = min(piece, 40) if chance > 0.8 else piece
                piece = 1 + int(self._network.chance(f"piece of {self._name}") * longest)
            at = min(len(self._written), at + piece)
            self._send(at)

    def end(self, *, cut: bool) -> None:
        """Nothing is written any more. What is on its way arrives before the end, or, if it is cut, some of it."""
        if self._ends_at is None:
            share = self._network.chance(f"cut of {self._name}") if cut else 1.0
            self._ends_at = self._arrived + int(share * self.under_way_bytes)
            self._send(self._ends_at)

    def _send(self, up_to: int) -> None:
        network = self._network
        delay_s = network.delay_s(self._name)
        if network.trouble("bytes late", self._partition) and network.chance(f"late {self._name}") < 0.2:
            delay_s += LATE_S * network.chance(f"how late {self._name}")
        self._last_s = max(self._last_s, network.loop.time() + delay_s)
        network.loop.call_at(self._last_s, self._arrive, up_to)

    def _arrive(self, up_to: int) -> None:
        if self._ended:
            return
        if self._network.chance(f"joined {self._name}") < 0.3:
            up_to = len(self._written)
        if self._ends_at is not None:
            up_to = min(up_to, self._ends_at)
        if up_to > self._arrived:
            data = bytes(self._written[self._arrived : up_to])
            self._arrived = up_to
            self._read(data)
        if self._arrived == self._ends_at and not self._ended:
            self._ended = True
            self._end()


class SimulatedLink:
    """One connection: an end that has connected, an end that listens, and a stream each way."""

    def __init__(self, network: Network, partition: int, up: str, down: str) -> None:
        """`up`, `down`: what the streams carry, to the end that listens and back."""
        self.client_open = self.server_open = True
        self._loop = network.loop
        self._up = Stream(network, partition, up, self._receive, self.close_server)
        self._down = Stream(network, partition, down, self._tell, self._lost)

    def cut(self) -> None:
        """The connection breaks; neither end has wanted it."""
        self._up.end(cut=True)
        self._down.end(cut=True)

    def end_process(self) -> None:
        """The process that listens has ended: what it has written may still arrive, or a part of it."""
        self.server_open = False
        self._down.end(cut=True)

    def close_server(self) -> None:
        """The end that listens ends the connection: there is no more to read, or it does not want it."""
        if self.server_open:
            self.server_open = False
            self._down.end(cut=False)

    def _receive(self, data: bytes) -> None:
        """What has arrived where it listens."""
        raise NotImplementedError

    def _tell(self, data: bytes) -> None:
        """What has arrived at the end that has connected."""
        raise NotImplementedError

    def _lost(self) -> None:
        """The end that has connected learns that nothing more comes."""
        raise NotImplementedError


class ClientLink(SimulatedLink):
    """One connection whose end that has connected is a client's real one; this is its transport, as asyncio's."""

    def __init__(self, network: Network, partition: int, up: str, down: str, client: GreetedConnection) -> None:
        super().__init__(network, partition, up, down)
        self.client = client

    def get_extra_info(self, name: str) -> OwnSocket:
        """The socket."""
        return OwnSocket()

    def write(self, data: bytes) -> None:
        """The client sends."""
        if self.client_open:
            self._up.write(data)

    def abort(self) -> None:
        """The client ends the connection, and its `connection_lost` is called as soon as it has returned."""
        self._up.end(cut=False)
        self._loop.call_soon(self._lost)

    def _tell(self, data: bytes) -> None:
        if self.client_open:
            self.client.data_received(data)

    def _lost(self) -> None:
        if self.client_open:
            self.client_open = False
            self._up.end(cut=False)
            self.client.connection_lost(None)


class Link(ClientLink):
    """One connection to a partition."""

    client: RecordedConnection

    def __init__(
        self,
        network: Network,
        partition: int,
        client: RecordedConnection,
        server: ServerProtocol,
        execute: Callable[[Request], bytes],
    ) -> None:
        super().__init__(network, partition, "requests", "answers", client)
        self.server = server
        self.sent: list[bytes] = []
        """The frames that the client has sent."""
        self.requests: list[Request] = []
        """What the partition has made of them."""
        self.answered: list[tuple[int, bytes]] = []
        self._execute = execute
        self._handshake = Handshake("partition")
        self._received = bytearray()

    def write(self, data: bytes) -> None:
        """The client sends a frame."""
        if self.client_open and self.client.greeted.done():  # before that it is the greeting
            self.sent.append(bytes(data))
        super().write(data)

    # The partition's end, as the thread that serves it

    def _receive(self, data: bytes) -> None:
        """Read no more at a time than is wanted, and answer one request before the next is read."""
        self._received += data
        while self._received and self.server_open and (wanted := self._handshake.wanted_bytes):
            self._handshake.receive(bytes(self._received[:wanted]))
            del self._received[:wanted]
            if self._handshake.done:
                self._down.write(self._handshake.greeting())
        while self._received and self.server_open:
            wanted = self.server.wanted_bytes
            piece = bytes(self._received[:wanted])
            del self._received[:wanted]
            try:
                request = self.server.receive(piece)
                if request is not None:
                    self.requests.append(request)
                    answer = self._execute(request)
                    self.answered.append((request.attempt, answer))
                    self._down.write(self.server.answer(request, answer))
            except ProcessEnded:  # with every connection of it
                return
            except Exception:  # the real server ends a connection whose request cannot be executed
                self.close_server()
            if self.server.refused:
                self.close_server()
