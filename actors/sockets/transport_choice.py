"""TransportChoice: whether what is sent to an actor takes its socket or goes through Ray, and when to try to find a
socket.

Beside steps [2], [6] and [8]. Around it, where commands, broadcasts and queries are sent: what asks the actor for its
socket, connects, sends, and reports the result (`../client/socket_search.py`, `../partition/projector_links.py`).

No socket, no event loop, no clock: each event carries the time at which it happened. A socket is tried when the
actor has answered through Ray, since it can then report where it listens. Where none was found, or what was found
never answered, it is left to Ray for a while, which doubles each time: on another node there never is one.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

__all__ = ["TransportChoice"]

LOOK_AGAIN_FIRST_S: Final = 0.5
LOOK_AGAIN_MAX_S: Final = 60.0
"""How long to leave it at Ray after no socket was found: doubling, since on another node there never is one."""

Connection = TypeVar("Connection")


class TransportChoice(Generic[Connection]):
    """Between one sender and one actor."""

    def __init__(self, *, by_socket: bool) -> None:
        """`by_socket`: the actor has a method `socket_path` that returns its socket."""
        self.connection: Connection | None = None
        """What is taken now; None: Ray."""
        self._by_socket = by_socket
        self._looking = False
        self._look_again_s = LOOK_AGAIN_FIRST_S
        self._look_at_s = 0.0

    def begin_look(self, now_s: float) -> bool:
        """Whether to try to find a socket now. If so, no other call gets True until `found` or `not_found`."""
        if self._by_socket and self.connection is None and not self._looking and now_s >= self._look_at_s:
            self._looking = True
            return True
        return False

    def found(self, connection: Connection) -> None:
        """It is connected."""
        self._looking = False
        self.connection = connection

    def not_found(self, now_s: float) -> None:
        """The actor has no socket, or none that this process can open, or did not answer."""
        self._looking = False
        self._leave_it(now_s)

    def lost(self, connection: Connection, now_s: float, *, answered: bool) -> None:
        """A connection has ended: the actor has, or its server is full. One that has `answered` is tried as soon as
        Ray answers again."""
        if self.connection is connection:
            self.connection = None
        if answered:
            self._look_again_s, self._look_at_s = LOOK_AGAIN_FIRST_S, 0.0
        else:
            self._leave_it(now_s)

    def stop_looking(self) -> None:
        """No socket is tried any more; an open connection stays."""
        self._by_socket = self._looking = False

    def _leave_it(self, now_s: float) -> None:
        self._look_at_s = now_s + self._look_again_s
        self._look_again_s = min(LOOK_AGAIN_MAX_S, self._look_again_s * 2)
