"""SupervisorActor: the actor in which a system on a cluster is supervised, and which programs find by the system's
name.

Beside all steps. The system of a `Runtime(..., cluster=...)` has one that ends with that program; one that was deployed
has one that outlives it, and takes what it is to run from Ray's own directory (`deployment.py`), so that it is started
again with the latest code wherever Ray starts it.

Rule kept here: nothing is decided here. `supervision.py` does the work; this is the door to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any, Final

import ray

from ...runtime.errors import CallerError, Unavailable
from ...runtime.printable import printable_log
from ...runtime.read.stores.checkpoint import Quarantined
from ...runtime.store.report import Report
from ..cluster.names import supervisor_name
from ..cluster.ray_cluster import Cluster
from ..cluster.retry import Patience, retried_now
from ..cluster.rpc import Reply, call_now, is_starting, kill, one_line, replies
from ..cluster.scheduling import on_this_node
from ..nodes.move_result import MoveResult
from ..observe.status import Status
from ..os_process.actor_log import begin_log
from ..os_process.gc_tuning import tune_gc
from ..packaging.application import ApplicationPlan
from ..packaging.registry import plan_of
from ..packaging.shipping import digest_of, ship, unship
from ..projection.fleet import CatchingUp
from ..projection.rebuild import RebuildProgress
from ..rollout.plan import RolloutProgress
from ..rollout.preview import Seats
from .handle import SupervisorHandle
from .supervision import Supervision
from .topology import Topology

__all__ = ["SupervisorActor", "revive", "start_supervisor"]

log = printable_log(__name__)

_LOOK_S: Final = 0.3
"""Seconds between two checks of a supervisor that does not answer."""

_CALLS_MAX: Final = 1000
"""Calls at the same time: programs that wait for the topology, one call each, and a few that change something."""


class SupervisorActor:
    """The door to one system's supervision. Its methods run on one event loop."""

    def __init__(self, name: str, plan: ApplicationPlan | None) -> None:
        """`plan`: of a system that ends with the program that has started it. A deployed one has its plan in Ray's
        directory."""
        begin_log()
        self._name, self._plan = name, plan
        self._opening: Any = None
        """The call that opens a deployed one, for as long as it is under way."""
        if plan is None:
            with contextlib.suppress(Exception):  # after a restart no other process may ask for it
                self._opening = ray.get_runtime_context().current_actor.open.remote()
        self._starting = asyncio.Lock()
        self._supervision: Supervision | None = None

    @ray.method
    @replies
    async def open(self) -> None:
        """Start everything, or continue with what exists. Safe to repeat."""
        await self._started()

    @ray.method
    @replies
    async def read(self, revision: str, timeout_s: float) -> Topology | None:
        """The published topology, once it differs from that one; None if it does not in time."""
        return await (await self._started()).feed.read(revision, timeout_s)

    @ray.method
    @replies
    async def stop(self) -> None:
        """End the system. The actor is of no further use."""
        async with self._starting:
            supervision, self._supervision = self._supervision, None
        if supervision is not None:
            await supervision.stop()

    @ray.method
    @replies
    async def alive(self) -> int:
        """A sign of life: the process id."""
        return os.getpid()

    # --- the system, as `Operations` has it ----------------------------------------------------------------------

    @ray.method
    @replies
    async def heads(self) -> dict[int, int]:
        """See `Supervision`."""
        return await (await self._started()).heads()

    @ray.method
    @replies
    async def status(self) -> Status:
        """See `Supervision`."""
        return await (await self._started()).status()

    @ray.method
    @replies
    async def verify(self) -> Report:
        """See `Supervision`."""
        return await (await self._started()).verify()

    @ray.method
    @replies
    async def move(self, partition: int, node: str) -> MoveResult:
        """See `PartitionMoves`."""
        return await (await self._started()).moves.move(partition, node)

    @ray.method
    @replies
    async def rebalance(self) -> list[MoveResult]:
        """See `PartitionMoves`."""
        return await (await self._started()).moves.rebalance()

    @ray.method
    @replies
    async def drain(self, node: str, drained: bool) -> list[MoveResult]:
        """See `PartitionMoves`."""
        return await (await self._started()).moves.drain(node, drained=drained)

    @ray.method
    @replies
    async def scale(self, projection: str, replicas: int) -> None:
        """See `ProjectorFleet`."""
        supervision = await self._started()
        await supervision.scale(supervision.catalogue.projection(projection), replicas)

    @ray.method
    @replies
    async def rebuild_stream(self, projection: str, aggregate: str, id: str) -> None:
        """See `ProjectorFleet`."""
        supervision = await self._started()
        catalogue = supervision.catalogue
        cls = catalogue.aggregate(aggregate)
        await supervision.rebuild_stream(catalogue.projection(projection), cls, id)

    @ray.method
    @replies
    async def retry_quarantined(self, projection: str) -> tuple[Quarantined, ...]:
        """See `ProjectorFleet`."""
        supervision = await self._started()
        return await supervision.retry_quarantined(supervision.catalogue.projection(projection))

    @ray.method
    @replies
    async def begin_rebuild(self, projection: str, classes: bytes) -> int:
        """Have a read model built anew, by these classes. The number of the rebuild."""
        supervision, catalogue = await self._started(), unship(classes)
        return supervision.begin_rebuild(catalogue.projection(projection), classes)

    @ray.method
    @replies
    async def begin_deployed_rebuild(self, projection: str, version: int) -> int:
        """Have a read model built anew by the class that is deployed, of which the caller has to have that version.
        The number of the rebuild."""
        supervision = await self._started()
        cls = supervision.catalogue.projection(projection)
        if cls.projection_version != version:
            what = f"{projection} version {version} cannot be built for this program: the system has version"
            raise CallerError(f"{what} {cls.projection_version}; deploy the new class")
        digest = digest_of(supervision.plan.catalogue)
        return supervision.begin_rebuild(cls, ship(supervision.catalogue.narrowed(cls), digest))

    @ray.method
    @replies
    async def await_rebuild(self, number: int) -> RebuildProgress:
        """Wait for its end."""
        return await (await self._started()).rebuilds.of(number)

    @ray.method
    @replies
    async def watch_rebuild(self, number: int) -> RebuildProgress:
        """How far it is."""
        return (await self._started()).rebuilds.of(number).progress()

    @ray.method
    @replies
    async def cancel_rebuild(self, number: int) -> None:
        """See `Rebuild`."""
        await (await self._started()).rebuilds.of(number).cancel()

    # --- deployments ---------------------------------------------------------------------------------------------

    @ray.method
    @replies
    async def ready(self) -> None:
        """See `ProjectorFleet.check_started`."""
        await (await self._started()).projections.check_started()

    @ray.method
    @replies
    async def catching_up(self) -> tuple[CatchingUp, ...]:
        """See `ProjectorFleet`."""
        return await (await self._started()).projections.catching_up()

    @ray.method
    @replies
    async def stopped(self) -> dict[str, Reply[None]]:
        """See `ProjectorFleet`."""
        found = await (await self._started()).projections.stopped()
        return {name: Reply.failed(why) for name, why in found.items()}

    @ray.method
    @replies
    async def seats(self) -> Seats:
        """What runs where."""
        supervision = await self._started()
        serving, store_map = supervision.projections.serving.items(), supervision.shares.map
        return Seats(
            supervision.plan.generation,
            {name: (served.build.version, served.replicas) for name, served in serving},
            {number: store_map.name_of(one.node_id) for number, one in supervision.partitions.seated.items()},
            sorted(store_map.name_of(node_id) for node_id in store_map.names.keys() - supervision.shares.up),
        )

    @ray.method
    @replies
    async def deploy(self, plan: ApplicationPlan) -> None:
        """See `Rollout.begin`. Safe to repeat."""
        await (await self._started()).rollout.begin(plan)

    @ray.method
    @replies
    async def cancel_deployment(self) -> bool:
        """See `Rollout.cancel`."""
        return await (await self._started()).rollout.cancel()

    @ray.method
    @replies
    async def deployed(self) -> RolloutProgress:
        """See `Rollout.ended`."""
        return await (await self._started()).rollout.ended()

    @ray.method
    @replies
    async def deploying(self) -> RolloutProgress:
        """See `Rollout.progress`."""
        return await (await self._started()).rollout.progress()

    # -------------------------------------------------------------------------------------------------------------

    async def _started(self) -> Supervision:
        async with self._starting:
            if self._supervision is None:
                detached = self._plan is None
                plan = self._plan or await asyncio.to_thread(plan_of, self._name)
                if plan is None:
                    raise Unavailable(self._name, "it was taken down")
                restart = _restart if detached else lambda: None
                supervision = Supervision(plan, Cluster.inside(), detached=detached, restart=restart, revive=revive)
                try:
                    await supervision.start()
                except BaseException:
                    if not detached:
                        await supervision.stop()
                    raise
                tune_gc()
                self._supervision = supervision
            return self._supervision


def _restart() -> None:
    """End this process; Ray starts it again."""
    ray.kill(ray.get_runtime_context().current_actor, no_restart=False)


def start_supervisor(name: str, namespace: str, plan: ApplicationPlan | None = None) -> SupervisorHandle:
    """A supervisor. Raises `ValueError` if the cluster has a system of that name already.

    `plan`: of a system that is to end with this program; without, of one that was deployed, and outlives it. It is
    started on this program's node: one that ends with the program is lost with no other node than that, on which the
    program would be lost as well; one that outlives it is started elsewhere when that node is gone.
    """
    remote: Any = ray.remote
    options = remote(SupervisorActor).options(
        name=supervisor_name(name),
        namespace=namespace,
        lifetime="detached" if plan is None else None,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=_CALLS_MAX,
        enable_task_events=False,
        **on_this_node(soft=plan is None),
    )
    started: SupervisorActor = options.remote(name, plan)
    return started


def revive(name: str, namespace: str, patience_s: float) -> None:
    """Start the supervisor of a deployed application again, if it is silent for so long, or is not there.

    Ray 2.60 sometimes forgets an actor when its directory restarts (`replacements.py`). The supervisor watches all
    others; the agents of the nodes, and programs that connect, watch it with this. One that Ray is still starting is
    left alone. Raises `Unavailable` if nothing of that name runs.
    """
    supervisor: SupervisorHandle | None = None

    def asked(left_s: float) -> None:
        nonlocal supervisor
        supervisor = ray.get_actor(supervisor_name(name), namespace)
        call_now(supervisor.alive, timeout_s=left_s)

    def note(error: Exception) -> None:
        log.info("the supervisor of %s does not answer: %s", name, one_line(error))

    try:
        retried_now(asked, Patience(patience_s, pause_s=_LOOK_S, never=(ValueError,), note=note))
        return
    except ValueError:
        supervisor = None
        if plan_of(name) is None:
            what = "nothing of that name runs on this cluster; `rayfold deploy` starts it"
            raise Unavailable(name, what) from None
    except Exception as error:  # it is being started again, or is busy, or silent
        note(error)
    if plan_of(name) is None:  # it is that of a runtime, which ends with its program
        return
    if supervisor is not None:
        if _starts(supervisor):
            return
        kill(supervisor)
    log.error("the supervisor of %s is started again", name)
    with contextlib.suppress(ValueError):  # another caller was faster
        start_supervisor(name, namespace)


def _starts(supervisor: SupervisorHandle) -> bool:
    """Whether Ray reports that it is still starting it, or does not answer."""
    try:
        return is_starting(supervisor)
    except Exception as error:
        log.info("Ray's directory does not return the state of a supervisor: %s", one_line(error))
        return True
