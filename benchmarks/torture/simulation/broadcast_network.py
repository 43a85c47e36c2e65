"""Broadcast network: connections over which partitions broadcast to a projector, with bytes that take their time, come
in pieces and are cut, and sockets that take only so much.

Real are `Broadcast` with its recipients, `ProjectorLink`, both ends' protocols and their handshake; simulated are the
search, which takes its time, and the socket.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol

from rayfold.actors.partition.projector_links import ProjectorLink
from rayfold.actors.projection.broadcast_protocol import BroadcastServerProtocol, Committed
from rayfold.actors.sockets.handshake import Handshake

from .network import Network, ProcessEnded
from .socket_network import SimulatedLink

__all__ = ["BroadcastLink", "SimulatedReader", "SimulatedLinks"]

Told = Callable[[Any], None]


class SimulatedReader(Protocol):
    """A projector, as those that broadcast to it see it."""

    def read_broadcasts(self, link: BroadcastLink) -> BroadcastServerProtocol | None:
        """What reads this connection. None if the process has ended."""
        ...

    def take_in(self, committed: Committed) -> None:
        """Apply it. Raises `ProcessEnded`."""
        ...


class BroadcastLink(SimulatedLink):
    """One connection: the partition's end, with its socket, the network between, and the projector's end."""

    def __init__(self, links: SimulatedLinks, projector: SimulatedReader, told: Told, on_lost: Told) -> None:
        super().__init__(links.network, links.partition, "broadcasts", "greetings to partitions")
        self.refused = ""
        """Why the projector has ended the connection, if it has."""
        self.received = 0
        """Broadcasts that the projector has taken in."""
        self._links, self._projector, self._told, self._on_lost = links, projector, told, on_lost
        self._reads = projector.read_broadcasts(self)
        self._ours, self._theirs = Handshake("broadcast"), Handshake("projector", also=("broadcast",))
        self._link: ProjectorLink | None = None
        self._waits = False
        if self._reads is None:
            self._loop.call_soon(told, None)
        else:
            self._up.write(self._ours.greeting())

    def end_partition(self) -> None:
        """The partition has ended. What it has sent still arrives."""
        self.client_open = False
        self._up.end(cut=False)

    # The partition's socket

    def send(self, data: memoryview) -> int:
        """As much as there is room for."""
        room = self._links.room_bytes - self._up.under_way_bytes
        if not self.client_open:
            raise BrokenPipeError
        if room <= 0:
            raise BlockingIOError
        self._up.write(bytes(data[:room]))
        return min(room, len(data))

    def shutdown(self, _how: int) -> None:
        """The partition ends it."""
        self._loop.call_soon(self._lost)

    def wait_for_room(self, waits: bool) -> None:
        """The link has more to send, or not any more."""
        self._waits = waits

    # What arrives

    def _receive(self, data: bytes) -> None:
        if self._waits and self._link is not None:
            self._loop.call_soon(self._link.send_more)
        if not self.server_open or self._reads is None:
            return
        if not self._theirs.done:
            self._theirs.receive(data)
            if self._theirs.wanted_bytes:
                return
            self._down.write(self._theirs.greeting())
            data = self._theirs.rest
        try:
            for committed in self._reads.receive(data):
                self.received += 1
                self._projector.take_in(committed)
        except ProcessEnded:
            return
        if self._reads.refused:
            self.refused = self._reads.refused
            self.close_server()

    def _tell(self, data: bytes) -> None:
        self._ours.receive(data)
        if self._ours.done and self.client_open and self._link is None:
            connected: Any = self
            self._link = self._links.link_class(connected, self._links.partition, self.wait_for_room)
            self._told(self._link)

    def _lost(self) -> None:
        if self.client_open:
            self.end_partition()
            if self._link is None:
                self._told(None)
            else:
                self._link.close()
                self._on_lost(self._link)


class SimulatedLinks:
    """What `ProjectorLinks` is."""

    def __init__(
        self,
        network: Network,
        partition: int,
        listeners: dict[str, Any],
        link_class: type[ProjectorLink],
        room_bytes: int,
    ) -> None:
        """`listeners`: projectors by path; `room_bytes`: what a socket takes before it is read."""
        self.network, self.partition, self.link_class, self.room_bytes = network, partition, link_class, room_bytes
        self.links: list[BroadcastLink] = []
        self._listeners = listeners

    def search(self, projector: Any, told: Told, on_lost: Told) -> None:
        """See `ProjectorLinks`."""
        found = partial(self._found, told, on_lost)
        projector.socket_path.remote().future().add_done_callback(found)

    def close(self) -> None:
        """The partition ends."""
        for link in self.links:
            link.end_partition()

    def cut(self) -> None:
        """Break every connection."""
        for link in self.links:
            link.cut()

    def _found(self, told: Told, on_lost: Told, path: Future[str]) -> None:
        if path.exception() is not None:
            told(None)
            return
        self.links.append(BroadcastLink(self, self._listeners[path.result()], told, on_lost))
