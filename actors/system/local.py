"""LocalSystem: the parts of a runtime, put together and taken apart.

Where to look to see what a running Rayfold consists of: `start` puts the parts together in the order in which they
depend on one another, and `stop` undoes it in reverse, from wherever `start` has come to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from ...runtime.checks.fit import check_fit
from ...runtime.domain.aggregate import Aggregate
from ...runtime.domain.projection import Projection
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import Unavailable
from ...runtime.printable import printable_log
from ...runtime.read.stores.checkpoint import Quarantined
from ...runtime.store.store import Store
from ..client.client import Client
from ..cluster.ray_cluster import Cluster
from ..cluster.ray_session import started_aside
from ..cluster.rpc import ANSWER_TIMEOUT_S, call, kill, open_actor
from ..cluster.scheduling import Scheduling, on_this_node
from ..observe.attach import connection_facts
from ..observe.metrics import Metrics
from ..observe.status import Observer, Status, seat_named
from ..packaging.builds import Builds
from ..process.gc_tuning import tune_gc
from ..projection.fleet import ProjectorFleet
from ..projection.rebuild import Rebuild
from ..settings import Settings
from .health_check import Health, health_of
from .liveness import LivenessWatch

__all__ = ["LocalSystem"]

log = printable_log(__name__)

_OPEN_TIMEOUT_S: Final = 300.0
"""Opening replays the log into the read models, and a long log takes long."""

_RETRY_S: Final = 0.1
_TICK_S: Final = 2.0
"""How often partitions check for own actors that came up or fell idle while no command arrived."""


class LocalSystem:
    """What a started runtime consists of. `start` may end after any of its parts, and `stop` undoes those."""

    def __init__(
        self,
        catalogue: Catalogue,
        replicas: Mapping[type[Projection], int],
        settings: Settings,
        open_store: Callable[[], Store],
        num_cpus: int | None,
    ) -> None:
        self._open_store, self._num_cpus = open_store, num_cpus
        self.catalogue = catalogue
        self._replicas = replicas
        self._settings = settings
        self._undo = contextlib.AsyncExitStack()
        self._partitions: list[Any] = []
        self._rebuilds: list[Rebuild] = []
        self._grace_s = 0.0
        self._store: Store | None = None
        self._projections: ProjectorFleet | None = None
        self._client: Client | None = None
        self._observer: Observer | None = None
        """All four from their step of `start` on."""

    async def start(self) -> None:
        """Store, hold, cluster, projectors, partitions, client: each needs the ones before it."""
        self._store = store = self._open_store()
        hold = store.hold(f"the runtime of process {os.getpid()}")
        self._undo.callback(hold.release)
        await asyncio.to_thread(_check_fit, store, self.catalogue)
        cluster = await started_aside(
            lambda: Cluster.start_or_join(num_cpus=self._num_cpus, own_actors_max=self._settings.own_actors_max),
            Cluster.stop,
        )
        self._undo.push_async_callback(asyncio.to_thread, cluster.stop)
        builds, scheduling = Builds(store.path), Scheduling(on_this_node())
        name = _name(store)
        self._projections = ProjectorFleet(lambda: store, self.catalogue, name, cluster.namespace, builds, scheduling)
        self.projections.check_share = self._settings.standing_check_share
        self._undo.push_async_callback(self._end_actors)
        await self._start_actors(cluster, scheduling)
        self._client = Client(
            self.catalogue,
            self._partitions,
            cluster.actor_named,
            self._settings,
            placement=store.placement,
            store_id=store.store_id,
        )
        await self.projections.attach(self._partitions, self.client.serve)
        self._undo.push_async_callback(lambda: self.client.drain(min(ANSWER_TIMEOUT_S, self._grace_s)))
        if self._settings.tune_garbage_collector:
            self._undo.callback(tune_gc())
        self._observer = Observer(store)
        for going_on in (self._tick(), self._measure(), LivenessWatch(self, self._settings.silent_s).watch()):
            self._undo.callback(asyncio.create_task(going_on).cancel)
        hold.publish(connection_facts(cluster, _name(store)))
        self._undo.callback(hold.publish, {})  # first of all when it stops: who looks on must not reach for what ends
        self._undo.push_async_callback(self._interrupt_rebuilds)

    @property
    def store(self) -> Store:
        """The store, which is locked."""
        assert self._store is not None
        return self._store

    @property
    def projections(self) -> ProjectorFleet:
        """Its projectors."""
        assert self._projections is not None
        return self._projections

    @property
    def client(self) -> Client:
        """What sends commands and queries."""
        assert self._client is not None
        return self._client

    async def stop(self, grace_s: float) -> None:
        """Undo `start`, in reverse order; each step also when an earlier one failed. `grace_s`: how long, in seconds,
        commands may be on their way and actors may take to end by themselves."""
        self._grace_s = grace_s
        await self._undo.aclose()

    async def heads(self) -> dict[int, int]:
        """The head of every partition's log. Raises `Unavailable` if a partition does not answer in time."""
        heads = await asyncio.gather(*(self._head(number) for number in range(len(self._partitions))))
        return dict(enumerate(heads))

    async def _head(self, partition: int) -> int:
        """Asks until it is answered: a partition that was killed is there again in a second or two."""
        deadline_s = time.monotonic() + self._settings.timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            try:
                head: int = await call(self._partitions[partition].head, timeout_s=left_s)
            except Exception:
                await asyncio.sleep(min(_RETRY_S, left_s))
            else:
                return head
        raise Unavailable(f"partition {partition}", f"no answer in {self._settings.timeout_s} s")

    async def health(self, limit_s: float) -> Health:
        """See `Runtime.health`."""
        return await health_of(self.client, limit_s)

    async def status(self) -> Status:
        """Asks every actor; one that does not answer within five seconds is shown as silent."""
        seats = [seat_named(one.name, one.actor) for one in self.projections.projectors()]
        assert self._observer is not None
        return await self._observer.observe(dict(enumerate(self._partitions)), [seat for seat in seats if seat])

    async def scale(self, projection: type[Projection], replicas: int) -> None:
        """See `Runtime.scale`."""
        await self.projections.scale(projection, replicas)

    async def rebuild_stream(self, projection: type[Projection], aggregate: type[Aggregate], id: str) -> None:
        """See `Runtime.rebuild_stream`."""
        await self.projections.rebuild_stream(projection, aggregate, id)

    async def retry_quarantined(self, projection: type[Projection]) -> tuple[Quarantined, ...]:
        """See `Runtime.retry_quarantined`."""
        return await self.projections.retry_quarantined(projection)

    async def _start_actors(self, cluster: Cluster, scheduling: Scheduling) -> None:
        """Projectors first: a partition needs them to broadcast to, also when Ray restarts it."""
        from ..packaging.shipping import ship
        from ..partition.actor import PartitionPlan, start_partition  # these import ray, which `Cluster` prepares

        store, catalogue = self.store, ship(self.catalogue)
        name = _name(store)
        self.projections.answer_max_s = self._settings.answer_max_s
        for projection, count in self._replicas.items():
            await self.projections.start(projection, count, catalogue)
        for number in range(store.partitions):
            partition = PartitionPlan(
                number,
                store,
                catalogue,
                self.projections.names(),
                name,
                cluster.namespace,
                self._settings,
                cluster.counts_slots,
            )
            self._partitions.append(start_partition(partition, f"{name}/partition-{number}", scheduling.partition("")))
        await self._open_actors()

    async def _open_actors(self) -> None:
        """Return when all partitions take commands and all projectors have caught up, or read on by themselves."""
        where = str(self.store.path)
        partitions = [asyncio.ensure_future(open_actor(one, where, _OPEN_TIMEOUT_S)) for one in self._partitions]
        projectors = asyncio.ensure_future(self.projections.open())
        try:
            for opened in await asyncio.gather(*partitions, return_exceptions=True):
                if opened is not None:
                    raise opened
            await projectors
        except BaseException:
            for one in (*partitions, projectors):
                one.cancel()
            await asyncio.gather(*partitions, projectors, return_exceptions=True)
            raise

    def _actors(self) -> list[Any]:
        return [*self._partitions, *(projector.actor for projector in self.projections.projectors())]

    def living(self) -> list[tuple[str, Any]]:
        """The actors whose heartbeats are checked (`system/liveness.py`)."""
        partitions = [(f"partition {number}", actor) for number, actor in enumerate(self._partitions)]
        return [*partitions, *((one.name, one.actor) for one in self.projections.projectors())]

    def rebuild(self, projection: type[Projection]) -> Rebuild:
        """Have a read model built anew from the log, beside the one that serves."""
        from ..packaging.shipping import ship

        rebuild = Rebuild(self.projections, projection, ship(self.catalogue.narrowed(projection)))
        self._rebuilds = [one for one in self._rebuilds if not one.done()] + [rebuild]
        return rebuild

    async def _interrupt_rebuilds(self) -> None:
        await asyncio.gather(*(rebuild.interrupt() for rebuild in self._rebuilds))

    async def _end_actors(self) -> None:
        closing = (call(actor.close) for actor in self._partitions)
        ending = asyncio.gather(*closing, self.projections.close(), return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ending, self._grace_s)
        for actor in self._actors():
            kill(actor)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            for partition in self._partitions:
                with contextlib.suppress(Exception):
                    partition.tick.remote()
            self.projections.tick()

    async def _measure(self) -> None:
        """Record the metrics of all actors. Apart from the ticks, since it waits for actors that do not answer."""
        metrics = Metrics(_name(self.store))
        while True:
            await asyncio.sleep(_TICK_S)
            with contextlib.suppress(Exception):
                metrics.record(await self.status())


def _check_fit(store: Store, catalogue: Catalogue) -> None:
    """Raises `CodeMismatch`, before anything runs, if the classes do not fit what the store holds."""
    with contextlib.ExitStack() as opened:
        readers = {number: store.open_reader(number) for number in range(store.partitions)}
        for reader in readers.values():
            opened.callback(reader.close)
        check_fit(str(store.path), catalogue, readers)


def _name(store: Store) -> str:
    """What the names of a store's actors begin with, and what its metrics call it."""
    return f"{store.path.name}-{store.store_id[:8]}"
