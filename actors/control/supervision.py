"""Supervision: a system over the nodes of a cluster, put together, watched, and put right.

Where to look to see what a system on a cluster consists of; its twin on one machine is `system/local.py`, and what both
do with their actors is in `actor_system.py`. It runs in an actor of its own (`supervisor_actor.py`), and every program
that uses the system, the one that has started it included, is a client of it.

What it does, repeatedly: check which nodes are up; give a node that joins or returns its agent and the map; publish
which partitions are unavailable, and why; replace what does not answer although its node is up; and bring projectors to
a node that has joined (`projector_moves.py`). Ray starts killed processes again by itself, and faster; that is left to
it.

Rules kept here: what is lost with a node is lost alone: everything else goes on, and nothing waits for it. Whatever is
done here may be interrupted at any point and done again: the shares hold what is true, the names in Ray who is there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from ...runtime.domain.projection import Projection
from ...runtime.errors import RayfoldError, StoreError, Unavailable
from ...runtime.printable import printable_log
from ...runtime.store.report import Report
from ..cluster.names import generation_in, is_sinks, names_of, partition_named, projector_named, sinks_name
from ..cluster.ray_cluster import Cluster, NodeFacts
from ..cluster.rpc import call, kill, one_line
from ..cluster.scheduling import ClusterScheduling
from ..nodes.agent import Revive
from ..nodes.agents import NodeAgents
from ..nodes.store import ClusterStore
from ..observe.status import NodeStatus, Status
from ..packaging.application import ApplicationPlan
from ..packaging.class_fingerprints import class_fingerprints
from ..packaging.class_names import names_of_classes
from ..packaging.registry import put_store, store_of
from ..packaging.shipping import digest_of, unship
from ..partition.actor import PartitionPlan
from ..partition.handle import PartitionHandle
from ..projection.fleet import Projector, end
from ..relay.relayed_topology import ServedParts
from ..sinks.actor import SinksPlan, start_sinks
from ..sinks.handle import SinksHandle
from .actor_system import ActorSystem, Placement
from .builds import ClusterBuilds
from .moves import PartitionMoves
from .node_relay import serve_programs
from .partitions import PartitionActors
from .projections import HEARD_S, ClusterProjectorFleet
from .projector_moves import ProjectorMoves
from .replacements import Replacements
from .rollout import Rollout
from .topology import Topology, TopologyFeed

__all__ = ["Supervision"]

log = printable_log(__name__)

_WATCH_S: Final = 0.5
"""Seconds between two checks of the nodes, a call of some milliseconds each: the delay between Ray's detection of a
loss and its publication."""

_TIDY_S: Final = 60.0
"""Seconds between two searches for what moves have left: one short call for each node."""

_STRAYS_S: Final = 10.0
"""Seconds between two searches for actors without a seat: a call to Ray's directory, of milliseconds. One that was
found twice has none: what leaves its seat ends within seconds."""

_NAME_AGAIN_S: Final = 2.0
"""How often partitions are sent the names of all, if nothing has changed."""

_VERIFY_TIMEOUT_S: Final = 24 * 3600.0
"""For the logs of one node: some 300,000 events a second."""


class Supervision(ActorSystem):
    """One system. Used on one event loop only."""

    def __init__(
        self,
        plan: ApplicationPlan,
        cluster: Cluster,
        *,
        detached: bool,
        restart: Callable[[], None] = lambda: None,
        revive: Revive | None = None,
    ) -> None:
        """`restart`: end this process, which is started again with the plan that is in Ray's directory by then.
        `revive`: how the node agents start a lost supervisor again; of a system that outlives this program."""
        super().__init__(unship(plan.catalogue), plan.settings)
        self.plan = plan
        self.detached = detached
        """Deployed: it outlives the program that has started it."""
        self.feed = TopologyFeed()
        self.shares = NodeAgents(
            plan.name,
            cluster.namespace,
            detached=detached,
            silent_s=plan.settings.silent_s,
            revive=revive if detached else None,
            serve=serve_programs,
        )
        self.scheduling = ClusterScheduling(detached=detached, generation=plan.generation)
        self.partitions = PartitionActors(self._plan_of, self.scheduling, plan.generation)
        self.nodes: dict[str, NodeFacts] = {}
        """Nodes in Ray's directory, up or not, by the id of their data folders."""
        self.changing = asyncio.Lock()
        """Held while partitions are moved, code is deployed, or lost actors are replaced: one at a time."""
        self.cluster = cluster
        self.projections = self._projections()
        self._up_as: dict[str, str] = {}
        """The nodes that are up, with what Ray calls them since their last start."""
        self._gone_since: dict[str, datetime] = {}
        self.moves = PartitionMoves(self)
        self.replacements = Replacements(self, self.moves)
        self.rollout = Rollout(self, restart)
        self._projector_moves = ProjectorMoves(self)
        self._superseded: list[Projector] = []
        """Those with earlier code, which are asked until every program has the present ones."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._doing: set[str] = set()
        """What `_watch` has begun, and not waited for."""
        self._classes = names_of_classes(self.catalogue)
        if digest_of(plan.catalogue):
            self._classes = self._classes._replace(folders=())  # programs have the deployed modules from a node agent
        self._fingerprints = class_fingerprints(self.catalogue)
        self._strays: set[str] = set()
        """Actors without a seat, at the last search."""
        self._tidy_again_s = self._strays_again_s = self._name_again_s = 0.0
        self._named_as: tuple[tuple[str, ...], dict[int, str]] = (), {}
        self.watch_s = _WATCH_S

    # --- starting and ending -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Find or make the store, go on with the actors that an earlier supervisor has left, and start those that are
        missing. Returns once all partitions whose homes are up take commands and all projections answer; or at once
        where there were actors already: callers of the others do not wait for what they still have to do.

        Raises `StoreMismatch`, `CodeMismatch`, `StoreInUse`, `Unavailable`, `DefinitionError`, and what keeps a
        projector from opening.
        """
        self._see_nodes((await asyncio.to_thread(self.cluster.view)).nodes)
        await self._open_shares(list(self.nodes.values()))
        self._use_nodes()
        for node_id in self.shares.map.names.keys() - self.shares.up:
            self._gone_since[node_id] = datetime.now(UTC)  # or before: an earlier supervisor may have gone with it
        names = await self._named()
        if not names:  # else it runs, or a deployment has looked before it changed anything
            await asyncio.to_thread(self._check_fit)
        await self._seat(names)
        if not names:
            await self._open()
        await self._start_sinks()
        await self.projections.attach(self.partitions.handles(), self._serve)
        self.publish()
        for doing in (self._watch(), *self.going_on(), self.rollout.run(), self._end_superseded()):
            self._go_on(doing)
        if names:
            self._go_on(self._resume())

    def _check_fit(self) -> None:
        up = (number for number, home in enumerate(self.shares.map.owners) if home in self.shares.up)
        self.check_fit(self.plan.name, up)

    def going_on(self) -> list[Coroutine[Any, Any, None]]:
        """What is done again and again. The simulation does it otherwise."""
        return [self.tick(), self.measure(self.plan.name)]

    async def _open_shares(self, nodes: Sequence[NodeFacts]) -> None:
        """Of a deployed system: the store that it had before, and no other."""
        plan, known = self.plan, await asyncio.to_thread(self._known_store) if self.detached else ""
        default = max(2, sum(node.alive for node in nodes))
        await self.shares.open(
            nodes, plan.partitions, default, create=plan.create, store_id=known, without=plan.without
        )
        if self.detached and not known:
            await asyncio.to_thread(self._remember_store, self.shares.map.store_id)

    def _known_store(self) -> str:
        return store_of(self.plan.name)

    def _remember_store(self, store_id: str) -> None:
        put_store(self.plan.name, store_id)

    async def _seat(self, names: set[str]) -> None:
        """An actor for every seat: one of these, which are there, or a new one. Those that have no seat are ended."""
        for projection, count in self._wanted().items():
            taking = (projection, count, self.plan, names, self.cluster.actor_named)
            await self.projections.take_in_or_start(*taking)
        homes = self.shares.map.owners
        self.partitions.take_in(names, self.cluster.actor_named, homes)
        for number, node_id in enumerate(homes):
            if number not in self.partitions.seated:
                self.partitions.seated[number] = self.partitions.start(number, node_id)
        for name in names - self._in_use():
            with contextlib.suppress(ValueError):
                actor, parsed = self.cluster.actor_named(name), projector_named(name)
                if parsed is not None and generation_in(parsed.mark) < self.plan.generation:
                    self._superseded.append(Projector(parsed.part, parsed.replica, name, Path(), actor))
                else:
                    self.partitions.kill(actor)

    async def _start_sinks(self) -> None:
        """The actor of the sinks with the present code, or the one that is there; those with earlier code end. It opens
        by itself, and Ray starts it again wherever there is a node."""
        plan, present = self.plan, sinks_name(self.plan.name, self.plan.generation)
        for name in await self._listed():
            if is_sinks(plan.name, name) and (name != present or not self.catalogue.sinks):
                with contextlib.suppress(Exception):
                    earlier = await asyncio.to_thread(self.cluster.actor_named, name)
                    await self._end_sinks(earlier)
        if self.catalogue.sinks:
            start = SinksPlan(self.shares.store, plan.catalogue, self.cluster.namespace, self._partition_names())
            self.sinks = start_sinks(start, present, detached=self.detached)

    async def replace_sinks(self) -> None:
        """See `SystemState`. The lease of a frozen process runs out meanwhile."""
        if self.sinks is not None:
            kill(self.sinks)
        await self._start_sinks()

    async def _end_sinks(self, sinks: SinksHandle) -> None:
        with contextlib.suppress(Exception):
            await call(sinks.close)
        kill(sinks)

    async def _end_superseded(self) -> None:
        """Clients learn of the present projectors while the others still answer."""
        superseded, self._superseded = self._superseded, []
        if superseded:
            await asyncio.sleep(HEARD_S)
            await end(superseded, save=False)
        await self.projections.remove_older()

    async def _resume(self) -> None:
        """After an end of the supervisor, or of everything: moves that were interrupted are called off, and every actor
        opens what it has. One that does not is replaced (`replacements.py`)."""
        try:
            await self.moves.settle()
            await self._open()
        except Exception as error:
            log.error("%s continues, but: %s", self.plan.name, one_line(error))

    async def stop(self) -> None:
        """End every actor of the system, each when it has closed its log or saved its place; the shares are free."""
        for task in self._tasks:
            task.cancel()
        await self.rollout.cancel()
        await self.interrupt_rebuilds()
        if self.sinks is not None:  # first: its places are kept by the partitions
            await self._end_sinks(self.sinks)
        await asyncio.gather(self.partitions.end(), self.projections.close(), return_exceptions=True)
        await self.shares.end()

    def _go_on(self, doing: Coroutine[Any, Any, None]) -> None:
        """In the background, until this ends."""
        task = asyncio.create_task(doing)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def alone(self, what: str, doing: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """In the background, unless that is being done already."""
        if what in self._doing:
            return
        self._doing.add(what)

        async def done() -> None:
            try:
                await doing()
            except Exception:  # the next look may go better: nothing else does this
                log.exception("%s of %s", what, self.plan.name)
            finally:
                self._doing.discard(what)

        self._go_on(done())

    async def _tidy(self) -> None:
        """Now and then, while nothing moves: what earlier moves have left is removed where that is proven to be
        right."""
        if (now_s := asyncio.get_running_loop().time()) < self._tidy_again_s or self.changing.locked():
            return
        self._tidy_again_s = now_s + _TIDY_S
        async with self.changing:
            await self.moves.tidy()

    async def _end_strays(self) -> None:
        """Now and then, while nothing changes: actors of this system that have no seat are ended. A supervisor has
        begun them in its last moment, on a node that Ray had given up for instance, or their end was lost with Ray's
        directory."""
        now_s, changes = asyncio.get_running_loop().time(), self.changing.locked() or self.projections.is_changing()
        if now_s < self._strays_again_s or changes:
            return
        self._strays_again_s = now_s + _STRAYS_S
        before, named = self._strays, await self._named()
        self._strays = {one for one in named - self._in_use() if _generation_of(one) <= self.plan.generation}
        for name in self._strays & before:
            log.error("%s has no seat in %s: it is ended", name, self.plan.name)
            with contextlib.suppress(ValueError):  # it has ended since
                self.partitions.kill(await asyncio.to_thread(self.cluster.actor_named, name))

    async def _open(self) -> None:
        """Partitions and projectors, at the same time. What concerns one partition alone becomes its trouble."""
        opening: list[Coroutine[Any, Any, None]] = [self.projections.open()]
        opening += [self.open_partition(number) for number in self.partitions.seated if self.is_up(number)]
        for failure in await asyncio.gather(*opening, return_exceptions=True):
            if isinstance(failure, BaseException):
                raise failure

    async def open_partition(self, number: int) -> None:
        """Have a partition take commands, or note down why it cannot."""
        seated, trouble = self.partitions.seated[number], None
        try:
            await self.partitions.open(number)
        except (StoreError, Unavailable) as error:
            trouble = error
        if self.partitions.seated[number] is seated:  # else it has been replaced meanwhile
            self.replacements.note(number, trouble)

    # --- what clients ask for ------------------------------------------------------------------------------------

    @property
    def placement(self) -> Placement:
        """See `ActorSystem`."""
        return _ClusterPlacement(self)

    @property
    def fleet(self) -> ClusterProjectorFleet:
        """See `ActorSystem`."""
        return self.projections

    async def status(self) -> Status:
        """Nodes, partitions, own actors and projectors; see `Runtime.status`."""
        seen = await super().status()
        names = {number: self.shares.map.name_of(one.node_id) for number, one in self.partitions.seated.items()}
        partitions = [one._replace(node=names[one.partition]) for one in seen.partitions]
        projectors = [one._replace(node=self.shares.map.names.get(one.node, one.node)) for one in seen.projectors]
        return seen._replace(partitions=partitions, projectors=projectors, nodes=self._node_statuses())

    async def verify(self) -> Report:
        """Check every byte of every log, each on its node. Raises `Unavailable` for a home that is gone, by name."""
        for number, why in self.unavailable().items():
            raise Unavailable(f"partition {number} of {self.plan.name}", why)
        shares, store_map = self.shares, self.shares.map
        asked = (
            shares.call(node_id, lambda agent: agent.verify, timeout_s=_VERIFY_TIMEOUT_S)
            for node_id in set(store_map.owners)
        )
        found = [one for report in await asyncio.gather(*asked) for one in report.partitions]
        return Report(self.plan.name, store_map.store_id, sorted(found, key=lambda one: one.partition))

    def unavailable(self) -> dict[int, str]:
        """Partition -> the reason why it is unavailable now."""
        reasons = {}
        for number, node_id in enumerate(self.shares.map.owners):
            if node_id not in self.shares.up:
                reasons[number] = self._gone(node_id)
            elif node_id in self.shares.troubles:
                reasons[number] = str(self.shares.troubles[node_id])
            elif number in self.replacements.troubles:
                reasons[number] = str(self.replacements.troubles[number])
        return reasons

    def _gone(self, node_id: str) -> str:
        name, since = self.shares.map.name_of(node_id), self._gone_since.get(node_id)
        address = self.nodes[node_id].address if node_id in self.nodes else ""
        where = f" at {address}" if address else ""
        down = f"has been down since {since:%Y-%m-%d %H:%M:%S} UTC" if since else "is down"
        remedy = "restart it with its data folder; the partition resumes"
        return f"its home, node {name}{where}, {down}; {remedy}"

    async def leave_drained(self) -> None:
        """Move the projectors away from drained nodes."""
        self._use_nodes()
        for projector in self.projections.projectors():
            if self.scheduling.node_of(projector.name) in self.shares.map.drained:
                await self.projections.replace(projector.name)

    # --- nodes ---------------------------------------------------------------------------------------------------

    def _see_nodes(self, nodes: Sequence[NodeFacts]) -> set[str]:
        """Take in the nodes as Ray's directory has them. Returns those that are up now and were not at the last look,
        or were another node of Ray's: between two looks one can go and be back."""
        self.nodes = {node.node_id: node for node in nodes}
        before, self._up_as = self._up_as, {one.node_id: one.ray_node_id for one in self.nodes.values() if one.alive}
        for node_id in before.keys() - self._up_as.keys():
            self._gone_since[node_id] = datetime.now(UTC)
            log.error("node %s is gone; it has partitions %s", *self._called(node_id))
        self.shares.up = set(self._up_as)
        return {node_id for node_id, ray_node_id in self._up_as.items() if before.get(node_id) != ray_node_id}

    def _called(self, node_id: str) -> tuple[str, list[int]]:
        return self.shares.map.name_of(node_id), self.shares.map.at_home_on(node_id)

    def _use_nodes(self) -> None:
        """Where projectors may be started from now on."""
        drained = self.shares.map.drained
        up = {node_id: self.nodes[node_id].name for node_id in self.shares.up}
        self.scheduling.nodes = {node_id: name for node_id, name in up.items() if node_id not in drained} or up

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.watch_s)
            try:
                view = await asyncio.to_thread(self.cluster.view)
                if not view.is_attached:
                    return self._yield_to_newer()
                for node_id in self._see_nodes(view.nodes):
                    self._go_on(self._welcome(self.nodes[node_id]))
                for node_id in self.shares.troubles.keys() & self.shares.up:
                    self.alone(f"share of {node_id}", partial(self.shares.add, self.nodes[node_id]))
                self._use_nodes()
                self.replacements.send_heartbeats()
                # Both may take a minute, and the next node may be lost meanwhile: nothing here waits for them.
                self.alone("replacements", self.replacements.put_right)
                self.alone("tidying", self._tidy)
                self.alone("actors without a seat", self._end_strays)
                if self._projector_moves.is_due():
                    self.alone("moves of projectors", self._projector_moves.step)
                self.publish()
            except Exception:  # the next check may succeed: there is no other supervisor
                log.exception("supervising %s", self.plan.name)

    def _yield_to_newer(self) -> None:
        """Ray has given up the node of this process, which still runs, and starts the supervisor elsewhere: what this
        one knows is of no use any more, and it changes nothing more."""
        log.error("%s is supervised elsewhere: Ray has given this node up", self.plan.name)
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()

    async def _welcome(self, node: NodeFacts) -> None:
        """A node has joined, or is back: it gets its agent and the map."""
        log.warning("node %s is up; it has partitions %s", *self._called(node.node_id))
        self._gone_since.pop(node.node_id, None)
        await self.shares.add(node)
        self.publish()

    def trouble_of(self, number: int) -> RayfoldError | None:
        """Why a partition that answers cannot open its log; None if it can."""
        return self.replacements.troubles.get(number)

    def is_up(self, number: int) -> bool:
        """Whether the home of a partition's actor is up."""
        return self.partitions.seated[number].node_id in self.shares.up

    # -------------------------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Publish the present topology."""
        seated, plan = self.partitions.seated, self.plan
        served = {
            name: ServedParts(
                one.build.version, tuple(tuple(replica.name for replica in part) for part in one.by_part())
            )
            for name, one in self.projections.serving.items()
        }
        topology = Topology(
            self.shares.store,
            tuple(seated[number].name for number in sorted(seated)),
            self.unavailable(),
            served,
            plan.settings,
            plan.generation,
            plan.catalogue,
            classes=self._classes,
            fingerprints=self._fingerprints,
        )
        self.feed.publish(topology)
        self.name_partitions()

    def _serve(self, _projection: type[Projection], _parts: Sequence[Sequence[Any]]) -> None:
        self.publish()

    def _projections(self) -> ClusterProjectorFleet:
        name, namespace = self.plan.name, self.cluster.namespace
        store, builds = (lambda: self.shares.store), ClusterBuilds(self.shares)
        return ClusterProjectorFleet(
            store, self.catalogue, name, namespace, builds, self.scheduling, self.plan.settings
        )

    def _wanted(self) -> dict[type[Projection], int]:
        """How many replicas of each projection the plan asks for."""
        return {self.catalogue.projections[name]: count for name, count in self.plan.replicas.items()}

    def _plan_of(self, number: int, node_id: str, generation: int) -> PartitionPlan:
        previous = self.rollout.previous
        plan = previous if previous is not None and previous.generation == generation else self.plan
        return PartitionPlan(
            number,
            self.shares.store,
            plan.catalogue,
            self.projections.names(),
            plan.name,
            self.cluster.namespace,
            plan.settings,
            plan.counts_slots,
            node_id,
            len(self.shares.map.names),
            self._partition_names(),
        )

    def name_partitions(self) -> None:
        """Send partitions that have couriers, and the sinks, the names of all of them, and which are away: at each
        change, and now and then, since one that Ray has started again has only those of its plan."""
        if not self.catalogue.has_outputs and self.sinks is None:
            return
        present, now_s = (self._partition_names(), self.unavailable()), asyncio.get_running_loop().time()
        if present == self._named_as and now_s < self._name_again_s:
            return
        self._named_as, self._name_again_s = present, now_s + _NAME_AGAIN_S
        receivers: list[PartitionHandle | SinksHandle] = (
            [*self.partitions.handles()] if self.catalogue.has_outputs else []
        )
        for actor in receivers if self.sinks is None else [*receivers, self.sinks]:
            with contextlib.suppress(Exception):
                actor.set_partitions.remote(*present)

    def _partition_names(self) -> tuple[str, ...]:
        """The names of the actors of all partitions now; empty for one that is being started."""
        seated = self.partitions.seated
        return tuple(seated[one].name if one in seated else "" for one in range(len(self.shares.map.owners)))

    async def _named(self) -> set[str]:
        """The names of this system's partitions and projectors in Ray's directory."""
        return {name for name in await self._listed() if partition_named(name) or projector_named(name)}

    async def _listed(self) -> list[str]:
        """All names of this system in Ray's directory, but for those of own actors. The simulation has a directory of
        its own."""
        from ray.util import list_named_actors

        names: list[str] = await asyncio.to_thread(list_named_actors)
        return names_of(self.plan.name, names)

    def _in_use(self) -> set[str]:
        return {one.name for one in self.partitions.seated.values()} | set(self.projections.names())

    def _node_statuses(self) -> list[NodeStatus]:
        nodes = []
        for node_id, name in sorted(self.shares.map.names.items(), key=lambda item: item[1]):
            facts, since = self.nodes.get(node_id), self._gone_since.get(node_id)
            trouble = self.shares.troubles.get(node_id)
            nodes.append(
                NodeStatus(
                    name,
                    node_id,
                    facts.address if facts else "",
                    node_id in self.shares.up,
                    since.isoformat(timespec="seconds") if since and node_id not in self.shares.up else "",
                    tuple(self.shares.map.at_home_on(node_id)),
                    node_id in self.shares.map.drained,
                    str(trouble) if trouble else "",
                )
            )
        return nodes


def _generation_of(name: str) -> int:
    """The generation of the code that a partition or projector of this name runs."""
    if (partition := partition_named(name)) is not None:
        return partition.generation
    projector = projector_named(name)
    assert projector is not None  # this process has made the name
    return generation_in(projector.mark)


class _ClusterPlacement:
    """The placement of a supervised system: each partition at the home that the map names."""

    def __init__(self, system: Supervision) -> None:
        self._system = system

    @property
    def store(self) -> ClusterStore:
        """See `Placement`."""
        return self._system.shares.store

    def partitions(self) -> dict[int, PartitionHandle]:
        """See `Placement`."""
        return {number: one.actor for number, one in self._system.partitions.seated.items()}

    def unreachable(self) -> dict[int, str]:
        """See `Placement`."""
        return self._system.unavailable()

    def called(self, partition: int) -> str:
        """See `Placement`."""
        return f"partition {partition} of {self._system.plan.name}"
