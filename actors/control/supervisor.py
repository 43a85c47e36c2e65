"""SupervisorActor: the actor in which a system on a cluster is supervised, and which programs find by the system's
name.

Beside all steps. The system of a `Runtime(..., cluster=...)` has one that ends with that program; one that was deployed
has one that outlives it, and takes what it is to run from Ray's own directory (`deployment.py`), so that it is started
again with the latest code wherever Ray starts it.

Rule kept here: nothing is decided here. `supervision.py` does the work; this is the door to it, and errors leave
through it as values.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import ray

from ...runtime.encoding.error_codec import to_wire
from ...runtime.errors import RayfoldError, Unavailable
from ...runtime.printable import printable_log
from ..cluster.ray_cluster import Cluster
from ..cluster.rpc import is_starting, kill, one_line
from ..cluster.scheduling import on_this_node
from ..packaging.application import ApplicationPlan
from ..packaging.registry import plan_of
from ..packaging.shipping import unship
from ..process.actor_log import begin_log
from ..process.gc_tuning import tune_gc
from ..projection.rebuild import RebuildProgress
from ..rollout.preview import Seats
from .supervision import Supervision
from .topology import Topology, supervisor_name

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

    async def open(self) -> list[Any]:
        """Start everything, or continue with what exists. An error as `to_wire` packs it, or nothing. Safe to
        repeat."""
        error, _ = await self._told(self._started)
        return error

    async def read(self, revision: str, timeout_s: float) -> Topology | None:
        """The published topology, once it differs from that one; None if it does not in time."""
        return await (await self._started()).feed.read(revision, timeout_s)

    async def ask(self, what: str, *arguments: Any) -> tuple[list[Any], Any]:
        """Have `heads`, `status` or another of `_DOORS` done. An error as `to_wire` packs it, or nothing; the
        answer."""
        door = _DOORS[what]

        async def through() -> Any:
            return await door(await self._started(), *arguments)

        return await self._told(through)

    async def stop(self) -> None:
        """End the system. The actor is of no further use."""
        async with self._starting:
            supervision, self._supervision = self._supervision, None
        if supervision is not None:
            await supervision.stop()

    async def alive(self) -> int:
        """A sign of life: the process id."""
        return os.getpid()

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

    async def _told(self, doing: Callable[[], Awaitable[Any]]) -> tuple[list[Any], Any]:
        try:
            return [], await doing()
        except RayfoldError as error:
            return to_wire(error), None


async def _scale(supervision: Supervision, projection: str, replicas: int) -> None:
    await supervision.projections.scale(supervision.catalogue.projection(projection), replicas)


async def _rebuild_stream(supervision: Supervision, projection: str, aggregate: str, id: str) -> None:
    cls = supervision.catalogue.aggregate(aggregate)
    await supervision.projections.rebuild_stream(supervision.catalogue.projection(projection), cls, id)


async def _retry_quarantined(supervision: Supervision, projection: str) -> Any:
    return await supervision.projections.retry_quarantined(supervision.catalogue.projection(projection))


async def _stopped(supervision: Supervision) -> dict[str, list[Any]]:
    return {name: to_wire(why) for name, why in (await supervision.projections.stopped()).items()}


async def _seats(supervision: Supervision) -> Seats:
    serving, store_map = supervision.projections.serving.items(), supervision.shares.map
    return Seats(
        supervision.plan.generation,
        {name: (served.build.version, served.replicas) for name, served in serving},
        {number: store_map.name_of(one.node_id) for number, one in supervision.partitions.seated.items()},
        sorted(store_map.name_of(node_id) for node_id in store_map.names.keys() - supervision.shares.up),
    )


async def _begin_rebuild(supervision: Supervision, projection: str, classes: bytes) -> int:
    catalogue = unship(classes)
    return supervision.begin_rebuild(catalogue.projection(projection), classes)


async def _await_rebuild(supervision: Supervision, number: int) -> RebuildProgress:
    return await supervision.rebuilds.of(number)


async def _watch_rebuild(supervision: Supervision, number: int) -> RebuildProgress:
    return supervision.rebuilds.of(number).progress()


_DOORS: Final[dict[str, Callable[..., Awaitable[Any]]]] = {
    "heads": lambda supervision: supervision.heads(),
    "status": lambda supervision: supervision.status(),
    "verify": lambda supervision: supervision.verify(),
    "move": lambda supervision, partition, node: supervision.moves.move(partition, node),
    "rebalance": lambda supervision: supervision.moves.rebalance(),
    "drain": lambda supervision, node, drained: supervision.moves.drain(node, drained=drained),
    "scale": _scale,
    "rebuild_stream": _rebuild_stream,
    "retry_quarantined": _retry_quarantined,
    "begin_rebuild": _begin_rebuild,
    "await_rebuild": _await_rebuild,
    "watch_rebuild": _watch_rebuild,
    "ready": lambda supervision: supervision.projections.check_started(),
    "catching_up": lambda supervision: supervision.projections.catching_up(),
    "stopped": _stopped,
    "seats": _seats,
    "deploy": lambda supervision, plan: supervision.rollout.begin(plan),
    "cancel_deployment": lambda supervision: supervision.rollout.cancel(),
    "deployed": lambda supervision: supervision.rollout.ended(),
    "deploying": lambda supervision: supervision.rollout.progress(),
    "cancel_rebuild": lambda supervision, number: supervision.rebuilds.of(number).cancel(),
}
"""What programs may have done."""


def _restart() -> None:
    """End this process; Ray starts it again."""
    ray.kill(ray.get_runtime_context().current_actor, no_restart=False)


def start_supervisor(name: str, namespace: str, plan: ApplicationPlan | None = None) -> Any:
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
    return options.remote(name, plan)


def revive(name: str, namespace: str, patience_s: float) -> None:
    """Start the supervisor of a deployed application again, if it is silent for so long, or is not there.

    Ray 2.60 sometimes forgets an actor when its directory restarts (`health.py`). The supervisor watches all others;
    the agents of the nodes, and programs that connect, watch it with this. One that Ray is still starting is left
    alone. Raises `Unavailable` if nothing of that name runs.
    """
    supervisor: Any = None
    deadline_s = time.monotonic() + patience_s
    while (left_s := deadline_s - time.monotonic()) > 0:
        try:
            supervisor = ray.get_actor(supervisor_name(name), namespace)
            supervisor.alive.remote().future().result(left_s)
            return
        except ValueError:
            supervisor = None
            if plan_of(name) is None:
                raise Unavailable(
                    name, "nothing of that name runs on this cluster; `rayfold deploy` starts it"
                ) from None
            break
        except Exception as error:  # it is being started again, or is busy, or silent
            log.info("the supervisor of %s does not answer: %s", name, one_line(error))
            time.sleep(_LOOK_S)
    if plan_of(name) is None:  # it is that of a runtime, which ends with its program
        return
    if supervisor is not None:
        if _starts(supervisor):
            return
        kill(supervisor)
    log.error("the supervisor of %s is started again", name)
    with contextlib.suppress(ValueError):  # another caller was faster
        start_supervisor(name, namespace)


def _starts(supervisor: Any) -> bool:
    """Whether Ray reports that it is still starting it, or does not answer."""
    try:
        return is_starting(supervisor)
    except Exception as error:
        log.info("Ray's directory does not return the state of a supervisor: %s", one_line(error))
        return True
