"""Relay: at which other programs of this machine call the actors of a system that this program runs.

Beside steps [2], [3] and [8]. Before it: the `RelayConnection` of a client (`../client/relay_connection.py`). After it:
the actors, which see no difference to a call of this program, and the system itself: that of this program
(`../system/relay_control.py`), or of a cluster (`../control/node_relay.py`).

It runs on an event loop and a thread of its own, since the program may keep its own loop busy. What it passes on are
the calls of an allow-list, with arguments of the right types, to the actors of this system and to no others. Commands
take it only until the client knows the socket of the partition.

Who may come in is decided by the file system (`../sockets/listening.py`), and by the handshake: the same version of the
protocol, and the same store.

Rules kept here: programs, their calls, the size of a call, and what waits to be read by a program are bounded; a
program that breaks a rule, or does not read, is cut off by name, and no other notices; when this program ends, each of
them knows at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Container, Coroutine, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, Final

from ...runtime.errors import InvalidMessage, Overloaded, RayfoldError, Unavailable
from ...runtime.printable import printable_log
from ...runtime.stream import StreamId
from ..cluster.rpc import one_line
from ..cluster.token import proof_of_token
from ..sockets.calls import (
    ACTOR_AWAY,
    ACTOR_DIED,
    ANSWER_BYTES_MAX,
    CALL,
    CALL_BYTES_MAX,
    CALLS_MAX,
    ERROR,
    FAILED,
    VALUE,
)
from ..sockets.framing import Frame, FrameReader, frame
from ..sockets.handshake import HANDSHAKE_S, Handshake
from ..sockets.listening import ListeningSocket, closed_in_children, full, let_go, open_listening_socket
from ..sockets.query_frames import Answered, AnsweredAfter
from .relayed_topology import RELAYED, RelayedTopology

__all__ = ["PROGRAMS_MAX", "Relay", "open_relay"]

log = printable_log(__name__)

PROGRAMS_MAX: Final = 256
"""Programs that are connected at the same time: each a socket, and what it has in flight."""

TIMEOUT_MAX_S: Final = 24 * 3600.0
"""For what moves or rebuilds something."""

_WAIT_MAX_S: Final = 1.0
"""How long queries may wait in a replica that is asked through Ray. Clients ask for a quarter of a second."""

_RUNNING_MAX: Final = 2 * CALLS_MAX
"""Calls of one program whose work goes on, those among them that it waits for no more. As many as a program may have,
and as many again."""

_RUNNING_BYTES_MAX: Final = 64 * 1024 * 1024
"""The size of these calls: two batches each to 300 own actors."""

UNREAD_BYTES_MAX: Final = 2 * ANSWER_BYTES_MAX
"""Answers that wait to be read by one program."""

UNREAD_S: Final = 30.0
"""How long a program may read nothing of the answers that wait for it."""

_NO_TOKEN: Final = "the cluster has a token, and this program has none or another one"

_CHECK_S: Final = 5.0
"""Between two checks of the file of the socket: some microseconds each."""

_BUSY_S: Final = 5.0
"""How long the event loop of the program that runs the system may take to come to a call: as long as a relay may be
silent before its program counts as frozen."""

_OWN_ACTORS_MAX: Final = 1024
"""Handles of own actors that are remembered. One that was dropped is looked up again in a millisecond."""

_METHODS: Final[Mapping[str, tuple[Any, ...]]] = {
    "execute": (bytes, int, int, bytes),
    "socket_path": (),
    "lost": (StreamId, str, bool),
    "head": (),
    "ask": (bytes, dict, bool, bool),
    "ask_after": (bytes, list, (int, float), bool),
    "incarnation": (),
    "status": (),
    "subscription": (str, list),
    "renew_member": (str, int, int),
}
"""The methods of actors that are passed on, and the types of their arguments."""

_AS_LISTS: Final = frozenset({tuple, Answered, AnsweredAfter})
"""Answers that travel as lists, which the client knows the meaning of by its call."""

Control = Mapping[str, tuple[Callable[..., Coroutine[Any, Any, Any]], tuple[Any, ...]]]
"""What the system itself answers, on the program's own event loop: by name, with the types of the arguments."""


class Relay:
    """A listening socket and the event loop that serves it, on a thread. `close` ends it."""

    def __init__(
        self,
        listening: ListeningSocket,
        store_id: str,
        own_actors: str,
        actor_named: Callable[[str], Any],
        control: Control,
        anywhere: Container[str],
        token: str,
    ) -> None:
        """`own_actors`: what the names of the own actors of this system begin with, and `actor_named`: looks one up.
        `anywhere`: what of `control` runs on any event loop, and so on this relay's. `token`: that of the cluster,
        which a program has to have too; empty if none is asked for."""
        self.path = listening.path
        self.store_id = store_id
        self.proof = proof_of_token(token, listening.path.name)
        """What a program has to send."""
        self.programs: set[Program] = set()
        """The programs that are connected. Changed on the relay's thread alone; others may count them."""
        self._own_actors_begin, self._actor_named = own_actors, actor_named
        self._control, self._anywhere = control, anywhere
        self._program_loop = asyncio.get_running_loop()
        self._own_actors: OrderedDict[str, Any] = OrderedDict()
        self._actors: Mapping[str, Any] = {}
        self._topology: RelayedTopology | None = None
        self._changed = asyncio.Event()
        self._ending = asyncio.Event()
        self._closed = False
        self._listening = listening
        self.loop = asyncio.new_event_loop()
        """On the relay's thread."""
        self._thread = threading.Thread(target=self._run, name="rayfold relay", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # there are too many threads
            self.loop.close()
            raise
        closed_in_children(self)

    def publish(self, topology: RelayedTopology, actors: Mapping[str, Any]) -> None:
        """This is how things are from now on. `actors`: the handles, by the names in the topology."""
        if not self._closed:
            self.loop.call_soon_threadsafe(self._publish, topology, dict(actors))

    def close(self) -> None:
        """Take no program in any more, and cut all off. Closing twice is allowed."""
        if not self._closed:
            self._closed = True
            self.loop.call_soon_threadsafe(self._ending.set)
            self._thread.join()
            self._listening.close()

    def close_in_child(self) -> None:
        """See `closed_in_children`."""
        let_go([self._listening.socket.fileno(), *(program.descriptor for program in self.programs)])

    def _run(self) -> None:
        loop = self.loop
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self._serve())
            waiting = asyncio.all_tasks(loop)
            for task in waiting:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*waiting, asyncio.sleep(0), return_exceptions=True))
        finally:
            loop.close()

    async def _serve(self) -> None:
        server = await self._server()
        while not self._ending.is_set():  # `close` may come before this is reached
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), _CHECK_S)
            if not self._ending.is_set() and (fresh := self._listening.put_back()) is not self._listening:
                self._listening = fresh  # who is connected stays, and others find it at its path again
                server.close()
                server = await self._server()
        server.close()
        for program in list(self.programs):
            program.cut_off("")

    async def _server(self) -> asyncio.Server:
        return await self.loop.create_unix_server(lambda: Program(self), sock=self._listening.socket)

    def _publish(self, topology: RelayedTopology, actors: dict[str, Any]) -> None:
        revision = 1 + (self._topology.revision if self._topology is not None else 0)
        self._topology, self._actors = topology._replace(revision=revision), actors
        self._changed.set()
        self._changed = asyncio.Event()

    async def _read_topology(self, revision: int, wait_s: float) -> RelayedTopology | None:
        """The topology, once it differs from that one; None if it does not in time."""
        if self._topology is None or self._topology.revision == revision:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), max(0.0, min(wait_s, TIMEOUT_MAX_S)))
        found = self._topology
        return None if found is None or found.revision == revision else found

    def begin(self, target: str, method: str, arguments: list[Any]) -> Future[Any]:
        """Begin a call; the future gets what it comes to. Raises `InvalidMessage` for one that is not passed on."""
        if target:
            _check_types(f"{target} {method}", _METHODS.get(method), arguments)
            if method == "ask_after":  # it holds a thread of the replica
                batch, afters, wait_s, look = arguments
                arguments = [batch, afters, max(0.0, min(wait_s, _WAIT_MAX_S)), look]
            if target.startswith(self._own_actors_begin):
                return self._begin_own(target, method, arguments)
            actor = self._actors.get(target)
            if actor is None:
                return _failed(_Ended(f"{target} does not serve any more"))
            return _called(actor, method, arguments)
        if method == "topology":
            _check_types(method, (int, (int, float)), arguments)
            reading = self._read_topology(*arguments)
            return asyncio.run_coroutine_threadsafe(reading, self.loop)
        if (known := self._control.get(method)) is None:
            raise _not_passed_on(method)
        begin, types = known
        _check_types(method, types, arguments)
        if method in self._anywhere:
            return asyncio.run_coroutine_threadsafe(begin(*arguments), self.loop)
        if self._program_loop.is_closed():
            return _failed(InvalidMessage(method, "the program that runs the system has ended its event loop", ""))
        return self._done_by_program(method, partial(begin, *arguments))

    def _done_by_program(self, method: str, begin: Callable[[], Coroutine[Any, Any, Any]]) -> Future[Any]:
        """Have it done on the program's event loop, or not at all if that does not come to it in time."""
        claim, result = threading.Lock(), Future[Any]()

        async def done() -> None:
            if not claim.acquire(blocking=False):
                return
            try:
                result.set_result(await begin())
            except BaseException as error:
                result.set_exception(error)

        def give_up() -> None:
            if claim.acquire(blocking=False):
                busy = f"its event loop has been busy with something else for {_BUSY_S:g} s; {method} was not begun"
                result.set_exception(Unavailable("the program that runs the system", busy))

        asyncio.run_coroutine_threadsafe(done(), self._program_loop)
        self.loop.call_later(_BUSY_S, give_up)
        return result

    def _begin_own(self, name: str, method: str, arguments: list[Any]) -> Future[Any]:
        known = self._own_actors.get(name)
        if known is not None:
            self._own_actors.move_to_end(name)
            return _called(known, method, arguments)
        result: Future[Any] = Future()

        def look_up() -> None:
            try:
                actor = self._actor_named(name)
            except ValueError as error:
                result.set_exception(_Ended(one_line(error)))
            except Exception as error:  # it is not known whether it has ended: the head is away
                result.set_exception(error)
            else:
                self.loop.call_soon_threadsafe(self._found_own, name, actor, method, arguments, result)

        self.loop.run_in_executor(None, look_up)
        return result

    def _found_own(self, name: str, actor: Any, method: str, arguments: list[Any], result: Future[Any]) -> None:
        self._own_actors[name] = actor
        if len(self._own_actors) > _OWN_ACTORS_MAX:
            self._own_actors.popitem(last=False)
        _called(actor, method, arguments).add_done_callback(partial(_pass_on, result))


class Program(asyncio.Protocol):
    """One program that is connected, on the relay's event loop."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._handshake = Handshake("system", relay.store_id)
        self._reader = FrameReader(CALL_BYTES_MAX)
        self._waited_for: dict[int, _Call] = {}
        """By the number of the call: the program waits for its answer. Bounded with the calls that run."""
        self._running, self._running_bytes = 0, 0
        """Calls whose work has not come to its end, whether the program still waits for them or not."""
        self._transport: Any = None
        self._limit: asyncio.TimerHandle | None = None
        """What cuts it off if it does not greet, or does not read."""
        self._written_bytes = 0
        """All answers, whether it has read them or not."""

    @property
    def descriptor(self) -> int:
        """That of its socket."""
        found: socket.socket = self._transport.get_extra_info("socket")
        return found.fileno()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A program has connected."""
        self._transport = transport
        self._relay.programs.add(self)
        self._limit = self._relay.loop.call_later(HANDSHAKE_S, self.cut_off, f"no greeting within {HANDSHAKE_S:g} s")

    def connection_lost(self, error: Exception | None) -> None:
        """It has gone, or was cut off. What it asked for goes on, and its answers are dropped."""
        self._relay.programs.discard(self)
        for limit in [self._limit, *(call.limit for call in self._waited_for.values())]:
            if limit is not None:
                limit.cancel()
        self._waited_for.clear()

    def cut_off(self, why: str) -> None:
        """End the connection; `why` is logged, if there is a reason."""
        if why:
            log.warning("%s cuts a program off: %s", self._relay.path, why)
        self._transport.abort()

    def pause_writing(self) -> None:
        """It reads more slowly than it asks: read nothing of it either, for a while."""
        self._transport.pause_reading()
        self._limit = self._relay.loop.call_later(UNREAD_S, self._check_reads, self._read_bytes())

    def resume_writing(self) -> None:
        """It has read what there was."""
        if self._limit is not None:
            self._limit.cancel()
        self._transport.resume_reading()

    def _read_bytes(self) -> int:
        return self._written_bytes - int(self._transport.get_write_buffer_size())

    def _check_reads(self, read_bytes: int) -> None:
        """Cut it off if it has read no more than that by now."""
        now = self._read_bytes()
        if now == read_bytes:
            self.cut_off(f"it has read nothing for {UNREAD_S:g} s of the answers that wait for it")
        else:
            self._limit = self._relay.loop.call_later(UNREAD_S, self._check_reads, now)

    def data_received(self, data: bytes) -> None:
        """Some of what it has sent."""
        if not self._handshake.done:
            data = self._greet(data)
        if not data:
            return
        for one in self._reader.receive(data):
            try:
                self._begin(one)
            except Exception as error:  # it does not keep to the protocol
                self.cut_off(one_line(error))
                return
        if self._reader.refused:
            self.cut_off(self._reader.refused)

    def _greet(self, data: bytes) -> bytes:
        """What came behind the greeting."""
        handshake = self._handshake
        handshake.receive(data)
        wanted, shown = self._relay.proof.encode(), handshake.other_proof.encode()
        if handshake.done and wanted and not hmac.compare_digest(shown, wanted):
            handshake.refuse(_NO_TOKEN)
        if not handshake.refused and len(self._relay.programs) > PROGRAMS_MAX:
            handshake.refuse(full(PROGRAMS_MAX))
        if handshake.wanted_bytes:
            return b""
        if self._limit is not None:
            self._limit.cancel()
        if handshake.refused:
            log.warning("%s refuses a program: %s", self._relay.path, handshake.refused)
        self._transport.write(handshake.greeting())
        if handshake.refused:
            self._transport.close()
            return b""  # what came behind it is not for this end
        return handshake.rest

    def _begin(self, one: Frame) -> None:
        """Begin a call. Raises whatever the frame deserves."""
        if one.kind != CALL or one.number in self._waited_for:
            raise InvalidMessage("call", f"{one.number} is no call, or is used twice", "")
        target, method, timeout_s, arguments = RELAYED.unpack(one.content)
        _check_types("call", (str, str, (int, float), list), [target, method, timeout_s, arguments])
        left_s = max(0.0, min(timeout_s, TIMEOUT_MAX_S))
        if full := self._too_much(len(one.content)):  # nothing of it runs
            self._write(one.number, _failed(full))
            return
        call = _Call(one.number, len(one.content))
        call.limit = self._relay.loop.call_later(left_s, self._waited_for.pop, one.number, None)
        self._waited_for[one.number] = call
        self._running, self._running_bytes = self._running + 1, self._running_bytes + call.size_bytes
        try:
            begun = self._relay.begin(target, method, arguments)
        except InvalidMessage as error:
            begun = _failed(error)
        begun.add_done_callback(partial(self._wake, call))

    def _too_much(self, size_bytes: int) -> Overloaded | None:
        if self._running >= _RUNNING_MAX:
            return Overloaded("calls of one program", _RUNNING_MAX, "calls")
        if self._running_bytes + size_bytes > _RUNNING_BYTES_MAX:
            return Overloaded("calls of one program", _RUNNING_BYTES_MAX, "bytes")
        return None

    def _wake(self, call: _Call, answer: Future[Any]) -> None:
        """On any thread: continue on the relay's, if it still runs."""
        try:
            self._relay.loop.call_soon_threadsafe(self._answer, call, answer)
        except RuntimeError:
            answer.cancelled() or answer.exception()

    def _answer(self, call: _Call, answer: Future[Any]) -> None:
        self._running, self._running_bytes = self._running - 1, self._running_bytes - call.size_bytes
        if self._waited_for.get(call.number) is not call:  # its time was over; the number may be another call's by now
            answer.cancelled() or answer.exception()
            return
        del self._waited_for[call.number]
        if call.limit is not None:
            call.limit.cancel()
        self._write(call.number, answer)

    def _write(self, number: int, answer: Future[Any]) -> None:
        whole = frame(number, *_content_of(answer))
        self._written_bytes += len(whole)
        self._transport.write(whole)
        if self._transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
            self.cut_off(f"over {UNREAD_BYTES_MAX} bytes of answers wait for it")


class _Call:
    """A call of a program, from its frame until its work has come to its end."""

    __slots__ = ("limit", "number", "size_bytes")

    def __init__(self, number: int, size_bytes: int) -> None:
        self.number, self.size_bytes = number, size_bytes
        self.limit: asyncio.TimerHandle | None = None
        """What ends the wait for it."""


class _Ended(Exception):
    """An actor that has ended for good."""


def _content_of(answer: Future[Any]) -> tuple[int, bytes]:
    """The kind and the content of the frame of an answer."""
    error = asyncio.CancelledError() if answer.cancelled() else answer.exception()
    if isinstance(cause := getattr(error, "cause", None), RayfoldError):  # as Ray has it: a class of its own, with both
        error = cause
    try:
        if error is None:
            value = answer.result()
            content = RELAYED.pack(list(value) if type(value) in _AS_LISTS else value)
            if len(content) > ANSWER_BYTES_MAX:
                raise InvalidMessage("answer", f"has {len(content)} bytes, over {ANSWER_BYTES_MAX}", "ask for less")
            return VALUE, content
        if isinstance(error, RayfoldError):
            return ERROR, RELAYED.pack(error)
    except Exception as problem:
        return FAILED, RELAYED.pack(one_line(problem))
    name = type(error).__name__
    kind = {"_Ended": ACTOR_DIED, "ActorDiedError": ACTOR_DIED, "ActorUnavailableError": ACTOR_AWAY}.get(name, FAILED)
    return kind, RELAYED.pack(f"{name}: {one_line(error)}" if kind == FAILED else one_line(error))


def _called(actor: Any, method: str, arguments: list[Any]) -> Future[Any]:
    try:
        begun: Future[Any] = getattr(actor, method).remote(*arguments).future()
    except Exception as error:  # the actor is gone for good, or Ray is
        return _failed(error)
    return begun


def _failed(error: Exception) -> Future[Any]:
    failed: Future[Any] = Future()
    failed.set_exception(error)
    return failed


def _pass_on(result: Future[Any], answer: Future[Any]) -> None:
    error = answer.exception()
    if error is not None:
        result.set_exception(error)
    else:
        result.set_result(answer.result())


def _not_passed_on(what: str) -> InvalidMessage:
    return InvalidMessage(what, "cannot be called by another program", "")


def _check_types(what: str, types: tuple[Any, ...] | None, arguments: list[Any]) -> None:
    """Raises `InvalidMessage` for a call that is not passed on."""
    if types is None:
        raise _not_passed_on(what)
    if len(types) != len(arguments) or not all(map(isinstance, arguments, types)):
        raise InvalidMessage(what, "was called with other arguments than it takes", "")


def open_relay(
    store_id: str,
    system: str,
    actor_named: Callable[[str], Any],
    control: Control,
    *,
    anywhere: Container[str] = (),
    node: str = "",
    token: str = "",
) -> Relay | None:
    """Open a relay on a fresh path. Returns None, and logs why, if no private socket folder is available, or no thread
    can be started. `node`: the id of the node that it serves, of several with that store; `anywhere`, `token`: see
    `Relay`."""
    listening = open_listening_socket(f"relay-{store_id[:12]}{node and '-'}{node[:12]}")
    if listening is None:
        log.warning("no other program can connect by the path of the store")
        return None
    try:
        return Relay(listening, store_id, f"{system}:", actor_named, control, anywhere, token)
    except RuntimeError as error:
        listening.close()
        log.warning("no other program can connect by the path of the store: %s", error)
        return None
