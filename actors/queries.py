"""Queries: from a typed question to a replica of its projection, and back with the answer.

Step [8] of the read path, the caller's half. The other half is `actors/projector.py`.

One lane leads to each replica; queries go to the shortest. A query with `after=` goes the same way if the replica is
known to have come that far (each answer says how far it is), and else by a road of its own on which it may wait, for an
attempt's time at a time. A replica that does not answer, or does not get there, is left out for a moment and the query
goes to another: reading twice harms nobody. `everywhere` waits for all of them, which is another question.

Rules kept here: every query has a deadline; every call has one, after which it counts as lost; what waits is bounded.
"""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future as ThreadFuture
from functools import partial
from typing import Any, Final

from ..runtime.batching import Lane
from ..runtime.errors import NotYetVisible, Overloaded, RayfoldError, Unavailable
from ..runtime.read_model import PackedQuery, join_queries
from ..runtime.wire import from_wire
from .settings import Settings

__all__ = ["Replicas", "Saw", "all_of"]

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

_WAITING_MAX: Final = 1024
"""Queries of one client that wait for a position; each is a call of its own."""

_GRACE_S: Final = 1.0
"""For a replica to say `NotYetVisible` itself, which tells more than our own deadline can."""

_SWEEP_S: Final = 0.1
"""How precise deadlines are."""

Saw = Callable[[dict[int, int]], None]
"""Is told the positions that an answer was read at."""


class _Asked:
    """A query on its way, until its future has an answer."""

    __slots__ = ("after", "deadline_s", "future", "packed", "saw")

    def __init__(
        self,
        packed: PackedQuery,
        after: Mapping[int, int],
        deadline_s: float,
        future: asyncio.Future[Any],
        saw: Saw | None,
    ) -> None:
        self.packed, self.after, self.deadline_s, self.future, self.saw = packed, after, deadline_s, future, saw


class _Replica:
    """One replica: its actor, the lane to it, and how far it is known to have come."""

    def __init__(self, number: int, actor: Any) -> None:
        self.number, self.actor = number, actor
        self.positions: dict[int, int] = {}
        self.in_flight = 0
        self.left_out_until_s = 0.0
        self.lane: Lane[_Asked]

    def has(self, after: Mapping[int, int]) -> bool:
        """Whether it is known to have come as far as `after`."""
        return not after or all(self.positions.get(partition, 0) >= after[partition] for partition in after)

    def saw(self, positions: Mapping[int, int]) -> None:
        """It has answered at these positions."""
        for partition, position in positions.items():
            self.positions[partition] = max(position, self.positions.get(partition, 0))


class _Call:
    """One call to a replica. Its answer, its failure or its deadline ends it, whichever comes first."""

    __slots__ = ("batch", "ended", "replica", "timer", "waits")

    def __init__(self, replica: _Replica, batch: Sequence[_Asked], *, waits: bool) -> None:
        self.replica, self.batch, self.waits = replica, batch, waits
        self.ended = False
        self.timer: asyncio.TimerHandle | None = None


class Replicas:
    """The replicas of one projection, as one client sees them. Lives on one event loop."""

    def __init__(self, name: str, actors: Sequence[Any], settings: Settings) -> None:
        self._loop = asyncio.get_running_loop()
        self._name = name
        self._settings = settings
        self._turn = 0
        self._gathering: _Replica | None = None
        """Where the last query without `after=` went."""
        self._pending: set[_Asked] = set()
        self._waiting = 0
        self._sweeping = False
        self._retired = False
        self._replicas = [self._replica(number, actor) for number, actor in enumerate(actors)]

    def replace(self, actors: Sequence[Any]) -> None:
        """Ask these from now on. What was sent to others is answered by them, or sent again to these."""
        self._gathering = None
        before = {id(replica.actor): replica for replica in self._replicas}
        self._replicas = [before.get(id(actor)) or self._replica(0, actor) for actor in actors]
        for number, replica in enumerate(self._replicas):
            replica.number = number
        for replica in before.values():
            if replica not in self._replicas:
                self._again([asked for asked, _ in replica.lane.take_waiting(lambda _: True)])

    def retire(self) -> None:
        """Send nothing again: these actors are about to end, and no others can answer for them."""
        self._retired = True

    def _replica(self, number: int, actor: Any) -> _Replica:
        replica = _Replica(number, actor)
        replica.lane = Lane(
            f"the lane to a replica of {self._name}",
            partial(self._send, replica),
            defer=self._loop.call_soon,
            in_flight_max=_IN_FLIGHT_MAX,
            batch_items_max=_BATCH_QUERIES_MAX,
        )
        return replica

    def ask(
        self, packed: PackedQuery, after: Mapping[int, int], timeout_s: float, saw: Saw | None = None
    ) -> asyncio.Future[Any]:
        """The future gets the answer, errors too as values; `saw` is told before where the answer was read. Raises
        `Overloaded` at once."""
        if len(self._pending) >= self._settings.in_flight_max:
            raise Overloaded(f"the client's road to {self._name}", self._settings.in_flight_max, "queries in flight")
        asked = _Asked(packed, after, time.monotonic() + timeout_s, self._loop.create_future(), saw)
        if after:
            self._route(asked)
        else:
            replica = self._gathering
            if replica is None or (len(self._replicas) > 1 and not 0 < len(replica.lane) < _TOGETHER):
                replica = self._gathering = self._next_replica(after)
            replica.lane.put(asked, len(packed.payload) + 64)
            replica.in_flight += 1
        self._pending.add(asked)
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(_SWEEP_S, self._sweep)
        return asked.future

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
        """False if it is gone for good."""
        if self._waiting >= _WAITING_MAX:
            raise Overloaded(f"{self._name}, waits for a position", _WAITING_MAX, "waits")
        self._waiting += 1
        try:
            lives = True
            while lives and not replica.has(after) and replica in self._replicas and not self._retired:
                if (left_s := deadline_s - time.monotonic()) <= 0:
                    raise _not_yet(self._name, after, replica.positions)
                lives = await self._look(replica, after, min(left_s, self._settings.attempt_timeout_s))
            return lives
        finally:
            self._waiting -= 1

    async def _look(self, replica: _Replica, after: Mapping[int, int], attempt_s: float) -> bool:
        """Have it wait for so long, and note where it is then. False if it is gone for good."""
        from ray.exceptions import ActorDiedError  # imported by whoever has started it by now

        try:
            coming = replica.actor.come_to.remote(dict(after), attempt_s).future()
            error, positions = await asyncio.wait_for(asyncio.wrap_future(coming), attempt_s + _GRACE_S)
        except ActorDiedError:
            return False
        except Exception:  # it is being started again, or ends, or is silent
            await asyncio.sleep(min(_LEFT_OUT_S / 2, attempt_s))
            return True
        replica.saw(positions)
        if error and not isinstance(told := from_wire(error), NotYetVisible):
            raise told
        return True

    def reached(self, partition: int) -> int:
        """How far the last of the replicas is known to have come."""
        return min((replica.positions.get(partition, 0) for replica in self._replicas), default=0)

    def _route(self, asked: _Asked) -> None:
        replica = self._next_replica(asked.after)
        if replica.has(asked.after):
            replica.lane.put(asked, len(asked.packed.payload) + 64)
            replica.in_flight += 1
            return
        if self._waiting >= _WAITING_MAX:
            raise Overloaded(f"{self._name}, queries with after=", _WAITING_MAX, "queries")
        self._waiting += 1
        replica.in_flight += 1
        left_s = min(max(0.0, asked.deadline_s - time.monotonic()), self._settings.attempt_timeout_s)
        call = _Call(replica, [asked], waits=True)
        self._start(call, left_s + _GRACE_S, "ask_after", asked.packed, dict(asked.after), left_s)

    def _next_replica(self, after: Mapping[int, int]) -> _Replica:
        """The least busy one of those that answer, one that has come far enough first; in turn where equal."""
        if len(self._replicas) == 1:
            return self._replicas[0]
        now = time.monotonic()
        self._turn += 1
        turn, count = self._turn, len(self._replicas)
        return min(
            self._replicas,
            key=lambda r: (r.left_out_until_s > now, not r.has(after), r.in_flight, (r.number + turn) % count),
        )

    def _send(self, replica: _Replica, batch: Sequence[_Asked]) -> None:
        call = _Call(replica, batch, waits=False)
        queries, alone = join_queries([asked.packed for asked in batch]), len(self._replicas) == 1
        self._start(call, self._settings.attempt_timeout_s, "ask", queries, alone)

    def _start(self, call: _Call, timeout_s: float, road: str, *arguments: Any) -> None:
        call.timer = self._loop.call_later(timeout_s, self._came_back, call, None)
        try:
            sent = getattr(call.replica.actor, road).remote(*arguments)
            sent.future().add_done_callback(partial(self._wake, call))
        except Exception:  # the actor is gone for good, or Ray is
            self._loop.call_soon(self._came_back, call, None)

    def _wake(self, call: _Call, answer: ThreadFuture[Any]) -> None:
        """On a thread of Ray's: continue on the event loop, if there still is one."""
        try:
            self._loop.call_soon_threadsafe(self._came_back, call, answer)
        except RuntimeError:
            answer.exception()

    def _came_back(self, call: _Call, answer: ThreadFuture[Any] | None) -> None:
        failed = answer is None or answer.exception() is not None
        if call.ended:
            return
        call.ended = True
        if call.timer is not None:
            call.timer.cancel()
        replica = call.replica
        replica.in_flight -= len(call.batch)
        if answer is None or failed:
            left_out_s = self._settings.attempt_timeout_s if answer is None else _LEFT_OUT_S
            replica.left_out_until_s = time.monotonic() + left_out_s
            self._gathering = None
            replica.positions.clear()
            self._loop.call_later(_LEFT_OUT_S / 2, self._again, call.batch)
        else:
            blob, positions = answer.result()
            replica.saw(positions)
            answers = pickle.loads(blob)
            if call.waits and type(answers[0]) is NotYetVisible and time.monotonic() < call.batch[0].deadline_s:
                replica.left_out_until_s = time.monotonic() + _LEFT_OUT_S
                self._loop.call_soon(self._again, call.batch)
            else:
                pending = self._pending
                for asked, value in zip(call.batch, answers, strict=True):
                    if asked.saw is not None and not isinstance(value, RayfoldError):
                        asked.saw(positions)
                    pending.discard(asked)
                    if not asked.future.done():
                        asked.future.set_result(value)
        if call.waits:
            self._waiting -= 1
        else:
            replica.lane.came_back()

    def _again(self, batch: Sequence[_Asked]) -> None:
        for asked in batch:
            if asked.future.done():
                continue
            if self._retired:
                what = "it was divided into another number of parts meanwhile; ask again"
                self._resolve(asked, Unavailable(f"{self._name} {asked.packed.name}", what))
                continue
            try:
                self._route(asked)
            except Overloaded as error:
                self._resolve(asked, error)

    def _resolve(self, asked: _Asked, answer: Any) -> None:
        self._pending.discard(asked)
        if not asked.future.done():
            asked.future.set_result(answer)

    def _sweep(self) -> None:
        """Tell those whose deadline has passed, and drop those whose caller has gone."""
        now = time.monotonic()
        for asked in [a for a in self._pending if a.future.done() or now > a.deadline_s + bool(a.after) * _GRACE_S]:
            self._resolve(asked, Unavailable(f"{self._name} {asked.packed.name}", "no replica answered in time"))
        self._sweeping = bool(self._pending)
        if self._sweeping:
            self._loop.call_later(_SWEEP_S, self._sweep)


def _not_yet(name: str, after: Mapping[int, int], positions: Mapping[int, int]) -> NotYetVisible:
    missing = ((p, position, positions.get(p, 0)) for p, position in after.items() if positions.get(p, 0) < position)
    return NotYetVisible(name, *next(missing))


async def all_of(waits: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """What all come to; the first that raises ends the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
