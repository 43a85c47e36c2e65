"""QueryServer: where a projector listens for clients of its own machine, on a Unix socket.

Step [8]. Before it: a client's `QueryConnection` (`../client/query_connection.py`). After it: what an open read model
answers (`answers.py`), which sees no difference to a call through Ray. A partition that broadcasts ([6]) connects here
as well; once it has greeted, its connection belongs to the `BroadcastReader` (`broadcast_reader.py`).

What the bytes mean is decided by `QueryServerProtocol` (`query_protocol.py`), and which queries wait for what by
`WaitingQueries` (`waiting_queries.py`); here bytes are moved, queries answered, and time passes.

One thread serves all connections: one that is idle costs nothing, and a query that waits is an entry in a table. The
thread that takes events in wakes this one when they bring a position that a query waits for. A broadcast that was lost
brings none, so the log is read where a query has waited for long; that happens on a thread of its own, and on another
one for logs on other nodes, since both may take long.

Rules kept here:
- connections are bounded, and each takes turns with the others: one call, or a few woken queries, at a time
- a client that does not read its answers is not read from, and has nothing more answered, until it does
- whatever goes wrong with one connection ends that one, and never the thread
- a client is cut off, and the log has the reason: for what is no call of Rayfold's, and for a greeting, a frame or an
  answer that does not come to its end in time
"""

from __future__ import annotations

import contextlib
import math
import queue
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Final

from ...runtime.errors import RayfoldError
from ...runtime.printable import printable_log
from ..sockets.handshake import HANDSHAKE_S, Handshake
from ..sockets.listening import (
    CONNECTIONS_MAX,
    REFUSED_AT_ONCE_MAX,
    ListeningSocket,
    closed_in_children,
    full,
    other_end,
)
from ..sockets.poll_signal import PollSignal
from .answers import Answers, pickled_alone
from .broadcast_reader import Apply, BroadcastReader
from .query_protocol import Asked, Awaited, QueryServerProtocol
from .waiting_queries import WaitingQueries, WaitingQuery

__all__ = ["QueryServer"]

log = printable_log(__name__)

_READ_BYTES: Final = 128 * 1024
"""Of one connection at a time."""

_UNSENT_MAX: Final = 512 * 1024
"""Bytes of answers beyond which a client has nothing more answered before it has read some. One answer more fits."""

_SENDS_MAX: Final = 8
"""Times that a connection is sent something before others have their turn: some MB."""

_WOKEN_AT_ONCE: Final = 32
"""Woken queries that are answered before other connections have their turn: about half a millisecond."""

_WOKEN_BEFORE_CALLS: Final = 1024
"""Queries that are to be answered, or refused, beyond which no further call of their connection is begun."""

_STALLED_S: Final = 10.0
"""How long a frame may take to come, and an answer to be read in part: a thousand times what it takes. A process that
was stopped for longer connects again."""

_LOOK_FIRST_S: Final = 0.05
"""How long a query waits for a broadcast before the log is read: some ten times what a broadcast takes."""

_LOOK_AGAIN_S: Final = 0.25
"""Between two such readings."""

_PAUSE_S: Final = 1.0
"""Pause after an `accept` that failed, for example for want of file descriptors."""

_END_S: Final = 1.0
"""How long the end of a server may take, in which what has come is answered."""


class _Connection:
    """One client, from its connection to its end."""

    __slots__ = ("calls", "events", "handshake", "name", "protocol", "since_s", "socket", "unsent", "woken")

    def __init__(self, connected: socket.socket, store_id: str, now_s: float) -> None:
        self.socket = connected
        self.name = f"process {other_end(connected)[0]}"
        self.handshake: Handshake | None = Handshake("projector", store_id, also=("broadcast",))
        """Until it is done."""
        self.protocol = QueryServerProtocol()
        self.calls: deque[Asked | Awaited] = deque()
        """Calls that are not begun; bounded by what one read has brought."""
        self.woken: deque[tuple[WaitingQuery, RayfoldError | None]] = deque()
        """Queries that are to be answered, or refused; bounded as those that wait are, and by `_WOKEN_BEFORE_CALLS`."""
        self.unsent = bytearray()
        self.events = select.EPOLLIN
        """What is waited for: something to read, room for answers, or both."""
        self.since_s = now_s
        """Since when it owes the rest of a greeting or of a frame, or has read nothing of its answers; 0: it does
        not."""

    @property
    def blocked(self) -> bool:
        return len(self.unsent) > _UNSENT_MAX

    @property
    def owes(self) -> str:
        """What has to come from it, or be read by it, in time."""
        if self.handshake is not None:
            return "its greeting"
        if self.unsent:
            return "to read its answers"
        return "the rest of a frame" if self.protocol.within and self.events & select.EPOLLIN else ""


class QueryServer:
    """A listening socket, the thread that serves its connections, and what waits."""

    def __init__(self, listening: ListeningSocket, store_id: str, answering: Answers, apply: Apply) -> None:
        """Serve at once. `apply`: takes in what is broadcast. Raises `OSError`."""
        self.path = listening.path
        self._broadcasts = BroadcastReader(str(listening.path), answering.positions, apply)
        self._listening, self._store_id, self._answering = listening, store_id, answering
        self._fresh: ListeningSocket | None = None
        """To be accepted from instead, since the file of the other one was removed."""
        self._waiting = WaitingQueries()
        self._connections: dict[int, _Connection] = {}
        self._busy: dict[_Connection, None] = {}
        """Connections with queries to answer, or answers to send."""
        self._owing: dict[_Connection, None] = {}
        """Connections whose client has sent part of a frame, or reads too slowly: see `_Connection.since_s`."""
        self._wanted: Mapping[int, int] = {}
        """What `WaitingQueries.wanted` returns, for the thread that takes events in. Replaced, never changed."""
        self._signalled = False
        self._looked: deque[tuple[float, Mapping[int, int]]] = deque()
        """When it was looked where logs end, and where: it does not count for what was parked later."""
        self._look_at_s = math.inf
        """When to read logs for what waits; infinite while nothing does."""
        self._accept_at_s = 0.0
        """When to accept again after a failure; 0: it does."""
        self._closing = threading.Event()
        self._readers = {away: _LogReader(away, self._read_logs) for away in (False, True)}
        self._thread = threading.Thread(target=self._run, name="rayfold-queries", daemon=True)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(listening.close)
            self._poll = select.epoll()
            on_failure.callback(self._poll.close)
            self._signal = PollSignal()
            on_failure.callback(self._signal.close)
            listening.socket.setblocking(False)
            self._poll.register(listening.socket.fileno(), select.EPOLLIN)
            self._poll.register(self._signal.descriptor, select.EPOLLIN)
            try:
                for reader in self._readers.values():
                    reader.start()
                    on_failure.callback(reader.stop)
                self._thread.start()
            except RuntimeError as error:  # there may be no more threads
                raise OSError(str(error)) from error
            on_failure.pop_all()
        closed_in_children(self)

    @property
    def ended(self) -> bool:
        """Nothing is answered here any more."""
        return not self._thread.is_alive()

    def notify_changed(self) -> None:
        """The read model has taken something in, has stopped, or was closed. From any thread, after it."""
        wanted = self._wanted
        if wanted and not self._signalled:
            positions = self._answering.positions
            if self._answering.failed is not None or any(
                positions.get(partition, 0) >= first for partition, first in wanted.items()
            ):
                self._wake()

    def put_back(self) -> None:
        """Make the file of the socket again if it was removed; who is connected stays. By one thread at a time."""
        present = self._fresh or self._listening
        if (fresh := present.put_back()) is not present:
            self._fresh = fresh
            self._wake()

    def close(self) -> None:
        """Answer what has come, and end every connection; what waits is lost with them, and asked again elsewhere.
        Closing twice is allowed."""
        self._closing.set()
        self._wake()
        self._broadcasts.close()
        if threading.current_thread() is not self._thread:
            self._thread.join(_END_S)
        self._close_listening()
        for reader in self._readers.values():
            reader.stop()

    def close_in_child(self) -> None:
        """See `closed_in_children`."""
        self._listening.socket.close()
        for connection in list(self._connections.values()):
            connection.socket.close()
        self._broadcasts.close_in_child()

    # --- the loop ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._serve_once(self._pause_s())
            end_s = time.monotonic() + _END_S / 2
            while time.monotonic() < end_s and (self._serve_once(0.0) or self._busy):
                pass
        except BaseException:
            log.exception("%s ends; its clients use Ray", self.path)
        finally:
            for connection in list(self._connections.values()):
                self._end(connection)
            self._broadcasts.close()
            self._close_listening()
            self._poll.close()
            self._signal.close()

    def _serve_once(self, pause_s: float) -> int:
        """What has come, what was woken and what is due. Returns how many events there were."""
        events = self._poll.poll(pause_s)
        for descriptor, event in events:
            connection = self._connections.get(descriptor)
            if connection is not None:
                self._guard(connection, self._send if event & select.EPOLLOUT else self._read)
            elif descriptor == self._signal.descriptor:
                self._signal.clear()
                self._signalled = False  # before it is looked what has changed
                if self._fresh is not None:
                    self._accept_from(self._fresh)
            else:
                self._accept()
        for connection in list(self._busy):
            self._guard(connection, self._work)
        if self._waiting or self._looked:
            self._attend(time.monotonic())
        if self._owing or self._accept_at_s:
            self._watch(time.monotonic())
        return len(events)

    def _pause_s(self) -> float:
        """How long there may be nothing to do; -1: until something comes."""
        if self._busy:
            return 0.0
        now_s, due_s = time.monotonic(), []
        if self._waiting:
            due_s += [self._look_at_s, self._waiting.next_deadline_s() or now_s]
        if self._accept_at_s:
            due_s.append(self._accept_at_s)
        if self._owing:
            due_s.append(now_s + _PAUSE_S)
        return max(0.0, min(due_s) - now_s) if due_s else -1.0

    def _guard(self, connection: _Connection, step: Callable[[_Connection], None]) -> None:
        """Whatever goes wrong with one connection ends that one."""
        try:
            step(connection)
        except OSError as error:
            log.debug("%s: %s has gone: %s", self.path, connection.name, error)
            self._end(connection)
        except BaseException:
            log.exception("%s: a call could not be answered; %s asks again, through Ray", self.path, connection.name)
            self._end(connection)

    def _wake(self) -> None:
        self._signalled = True
        self._signal.wake()

    # --- connections ---------------------------------------------------------------------------------------------

    def _accept_from(self, fresh: ListeningSocket) -> None:
        before, self._listening = self._listening, fresh
        self._fresh = None
        fresh.socket.setblocking(False)
        if not self._accept_at_s:
            self._poll.unregister(before.socket.fileno())
            self._poll.register(fresh.socket.fileno(), select.EPOLLIN)
        before.close()

    def _close_listening(self) -> None:
        for one in (self._listening, self._fresh):
            if one is not None:
                one.close()

    def _accept(self) -> None:
        try:
            connected, _ = self._listening.socket.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if not self._closing.is_set():
                log.warning("%s accepts no connection for now: %s", self.path, error)
                self._accept_at_s = time.monotonic() + _PAUSE_S
                self._poll.unregister(self._listening.socket.fileno())
            return
        if len(self._connections) >= CONNECTIONS_MAX + REFUSED_AT_ONCE_MAX:
            connected.close()
            return
        try:
            connected.setblocking(False)
            connection = _Connection(connected, self._store_id, time.monotonic())
            self._poll.register(connected.fileno(), select.EPOLLIN)
        except OSError as error:
            log.warning("%s: a connection could not be taken: %s", self.path, error)
            connected.close()
            return
        self._connections[connected.fileno()] = connection
        self._owing[connection] = None

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._end(connection)
            return
        if connection.handshake is not None:
            data = self._greet(connection, connection.handshake, data)
            if connection.socket.fileno() not in self._connections:
                return
        if data:
            calls = connection.protocol.receive(data)
            if connection.protocol.refused:
                self._cut_off(connection, connection.protocol.refused)
                return
            if calls:
                connection.calls += calls
                connection.since_s = 0.0
        self._work(connection)

    def _greet(self, connection: _Connection, handshake: Handshake, data: bytes) -> bytes:
        """What comes behind the greeting, if it is complete."""
        handshake.receive(data)
        if handshake.wanted_bytes:
            return b""
        if handshake.done and handshake.service != "broadcast" and len(self._connections) > CONNECTIONS_MAX:
            handshake.refuse(full(CONNECTIONS_MAX))
        connection.unsent += handshake.greeting()
        if handshake.refused:
            self._flush(connection)
            self._cut_off(connection, handshake.refused)
            return b""
        connection.handshake = None
        if handshake.service == "broadcast":
            self._hand_over(connection, handshake.rest)
            return b""
        return handshake.rest

    def _hand_over(self, connection: _Connection, rest: bytes) -> None:
        """It is a partition's, and read elsewhere from now on."""
        self._flush(connection)  # a greeting fits into an empty socket
        descriptor = connection.socket.fileno()
        del self._connections[descriptor]
        self._owing.pop(connection, None)
        self._poll.unregister(descriptor)
        self._broadcasts.take(connection.socket, rest)

    def _send(self, connection: _Connection) -> None:
        """There is room for answers again."""
        self._flush(connection)
        self._work(connection)

    def _flush(self, connection: _Connection) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(_SENDS_MAX):
                if not connection.unsent:
                    break
                sent = connection.socket.send(connection.unsent)
                del connection.unsent[:sent]
                connection.since_s = 0.0

    def _work(self, connection: _Connection) -> None:
        """Its turn: one call, or some of its woken queries."""
        if connection.socket.fileno() < 0:
            self._busy.pop(connection, None)
            return
        if not connection.blocked:
            if connection.calls and len(connection.woken) <= _WOKEN_BEFORE_CALLS:
                call = connection.calls.popleft()
                if isinstance(call, Asked):
                    self._ask(connection, call)
                else:
                    self._await(connection, call)
            if connection.woken:
                self._answer_woken(connection)
            self._flush(connection)
        if (connection.calls or connection.woken) and not connection.blocked:
            self._busy[connection] = None
        else:
            self._busy.pop(connection, None)
        reading = 0 if connection.calls or connection.blocked else select.EPOLLIN
        events = reading | select.EPOLLOUT if connection.unsent else reading
        if events != connection.events:
            connection.events = events
            self._poll.modify(connection.socket.fileno(), events)
        if not connection.owes:
            connection.since_s = 0.0
            self._owing.pop(connection, None)
        elif not connection.since_s or connection not in self._owing:
            connection.since_s = time.monotonic()
            self._owing[connection] = None

    def _cut_off(self, connection: _Connection, why: str) -> None:
        log.warning("%s cuts %s off: %s", self.path, connection.name, why)
        self._end(connection)

    def _end(self, connection: _Connection) -> None:
        descriptor = connection.socket.fileno()
        if descriptor < 0 or self._connections.pop(descriptor, None) is None:
            return
        self._busy.pop(connection, None)
        self._owing.pop(connection, None)
        try:
            self._waiting.drop(connection)
            self._wanted = self._waiting.wanted()
        except Exception:
            log.exception("%s: what %s has parked could not be forgotten", self.path, connection.name)
        finally:
            with contextlib.suppress(OSError):
                self._poll.unregister(descriptor)
            connection.socket.close()

    def _watch(self, now_s: float) -> None:
        """Cut off those that are late, and accept again."""
        for connection in list(self._owing):
            limit_s = _STALLED_S if connection.handshake is None else HANDSHAKE_S
            if now_s - connection.since_s >= limit_s:
                self._cut_off(connection, f"it owes {connection.owes} for {limit_s:g} s")
        if self._accept_at_s and now_s >= self._accept_at_s:
            self._accept_at_s = 0.0
            self._poll.register(self._listening.socket.fileno(), select.EPOLLIN)

    # --- queries -------------------------------------------------------------------------------------------------

    def _ask(self, connection: _Connection, call: Asked) -> None:
        try:
            answered = self._answering.ask(call.queries, call.batch, call.needs, call.apart)
        except RayfoldError as error:
            connection.unsent += connection.protocol.failed(call.call, str(error))
        else:
            connection.unsent += connection.protocol.answered(call.call, *answered)

    def _await(self, connection: _Connection, call: Awaited) -> None:
        """Park these queries, but for those that can be answered, or refused, now."""
        positions, now_s = self._answering.positions, time.monotonic()
        stopped = self._answering.failed
        missing = {
            partition
            for _, after in call.waits
            for partition, position in after.items()
            if positions.get(partition, 0) < position
        }
        ends = self._answering.ends(missing, away=False) if missing and stopped is None else {}
        for index, (left_s, after) in enumerate(call.waits):
            entry = WaitingQuery(connection, call.call, index, call.queries[index], after)
            refusal: RayfoldError | None = None
            if missing and any(ends.get(partition, position) < position for partition, position in after.items()):
                refusal = self._answering.late(after)
            elif missing:
                try:
                    if self._waiting.park(entry, left_s, positions, now_s):
                        continue
                except RayfoldError as error:
                    refusal = error
            connection.woken.append((entry, refusal))
        if missing:
            self._wanted = self._waiting.wanted()
            self._look_at_s = min(self._look_at_s, now_s + _LOOK_FIRST_S) if self._waiting else math.inf
            self._attend(now_s)  # what has come since the positions were read has woken nothing

    def _attend(self, now_s: float) -> None:
        """Have those answered that can be now, and refused that cannot be any more; have logs read if it is time."""
        self._signalled = False
        waiting, answering = self._waiting, self._answering
        settled: list[tuple[WaitingQuery, RayfoldError | None]] = []
        settled += [(entry, None) for entry in waiting.wake(answering.positions)]
        while self._looked:
            read_s, ends = self._looked.popleft()
            settled += [(entry, answering.late(entry.after)) for entry in waiting.take_beyond(ends, read_s)]
        if waiting and (stopped := answering.failed) is not None:
            settled += [(entry, stopped) for entry in waiting.take_all()]
        if (due_s := waiting.next_deadline_s()) is not None and due_s <= now_s:
            settled += [(entry, answering.late(entry.after)) for entry in waiting.expire(now_s)]
        for entry, refusal in settled:
            connection = entry.connection
            assert isinstance(connection, _Connection)
            connection.woken.append((entry, refusal))
            self._busy[connection] = None
        if settled:
            self._wanted = waiting.wanted()
        if (oldest_s := waiting.oldest_s()) is None:
            self._look_at_s = math.inf
        elif now_s >= self._look_at_s:
            if now_s >= oldest_s + _LOOK_FIRST_S:
                self._look()
                self._look_at_s = now_s + _LOOK_AGAIN_S
            else:
                self._look_at_s = oldest_s + _LOOK_FIRST_S

    def _answer_woken(self, connection: _Connection) -> None:
        """Some of its queries that have been woken, each under a key of its own, so that one that ends this process is
        known by it. Those of one call that were read at the same positions travel together."""
        answering, protocol, unsent = self._answering, connection.protocol, connection.unsent
        together: dict[int, tuple[dict[int, int], list[tuple[int, bytes | None]]]] = {}
        size_bytes = len(unsent)
        for _ in range(min(_WOKEN_AT_ONCE, len(connection.woken))):
            entry, refusal = connection.woken.popleft()
            answer: bytes | None = None
            if refusal is None and entry.name:
                answer, positions = answering.answer_one((entry.name, entry.payload))
            else:
                answer = None if refusal is None else pickled_alone(refusal)
                positions = dict(answering.positions)
            before, some = together.setdefault(entry.call, (positions, []))
            if before != positions:
                unsent += protocol.some(entry.call, some, before, answering.incarnation)
                together[entry.call] = positions, [(entry.index, answer)]
            else:
                some.append((entry.index, answer))
            size_bytes += len(answer or b"")
            if size_bytes > _UNSENT_MAX:
                break
        for call, (positions, some) in together.items():
            unsent += protocol.some(call, some, positions, answering.incarnation)

    # --- logs ----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Have the logs read that something waits for: a broadcast may have been lost. And send the clients how far
        this projector is, so that they know it when a deadline has passed."""
        for connection in self._waiting.connections():
            assert isinstance(connection, _Connection)
            if not connection.unsent:
                positions = dict(self._answering.positions)
                connection.unsent += connection.protocol.reached(positions, self._answering.incarnation)
                self._busy[connection] = None
        for away, reader in self._readers.items():
            partitions = [one for one in self._wanted if self._answering.is_away(one) == away]
            if partitions:
                reader.read(partitions)

    def _read_logs(self, partitions: Collection[int], away: bool) -> None:
        """On a thread of its own: what is taken in wakes the loop by itself."""
        try:
            self._answering.read_logs(partitions, _LOOK_AGAIN_S)
            read_s = time.monotonic()
            self._looked.append((read_s, self._answering.ends(partitions, away=away)))
        except RayfoldError as error:
            log.info("%s: a log cannot be read for queries that wait: %s", self.path, error)
            return
        self._wake()


class _LogReader:
    """A thread that reads logs on request; requests that come while it reads are dropped."""

    def __init__(self, away: bool, read: Callable[[Collection[int], bool], None]) -> None:
        self._away, self._read = away, read
        self._orders: queue.SimpleQueue[Collection[int] | None] = queue.SimpleQueue()
        self._at_work = False
        self._thread = threading.Thread(target=self._run, name="rayfold-log-reader", daemon=True)

    def start(self) -> None:
        """Begin. Raises `RuntimeError` if there can be no more threads."""
        self._thread.start()

    def read(self, partitions: Collection[int]) -> None:
        """Read these, unless it is reading."""
        if not self._at_work:
            self._at_work = True
            self._orders.put(partitions)

    def stop(self) -> None:
        """End the thread, once it has read."""
        self._orders.put(None)

    def _run(self) -> None:
        while (partitions := self._orders.get()) is not None:
            try:
                self._read(partitions, self._away)
            except Exception:
                log.exception("a log could not be read for queries that wait")
            finally:
                self._at_work = False
