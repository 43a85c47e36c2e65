"""Runtime: a whole system, started and stopped as one: store, cluster, projectors, partitions, client.

The place where the parts are put together, in the order in which they depend on one another; `stop` undoes it in
reverse. Read `start` to see what a running Rayfold consists of.

Rules kept here: whatever was started is stopped, also when starting fails halfway, on Ctrl-C, and when stopping is
itself interrupted; the directory is held by one runtime at a time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar
from uuid import UUID

from ..runtime.aggregate import Aggregate
from ..runtime.catalogue import Catalogue
from ..runtime.chosen import Key, Streams, Types
from ..runtime.envelope import Envelope
from ..runtime.errors import CallerError, RayfoldError, StoreMissing
from ..runtime.log.store import Store, create_or_open_store
from ..runtime.messages import Command, Event, Query
from ..runtime.outcome import Outcome
from ..runtime.place import After
from ..runtime.projection import Projection
from ..runtime.read_store.checkpoint import Quarantined
from ..runtime.receipt import Receipt
from ..runtime.recorded import Recorded
from ..runtime.stream import ANY
from ..runtime.subscription import Acknowledging, From, Wanted
from .application import checked_replicas, checked_settings
from .assembly import Assembly
from .client import Client, Until
from .history import TimeTravel
from .local_cluster import LocalCluster
from .rebuild import Rebuild
from .remote_rebuild import RemoteRebuild
from .replica import Replica
from .session import Session
from .settings import Settings
from .spread_store import AnyStore
from .spread_system import SpreadSystem
from .status import Status
from .subscriptions import Subscription, Subscriptions

__all__ = ["PARTITIONS_DEFAULT", "Runtime"]

PARTITIONS_DEFAULT: Final = 2
"""Of a new store. The number is fixed for its life; two use two cores, and cost one process more than one does."""

A = TypeVar("A", bound=Aggregate)
P = TypeVar("P", bound=Projection)
Answer = TypeVar("Answer")


class Runtime:
    """An event-sourced application over a directory. `async with Runtime(...) as bank:` starts and stops it.

    path: the store's directory; made if it is missing or empty. aggregates, projections: the classes. partitions: of a
    new store (default 2); for an existing one it may be left out. replicas: of each projection, or a mapping from
    projection to number. settings: bounds and deadlines; `own_actors_max` and `timeout_s` may also be given directly.
    num_cpus: what Ray is told this machine has, if this runtime starts Ray. cluster: spread the store over several
    nodes: a `LocalCluster` that is started for it, with the nodes' data folders in the directory; "auto" or
    "HOST:PORT", a cluster that runs, whose nodes have data folders. Its name is then the last part of the path, by
    which other programs `connect` to it while this runtime runs.

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
        cluster: LocalCluster | str | None = None,
    ) -> None:
        self._path = Path(path).absolute()
        self._catalogue = Catalogue(aggregates, projections)
        self._projections = tuple(projections)
        self._partitions = partitions
        self._replicas = checked_replicas(replicas, self._projections)
        self._settings = checked_settings(settings, own_actors_max, timeout_s)
        self._num_cpus = num_cpus
        self._cluster = cluster
        self._assembly: Assembly | SpreadSystem | None = None
        self._subscriptions = Subscriptions(self._catalogue)

    async def start(self) -> Self:
        """Start everything, and return once commands and queries are answered.

        Raises `StoreInUse` (naming who has it), `StoreMismatch`, `StoreMissing`, `Damaged` or `StorageFailed`; then
        nothing is left running.
        """
        if self._assembly is not None:
            raise CallerError(f"the runtime on {self._path} is started already")
        assembly = self._made()
        try:
            await assembly.start()
        except BaseException:
            await asyncio.shield(assembly.stop())
            raise
        self._assembly = assembly
        return self

    def _made(self) -> Assembly | SpreadSystem:
        if self._cluster is None:
            opened = partial(_open_store, self._path, self._partitions)
            return Assembly(self._catalogue, self._replicas, self._settings, opened, self._num_cpus)
        replicas = {projection.projection_name: count for projection, count in self._replicas.items()}
        return SpreadSystem(self._path, self._cluster, self._catalogue, self._partitions, replicas, self._settings)

    async def stop(self) -> None:
        """Stop everything that `start` started. What was acknowledged is on disk. Stopping twice is fine."""
        assembly, self._assembly = self._assembly, None
        self._subscriptions.close()
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
        until: Until | None = None,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Have the aggregate decide a command. Returns once its events are fsynced.

        Raises `Rejected`, `Conflict`, `HandlerFailed`, `InvalidMessage` and the other `CallerError`s: nothing was
        stored. Raises `Unavailable` after `timeout_s` (seconds): unknown whether it happened, and the same
        `command_id` may be sent again, for it takes effect at most once. until: wait too until every replica of these
        projections shows it; else `NotYetVisible`, which has the `receipt`: the command succeeded.
        """
        envelope = Envelope(aggregate, id, command, command_id, expected_version, correlation_id, causation_id)
        client = self._client
        outcome = await (client.send_until(envelope, until, timeout_s) if until else client.send(envelope, timeout_s))
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
        after: After | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Ask a read model. With `after=receipt` (or several, positions, a session) the answer includes that.

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
        after: After | None = None,
        in_flight: int = 4096,
        timeout_s: float | None = None,
    ) -> AsyncIterator[tuple[Query[Answer], Answer | RayfoldError]]:
        """Ask many queries, `in_flight` at a time; yields each with its answer, in the order they came.

        Answers are values: what `ask` would have returned, or the error that it would have raised.
        """
        return self._client.ask_all(projection, queries, after, in_flight, timeout_s)

    async def caught_up(self, *projections: type[Projection], timeout_s: float | None = None) -> None:
        """Return once everything committed up to now is visible in every replica of these projections, or of all.

        Raises `NotYetVisible` at the deadline, and at once what has stopped a projection, as `ask` would tell it.
        """
        await self._client.everywhere(projections, await self.heads(), timeout_s)

    def session(self, token: str | None = None) -> Session:
        """Read your own writes, and never read backwards: see `Session`. With the `token` of another session, of this
        store, what that one has written and seen is seen too. Raises `InvalidMessage` for a token that is not."""
        return Session(self, token)

    async def replica(self, projection: type[P]) -> Replica[P]:
        """A read model of your own in this process, asked without Ray; see `docs/consistency.md`.

        Returns once it has read the logs up to now. Yours to close: it only reads, and outlives `stop`. Raises
        `CallerError` for a projection with parts or with a store other than memory, what stops the projection, and
        `StoreError`.
        """
        return await asyncio.to_thread(Replica, self._active.store, projection, self._catalogue)

    async def scale(self, projection: type[Projection], *, replicas: int) -> None:
        """Have this many replicas of a projection (of each of its parts). Returns once the new ones serve, which is
        when they have caught up, or once those that are too many have ended; queries are answered meanwhile.

        Raises `InvalidMessage` for a number that cannot be, `CallerError` while another change of it is under way.
        """
        await self._active.scale(projection, replicas)

    def rebuild(self, projection: type[Projection]) -> Rebuild | RemoteRebuild:
        """Build a read model anew from the log, beside the one that serves and goes on serving until the new one has
        caught up and takes over. For a class of a higher version, or the same one.

        What comes back can be awaited, asked for its progress, and cancelled. Raises `CallerError` for an older
        version, and while another change of the projection is under way.
        """
        return self._active.rebuild(projection)

    async def rebuild_stream(self, projection: type[Projection], aggregate: type[Aggregate], id: str) -> None:
        """Have a read model forget what one aggregate has contributed to it, and apply the events of that aggregate
        again. Needs a `@forget` method; raises `DefinitionError` if there is none."""
        await self._active.rebuild_stream(projection, aggregate, id)

    async def retry_quarantined(self, projection: type[Projection]) -> tuple[Quarantined, ...]:
        """Apply the events again that are in quarantine because a handler failed on them. Returns those that failed
        again, which stay there; `status` lists them too."""
        return await self._active.retry_quarantined(projection)

    async def heads(self) -> dict[int, int]:
        """Partition -> position of its last committed event: pass it as `after=` to see everything up to now."""
        return await self._active.heads()

    async def status(self) -> Status:
        """What runs where, whether it answers, and how far it is behind: processes, epochs, positions, lag.

        What does not answer within five seconds is told with `alive=False` and an unknown lag, never with a lag of 0.
        """
        return await self._active.status()

    async def history(
        self, aggregate: type[Aggregate], id: str, *, from_version: int = 1, to_version: int | None = None
    ) -> list[tuple[Event, Recorded]]:
        """The events of an aggregate, in order, each with its place; both versions are included, and the last one is
        the default end. Read from the log; nobody is woken or slowed.

        Raises `NotInHistory` for an aggregate without events and for versions beyond its last (only the one after it
        is an empty list), `InvalidMessage` for over 100,000 events at once, `UnknownEvent`, `Damaged`.
        """
        return await self._past.history(aggregate, id, from_version, to_version)

    async def state_at(
        self, aggregate: type[A], id: str, *, version: int | None = None, at: datetime | None = None
    ) -> A:
        """An aggregate as it was after `version`, or at a time (aware), or as it is. A copy, to be read.

        The state at a time is the one after the last event that was recorded at or before it, by the writer's clock;
        if that clock went back, the later event decides. Raises `NotInHistory`, `InvalidMessage`, `UnknownEvent`,
        `Damaged`, and `HandlerFailed` if an `@evolve` raises.
        """
        return await self._past.state_at(aggregate, id, version, at)

    async def as_of(
        self,
        projection: type[Projection],
        place: Receipt | datetime | Mapping[int, int],
        query: Query[Answer],
        *,
        timeout_s: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Answer:
        """Ask a projection as of a place in the past, whether this runtime runs that projection or not.

        place: partition -> position (a partition that is not named has contributed nothing yet); or an aware time, up
        to which each partition's events count; or a receipt, which is its own position and, in other partitions, the
        time at which it was recorded. The log is folded into a throw-away model in a Ray task, one for each part that
        has to be asked. progress: called with events done and events in all.

        Raises `NotInHistory` for a position that a log has not got, `Unavailable` after `timeout_s` (default 600), and
        what `ask` raises.
        """
        return await self._past.as_of(projection, place, query, timeout_s, progress)

    def subscribe(
        self,
        name: str | None = None,
        *,
        from_: From = "beginning",
        types: Types | None = None,
        streams: Streams | None = None,
        member: int = 0,
        of: int = 1,
        key: Key | None = None,
        acknowledge: Acknowledging = "on next",
    ) -> Subscription:
        """The events from a place on, and then each as it comes: `async for event, recorded in bank.subscribe():`.

        from_: "beginning", "end", positions by partition, or a receipt (and what came with or before it in time is left
        out). types: event classes or names. streams: an aggregate class, a list of classes, `StreamId`s and texts like
        "Account/alice", or a function of a `StreamId`. name: where it was acknowledged is kept under this name, and the
        next one of this name goes on there; `from_` counts for the first only. member, of: this one of so many shares
        the work by stream, or by what `key` makes of event and place. acknowledge: "on next", an event is when the next
        is asked for, and after a crash those of the last 0.1 s come again; or "by hand", with `acknowledge()`.

        Raises `UnknownName`, `InvalidId`, `InvalidMessage`, `NotInHistory`, `SubscriptionInUse`, `StoreError`.
        """
        wanted = Wanted(name, from_, types, streams, member, of, key, acknowledge)
        return self._subscriptions.subscribe(self._active.store, wanted)

    @property
    def store(self) -> Store:
        """The store this runtime holds. Raises `CallerError` where it is spread over nodes: no process has all of
        it."""
        if not isinstance(store := self._store, Store):
            raise CallerError(f"the store {store.name} is spread over {len(store.map.names)} nodes; status() says how")
        return store

    @property
    def _store(self) -> AnyStore:
        return self._active.store

    @property
    def _past(self) -> TimeTravel:
        return TimeTravel(self._active.store, self._catalogue)

    @property
    def _client(self) -> Client:
        return self._active.client

    @property
    def _active(self) -> Assembly | SpreadSystem:
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
