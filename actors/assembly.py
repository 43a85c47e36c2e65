"""Assembly: the parts of a runtime, put together and taken apart.

Where to look to see what a running Rayfold consists of: `start` puts the parts together in the order in which they
depend on one another, and `stop` undoes it in reverse, from wherever `start` has come to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..runtime.catalogue import Catalogue
from ..runtime.errors import Unavailable
from ..runtime.log.store import Store
from ..runtime.projection import Projection
from ..runtime.wire import from_wire
from .builds import Builds
from .client import Client
from .cluster import Cluster
from .connection import connection_facts
from .garbage import look_less_often
from .metrics import Metrics
from .projections import Projections
from .rebuild import Rebuild
from .scheduling import Scheduling
from .settings import Settings
from .status import Observer, Status, seat_named

__all__ = ["Assembly"]

_OPEN_TIMEOUT_S: Final = 300.0
"""Opening replays the log into the read models, and a long log takes long."""

_OPEN_ATTEMPTS_MAX: Final = 20
"""A network that loses one call in three lets one start in a hundred million fail then; more means that something is
broken."""

_ANSWER_TIMEOUT_S: Final = 5.0
_RETRY_S: Final = 0.1
_TICK_S: Final = 2.0
"""How often partitions look for own actors that came up or fell idle while no command arrived."""


class Assembly:
    """What a started runtime consists of. Every part may be missing, so that `stop` works at any moment."""

    store: Store
    projections: Projections
    client: Client

    def __init__(self, catalogue: Catalogue, replicas: Mapping[type[Projection], int], settings: Settings) -> None:
        self._catalogue = catalogue
        self._replicas = replicas
        self._settings = settings
        self._undo = contextlib.AsyncExitStack()
        self._partitions: list[Any] = []
        self._rebuilds: list[Rebuild] = []

    async def start(self, store: Store, num_cpus: int | None) -> None:
        """Hold, cluster, projectors, partitions, client: each needs the ones before it."""
        self.store = store
        hold = store.hold(f"the runtime of process {os.getpid()}")
        self._undo.callback(hold.release)
        cluster = Cluster.start_or_join(num_cpus=num_cpus, own_actors_max=self._settings.own_actors_max)
        self._undo.callback(cluster.stop)
        self._undo.push_async_callback(self._end_actors)
        await self._start_actors(cluster)
        self.client = Client(self._catalogue, self._partitions, cluster.actor_named, self._settings)
        await self.projections.attach(self._partitions, self.client.serve)
        self._undo.push_async_callback(self.client.drain, _ANSWER_TIMEOUT_S)
        if self._settings.tune_garbage_collector:
            self._undo.callback(look_less_often())
        self._observer = Observer(store)
        for going_on in (self._tick(), self._measure()):
            self._undo.callback(asyncio.create_task(going_on).cancel)
        hold.publish(connection_facts(cluster, _name(store)))
        self._undo.callback(hold.publish, {})  # first of all when it stops: who looks on must not reach for what ends
        self._undo.push_async_callback(self._interrupt_rebuilds)

    async def stop(self) -> None:
        """Undo `start`, in reverse order; each step also when an earlier one failed."""
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
                head: int = await _answer(self._partitions[partition].head.remote(), left_s)
            except Exception:
                await asyncio.sleep(min(_RETRY_S, left_s))
            else:
                return head
        raise Unavailable(f"partition {partition}", f"no answer in {self._settings.timeout_s} s")

    async def status(self) -> Status:
        """Asks every actor; one that does not answer within five seconds is told to be silent."""
        seats = [seat_named(one.name, one.actor) for one in self.projections.projectors()]
        return await self._observer.observe(dict(enumerate(self._partitions)), [seat for seat in seats if seat])

    async def _start_actors(self, cluster: Cluster) -> None:
        """Projectors first: a partition needs them to broadcast to, also when Ray restarts it."""
        from .partition import PartitionPlan, start_partition  # these import ray, which `Cluster` prepares
        from .shipping import ship

        store, catalogue = self.store, ship(self._catalogue)
        name = _name(store)
        builds, scheduling = Builds(store.path), Scheduling()
        self.projections = Projections(store, self._catalogue, name, cluster.namespace, builds, scheduling)
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
            self._partitions.append(start_partition(partition, f"{name}/partition-{number}"))
        opening = map(_open, self._actors())
        for answer in await asyncio.gather(*opening, return_exceptions=True):
            if isinstance(answer, BaseException):
                raise Unavailable(str(store.path), f"an actor did not open: {answer}") from answer
            if answer:
                raise from_wire(answer)

    def _actors(self) -> list[Any]:
        return [*self._partitions, *(projector.actor for projector in self.projections.projectors())]

    def rebuild(self, projection: type[Projection]) -> Rebuild:
        """Have a read model built anew from the log, beside the one that serves."""
        from .shipping import ship

        catalogue = Catalogue(list(self._catalogue.aggregates.values()), [projection])
        rebuild = Rebuild(self.projections, projection, ship(catalogue))
        self._rebuilds = [one for one in self._rebuilds if not one.done()] + [rebuild]
        return rebuild

    async def _interrupt_rebuilds(self) -> None:
        await asyncio.gather(*(rebuild.interrupt() for rebuild in self._rebuilds))

    async def _end_actors(self) -> None:
        import ray

        closing = [actor.close.remote() for actor in self._partitions]
        await asyncio.gather(_all_in_time(closing), self.projections.close())
        for actor in self._partitions:
            with contextlib.suppress(Exception):
                ray.kill(actor)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            for partition in self._partitions:
                with contextlib.suppress(Exception):
                    partition.tick.remote()
            self.projections.tick()

    async def _measure(self) -> None:
        """Record how everybody does. Apart from the ticks, since it waits for those who do not answer."""
        metrics = Metrics(_name(self.store))
        while True:
            await asyncio.sleep(_TICK_S)
            with contextlib.suppress(Exception):
                metrics.record(await self.status())


def _name(store: Store) -> str:
    """What the names of a store's actors begin with, and what its metrics call it."""
    return f"{store.path.name}-{store.store_id[:8]}"


async def _open(actor: Any) -> list[Any]:
    """What `open` answers. It is safe to repeat, so an answer that was lost, or a process that died, is no failure."""
    from ray.exceptions import ActorUnavailableError

    for _ in range(_OPEN_ATTEMPTS_MAX - 1):
        with contextlib.suppress(ActorUnavailableError):
            opened: list[Any] = await _answer(actor.open.remote(), _OPEN_TIMEOUT_S)
            return opened
        await asyncio.sleep(_RETRY_S)
    return list(await _answer(actor.open.remote(), _OPEN_TIMEOUT_S))


async def _answer(ref: Any, timeout_s: float = _ANSWER_TIMEOUT_S) -> Any:
    return await asyncio.wait_for(asyncio.wrap_future(ref.future()), timeout_s)


async def _all_in_time(refs: Sequence[Any]) -> list[Any]:
    """The answers, with None for those that failed or took over five seconds."""
    answers = await asyncio.gather(*map(_answer, refs), return_exceptions=True)
    return [None if isinstance(answer, BaseException) else answer for answer in answers]
