"""QueryRouter: the parts of one projection, as one client sees them, and which of them a query is for.

Step [8] of the read path, the caller's half, between `client.py` and the replicas of each part (`replica_pool.py`).

Rule kept here: which actors serve may change at any moment (replicas are scaled, a rebuild takes over), in one step on
the client's event loop. A query is routed by the class that serves then; one that is on its way is answered by those it
was sent to, or sent again to those that serve now. Where a rebuild has changed the number of parts it is not sent again
but `Unavailable`, since a part of the one would be asked for a part of the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from ...runtime.domain.messages import Query
from ...runtime.domain.projection import Projection
from ...runtime.encoding.query_batch import PackedQuery
from ...runtime.errors import HandlerFailed, RayfoldError
from ...runtime.read.routes import merged_answer, part_asked
from ..settings import Settings
from .merging import cannot_wait, merge_in_thread
from .replica_pool import ReplicaPool, Saw, all_of, resolved

__all__ = ["QueryRouter"]


class Replicas(Protocol):
    """The replicas of one part: `ReplicaPool`, or those in the memory of this process (`actors/memory/replicas.py`)."""

    def __init__(self, name: str, actors: Sequence[Any], settings: Settings, store_id: str = "") -> None: ...
    def replace(self, actors: Sequence[Any]) -> None:
        """Ask these from now on."""
        ...

    def retire(self) -> None:
        """Send nothing again: no others can answer for these."""
        ...

    def give_up(self, why: str) -> None:
        """What is on its way is `Unavailable`, for this reason."""
        ...

    def close(self) -> None:
        """Close whatever leads to them."""
        ...

    def ask(
        self, packed: PackedQuery, after: Mapping[int, int], timeout_s: float, saw: Saw | None = None
    ) -> asyncio.Future[Any]:
        """The future gets the answer, errors too as values. Raises `Overloaded` at once."""
        ...

    def ask_many(
        self, queries: Sequence[PackedQuery], after: Mapping[int, int], timeout_s: float
    ) -> list[asyncio.Future[Any]]:
        """`ask` for each of them, with `Overloaded` as a value too."""
        ...

    async def everywhere(self, after: Mapping[int, int], deadline_s: float) -> None:
        """Return once every replica has come to `after`, by `time.monotonic`."""
        ...

    def actors(self) -> list[Any]:
        """Those that are asked."""
        ...

    def reached(self, partition: int) -> int:
        """How far the last of them is known to have come."""
        ...


class QueryRouter:
    """The actors that answer the queries to the projection of one name."""

    replicas_class: type[Replicas] = ReplicaPool

    def __init__(
        self, projection: type[Projection], parts: Sequence[Sequence[Any]], settings: Settings, store_id: str = ""
    ) -> None:
        """`parts`: for each its replicas. `store_id`: that of the store, if it is known."""
        self._settings, self._store_id = settings, store_id
        self._projection = projection
        self.name = projection.projection_name
        self._parts = [self._pool(actors) for actors in parts]
        self._former: list[Replicas] = []
        """Those before the last rebuild into another number of parts: what is on its way to them may come back."""

    def close(self) -> None:
        """Close whatever leads to the replicas, such as their sockets."""
        for part in (*self._parts, *self._former):
            part.close()

    def _pool(self, actors: Sequence[Any]) -> Replicas:
        return self.replicas_class(self.name, actors, self._settings, self._store_id)

    @property
    def served(self) -> type[Projection]:
        """The class that serves now."""
        return self._projection

    def replace(self, projection: type[Projection], parts: Sequence[Sequence[Any]]) -> None:
        """From now on ask these: for each part its replicas."""
        before, self._projection = self._parts, projection
        if len(before) == len(parts):
            for replicas, actors in zip(before, parts, strict=True):
                replicas.replace(actors)
        else:
            self._parts = [self._pool(actors) for actors in parts]
            for replicas in self._former:
                replicas.close()
            for replicas in before:
                replicas.retire()
            self._former = before

    def give_up(self, why: str) -> None:
        """What is on its way is `Unavailable`, for this reason."""
        for replicas in self._parts:
            replicas.give_up(why)

    def ask(
        self,
        query: Query[Any],
        packed: PackedQuery,
        after: Mapping[int, int],
        timeout_s: float,
        saw: Saw | None = None,
    ) -> asyncio.Future[Any]:
        """Ask the part that the query is for, or all of them; the future gets the answer, errors too as values. `saw`
        is called with the positions that each part was read at. Raises `Overloaded`."""
        if len(self._parts) == 1:
            return self._parts[0].ask(packed, after, timeout_s, saw)
        try:
            part = part_asked(self._projection, query, len(self._parts))
        except HandlerFailed as error:
            return resolved(error)
        if part is not None:
            return self._parts[part].ask(packed, after, timeout_s, saw)
        asked = [one.ask(packed, after, timeout_s, saw) for one in self._parts]
        return asyncio.ensure_future(_merged(asked, self._projection, query, timeout_s))

    def ask_many(
        self, packed: Sequence[PackedQuery], after: Mapping[int, int], timeout_s: float
    ) -> list[asyncio.Future[Any]] | None:
        """`ask` for each of them, with `Overloaded` as a value too. None if they have to be divided among parts."""
        return self._parts[0].ask_many(packed, after, timeout_s) if len(self._parts) == 1 else None

    async def everywhere(self, after: Mapping[int, int], deadline_s: float) -> None:
        """Return once every replica of every part has come to `after`, of those that serve by then. Raises what
        `ReplicaPool.everywhere` does."""
        waited_for: list[Replicas] = []
        while waited_for is not self._parts:
            waited_for = self._parts
            await all_of(part.everywhere(after, deadline_s) for part in waited_for)

    def actors(self) -> list[list[Any]]:
        """For each part its replicas."""
        return [part.actors() for part in self._parts]

    def reached(self, partition: int) -> int:
        """How far the last of its projectors is known to have come."""
        return min(part.reached(partition) for part in self._parts)


async def _merged(
    asked: Sequence[asyncio.Future[Any]], projection: type[Projection], query: Query[Any], timeout_s: float
) -> Any:
    """The answers of all parts as one; the first error, if there is one."""
    clock = asyncio.get_running_loop().time
    deadline_s = clock() + timeout_s
    answers = await asyncio.gather(*asked)
    for answer in answers:
        if isinstance(answer, RayfoldError):
            return answer
    if cannot_wait(projection.answer_routes[type(query)].merge, answers):
        return merged_answer(projection, query, answers)
    name = f"{projection.projection_name} {query.message_name}"
    return await merge_in_thread(name, partial(merged_answer, projection, query, answers), deadline_s - clock())
