"""MemoryReplicas: the replicas of one part of a projection, in this process, as the client sees them.

Step [8] of the read path, in place of `client/replica_pool.py`. Before it: `client/query_router.py`. After it: the read
models (`projectors.py`).

What it keeps of `ReplicaPool` is what a caller sees: a query with `after=` is answered by a replica that has come so
far; it waits where none has, until its deadline; what lies beyond the end of the log is refused at once; what has
stopped a projection is raised at once. A contract suite holds the two to each other
(`tests/actors/memory/test_contract.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ...runtime.encoding.query_batch import PackedQuery
from ...runtime.errors import NotYetVisible, Overloaded, RayfoldError, Unavailable
from ..client.replica_pool import Saw, resolved
from ..settings import Settings
from .handle import LocalHandle
from .projectors import MemoryProjector

__all__ = ["MemoryReplicas"]


class _Asked:
    """A query, or without one a wait for one replica, until its future has an answer."""

    __slots__ = ("after", "future", "packed", "saw", "timer", "waits_for")

    def __init__(
        self,
        packed: PackedQuery | None,
        after: Mapping[int, int],
        future: asyncio.Future[Any],
        saw: Saw | None = None,
        waits_for: MemoryProjector | None = None,
    ) -> None:
        self.packed, self.after, self.future, self.saw, self.waits_for = packed, after, future, saw, waits_for
        self.timer: asyncio.TimerHandle | None = None


class MemoryReplicas:
    """The replicas of one part. Used on one event loop only."""

    def __init__(
        self, name: str, actors: Sequence[LocalHandle[MemoryProjector]], settings: Settings, store_id: str = ""
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._name, self._settings = name, settings
        self._rotation = 0
        self._asked: list[_Asked] = []
        """What the next turn of the loop answers."""
        self._waiting: list[_Asked] = []
        """What waits for a position, at most `in_flight_max` with the others."""
        self._actors: list[LocalHandle[MemoryProjector]] = []
        self.replace(actors)

    # --- see `ReplicaPool` ---------------------------------------------------------------------------------------

    def replace(self, actors: Sequence[LocalHandle[MemoryProjector]]) -> None:
        """From now on these answer; what waits, waits for these."""
        for actor in self._actors:
            actor.held.watchers.discard(self._look_again)
        self._actors = list(actors)
        for actor in self._actors:
            actor.held.watchers.add(self._look_again)
        self._look_again()

    def give_up(self, why: str) -> None:
        """Nothing is ever on its way to another program."""

    def retire(self) -> None:
        """What waits is not answered: other parts have taken the place of this one."""
        self._give_up("it was divided into another number of parts meanwhile; ask again")

    def close(self) -> None:
        """What waits is not answered: the system ends."""
        self._give_up("the system was stopped before it was answered")

    def _give_up(self, why: str) -> None:
        for actor in self._actors:
            actor.held.watchers.discard(self._look_again)
        for asked in [*self._asked, *self._waiting]:
            self._answer(asked, Unavailable(f"{self._name} {asked.packed.name if asked.packed else ''}".strip(), why))

    def ask(
        self, packed: PackedQuery, after: Mapping[int, int], timeout_s: float, saw: Saw | None = None
    ) -> asyncio.Future[Any]:
        """The future gets the answer, errors too as values. Raises `Overloaded` at once."""
        if len(self._asked) + len(self._waiting) >= self._settings.in_flight_max:
            raise Overloaded(f"the client's queries to {self._name}", self._settings.in_flight_max, "queries in flight")
        asked = _Asked(packed, after, self._loop.create_future(), saw)
        self._put(asked, timeout_s)
        return asked.future

    def ask_many(
        self, queries: Sequence[PackedQuery], after: Mapping[int, int], timeout_s: float
    ) -> list[asyncio.Future[Any]]:
        """`ask` for each of them, with `Overloaded` as a value too."""
        return [self._asked_or_refused(packed, after, timeout_s) for packed in queries]

    async def everywhere(self, after: Mapping[int, int], deadline_s: float) -> None:
        """Return once every replica has come to `after`, those that join meanwhile too."""
        waited_for: list[MemoryProjector] = []
        while fresh := [actor.held for actor in self._actors if actor.held not in waited_for]:
            for projector in fresh:
                asked = _Asked(None, after, self._loop.create_future(), None, projector)
                self._put(asked, deadline_s - time.monotonic())
                answer = await asked.future
                if isinstance(answer, RayfoldError):
                    raise answer
            waited_for += fresh

    def actors(self) -> list[Any]:
        """Those that answer."""
        return list(self._actors)

    def reached(self, partition: int) -> int:
        """How far the last of the replicas has come."""
        return min((actor.held.positions.get(partition, 0) for actor in self._actors), default=0)

    # -------------------------------------------------------------------------------------------------------------

    def _asked_or_refused(self, packed: PackedQuery, after: Mapping[int, int], timeout_s: float) -> asyncio.Future[Any]:
        try:
            return self.ask(packed, after, timeout_s)
        except Overloaded as error:
            return resolved(error)

    def _put(self, asked: _Asked, timeout_s: float) -> None:
        asked.timer = self._loop.call_later(max(timeout_s, 0.0), self._expire, asked)
        if not self._asked:
            self._loop.call_soon(self._look_at_all)
        self._asked.append(asked)

    def _look_again(self) -> None:
        """Something has changed: what waits may be answered."""
        if self._waiting:
            if not self._asked:
                self._loop.call_soon(self._look_at_all)
            self._asked, self._waiting = self._waiting + self._asked, []

    def _look_at_all(self) -> None:
        asked, self._asked = self._asked, []
        for one in asked:
            if one.future.done():  # its caller has gone, or its time is over
                self._forget(one)
            else:
                self._look(one)

    def _look(self, asked: _Asked) -> None:
        present = [actor.held for actor in self._actors]
        if asked.waits_for is not None:
            if asked.waits_for not in present:  # it is gone, and does not count
                self._answer(asked, None)
                return
            present = [asked.waits_for]
        ready = [one for one in present if one.has(asked.after) or one.catch_up().has(asked.after)]
        if ready:
            self._rotation += 1
            self._answer_from(asked, ready[self._rotation % len(ready)])
        elif (stopped := next((one.failed for one in present if one.failed is not None), None)) is not None:
            self._answer(asked, stopped)
        elif present and present[0].lies_beyond(asked.after):
            self._answer(asked, self._late(asked, present))
        else:
            self._waiting.append(asked)

    def _answer_from(self, asked: _Asked, projector: MemoryProjector) -> None:
        if asked.packed is None:
            self._answer(asked, None)
            return
        answer, positions = projector.answer(asked.packed)
        if asked.saw is not None and not isinstance(answer, RayfoldError):
            asked.saw(positions)
        self._answer(asked, answer)

    def _answer(self, asked: _Asked, answer: Any) -> None:
        self._forget(asked)
        if not asked.future.done():
            asked.future.set_result(answer)

    def _forget(self, asked: _Asked) -> None:
        if asked.timer is not None:
            asked.timer.cancel()

    def _expire(self, asked: _Asked) -> None:
        """Its deadline has passed."""
        self._waiting = [other for other in self._waiting if other is not asked]
        present = [actor.held for actor in self._actors if asked.waits_for in (None, actor.held)]
        self._answer(asked, self._late(asked, present))

    def _late(self, asked: _Asked, present: Sequence[MemoryProjector]) -> RayfoldError:
        positions = max((one.positions for one in present), key=lambda one: sum(one.values()), default={})
        for partition, position in asked.after.items():
            if (reached := positions.get(partition, 0)) < position:
                return NotYetVisible(self._name, partition, position, reached)
        return Unavailable(self._name, "no replica answered in time")
