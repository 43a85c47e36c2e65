"""Deployment: an application is left running on a cluster, given new code, found again, and taken down.

Beside all steps. What a deployment is: the code of the application's modules and its plan, in Ray's own directory
(`directory.py`), and a supervisor, a detached actor of the application's name, which takes the plan from there. A
second deployment puts the new plan there and has the supervisor start again; what runs goes on, and is replaced by what
is new, one actor after the other (`rolling.py`).

Rules kept here: nothing is put into the directory before the classes were loaded on the cluster, as actors will load
them; whoever deploys may be killed at any moment, and what then counts is the plan that is in the directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from ..runtime.errors import CallerError, StoreMismatch, Unavailable, UnknownName
from ..runtime.printable import printable_log
from ..runtime.wire import from_wire
from .application import Application, ApplicationPlan
from .board import supervisor_name
from .calls import call, kill, one_line, open_actor
from .cluster import Cluster
from .rolling import Rolled

if TYPE_CHECKING:
    from .trial import Found

__all__ = ["await_deployed", "begin_deployment", "revive", "running_applications", "take_down"]

log = printable_log(__name__)

_OPEN_TIMEOUT_S: Final = 3600.0
"""For a system to start: as long as its read models take to be built."""

_RESTART_TIMEOUT_S: Final = 60.0
"""For a supervisor to end and to be started again."""

_STOP_TIMEOUT_S: Final = 60.0
_LOOK_S: Final = 0.3
_ASK_TIMEOUT_S: Final = 30.0


async def begin_deployment(application: Application, cluster: Cluster) -> ApplicationPlan:
    """Deploy an application, or its new code. Returns once its supervisor works on it; `await_deployed` waits for the
    end.

    Raises `DefinitionError` if its classes cannot be loaded on the cluster, `CallerError` for a projection of an
    earlier version than the one that serves, `StoreMismatch`, `StoreInUse` and `Unavailable`: then what ran before goes
    on.
    """
    from .code import collect  # these import ray, which `Cluster` prepares
    from .directory import begin_deployment as number_of_deployment
    from .directory import plan_of, put_code, put_plan
    from .shipping import ship
    from .trial import try_on_nodes

    if not any(node.alive for node in cluster.nodes()):
        what = "no node of this cluster has a data folder; start its nodes with `rayfold up` or `rayfold node`"
        raise Unavailable(application.name, what)
    present = plan_of(application.name)
    if present is None and _supervisor(cluster, application.name) is not None:
        what = f"a runtime of the name {application.name!r} runs on this cluster, which ends with its program"
        raise CallerError(f"{what}; stop it first, or deploy under another name")
    code = await asyncio.to_thread(collect, application.catalogue)
    classes = ship(application.catalogue, code.digest)
    found = await try_on_nodes(application.name, classes, code.packed, cluster)
    if present is None:
        _check_store(application, found)
    plan = ApplicationPlan(
        application.name,
        classes,
        application.partitions,
        {projection.projection_name: count for projection, count in application.replicas.items()},
        application.settings,
        await asyncio.to_thread(number_of_deployment, application.name, code.digest),
        cluster.counts_slots,
        code.digest,
        create=True,
    )
    put_code(code)
    if present is not None:
        await _check_fits(plan, application, cluster)
    put_plan(plan)
    try:
        await _start(plan, cluster, anew=present is not None)
    except BaseException:
        if present is not None:
            put_plan(present)
            await asyncio.shield(_start(present, cluster, anew=True))
        else:
            await asyncio.shield(take_down(plan.name, cluster))
        raise
    return plan


async def await_deployed(
    plan: ApplicationPlan, cluster: Cluster, *, progress: Callable[[Rolled], None] = lambda _: None
) -> Rolled:
    """Return once everything runs the code of this plan. Raises what has ended the deployment."""
    while True:
        rolled: Rolled = await _ask(cluster, plan.name, "deploying")
        progress(rolled)
        if rolled.generation != plan.generation or (not rolled.what and rolled.done == rolled.total):
            break
        if not rolled.what:  # it has ended before its end
            rolled = await _ask(cluster, plan.name, "deployed")
            break
        await asyncio.sleep(_LOOK_S)
    if rolled.generation != plan.generation:
        raise CallerError(f"{plan.name} was deployed again meanwhile: generation {rolled.generation} runs")
    return rolled


async def take_down(name: str, cluster: Cluster) -> None:
    """End an application that was deployed, and forget it; its data stays. Raises `UnknownName`."""
    from .directory import applications, forget_plan, plan_of, remove_unused_code

    if plan_of(name) is None:
        raise UnknownName("application", name, applications())
    forget_plan(name)  # first: whoever is started again in between finds that there is nothing to do
    supervisor = _supervisor(cluster, name)
    if supervisor is not None:
        with contextlib.suppress(Exception):
            await call(supervisor.stop, timeout_s=_STOP_TIMEOUT_S)
        kill(supervisor)
    _end_leftovers(name, cluster)
    remove_unused_code()


def running_applications() -> list[str]:
    """The names of what was deployed on the cluster that this process is connected to."""
    from .directory import applications

    return applications()


def revive(name: str, namespace: str, patience_s: float) -> None:
    """Start the supervisor of a deployed application again, if it is silent for so long, or is not there.

    Ray 2.60 sometimes forgets an actor when its directory restarts (`health.py`). The supervisor looks after all
    others; the keepers of the nodes, and programs that connect, look after it with this. Raises `Unavailable` if
    nothing of that name runs.
    """
    import ray

    from .directory import plan_of
    from .supervisor import start_supervisor

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
        kill(supervisor)
    log.error("the supervisor of %s is started again", name)
    with contextlib.suppress(ValueError):  # somebody else was faster
        start_supervisor(name, namespace)


async def _start(plan: ApplicationPlan, cluster: Cluster, *, anew: bool) -> None:
    """Have the supervisor run this plan."""
    import ray

    from .supervisor import start_supervisor

    supervisor = _supervisor(cluster, plan.name)
    if supervisor is None:
        with contextlib.suppress(ValueError):  # a keeper has just started it again
            start_supervisor(plan.name, cluster.namespace)
    elif anew:
        ray.kill(supervisor, no_restart=False)
    deadline_s = time.monotonic() + _RESTART_TIMEOUT_S
    while True:
        await open_actor(cluster.actor_named(supervisor_name(plan.name)), plan.name, _OPEN_TIMEOUT_S)
        rolled: Rolled = await _ask(cluster, plan.name, "deploying")
        if rolled.generation >= plan.generation:
            return
        if time.monotonic() > deadline_s:  # it was that of before the kill which answered, so far
            raise Unavailable(plan.name, f"its supervisor does not take up generation {plan.generation} of the code")
        await asyncio.sleep(_LOOK_S)


def _check_store(application: Application, found: Sequence[Found]) -> None:
    """The store that the application had before must be there, if it had one and no other was put in its place."""
    from .directory import forget_store, store_of
    from .trial import store_in

    store, known = store_in(application.name, found), store_of(application.name)
    if store is not None and known not in ("", store.store_id):
        forget_store(application.name)  # a restored one
    if store is None and known:
        what = f"no node that is up has store {known}, which it had before; start the nodes that have it"
        raise Unavailable(application.name, what)


async def _check_fits(plan: ApplicationPlan, application: Application, cluster: Cluster) -> None:
    """No projection may be older than the one that serves, which could not read what that has saved; and the number of
    partitions is fixed."""
    partitions, serving = await _ask(cluster, plan.name, "versions")
    if plan.partitions not in (None, partitions):
        what = f"the store has {partitions} partitions, not {plan.partitions}"
        raise StoreMismatch(plan.name, what, "leave the number out: it is fixed when a store is created")
    for projection in application.projections:
        name, version = projection.projection_name, projection.projection_version
        if version < serving.get(name, 0):
            what = f"{name} version {version} is older than version {serving[name]}, which serves"
            raise CallerError(f"{what}; raise the version of the class")


async def _ask(cluster: Cluster, name: str, what: str) -> Any:
    """Have a supervisor answer; it may just be starting again."""
    deadline_s = time.monotonic() + _ASK_TIMEOUT_S
    while True:
        supervisor = _supervisor(cluster, name)
        try:
            if supervisor is None:
                raise Unavailable(name, "it does not run")
            error, answer = await call(supervisor.ask, what, timeout_s=_OPEN_TIMEOUT_S)
        except Exception as failure:
            if time.monotonic() > deadline_s:
                raise Unavailable(name, f"its supervisor does not answer: {one_line(failure)}") from failure
            await asyncio.sleep(_LOOK_S)
        else:
            if error:
                raise from_wire(error)
            return answer


def _supervisor(cluster: Cluster, name: str) -> Any:
    try:
        return cluster.actor_named(supervisor_name(name))
    except ValueError:
        return None


def _end_leftovers(name: str, cluster: Cluster) -> None:
    """What a supervisor that did not answer has left."""
    from ray.util import list_named_actors

    for one in list_named_actors():
        if one.startswith(f"{name}/"):
            with contextlib.suppress(ValueError):
                kill(cluster.actor_named(one))
