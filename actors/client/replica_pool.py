"""ReplicaPool: from a typed question to a replica of its projection, and back with the answer.

Step [8] of the read path, the caller's half. The other half is `actors/projection/actor.py`.

One batcher leads to each replica; queries go to the shortest. A query with `after=` goes the same way if the replica is
known to have come that far (each answer has its positions): the batch carries what it needs, and a replica that has not
come there, because it is another process by now, reports that instead of answering. Else it waits.

A replica on this machine is asked over a socket (`query_connection.py`). What waits is sent there at once, with its
deadline, and parked in the replica, where it costs neither a thread nor a call; its answer comes when it can be given.
While something is parked the replica is asked now and then whether it still answers at all.

Other replicas are asked through Ray, where each call holds a thread of the replica. So there queries wait here. At most
three calls of a client wait in a replica at a time, each with many queries: two for those that have just come, for as
long as a broadcast takes, and one for those that have waited in vain before.

What lies beyond the end of the log is refused at once. A replica that does not answer is left out for a moment and the
query goes to another: reading twice does no harm, unless it has ended the process that read (`suspects.py`).
`everywhere` waits for all of them, which is another question.

Rules kept here: every query has a deadline, which is kept here and nowhere else; every call has one, after which it
counts as lost; what waits is bounded; whatever an answer does when it is decoded, and whatever a callback raises, the
call that brought it gives its place in the batcher back.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections import deque
from collections.abc import Callable, Coroutine, Hashable, Iterable, Mapping, Sequence, Sized
from concurrent.futures import Future as ThreadFuture
from functools import partial
from typing import Any, Final

from ...runtime.batcher import Batcher
from ...runtime.encoding.query_batch import PackedQuery, join_queries
from ...runtime.errors import HandlerFailed, NotYetVisible, Overloaded, RayfoldError, Unavailable
from ...runtime.printable import printable_log
from ...runtime.read.positions import join_place
from ...runtime.user_code import is_ctrl_c
from ..os_process.suspects import Refused, key_of_batch, record_of, suspects_alone, suspects_of
from ..settings import Settings
from ..sockets.query_frames import LEFT_MAX_S, Answered, AnsweredAfter
from ..sockets.transport_choice import TransportChoice
from .query_connection import Answer, QueryConnection
from .query_protocol import Reached, SomeAnswered
from .socket_search import SocketSearch

__all__ = ["ReplicaPool", "Saw", "all_of", "resolved"]

log = printable_log(__name__)

_IN_FLIGHT_MAX: Final = 2
"""Batches on their way to one replica: one that it answers, and one that is made and carried meanwhile."""

_BATCH_QUERIES_MAX: Final = 1024
"""Answered under one hold of the read model's lock: about 3 ms during which it takes in no event."""

_TOGETHER: Final = 128
"""Queries that follow one another into a batch that is gathering, before it is looked which replica is the least busy
one: to look costs as much as half of all else that a query takes here."""

_LEFT_OUT_S: Final = 0.2
"""How long a replica whose call failed is left out, if there is another. One that was silent for a whole attempt is
left out for as long again: each query that is tried there waits so long for nothing."""

_FRESH_S: Final = 0.05
"""How long a call waits in a replica for the first of its queries that can be answered: some ten times what a broadcast
takes."""

_AGAIN_S: Final = 0.25
"""The same for queries that have waited without result; the replica reads the log for them."""

_WAITING_MAX: Final = 32_768
"""Queries of one client that wait for a position in a replica; bounded by `Settings.in_flight_max` as well."""

_POSITION_BYTES: Final = 12
"""What a position of `after` takes in a frame at most: 3 bytes for the partition, 9 for its position."""

_PARKED_BYTES_MAX: Final = 64 * 1024 * 1024
"""The size of what one client has parked in a replica: as much as may wait here for a call. Half of what a projector
takes from all."""

_GRACE_S: Final = 1.0
"""For a call to come back after the replica's own deadline for it."""

_PRECISE_S: Final = 1.0
"""A query with a shorter limit has a timer of its own, and is not answered later than that."""

_PROBE_S: Final = 0.1
_PROBE_TIMEOUT_S: Final = 1.0
"""Seconds between two checks whether a replica whose process has ended answers again, and for the answer."""

_SWEEP_S: Final = 0.05
"""How precise deadlines are."""

Saw = Callable[[dict[int, int]], None]
"""Called with the positions that an answer was read at."""


class _Asked:
    """A query on its way, until its future has an answer. Without a name it only waits, for one replica."""

    __slots__ = ("after", "deadline_s", "future", "packed", "saw", "tries", "waits_for")

    def __init__(
        self,
        packed: PackedQuery,
        after: Mapping[int, int],
        deadline_s: float,
        future: asyncio.Future[Any],
        saw: Saw | None,
        waits_for: _Replica | None = None,
    ) -> None:
        self.packed, self.after, self.deadline_s, self.future, self.saw = packed, after, deadline_s, future, saw
        self.waits_for = waits_for
        self.tries = 0
        """Replicas that have failed to answer it."""

    @property
    def size_bytes(self) -> int:
        """Its weight in a batcher whose batches need positions as a whole."""
        return len(self.packed.payload) + len(self.packed.name) + 64

    @property
    def waiting_bytes(self) -> int:
        """Its weight while it waits: each that does carries its own positions."""
        return self.size_bytes + _POSITION_BYTES * len(self.after)


class _Replica:
    """One replica: its actor, the batchers to it, and how far its present process is known to have come."""

    def __init__(
        self,
        number: int,
        actor: Any,
        batcher: Callable[[_Replica], Batcher[_Asked]],
        waiting: Callable[[_Replica, bool], Batcher[_Asked]],
        search: Callable[[_Replica], SocketSearch[QueryConnection]],
    ) -> None:
        """`batcher`, `waiting`: make the batchers to it; the second is called with whether they are for queries that
        have waited without result. `search`: what finds its socket."""
        self.number, self.actor = number, actor
        self.positions: dict[int, int] = {}
        self.incarnation = b""
        """The incarnation of the process that has answered last."""
        self.in_flight = 0
        self.left_out_until_s = 0.0
        self.batcher = batcher(self)
        self.fresh, self.waited = waiting(self, False), waiting(self, True)
        """Queries that wait for a position: those that have just come, and those that have waited in vain."""
        self.search = search(self)
        """Asks the actor by way of this replica, as the handle of it may be replaced."""
        self.parked: dict[_Call, None] = {}
        """Calls of which some queries wait in it."""
        self.parked_bytes = 0
        """The size of these queries."""
        self.checking = False
        """It is asked now and then whether it answers, since something is parked in it."""
        self.suspects: deque[_Asked] = deque()
        self.examining: asyncio.Task[None] | None = None
        actor_id = getattr(actor, "_actor_id", None)
        self.record = record_of(actor_id.hex() if actor_id is not None else "")

    @property
    def socket_path(self) -> Any:
        """The actor's method."""
        return self.actor.socket_path

    def retire(self) -> None:
        """Look for no socket any more, and close the connection once nothing is in flight on it."""
        if (connection := self.search.connection) is not None:
            self.search.retire()
            connection.retire()
        else:
            self.search.close()

    def has(self, after: Mapping[int, int]) -> bool:
        """Whether it is known to have come as far as `after`."""
        return not after or all(self.positions.get(partition, 0) >= after[partition] for partition in after)

    def saw(self, positions: Mapping[int, int], incarnation: bytes) -> None:
        """A process of it has answered at these positions. What is known of another one is void."""
        if incarnation != self.incarnation:
            self.positions, self.incarnation = dict(positions), incarnation
        else:
            join_place(self.positions, positions)


class _Call:
    """One call to a replica. Its answer, its failure or its deadline ends it, whichever comes first."""

    __slots__ = ("apart", "batch", "batcher", "connection", "ended", "key", "left", "replica", "replies", "timer")

    def __init__(
        self, replica: _Replica, batcher: Batcher[_Asked] | None, batch: Sequence[_Asked], *, apart: bool = False
    ) -> None:
        self.replica, self.batcher, self.batch, self.apart = replica, batcher, batch, apart
        self.key = b""
        self.connection: QueryConnection | None = None
        """The socket that it was sent over; None: through Ray."""
        self.left: dict[int, _Asked] = {}
        """By index: the queries that wait in the replica, if they do."""
        self.replies: type[Answered] | type[AnsweredAfter] = Answered
        self.ended = False
        self.timer: asyncio.TimerHandle | None = None


class ReplicaPool:
    """The replicas of one projection, as one client sees them. Used on one event loop only."""

    connection_class: type[QueryConnection] = QueryConnection

    def __init__(self, name: str, actors: Sequence[Any], settings: Settings, store_id: str = "") -> None:
        """`store_id`: that of the store, if it is known."""
        self._loop = asyncio.get_running_loop()
        self._ready: Sized | bool = getattr(self._loop, "_ready", True)
        """What else runs in this turn of the loop; an event loop that does not show it always has something."""
        self._name = name
        self._settings = settings
        self._store_id = store_id
        self._rotation = 0
        self._former: list[_Replica] = []
        """Replicas that were replaced, whose connections end with what is in flight on them."""
        self._gathering: _Replica | None = None
        """Where the last query without `after=` went."""
        self._pending: set[_Asked] = set()
        self._sweeping = False
        self._retired = False
        self._refused = Refused()
        self._replicas = [self._replica(number, actor) for number, actor in enumerate(actors)]

    def replace(self, actors: Sequence[Any]) -> None:
        """Ask these from now on. What was sent to others is answered by them, or sent again to these. An actor that is
        among them stays the same replica, whichever handle leads to it."""
        self._gathering = None
        before = {_name_of(replica.actor): replica for replica in self._replicas}
        self._replicas = [before.get(_name_of(actor)) or self._replica(0, actor) for actor in actors]
        for number, (replica, actor) in enumerate(zip(self._replicas, actors, strict=True)):
            replica.number, replica.actor = number, actor
        for replica in before.values():
            if replica not in self._replicas:
                replica.retire()
                self._former = [one for one in (*self._former, replica) if one.search.open]
                batchers = (replica.batcher, replica.fresh, replica.waited)
                self._again([asked for batcher in batchers for asked, _ in batcher.take_waiting(lambda _: True)])

    def give_up(self, why: str) -> None:
        """What is on its way is `Unavailable`, for this reason."""
        for asked in list(self._pending):
            self._resolve(asked, Unavailable(f"{self._name} {asked.packed.name}".strip(), why))

    def retire(self) -> None:
        """Send nothing again: these actors are about to end, and no others can answer for them."""
        self._retired = True
        for replica in self._replicas:
            replica.retire()

    def close(self) -> None:
        """Close the sockets: what is on its way, and what is asked from now on, goes through Ray."""
        for replica in (*self._replicas, *self._former):
            replica.search.close()

    def _replica(self, number: int, actor: Any) -> _Replica:
        replica = _Replica(number, actor, self._batcher, self._waiting_batcher, self._search)
        replica.search.look()
        return replica

    def _search(self, replica: _Replica) -> SocketSearch[QueryConnection]:
        def new_connection() -> QueryConnection:
            return self.connection_class(reached, lost, self._store_id)

        def reached(place: Reached) -> None:
            replica.saw(place.positions, place.incarnation)

        def lost(connection: QueryConnection) -> None:
            search.lost(connection, answered=connection.answered)

        choice = TransportChoice[QueryConnection](by_socket=self._settings.local_sockets)
        search = SocketSearch(replica, choice, new_connection)
        return search

    def _batcher(self, replica: _Replica) -> Batcher[_Asked]:
        return Batcher(
            f"the queue to a replica of {self._name}",
            partial(self._send, replica),
            defer=self._soon,
            in_flight_max=_IN_FLIGHT_MAX,
            batch_items_max=_BATCH_QUERIES_MAX,
        )

    def _soon(self, flush: Callable[[], None]) -> None:
        """Send what has gathered once all that runs in this turn of the loop has had its chance to join, and at once if
        nothing else does: a turn more costs a lone query a seventh of its time."""
        if self._ready:
            self._loop.call_soon(flush)
        else:
            flush()

    def _waiting_batcher(self, replica: _Replica, waited: bool) -> Batcher[_Asked]:
        return Batcher(
            f"the queue to a replica of {self._name}",
            partial(self._send_waiting, replica, waited),
            defer=self._loop.call_soon,
            in_flight_max=1 if waited else _IN_FLIGHT_MAX,
            pipelined_items_min=1,
            batch_items_max=_BATCH_QUERIES_MAX,
            waiting_items_max=_WAITING_MAX,
        )

    def ask(
        self, packed: PackedQuery, after: Mapping[int, int], timeout_s: float, saw: Saw | None = None
    ) -> asyncio.Future[Any]:
        """The future gets the answer, errors too as values; `saw` is called before with the positions that the answer
        was read at. Raises `Overloaded` at once."""
        if len(self._pending) >= self._settings.in_flight_max:
            raise Overloaded(f"the client's queries to {self._name}", self._settings.in_flight_max, "queries in flight")
        future = self._loop.create_future()
        asked = _Asked(packed, after, self._loop.time() + timeout_s, future, saw)
        if self._refused and (refusal := self._refusal(asked)):
            future.set_result(refusal)
            return future
        if after:
            self._route(asked)
        else:
            replica = self._gathering
            if replica is None or (len(self._replicas) > 1 and not 0 < len(replica.batcher) < _TOGETHER):
                replica = self._gathering = self._next_replica(after)
            replica.batcher.put(asked, asked.size_bytes)
            replica.in_flight += 1
        self._note(asked, timeout_s)
        return future

    def ask_many(
        self, queries: Sequence[PackedQuery], after: Mapping[int, int], timeout_s: float
    ) -> list[asyncio.Future[Any]]:
        """`ask` for each of them, with `Overloaded` as a value too. What has to be done once is done once."""
        room = self._settings.in_flight_max - len(self._pending)
        if after or self._refused or timeout_s < _PRECISE_S or len(queries) > room:
            return [self._asked_or_refused(packed, after, timeout_s) for packed in queries]
        create_future, deadline_s = self._loop.create_future, self._loop.time() + timeout_s
        many = [_Asked(packed, after, deadline_s, create_future(), None) for packed in queries]
        self._gathering = None
        for first in range(0, len(many), _TOGETHER):
            together, replica = many[first : first + _TOGETHER], self._next_replica(after)
            try:
                replica.batcher.put_all([(asked, asked.size_bytes) for asked in together])
            except Overloaded as error:
                for asked in together:
                    asked.future.set_result(error)
            else:
                self._pending.update(together)
                replica.in_flight += len(together)
        self._sweep_soon()
        return [asked.future for asked in many]

    def _asked_or_refused(self, packed: PackedQuery, after: Mapping[int, int], timeout_s: float) -> asyncio.Future[Any]:
        try:
            return self.ask(packed, after, timeout_s)
        except Overloaded as error:
            return resolved(error)

    def _note(self, asked: _Asked, timeout_s: float) -> None:
        """It is pending from now on; its deadline is kept here."""
        self._pending.add(asked)
        if timeout_s < _PRECISE_S:
            self._loop.call_later(timeout_s, self._expire, asked)
        self._sweep_soon()

    def _sweep_soon(self) -> None:
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(_SWEEP_S, self._sweep)

    async def everywhere(self, after: Mapping[int, int], deadline_s: float) -> None:
        """Return once every replica has come to `after`, those that join meanwhile too. One that was killed has it as
        soon as it answers again; one that is gone for good does not count, unless all are.

        Raises `NotYetVisible` at the deadline, what stopped the projection at once, `Unavailable` and `Overloaded`.
        """
        waited_for: list[_Replica] = []
        while fresh := [replica for replica in self._replicas if replica not in waited_for]:
            lives = await all_of(self._come_to(replica, after, deadline_s) for replica in fresh)
            if not any(lives):
                raise Unavailable(self._name, "none of its projectors is alive any more")
            waited_for += fresh

    async def _come_to(self, replica: _Replica, after: Mapping[int, int], deadline_s: float) -> bool:
        """False if it is gone for good. An old answer is not enough here: the replica itself confirms it."""
        left_s = deadline_s - self._loop.time()
        if left_s <= 0:
            raise self._late(after, replica.positions)
        asked = _Asked(PackedQuery("", b""), after, deadline_s, self._loop.create_future(), None, replica)
        replica.fresh.put(asked, asked.waiting_bytes)
        replica.in_flight += 1
        self._note(asked, left_s)
        try:
            outcome = await asked.future
        finally:
            self._pending.discard(asked)
        if isinstance(outcome, RayfoldError):
            raise outcome
        return outcome is not _GONE

    def actors(self) -> list[Any]:
        """Those that are asked."""
        return [replica.actor for replica in self._replicas]

    def reached(self, partition: int) -> int:
        """How far the last of the replicas is known to have come."""
        return min((replica.positions.get(partition, 0) for replica in self._replicas), default=0)

    # --- on the way ----------------------------------------------------------------------------------------------

    def _route(self, asked: _Asked, *, waited: bool = False) -> None:
        """Put it into a batcher. What was sent before is never refused there."""
        replica = asked.waits_for or self._next_replica(asked.after)
        if asked.waits_for is None and replica.has(asked.after):
            batcher, size_bytes = replica.batcher, asked.size_bytes
        else:
            batcher, size_bytes = replica.waited if waited else replica.fresh, asked.waiting_bytes
            if replica.parked_bytes > _PARKED_BYTES_MAX and not (waited or asked.tries):
                what = "bytes of queries that wait in it"
                raise Overloaded(f"a replica of {self._name}", _PARKED_BYTES_MAX, what)
        batcher.put(asked, size_bytes, again=waited or asked.tries > 0)
        replica.in_flight += 1

    def _next_replica(self, after: Mapping[int, int]) -> _Replica:
        """The least busy one of those that answer, one that has come far enough first; in turn where equal."""
        if len(self._replicas) == 1:
            return self._replicas[0]
        now = self._loop.time()
        self._rotation += 1
        rotation, count = self._rotation, len(self._replicas)
        return min(
            self._replicas,
            key=lambda r: (r.left_out_until_s > now, not r.has(after), r.in_flight, (r.number + rotation) % count),
        )

    def _send(self, replica: _Replica, batch: Sequence[_Asked]) -> None:
        self._send_as(_Call(replica, replica.batcher, batch))

    def _send_as(self, call: _Call) -> None:
        queries = join_queries([asked.packed for asked in call.batch])
        needs: dict[int, int] = {}
        for asked in call.batch:
            if asked.after:
                join_place(needs, asked.after)
        alone = len(self._replicas) == 1 or max(asked.tries for asked in call.batch) >= len(self._replicas)
        call.key = queries
        if (connection := call.replica.search.connection) is not None:
            call.connection = connection
            self._limit(call, self._settings.attempt_timeout_s)
            connection.ask(queries, needs, alone, call.apart, partial(self._on_answer, call))
        else:
            self._start(call, self._settings.attempt_timeout_s, "ask", queries, needs, alone, call.apart)

    def _send_waiting(self, replica: _Replica, waited: bool, batch: Sequence[_Asked]) -> None:
        batcher, now = replica.waited if waited else replica.fresh, self._loop.time()
        gone, batch = len(batch), [asked for asked in batch if not asked.future.done()]
        replica.in_flight -= gone - len(batch)
        if not batch:
            self._loop.call_soon(batcher.batch_done)
            return
        if (connection := replica.search.connection) is not None:
            self._loop.call_soon(batcher.batch_done)  # as many calls may be parked as there are
            self._park(replica, connection, batch, now)
            return
        call = _Call(replica, batcher, batch)
        call.replies = AnsweredAfter
        queries = call.key = join_queries([asked.packed for asked in batch])
        longest_s = max(asked.deadline_s for asked in batch) - now
        wait_s = max(0.0, min(_AGAIN_S if waited else _FRESH_S, longest_s))
        afters = [dict(asked.after) for asked in batch]
        self._start(call, wait_s + self._settings.attempt_timeout_s, "ask_after", queries, afters, wait_s, waited)

    def _park(self, replica: _Replica, connection: QueryConnection, batch: Sequence[_Asked], now: float) -> None:
        """Have these wait in the replica, which knows their deadlines."""
        call = _Call(replica, None, batch)
        call.connection, call.left = connection, dict(enumerate(batch))
        replica.parked[call] = None
        replica.parked_bytes += sum(asked.waiting_bytes for asked in batch)
        queries = join_queries([asked.packed for asked in batch])
        waits = [(min(max(0.0, asked.deadline_s - now), LEFT_MAX_S), asked.after) for asked in batch]
        connection.wait(queries, waits, partial(self._on_answer, call))
        if not replica.checking:
            replica.checking = True
            self._loop.call_later(self._settings.attempt_timeout_s, self._check, replica)

    def _check(self, replica: _Replica) -> None:
        """If something is still parked in it: ask whether it answers. If it does not, the connection is closed, and
        what is parked fails with it."""
        connection = replica.search.connection
        replica.checking = connection is not None and bool(replica.parked)
        if replica.checking and connection is not None:
            call = _Call(replica, None, ())
            call.connection = connection
            self._limit(call, self._settings.attempt_timeout_s)
            connection.ask(join_queries(()), {}, True, False, partial(self._on_answer, call))
            self._loop.call_later(self._settings.attempt_timeout_s, self._check, replica)

    def _limit(self, call: _Call, timeout_s: float) -> None:
        call.timer = self._loop.call_later(timeout_s, self._came_back, call, None)

    def _start(self, call: _Call, timeout_s: float, method: str, *arguments: Any) -> None:
        self._limit(call, timeout_s)
        try:
            sent = getattr(call.replica.actor, method).remote(*arguments)
            sent.future().add_done_callback(partial(self._wake, call))
        except Exception as error:  # the actor is gone for good, or Ray is
            failed: ThreadFuture[Any] = ThreadFuture()
            failed.set_exception(error)
            self._loop.call_soon(self._came_back, call, failed)

    def _wake(self, call: _Call, answer: ThreadFuture[Any]) -> None:
        """On a thread of Ray's: continue on the event loop, if there still is one."""
        try:
            self._loop.call_soon_threadsafe(self._came_back, call, answer)
        except RuntimeError:
            answer.exception()

    # --- and back ------------------------------------------------------------------------------------------------

    def _came_back(self, call: _Call, answer: ThreadFuture[Any] | None) -> None:
        """Through Ray: its answer or its failure; on either way: None at its deadline."""
        failure = None if answer is None else answer.exception()
        if answer is None or failure is not None:
            self._end(call, partial(self._failed, call, failure))
            if answer is None and call.connection is not None:
                call.connection.close()  # and with it what else is on its way there, or parked
        else:
            self._end(call, lambda: self._take(call, call.replies._make(answer.result())))  # a relay has made it a list
            call.replica.search.look()

    def _on_answer(self, call: _Call, answer: Answer) -> None:
        """Over a socket: an answer, some of several, or what has kept it from being answered."""
        if isinstance(answer, SomeAnswered):
            self._take_parked(call, answer)
        elif isinstance(answer, Answered):
            self._end(call, lambda: self._take(call, answer))
        else:
            failure = _Lost("the connection was lost") if answer is None else _NotAnswered(answer.why)
            self._end(call, partial(self._failed, call, failure))

    def _end(self, call: _Call, ending: Callable[[], None]) -> None:
        """Whatever is in its answer, the call's place is free afterwards."""
        if call.ended:
            return
        call.ended = True
        if call.timer is not None:
            call.timer.cancel()
        call.replica.parked.pop(call, None)
        call.replica.parked_bytes -= sum(asked.waiting_bytes for asked in call.left.values())
        call.replica.in_flight -= len(call.left) if call.left else len(call.batch)
        try:
            ending()
        except Exception:  # no answer of Rayfold's
            log.exception("a replica of %s gave an answer that cannot be read", self._name)
            self._loop.call_later(_LEFT_OUT_S / 2, self._again, call.batch)
        finally:
            if call.batcher is not None:
                call.batcher.batch_done()

    def _take_parked(self, call: _Call, some: SomeAnswered) -> None:
        """Some of what was parked has been answered. The protocol has seen to it that each is there once."""
        if call.ended:
            return
        replica = call.replica
        replica.saw(some.positions, some.incarnation)
        replica.in_flight -= len(some.answers)
        for index, blob in some.answers:
            asked = call.left.pop(index)
            replica.parked_bytes -= asked.waiting_bytes
            if not asked.future.done():
                self._answer(asked, None if blob is None else self._decoded(asked, blob), some.positions)
            else:
                self._pending.discard(asked)
        if not some.left:
            call.ended = True
            del replica.parked[call]

    def _take(self, call: _Call, answered: Answered | AnsweredAfter) -> None:
        call.replica.saw(answered.positions, answered.incarnation)
        if not answered.answers:  # it has not come to what the batch needs
            for asked in call.batch:
                if not asked.future.done():
                    asked.tries += 1
                    self._route(asked)
        elif isinstance(answered, Answered):
            self._take_all(call, answered)
        else:
            self._take_some(call, answered)

    def _take_all(self, call: _Call, answered: Answered) -> None:
        try:
            answers = pickle.loads(answered.answers)
        except BaseException as error:  # code of the user's runs here
            if call.apart or is_ctrl_c(error):
                raise
            log.info("an answer of %s cannot be decoded here: %r; all of its batch are asked again", self._name, error)
            self._send_as(_Call(call.replica, None, call.batch, apart=True))
            call.replica.in_flight += len(call.batch)
            return
        for asked, value in zip(call.batch, answers, strict=True):
            if call.apart or asked.saw is not None:
                self._answer(asked, self._decoded(asked, value) if call.apart else value, answered.positions)
            elif not (future := asked.future).done():
                future.set_result(value)
        self._pending.difference_update(call.batch)

    def _take_some(self, call: _Call, answered: AnsweredAfter) -> None:
        answers, positions, ends = pickle.loads(answered.answers), answered.positions, answered.ends
        for index, asked in enumerate(call.batch):
            if asked.future.done():
                continue
            if index in answers:
                value = answers[index]
                self._answer(asked, self._decoded(asked, value) if isinstance(value, bytes) else value, positions)
            elif any(ends.get(partition, position) < position for partition, position in asked.after.items()):
                self._answer(asked, self._late(asked.after, call.replica.positions), positions)
            else:
                self._route(asked, waited=True)

    def _answer(self, asked: _Asked, value: Any, positions: dict[int, int]) -> None:
        self._pending.discard(asked)
        if asked.future.done():
            return
        try:
            if asked.saw is not None and not isinstance(value, RayfoldError):
                asked.saw(positions)
            asked.future.set_result(value)
        except Exception as error:
            asked.future.set_result(HandlerFailed.caused_by("the callback of", asked.packed.name, error))

    def _decoded(self, asked: _Asked, blob: bytes) -> Any:
        try:
            return pickle.loads(blob)
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            failed = HandlerFailed.caused_by(f"{self._name} @answer", asked.packed.name, error)
            return HandlerFailed(failed.handler, failed.subject, f"its answer cannot be decoded here: {failed.what}")

    # --- what fails ----------------------------------------------------------------------------------------------

    def _failed(self, call: _Call, failure: BaseException | None) -> None:
        """No answer: none in time (None), or the process has ended, is being started again, or ends."""
        replica = call.replica
        left_out_s = self._settings.attempt_timeout_s if failure is None else _LEFT_OUT_S
        replica.left_out_until_s = self._loop.time() + left_out_s
        self._gathering = None
        replica.positions.clear()
        gone = type(failure).__name__ == "ActorDiedError"
        lost = isinstance(failure, _Lost)
        died = gone or lost or type(failure).__name__ == "ActorUnavailableError"
        suspects: list[_Asked] = []
        batch = list(call.left.values()) if call.left else call.batch
        if call.left:
            suspects = suspects_alone(batch, _key_of, replica.record, replica.incarnation) if lost else []
        elif call.key and (died or failure is None) and not gone:
            key, only_known = key_of_batch(call.key), failure is None or lost
            suspects = suspects_of(call.batch, key, replica.record, replica.incarnation, only_known=only_known)
        for asked in batch:
            asked.tries += 1
            if gone and asked.waits_for is replica:
                self._resolve(asked, _GONE)
        named = {id(asked) for asked in suspects if asked.packed.name}
        innocent = [asked for asked in batch if id(asked) not in named]
        self._loop.call_later(_LEFT_OUT_S / 2, self._again, innocent)
        if named:
            replica.suspects.extend(asked for asked in suspects if asked.packed.name)
            if replica.examining is None:
                replica.examining = self._loop.create_task(self._examine(replica))

    async def _examine(self, replica: _Replica) -> None:
        """Ask the suspects, one by one, of the replica whose process they may have ended."""
        try:
            while replica.suspects:
                asked = replica.suspects.popleft()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._ask_alone(replica, asked)
        finally:
            replica.examining = None
            self._again(list(replica.suspects))
            replica.suspects.clear()

    async def _ask_alone(self, replica: _Replica, asked: _Asked) -> None:
        batch = join_queries([asked.packed])
        key, before = key_of_batch(batch), b""
        while not asked.future.done() and not self._retired and replica in self._replicas:
            if refusal := self._refusal(asked):
                self._resolve(asked, refusal)
                return
            try:
                now = await self._incarnation(replica)
                if before and now != before and suspects_of([asked], key, replica.record, before):
                    self._refused.add(key)
                    continue
                call = replica.actor.ask.remote(batch, dict(asked.after), True, True).future()
                before = now
                answer = await asyncio.wait_for(asyncio.wrap_future(call), self._settings.attempt_timeout_s + _GRACE_S)
                self._take(_Call(replica, None, [asked], apart=True), Answered._make(answer))
                return
            except TimeoutError:
                before = b""  # it may have ended for another reason since
            except Exception as error:
                if type(error).__name__ == "ActorDiedError":
                    break
                unavailable = type(error).__name__ == "ActorUnavailableError"
                if unavailable and before and suspects_of([asked], key, replica.record, before, only_known=True):
                    self._refused.add(key)
                await asyncio.sleep(_PROBE_S)
        self._again([asked])

    async def _incarnation(self, replica: _Replica) -> bytes:
        asked = replica.actor.incarnation.remote().future()
        now: bytes = await asyncio.wait_for(asyncio.wrap_future(asked), _PROBE_TIMEOUT_S)
        return now

    def _refusal(self, asked: _Asked) -> HandlerFailed | None:
        if not self._refused:
            return None
        return self._refused.find(key_of_batch(join_queries([asked.packed])), self._name, asked.packed.name)

    def _again(self, batch: Sequence[_Asked]) -> None:
        for asked in batch:
            if asked.future.done():
                continue
            if self._retired:
                what = "it was divided into another number of parts meanwhile; ask again"
                self._resolve(asked, Unavailable(f"{self._name} {asked.packed.name}", what))
            elif asked.waits_for is not None and asked.waits_for not in self._replicas:
                self._resolve(asked, _GONE)
            else:
                asked.tries += 1
                self._route(asked)

    def _resolve(self, asked: _Asked, answer: Any) -> None:
        self._pending.discard(asked)
        if not asked.future.done():
            asked.future.set_result(answer)

    # --- deadlines -----------------------------------------------------------------------------------------------

    def _expire(self, asked: _Asked) -> None:
        """Its deadline has passed."""
        if asked.future.done():
            self._pending.discard(asked)
            return
        if not asked.after:
            what = Unavailable(f"{self._name} {asked.packed.name}", "no replica answered in time")
            self._resolve(asked, what)
            return
        known = asked.waits_for or max(self._replicas, key=lambda one: sum(one.positions.values()), default=None)
        if asked.waits_for is None and (known is None or not known.positions):  # all have ended, or never answered
            self._resolve(asked, Unavailable(f"{self._name} {asked.packed.name}", "no replica answered in time"))
            return
        self._resolve(asked, self._late(asked.after, known.positions if known else {}))

    def _late(self, after: Mapping[int, int], positions: Mapping[int, int]) -> RayfoldError:
        missing = [partition for partition, position in after.items() if positions.get(partition, 0) < position]
        if not missing:
            return Unavailable(self._name, "no replica answered in time")
        partition = missing[0]
        return NotYetVisible(self._name, partition, after[partition], positions.get(partition, 0))

    def _sweep(self) -> None:
        """Fail those whose deadline has passed, and drop those whose caller has gone."""
        now = self._loop.time()
        for asked in [a for a in self._pending if a.future.done() or now > a.deadline_s]:
            self._expire(asked)
        self._sweeping = bool(self._pending)
        if self._sweeping:
            self._loop.call_later(_SWEEP_S, self._sweep)


class _Lost(Exception):
    """The connection to a replica was lost: its process has ended, or has closed it."""


class _NotAnswered(Exception):
    """A replica does not answer this call: it ends, or is still reading."""


def _name_of(actor: Any) -> Hashable:
    """What names the actor that a handle leads to: its id of Ray's, or its name at a relay."""
    if (actor_id := getattr(actor, "_actor_id", None)) is not None:
        return str(actor_id.hex())
    name = getattr(actor, "name", None)
    return name if isinstance(name, str) else id(actor)


def _key_of(asked: _Asked) -> bytes:
    """The key under which it is in hand when it is answered alone."""
    return key_of_batch(join_queries([asked.packed]))


_GONE: Final = object()
"""What a wait for one replica gets when that is gone for good."""


def resolved(outcome: Any) -> asyncio.Future[Any]:
    """A future that has it already, on the running event loop."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_result(outcome)
    return future


async def all_of(waits: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """What all come to; the first that raises ends the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
