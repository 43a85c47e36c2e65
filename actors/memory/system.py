"""MemorySystem: the parts of a system in memory, put together as `system/local.py` puts together those of a runtime.

Beside all steps. The write loop, the read models, the codec, the checks and the errors are those of production; there
is no process but the caller's, no Ray, no disk. Everything happens on the event loop that it was started on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...runtime.domain.projection import Projection
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import CallerError
from ...runtime.feed.committed_positions import PartitionCalls
from ...runtime.store.memory_logs import MemoryLogs
from ...runtime.store.report import Report
from ..client.partition_calls import ActorCalls
from ..cluster.names import store_system
from ..control.actor_system import ActorSystem, OneMachinePlacement
from ..observe.status import Observer
from ..projection.rebuild import Rebuild
from ..settings import Settings
from ..system.health_check import Health, health_of
from ..system.system import OneMachine
from .client import MemoryClient
from .clock import Clock
from .couriers import Fake, MemoryCouriers
from .handle import LocalHandle
from .partition import MemoryPartition
from .projectors import Held, MemoryFleet

__all__ = ["MemorySystem"]


class MemorySystem(OneMachine, ActorSystem):
    """One system in memory, over logs that may have been used by another one before."""

    def __init__(
        self,
        catalogue: Catalogue,
        replicas: Mapping[type[Projection], int],
        settings: Settings,
        logs: MemoryLogs,
        clock: Clock,
        held: Held,
        fakes: Mapping[str, Fake | None],
    ) -> None:
        super().__init__(catalogue, settings)
        self.store = logs
        self._replicas, self._clock, self._fakes = replicas, clock, fakes
        self._placement = OneMachinePlacement(logs)
        self._fleet = MemoryFleet(logs, catalogue, store_system("memory", logs.store_id), settings, held)
        self._client: MemoryClient | None = None
        """From `start` on."""

    async def start(self) -> None:
        """See `System`: projectors, partitions, client, in the order in which a runtime starts them."""
        logs, settings, fleet = self.store, self.settings, self._fleet
        self._observer = Observer(logs, now_us=self._clock.now_us)
        self.check_fit("memory", range(logs.partitions))
        classes = fleet.keep(self.catalogue)
        for projection, count in self._replicas.items():
            await fleet.start(projection, count, classes)
        partitions: list[MemoryPartition] = []
        couriers = MemoryCouriers(
            self.catalogue, logs, self._clock, lambda number, commands: partitions[number].decide(commands), self._fakes
        )
        for number, log in enumerate(logs.logs):
            partitions.append(
                MemoryPartition(
                    number,
                    log,
                    logs.partitions,
                    logs.store_id,
                    self.catalogue,
                    settings,
                    fleet.broadcast,
                    couriers.run,
                    couriers.facts,
                )
            )
        actors = [LocalHandle(partition) for partition in partitions]
        self._placement = OneMachinePlacement(logs, actors)
        await fleet.open()
        self._client = MemoryClient(
            self.catalogue, actors, _no_actor, settings, placement_rule=logs.placement, store_id=logs.store_id
        )
        await fleet.attach(actors, self._client.serve)
        if self.catalogue.has_outputs:
            self._clock.moved = self._following(couriers)
            couriers.run()

    async def stop(self, grace_s: float) -> None:
        """See `System`."""
        self._clock.moved = None
        if self._client is not None:
            await self._client.drain(grace_s)
        await self.interrupt_rebuilds()
        await self._fleet.close()

    def _following(self, couriers: MemoryCouriers) -> Callable[[int], None]:
        """What happens when the clock is moved, on whichever thread: it is carried out on the loop of the system."""
        loop, thread = asyncio.get_running_loop(), threading.get_ident()

        def moved(now_us: int) -> None:
            if threading.get_ident() == thread:
                couriers.advance(now_us)
                return

            async def advance() -> None:
                couriers.advance(now_us)

            asyncio.run_coroutine_threadsafe(advance(), loop).result()

        return moved

    @property
    def placement(self) -> OneMachinePlacement[MemoryLogs]:
        """See `ActorSystem`."""
        return self._placement

    @property
    def fleet(self) -> MemoryFleet:
        """See `ActorSystem`."""
        return self._fleet

    @property
    def partition_calls(self) -> PartitionCalls:
        """See `System`."""
        return ActorCalls(self.client.partition_reached, leased=False)

    @property
    def client(self) -> MemoryClient:
        """What sends commands and queries."""
        assert self._client is not None
        return self._client

    async def health(self, limit_s: float) -> Health:
        """See `System`."""
        return await health_of(self.client, limit_s)

    async def verify(self) -> Report:
        """See `System`."""
        return await asyncio.to_thread(self.store.verify)

    def rebuild(self, projection: type[Projection]) -> Rebuild:
        """See `System`."""
        return self.rebuilds.of(self.begin_rebuild(projection, self._fleet.keep(self.catalogue.narrowed(projection))))

    def hold_back(self, projections: Iterable[type[Projection]]) -> list[str]:
        """See `MemoryFleet`."""
        return self._fleet.hold_back(projections)

    def go_on(self) -> None:
        """See `MemoryFleet`."""
        self._fleet.go_on()

    @staticmethod
    def no_nodes() -> CallerError:
        """See `OneMachine`."""
        what = "this system is in memory and has no nodes"
        return CallerError(f"{what}; give a test of moves a Runtime with cluster=LocalCluster(...)")


def _no_actor(name: str) -> Any:
    raise ValueError(f"{name} is no actor of a system in memory")
