"""Runtime: a whole system, started and stopped as one: store, cluster, projectors, partitions, client.

The place where the parts are put together, in the order in which they depend on one another; `stop` undoes it in
reverse. Read `start` to see what a running Rayfold consists of.

Rules kept here: whatever was started is stopped, also when starting fails halfway, on Ctrl-C, and when stopping is
itself interrupted; the directory is held by one runtime at a time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Self, TypeVar
from uuid import UUID

from ..runtime.aggregate import Aggregate
from ..runtime.catalogue import Catalogue
from ..runtime.envelope import Envelope
from ..runtime.errors import CallerError, InvalidMessage, RayfoldError, StoreMissing, UnknownName
from ..runtime.log.store import Store, create_or_open_store
from ..runtime.messages import Command, Query
from ..runtime.outcome import Outcome
from ..runtime.projection import Projection
from ..runtime.receipt import Receipt
from ..runtime.stream import ANY
from .assembly import Assembly
from .client import Client
from .settings import Settings
from .status import Status

__all__ = ["PARTITIONS_DEFAULT", "Runtime"]

PARTITIONS_DEFAULT: Final = 2
"""Of a new store. The number is fixed for its life; two use two cores, and cost one process more than one does."""

REPLICAS_MAX: Final = 64
"""Of one projection: each is a process with the whole read model in memory."""

Answer = TypeVar("Answer")


class Runtime:
    """An event-sourced application over a directory. `async with Runtime(...) as bank:` starts and stops it.

    path: the store's directory; made if it is missing or empty. aggregates, projections: the classes. partitions: of
    a new store (default 2); for an existing one it may be left out. replicas: of each projection, or a mapping from
    projection to number. settings: bounds and deadlines; `own_actors_max` and `timeout_s` may also be given directly.
    num_cpus: what Ray is told this machine has, if this runtime starts Ray.

    In a notebook or a script that has no `async with`: `bank = await Runtime(...).start()` and `await bank.stop()`, or
    `BlockingRuntime`, which is the same without `await`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        aggregates: Sequence[type[Aggregate]],
        projections: Sequence[type[Projection]] = (),
        partitions: int | None = None,
        replicas: int | Mapping[type[Projection], int] = 1,
        own_actors_max: int | None = None,
        timeout_s: float | None = None,
        settings: Settings | None = None,
        num_cpus: int | None = None,
    ) -> None:
        self._path = Path(path).absolute()
        self._catalogue = Catalogue(aggregates, projections)
        self._projections = tuple(projections)
        self._partitions = partitions
        self._replicas = _checked_replicas(replicas, self._projections)
        self._settings = _settings(settings, own_actors_max, timeout_s)
        self._num_cpus = num_cpus
        self._assembly: Assembly | None = None

    async def start(self) -> Self:
        """Start everything, and return once commands and queries are answered.

        Raises `StoreInUse` (naming who has it), `StoreMismatch`, `StoreMissing`, `Damaged` or `StorageFailed`; then
        nothing is left running.
        """
        if self._assembly is not None:
            raise CallerError(f"the runtime on {self._path} is started already")
        assembly = Assembly(self._catalogue, self._replicas, self._settings)
        try:
            store = _open_store(self._path, self._partitions)
            await assembly.start(store, self._num_cpus)
        except BaseException:
            await asyncio.shield(assembly.stop())
            raise
        self._assembly = assembly
        return self

    async def stop(self) -> None:
        """Stop everything that `start` started. What was acknowledged is on disk. Stopping twice is fine."""
        assembly, self._assembly = self._assembly, None
        if assembly is not None:
            await asyncio.shield(assembly.stop())

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def execute(
        self,
        aggregate: type[Aggregate],
        id: str,
        command: Command,
        *,
        command_id: UUID | None = None,
        expected_version: int = ANY,
        correlation_id: UUID | None = None,
        causation_id: UUID | None = None,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Have the aggregate decide a command. Returns once its events are fsynced.

        Raises `Rejected`, `Conflict`, `HandlerFailed`, `InvalidMessage` and the other `CallerError`s: nothing was
        stored. Raises `Unavailable` after `timeout_s` (seconds): unknown whether it happened, and the same
        `command_id` may be sent again, for it takes effect at most once.
        """
        envelope = Envelope(aggregate, id, command, command_id, expected_version, correlation_id, causation_id)
        outcome = await self._client.send(envelope, timeout_s)
        if isinstance(outcome, RayfoldError):
            raise outcome
        return outcome

    def execute_all(
        self,
        envelopes: Iterable[Envelope] | AsyncIterable[Envelope],
        *,
        in_flight: int = 1024,
        timeout_s: float | None = None,
    ) -> AsyncIterator[tuple[Envelope, Outcome]]:
        """Execute many commands, `in_flight` at a time; yields each with its outcome, in the order they came.

        Outcomes are values: a `Receipt`, or the error that `execute` would have raised. The order of the commands to
        one aggregate is kept. This is the fast road: batches form by themselves.
        """
        return self._client.send_all(envelopes, in_flight, timeout_s)

    async def ask(
        self,
        projection: type[Projection],
        query: Query[Answer],
        *,
        after: Receipt | Mapping[int, int] | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Ask a read model. With `after=receipt` (or positions, see `heads`) the answer includes that write.

        Raises `NotYetVisible` if no replica has come that far in time (the write stands), `Unavailable` if none
        answers, and `HandlerFailed` if a handler of the projection raised.
        """
        answer: Answer | RayfoldError = await self._client.ask(projection, query, after, timeout_s)
        if isinstance(answer, RayfoldError):
            raise answer
        return answer

    def ask_all(
        self,
        projection: type[Projection],
        queries: Iterable[Query[Answer]],
        *,
        after: Receipt | Mapping[int, int] | None = None,
        in_flight: int = 4096,
        timeout_s: float | None = None,
    ) -> AsyncIterator[tuple[Query[Answer], Answer | RayfoldError]]:
        """Ask many queries, `in_flight` at a time; yields each with its answer, in the order they came.

        Answers are values: what `ask` would have returned, or the error that it would have raised.
        """
        return self._client.ask_all(projection, queries, after, in_flight, timeout_s)

    async def heads(self) -> dict[int, int]:
        """Partition -> position of its last committed event: pass it as `after=` to see everything up to now."""
        return await self._active.heads()

    async def status(self) -> Status:
        """What runs where: processes, epochs, positions."""
        return await self._active.status()

    @property
    def store(self) -> Store:
        """The store this runtime holds."""
        return self._active.store

    @property
    def _client(self) -> Client:
        return self._active.client

    @property
    def _active(self) -> Assembly:
        if self._assembly is None:
            raise CallerError(f"the runtime on {self._path} is not running; use `async with`, or start() it")
        return self._assembly


def _open_store(path: Path, partitions: int | None) -> Store:
    """The store in the directory; a new one gets `PARTITIONS_DEFAULT` partitions unless told otherwise."""
    try:
        return create_or_open_store(path, partitions)
    except StoreMissing:
        if partitions is not None or (path / "store.json").exists():
            raise
        return create_or_open_store(path, PARTITIONS_DEFAULT)


def _settings(settings: Settings | None, own_actors_max: int | None, timeout_s: float | None) -> Settings:
    chosen = settings or Settings()
    if own_actors_max is not None:
        chosen = replace(chosen, own_actors_max=own_actors_max)
    return chosen if timeout_s is None else replace(chosen, timeout_s=timeout_s)


def _checked_replicas(
    replicas: int | Mapping[type[Projection], int], projections: Sequence[type[Projection]]
) -> dict[type[Projection], int]:
    """How many replicas each projection has. Raises `InvalidMessage`, `UnknownName`."""
    counts = dict.fromkeys(projections, 1)
    if isinstance(replicas, Mapping):
        for projection, count in replicas.items():
            if projection not in counts:
                known = [known.projection_name for known in projections]
                raise UnknownName("projection", getattr(projection, "__name__", str(projection)), known)
            counts[projection] = count
    else:
        counts = dict.fromkeys(projections, replicas)
    for projection, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= REPLICAS_MAX:
            what = f"{count!r} replicas of {projection.projection_name}"
            raise InvalidMessage("replicas", what, f"choose 1 to {REPLICAS_MAX}")
    return counts
