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
from ..runtime.errors import Unavailable, from_wire
from ..runtime.log.store import Store
from ..runtime.projection import Projection
from .client import Client
from .cluster import Cluster
from .garbage import look_less_often
from .settings import Settings
from .status import OwnActorStatus, PartitionStatus, ProjectorStatus, Status

__all__ = ["Assembly"]

_OPEN_TIMEOUT_S: Final = 300.0
"""Opening replays the log into the read models, and a long log takes long."""

_ANSWER_TIMEOUT_S: Final = 5.0
_RETRY_S: Final = 0.1
_TICK_S: Final = 2.0
"""How often partitions look for own actors that came up or fell idle while no command arrived."""


class Assembly:
    """What a started runtime consists of. Every part may be missing, so that `stop` works at any moment."""

    store: Store
    client: Client

    def __init__(self, catalogue: Catalogue, replicas: Mapping[type[Projection], int], settings: Settings) -> None:
        self._catalogue = catalogue
        self._replicas = replicas
        self._settings = settings
        self._undo = contextlib.AsyncExitStack()
        self._partitions: list[Any] = []
        self._projectors: dict[type[Projection], list[Any]] = {}

    async def start(self, store: Store, num_cpus: int | None) -> None:
        """Hold, cluster, projectors, partitions, client: each needs the ones before it."""
        self.store = store
        hold = store.hold(f"the runtime of process {os.getpid()}")
        self._undo.callback(hold.release)
        cluster = Cluster.start_or_join(num_cpus=num_cpus, own_actors_max=self._settings.own_actors_max)
        self._undo.callback(cluster.stop)
        self._undo.push_async_callback(self._end_actors)
        await self._start_actors(cluster)
        self.client = Client(self._catalogue, self._partitions, self._projectors, cluster.actor_named, self._settings)
        self._undo.push_async_callback(self.client.drain, _ANSWER_TIMEOUT_S)
        if self._settings.tune_garbage_collector:
            self._undo.callback(look_less_often())
        ticking = asyncio.create_task(self._tick())
        self._undo.callback(ticking.cancel)

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
        """Asks every actor; one that does not answer within five seconds is left out."""
        partitions: list[PartitionStatus] = []
        own: list[OwnActorStatus] = []
        for number, answer in enumerate(await _all_in_time([actor.status.remote() for actor in self._partitions])):
            if answer is not None:
                pid, epoch, head, actors = answer
                partitions.append(PartitionStatus(number, pid, epoch, head))
                own += [OwnActorStatus(stream, name, own_pid, number) for stream, name, own_pid in actors]
        asked = [
            (cls, number, actor) for cls, actors in self._projectors.items() for number, actor in enumerate(actors)
        ]
        answers = await _all_in_time([actor.status.remote() for _, _, actor in asked])
        projectors = [
            ProjectorStatus(cls.projection_name, number, *answer)
            for (cls, number, _), answer in zip(asked, answers, strict=True)
            if answer is not None
        ]
        return Status(partitions, own, projectors)

    async def _start_actors(self, cluster: Cluster) -> None:
        """Projectors first: a partition needs them to broadcast to, also when Ray restarts it."""
        from .partition import PartitionPlan, start_partition  # these import ray, which `Cluster` prepares
        from .projector import ProjectorPlan, start_projector
        from .shipping import ship

        store, catalogue = self.store, ship(self._catalogue)
        name = f"{store.path.name}-{store.store_id[:8]}"
        projectors: list[str] = []
        for projection, count in self._replicas.items():
            actors = self._projectors[projection] = []
            for replica in range(count):
                plan = ProjectorPlan(projection.projection_name, replica, catalogue, store)
                projectors.append(f"{name}/{plan.projection}-{replica}")
                actors.append(start_projector(plan, projectors[-1], cluster.namespace))
        for number in range(store.partitions):
            partition = PartitionPlan(
                number,
                store,
                catalogue,
                tuple(projectors),
                name,
                cluster.namespace,
                self._settings,
                cluster.counts_slots,
            )
            self._partitions.append(start_partition(partition))
        opening = (_answer(actor.open.remote(), _OPEN_TIMEOUT_S) for actor in self._actors())
        for answer in await asyncio.gather(*opening, return_exceptions=True):
            if isinstance(answer, BaseException):
                raise Unavailable(str(store.path), f"an actor did not open: {answer}") from answer
            if answer:
                raise from_wire(answer)

    def _actors(self) -> list[Any]:
        return [*self._partitions, *(actor for actors in self._projectors.values() for actor in actors)]

    async def _end_actors(self) -> None:
        import ray

        await _all_in_time([actor.close.remote() for actor in self._partitions])
        for actor in self._actors():
            with contextlib.suppress(Exception):
                ray.kill(actor)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            for partition in self._partitions:
                with contextlib.suppress(Exception):
                    partition.tick.remote()


async def _answer(ref: Any, timeout_s: float = _ANSWER_TIMEOUT_S) -> Any:
    return await asyncio.wait_for(asyncio.wrap_future(ref.future()), timeout_s)


async def _all_in_time(refs: Sequence[Any]) -> list[Any]:
    """The answers, with None for those that failed or took over five seconds."""
    answers = await asyncio.gather(*map(_answer, refs), return_exceptions=True)
    return [None if isinstance(answer, BaseException) else answer for answer in answers]
