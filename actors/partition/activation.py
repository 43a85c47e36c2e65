"""Activation: what a partition's actor has from the moment in which it takes its log over until it closes it.

Beside step [3]. Made by `actor.py` in the phase "take over"; while the actor serves there is exactly one, and in every
other phase there is none. So nothing that needs the log can be reached without having it.

Rule kept here: an activation is made whole or not at all. What fails in between closes the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from ...runtime.checks.standing import StandingCheck
from ...runtime.domain.aggregate import OwnActor
from ...runtime.feed.group_coordinator import GroupCoordinator
from ...runtime.log.writer import LmdbLog
from ...runtime.stream import StreamId
from ...runtime.write.write_loop import WriteLoop
from ..courier.courier_thread import CourierThread
from .broadcast import Broadcast
from .own_actors import OwnActors
from .socket_server import SocketServer

__all__ = ["Activation"]


@dataclass(frozen=True, slots=True)
class Activation:
    """One write ownership of the log: its writer, and everything that exists as long as it is open."""

    log: LmdbLog
    loop: WriteLoop
    """Has activated the log: `loop.epoch` is that of this activation."""
    broadcast: Broadcast
    own_actors: OwnActors
    placements: Mapping[str, OwnActor]
    """Placements by aggregate type: those with own actors."""
    check: StandingCheck
    coordinator: GroupCoordinator
    """Keeps how far subscriptions of a name are."""
    server: SocketServer | None
    """None where sockets are switched off, or no private folder for one is available."""
    courier: CourierThread | None = None
    """None where nothing is to be carried out: there is no process, and no aggregate that sends."""

    def leave_to_own_actors(self) -> None:
        """Forget the aggregates whose own actor has come up: from now on it decides, and not this process."""
        for stream in self.own_actors.take_over():
            self.loop.residents.forget(stream)

    def distrust(self, stream: StreamId) -> None:
        """Load it from its events from now on; an own actor, which began with the same snapshot, ends."""
        self.loop.residents.distrust(stream)
        if (record := self.own_actors.by_stream.get(stream)) is not None:
            self.own_actors.lost(stream, record.name)

    def close(self) -> None:
        """End the own actors, take no connection any more, broadcast no more, and close the log."""
        with ExitStack() as closing:  # the last first, and each whatever becomes of the others
            closing.callback(self.log.close)
            closing.callback(self.own_actors.end_all)
            closing.callback(self.broadcast.close)
            if self.server is not None:
                closing.callback(self.server.close)
            closing.callback(self.check.stop)
            if self.courier is not None:
                self.courier.stop(0.0)
