"""Queries: from a typed question to a replica of its projection, and back with the answer.

Step [8] of the read path, the caller's half. The other half is `actors/projector.py`.

One lane leads to each replica; queries go to the shortest. A query with `after=` goes the same way if the replica is
known to have come that far (each answer says how far it is), and else by a road of its own on which it may wait. A
replica that does not answer is left out for a moment and the query goes to another: reading twice harms nobody.
"""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future as ThreadFuture
from functools import partial
from typing import Any, Final

from ..runtime.batching import Lane
from ..runtime.errors import NotYetVisible, Overloaded, RayfoldError, Unavailable
from ..runtime.read_model import PackedQuery
from .settings import Settings

__all__ = ["Replicas"]

_RETRY_S: Final = 0.2
"""How long a replica that did not answer is left out, if there is another."""

_WAITING_MAX: Final = 1024
"""Queries of one client that wait for a position; each is a call of its own."""

_GRACE_S: Final = 1.0
"""For the replica to say `NotYetVisible` itself, which tells more than our own deadline can."""


class _Asked:
    """A query on its way, until its future has an answer."""

    __slots__ = ("deadline_s", "future", "query", "tries")

    def __init__(self, query: PackedQuery, future: asyncio.Future[Any]) -> None:
        self.query, self.future = query, future
        self.deadline_s = time.monotonic() + query.timeout_s
        self.tries = 0


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
        return all(self.positions.get(partition, 0) >= position for partition, position in after.items())


class Replicas:
    """The replicas of one projection, as one client sees them. Lives on one event loop."""

    def __init__(self, name: str, actors: Sequence[Any], settings: Settings) -> None:
        self._loop = asyncio.get_running_loop()
        self._name = name
        self._settings = settings
        self._waiting = 0
        self._turn = 0
        self._replicas = [_Replica(number, actor) for number, actor in enumerate(actors)]
        for replica in self._replicas:
            replica.lane = Lane(
                f"the lane to {name} replica {replica.number}",
                partial(self._send, replica),
                defer=self._loop.call_soon,
            )

    async def ask(self, query: PackedQuery) -> Any:
        """The answer. Raises what the answer handler or the read model raised, `Unavailable` after the timeout."""
        asked = _Asked(query, self._loop.create_future())
        self._route(asked)
        try:
            answer = await asyncio.wait_for(asked.future, query.timeout_s + (_GRACE_S if query.after else 0))
        except TimeoutError as error:
            raise Unavailable(f"{self._name} {query.name}", f"no replica answered in {query.timeout_s} s") from error
        if isinstance(answer, RayfoldError):
            raise answer
        return answer

    def _route(self, asked: _Asked) -> None:
        replica = self._next_replica(asked.query.after)
        if replica.has(asked.query.after):
            replica.in_flight += 1
            replica.lane.put(asked, len(asked.query.payload) + 64)
            return
        if self._waiting >= _WAITING_MAX:
            raise Overloaded(f"{self._name}, queries with after=", _WAITING_MAX, "queries")
        self._waiting += 1
        replica.in_flight += 1
        left_s = max(0.0, asked.deadline_s - time.monotonic())
        self._call(replica, [asked], "ask_after", asked.query._replace(timeout_s=left_s))

    def _next_replica(self, after: Mapping[int, int]) -> _Replica:
        """The least busy one of those that answer, one that has come far enough first; in turn where equal."""
        now = time.monotonic()
        self._turn += 1
        turn, count = self._turn, len(self._replicas)
        return min(
            self._replicas,
            key=lambda r: (r.left_out_until_s > now, not r.has(after), r.in_flight, (r.number + turn) % count),
        )

    def _send(self, replica: _Replica, batch: Sequence[_Asked]) -> None:
        self._call(replica, batch, "ask", [asked.query for asked in batch])

    def _call(self, replica: _Replica, batch: Sequence[_Asked], road: str, argument: Any) -> None:
        try:
            sent = getattr(replica.actor, road).remote(argument)
            sent.future().add_done_callback(partial(self._wake, replica, batch, road))
        except Exception as error:  # the actor is gone for good, or Ray is
            failed: ThreadFuture[Any] = ThreadFuture()
            failed.set_exception(error)
            self._loop.call_soon(self._came_back, replica, batch, road, failed)

    def _wake(self, replica: _Replica, batch: Sequence[_Asked], road: str, answer: ThreadFuture[Any]) -> None:
        """On a thread of Ray's: continue on the event loop, if there still is one."""
        try:
            self._loop.call_soon_threadsafe(self._came_back, replica, batch, road, answer)
        except RuntimeError:
            answer.exception()

    def _came_back(self, replica: _Replica, batch: Sequence[_Asked], road: str, answer: ThreadFuture[Any]) -> None:
        replica.in_flight -= len(batch)
        error = answer.exception()
        if error is not None:
            replica.left_out_until_s = time.monotonic() + _RETRY_S
            replica.positions.clear()
            self._loop.call_later(_RETRY_S / 2, self._again, batch)
        else:
            blob, positions = answer.result()
            replica.positions = positions
            for asked, value in zip(batch, pickle.loads(blob), strict=True):
                if not asked.future.done():
                    asked.future.set_result(value)
        if road == "ask":
            replica.lane.came_back()
        else:
            self._waiting -= 1

    def _again(self, batch: Sequence[_Asked]) -> None:
        for asked in batch:
            if asked.future.done() or time.monotonic() >= asked.deadline_s:
                continue
            try:
                self._route(asked)
            except (Overloaded, NotYetVisible) as error:
                asked.future.set_result(error)
