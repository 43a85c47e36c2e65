"""RelayConnection: a program's way to the actors of a system that another program of this machine runs, without Ray.

Beside steps [1], [2] and [8]. Before it: the client, which calls actors over their handles. After it: the `Relay` of
the program that runs the system (`../relay/relay.py`), which calls them through Ray and returns the answers.

A `RelayedActor` has the form of a handle of Ray: `actor.method.remote(...).future()`. So command router, replica pool
and health check use either without a difference. Commands to partitions take it only until the partition has returned
its own socket (`transport.py`).

Rules kept here: no call is sent to a process of another user, and nothing read from it. When the connection is lost,
every call on it has failed, at once, and so has every later one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Final

from ...runtime.errors import NotPrivate, Unavailable
from ..sockets.calls import ACTOR_AWAY, ACTOR_DIED, ANSWER_BYTES_MAX, CALL, CALL_BYTES_MAX, CALLS_MAX, ERROR, VALUE
from ..sockets.framing import Frame, FrameReader, frame
from ..sockets.handshake import Handshake
from ..sockets.listening import check_own_user, closed_in_children, let_go
from ..sockets.records import Records

__all__ = ["ActorDiedError", "ActorUnavailableError", "RelayConnection", "RelayLine", "RelayedActor"]

RELAYED_TIMEOUT_S: Final = 24 * 3600.0
"""How long the other end keeps a call that its caller waits for: as long as it may. Each caller has a limit of its own,
as it has for a call over Ray, which is never given up on the way."""


class ActorDiedError(Exception):
    """What Ray raises under this name: an actor has ended for good."""


class ActorUnavailableError(Exception):
    """What Ray raises under this name: an actor's process has ended, and is being started again."""


class RelayConnection(asyncio.Protocol):
    """One connection to a relay. Used on one event loop only; its futures may be waited for anywhere."""

    def __init__(self, store_id: str, records: Records, proof: str = "") -> None:
        """`proof`: that this program has the token of the cluster."""
        self.greeted: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done once calls may be sent, with an empty text, or once the connection is lost, with the reason."""
        self.lost = ""
        """Why no call can be sent, once it is lost."""
        self.other_user: NotPrivate | None = None
        """A process of another user listens at the other end, which is why it is lost."""
        self._handshake = Handshake("system", store_id, proof=proof)
        self.on_lost: Callable[[], None] | None = None
        """Called once the connection is lost, if the program uses it."""
        self._records = records
        self._reader = FrameReader(ANSWER_BYTES_MAX)
        self._waiting: dict[int, tuple[Future[Any], asyncio.TimerHandle]] = {}
        """By the number of the call, with what ends it if no answer comes; bounded by `CALLS_MAX`."""
        self._calls = 0
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio has connected us."""
        self._transport = transport
        closed_in_children(self)
        try:
            check_own_user(transport.get_extra_info("socket"))
        except NotPrivate as error:
            self.other_user, self.lost = error, str(error)
        except ConnectionRefusedError as error:
            self.lost = str(error)
        if self.lost:  # or closed meanwhile
            self._transport.abort()
        else:
            self._transport.write(self._handshake.greeting())

    def data_received(self, data: bytes) -> None:
        """Asyncio has read some of what came."""
        if self.lost:  # it ends
            return
        if not self._handshake.done:
            data = self._greet(data)
        for one in self._reader.receive(data):
            self._answered(one)
        if self._reader.refused:
            self.lost = self._reader.refused
            self._transport.abort()

    def _greet(self, data: bytes) -> bytes:
        """What came behind the greeting."""
        handshake = self._handshake
        handshake.receive(data)
        if handshake.refused:
            self.lost = handshake.refused
            self._transport.abort()
            return b""
        if not handshake.wanted_bytes and not self.greeted.done():
            self.greeted.set_result("")
        return handshake.rest

    def connection_lost(self, error: Exception | None) -> None:
        """The other program, or this one, has ended the connection."""
        self.lost = self.lost or "the connection was lost"
        if not self.greeted.done():
            self.greeted.set_result(self.lost)
        waiting, self._waiting = self._waiting, {}
        for future, limit in waiting.values():
            limit.cancel()
            _fail(future, ActorUnavailableError(self.lost))
        if self.on_lost is not None:
            self.on_lost()

    def call(self, target: str, method: str, timeout_s: float, arguments: tuple[Any, ...]) -> Future[Any]:
        """Have the other program call a method. The future fails if the connection does."""
        future: Future[Any] = Future()
        if self.lost or len(self._waiting) >= CALLS_MAX:
            _fail(future, ActorUnavailableError(self.lost or f"{CALLS_MAX} calls have no answer yet"))
            return future
        content = self._records.pack([target, method, timeout_s, list(arguments)])
        if len(content) > CALL_BYTES_MAX:
            _fail(future, ValueError(f"a call of {len(content)} bytes, over {CALL_BYTES_MAX}"))
            return future
        self._calls += 1
        number = self._calls
        self._waiting[number] = future, self._loop.call_later(timeout_s, self._forget, number)
        future.add_done_callback(partial(self._given_up, number))
        self._transport.write(frame(number, CALL, content))
        return future

    def close_in_child(self) -> None:
        """See `closed_in_children`."""
        let_go([self._transport.get_extra_info("socket").fileno()])

    def close(self) -> None:
        """End the connection; calls on it fail."""
        self.lost = self.lost or "this program has closed it"
        if self._transport is not None:
            self._transport.abort()

    def _given_up(self, number: int, future: Future[Any]) -> None:
        """On any thread: a caller who waits no more leaves the place to others."""
        if future.cancelled():
            with contextlib.suppress(RuntimeError):  # the event loop has ended, and the connection with it
                self._loop.call_soon_threadsafe(self._drop, number)

    def _drop(self, number: int) -> None:
        if waiting := self._waiting.pop(number, None):
            waiting[1].cancel()

    def _forget(self, number: int) -> None:
        _fail(self._waiting.pop(number)[0], TimeoutError())

    def _answered(self, one: Frame) -> None:
        waiting = self._waiting.pop(one.number, None)
        if waiting is None:  # its time was over
            return
        future, limit = waiting
        limit.cancel()
        if not future.set_running_or_notify_cancel():  # its caller has gone
            return
        try:
            value = self._records.unpack(one.content)
        except Exception as error:
            future.set_exception(error)
            return
        if one.kind == VALUE:
            future.set_result(value)
        elif one.kind == ERROR and isinstance(value, Exception):
            future.set_exception(value)
        elif one.kind == ACTOR_DIED:
            future.set_exception(ActorDiedError(value))
        elif one.kind == ACTOR_AWAY:
            future.set_exception(ActorUnavailableError(value))
        else:
            future.set_exception(Unavailable("the program that runs the system", str(value)))


class RelayLine:
    """What leads to the other program, over whichever connection there is: actors stay what they are when it is made
    anew."""

    def __init__(self, connection: RelayConnection) -> None:
        self.connection = connection

    def call(self, target: str, method: str, timeout_s: float, arguments: tuple[Any, ...]) -> Future[Any]:
        """See `RelayConnection`."""
        return self.connection.call(target, method, timeout_s, arguments)


class RelayedActor:
    """An actor of the other program's system: what its handle is to that program."""

    def __init__(self, connection: RelayConnection | RelayLine, name: str, actor_id: str = "") -> None:
        self._connection, self.name = connection, name
        self._actor_id = bytes.fromhex(actor_id) if actor_id else None
        """The id in Ray; the record of what the actor's process has in hand is named after it."""

    def is_same(self, actor_id: str) -> bool:
        """Whether it is the actor with this id."""
        return actor_id == (self._actor_id.hex() if self._actor_id else "")

    def __getattr__(self, method: str) -> RelayedMethod:
        if method.startswith("_"):
            raise AttributeError(method)
        return RelayedMethod(self._connection, self.name, method)


class RelayedMethod:
    """A method of such an actor."""

    def __init__(self, connection: RelayConnection | RelayLine, target: str, method: str) -> None:
        self._connection, self._target, self._method = connection, target, method

    def remote(self, *arguments: Any) -> RelayedCall:
        """Send a call. Returns at once."""
        sent = self._connection.call(self._target, self._method, RELAYED_TIMEOUT_S, arguments)
        return RelayedCall(sent)


class RelayedCall:
    """A call that was sent."""

    def __init__(self, sent: Future[Any]) -> None:
        self._sent = sent

    def future(self) -> Future[Any]:
        """Gets what the method returns."""
        return self._sent


def _fail(future: Future[Any], error: Exception) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
