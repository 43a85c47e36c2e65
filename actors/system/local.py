"""LocalSystem: the parts of a runtime, put together and taken apart.

Where to look to see what a running Rayfold consists of: `start` puts the parts together in the order in which they
depend on one another, and `stop` undoes it in reverse, from wherever `start` has come to. What is done with it while it
runs is in `control/actor_system.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ...runtime.domain.projection import Projection
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.feed.committed_positions import PartitionCalls
from ...runtime.printable import printable_log
from ...runtime.store.report import Report
from ...runtime.store.store import AGENDAS, Store
from ...runtime.store.store_lock import StoreLock
from ..client.client import Client
from ..client.partition_calls import ActorCalls
from ..cluster.names import partition_name, sinks_name, store_system
from ..cluster.ray_cluster import Cluster
from ..cluster.ray_session import started_in_thread
from ..cluster.rpc import ANSWER_TIMEOUT_S, call, kill, open_actor
from ..cluster.scheduling import Scheduling, on_this_node
from ..control.actor_system import ActorSystem, OneMachinePlacement
from ..observe.attach import connection_facts
from ..os_process.gc_tuning import tune_gc
from ..packaging.builds import Builds
from ..packaging.class_fingerprints import class_fingerprints
from ..packaging.class_names import names_of_classes
from ..projection.fleet import ProjectorFleet
from ..projection.rebuild import Rebuild
from ..relay.relay import Relay, open_relay
from ..relay.relayed_topology import RelayedTopology, ServedParts
from ..settings import Settings
from .health_check import Health, health_of
from .liveness import LivenessWatch
from .relay_control import RelayControl
from .system import OneMachine

__all__ = ["LocalSystem"]

log = printable_log(__name__)

_OPEN_TIMEOUT_S: Final = 300.0
"""Opening replays the log into the read models, and a long log takes long."""


class LocalSystem(OneMachine, ActorSystem):
    """What a started runtime consists of. `start` may end after any of its parts, and `stop` undoes those."""

    def __init__(
        self,
        catalogue: Catalogue,
        replicas: Mapping[type[Projection], int],
        settings: Settings,
        open_store: Callable[[], Store],
        num_cpus: int | None,
    ) -> None:
        super().__init__(catalogue, settings)
        self._open_store, self._num_cpus = open_store, num_cpus
        self._replicas = replicas
        self._undo = contextlib.AsyncExitStack()
        self._grace_s = 0.0
        self._placement: OneMachinePlacement[Store] | None = None
        self._fleet: ProjectorFleet | None = None
        self._client: Client | None = None
        """All three from their step of `start` on."""
        self._fingerprints: dict[str, str] = {}
        self.hold: StoreLock | None = None
        """From the moment on at which this process has the store."""
        self.relay: Relay | None = None
        """At which other programs call these actors; None where sockets are switched off, or no private
        folder for one is available."""

    async def start(self) -> None:
        """Store, hold, cluster, projectors, partitions, client: each needs the ones before it."""
        store = self._open_store()
        self._placement = OneMachinePlacement(store)
        hold = self.hold = store.hold(f"the runtime of process {os.getpid()}")
        self._undo.callback(hold.release)
        await asyncio.to_thread(self.check_fit, str(store.path), range(store.partitions))
        self._fingerprints = await asyncio.to_thread(class_fingerprints, self.catalogue)
        cluster = await started_in_thread(
            lambda: Cluster.start_or_join(num_cpus=self._num_cpus, own_actors_max=self.settings.own_actors_max),
            Cluster.stop,
        )
        self._undo.push_async_callback(asyncio.to_thread, cluster.stop)
        builds, scheduling = Builds(store.path), Scheduling(on_this_node())
        name = store_system(store.path.name, store.store_id)
        self._fleet = ProjectorFleet(
            lambda: store, self.catalogue, name, cluster.namespace, builds, scheduling, self.settings
        )
        self._undo.push_async_callback(self._end_actors)
        await self._start_actors(cluster, scheduling)
        self._client = Client(
            self.catalogue,
            self.placement.actors,
            cluster.actor_named,
            self.settings,
            placement_rule=store.placement,
            store_id=store.store_id,
        )
        control = RelayControl(self).methods()
        if self.settings.local_sockets:
            self.relay = open_relay(store.store_id, name, cluster.actor_named, control, anywhere=RelayControl.ANYWHERE)
        if self.relay is not None:
            self._undo.callback(self.relay.close)
        await self.fleet.attach(self.placement.actors, self._serve)
        self._publish()
        self._undo.push_async_callback(lambda: self.client.drain(min(ANSWER_TIMEOUT_S, self._grace_s)))
        if self.settings.tune_garbage_collector:
            self._undo.callback(tune_gc())
        for going_on in (self.tick(), self.measure(name), LivenessWatch(self, self.settings.silent_s).watch()):
            self._undo.callback(asyncio.create_task(going_on).cancel)
        facts = connection_facts(cluster, name)
        hold.publish(facts if self.relay is None else {**facts, "relay": str(self.relay.path)})
        if self.relay is not None:
            self._undo.callback(self.relay.close)  # other programs know at once that it stops
        self._undo.callback(hold.publish, {})  # first of all when it stops: who looks on must not reach for what ends
        self._undo.push_async_callback(self.interrupt_rebuilds)

    @property
    def store(self) -> Store:
        """The store, which is locked."""
        return self.placement.store

    @property
    def partition_calls(self) -> PartitionCalls:
        """See `System`."""
        return ActorCalls(self.client.partition_reached, leased=False)

    @property
    def placement(self) -> OneMachinePlacement[Store]:
        """See `ActorSystem`."""
        assert self._placement is not None
        return self._placement

    @property
    def fleet(self) -> ProjectorFleet:
        """See `ActorSystem`."""
        assert self._fleet is not None
        return self._fleet

    @property
    def client(self) -> Client:
        """What sends commands and queries."""
        assert self._client is not None
        return self._client

    def _serve(self, projection: type[Projection], parts: Sequence[Sequence[Any]]) -> None:
        """From now on these answer the queries to a projection, for this program and for others."""
        self.client.serve(projection, parts)
        self._publish()

    def _publish(self) -> None:
        if self.relay is not None:
            self.relay.publish(*self._relayed())

    def _relayed(self) -> tuple[RelayedTopology, dict[str, Any]]:
        """Which actor serves what now, and the handles by name."""
        system = store_system(self.store.path.name, self.store.store_id)
        actors: dict[str, Any] = {
            partition_name(system, number): actor for number, actor in enumerate(self.placement.actors)
        }
        partitions, projections = tuple(actors), {}
        for name, served in self.fleet.serving.items():
            by_part = served.by_part()
            projections[name] = ServedParts(
                served.build.version, tuple(tuple(one.name for one in part) for part in by_part)
            )
            actors |= {one.name: one.actor for part in by_part for one in part}
        ids = {name: actor._actor_id.hex() for name, actor in actors.items()}
        classes = names_of_classes(self.catalogue)
        fingerprints = self._fingerprints
        return RelayedTopology(partitions, projections, ids, self.settings, classes, fingerprints=fingerprints), actors

    def begin_own_rebuild(self, projection: type[Projection]) -> int:
        """Have a read model built anew by the class of this program. The number of the rebuild."""
        from ..packaging.shipping import ship

        return self.begin_rebuild(projection, ship(self.catalogue.narrowed(projection)))

    def agendas_here(self) -> Path:
        """See `ActorSystem`."""
        return self.store.path / AGENDAS

    async def stop(self, grace_s: float) -> None:
        """Undo `start`, in reverse order; each step also when an earlier one failed. `grace_s`: how long, in seconds,
        commands may be on their way and actors may take to end by themselves."""
        self._grace_s = grace_s
        await self._undo.aclose()

    async def health(self, limit_s: float) -> Health:
        """See `Runtime.health`."""
        return await health_of(self.client, limit_s)

    async def verify(self) -> Report:
        """See `Runtime.verify`."""
        from ...runtime.checks.agendas import verify_with_agendas  # it imports lmdb

        return await asyncio.to_thread(verify_with_agendas, self.store.path)

    async def _start_actors(self, cluster: Cluster, scheduling: Scheduling) -> None:
        """Projectors first: a partition needs them to broadcast to, also when Ray restarts it."""
        from ..packaging.shipping import ship
        from ..partition.actor import PartitionPlan, start_partition  # these import ray, which `Cluster` prepares
        from ..sinks.actor import SinksPlan, start_sinks

        store, catalogue = self.store, ship(self.catalogue)
        name = store_system(store.path.name, store.store_id)
        for projection, count in self._replicas.items():
            await self.fleet.start(projection, count, catalogue)
        for number in range(store.partitions):
            partition = PartitionPlan(
                number,
                store,
                catalogue,
                self.fleet.names(),
                name,
                cluster.namespace,
                self.settings,
                cluster.counts_slots,
                partitions=tuple(partition_name(name, one) for one in range(store.partitions)),
            )
            started = start_partition(partition, partition_name(name, number), scheduling.partition(""))
            self.placement.actors.append(started)
        await self._open_actors()
        if self.catalogue.sinks:
            names = tuple(partition_name(name, one) for one in range(store.partitions))
            plan = SinksPlan(store, catalogue, cluster.namespace, names)
            self.sinks = start_sinks(
                plan, sinks_name(name, time.time_ns()), detached=False, scheduling=scheduling.partition("")
            )
            await open_actor(self.sinks, f"the sinks of {name}", _OPEN_TIMEOUT_S)

    async def _open_actors(self) -> None:
        """Return when all partitions take commands and all projectors have caught up, or read on by themselves."""
        where = str(self.store.path)
        partitions = [asyncio.ensure_future(open_actor(one, where, _OPEN_TIMEOUT_S)) for one in self.placement.actors]
        projectors = asyncio.ensure_future(self.fleet.open())
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
        return [*self.placement.actors, *(projector.actor for projector in self.fleet.projectors())]

    def watched(self) -> list[tuple[str, Any]]:
        """The actors whose heartbeats are checked (`system/liveness.py`)."""
        partitions = [(f"partition {number}", actor) for number, actor in enumerate(self.placement.actors)]
        sinks = [] if self.sinks is None else [("the process of the sinks", self.sinks)]
        return [*partitions, *((one.name, one.actor) for one in self.fleet.projectors()), *sinks]

    def rebuild(self, projection: type[Projection]) -> Rebuild:
        """Have a read model built anew from the log, beside the one that serves."""
        return self.rebuilds.of(self.begin_own_rebuild(projection))

    async def _end_actors(self) -> None:
        if self.sinks is not None:  # first: its places are kept by the partitions
            with contextlib.suppress(Exception):
                await call(self.sinks.close, timeout_s=max(self._grace_s, ANSWER_TIMEOUT_S))
            kill(self.sinks)
        closing = (call(actor.close) for actor in self.placement.actors)
        ending = asyncio.gather(*closing, self.fleet.close(), return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ending, self._grace_s)
        for actor in self._actors():
            kill(actor)
