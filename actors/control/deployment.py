"""Deployment: an application is left running on a cluster, given new code, found again, and taken down.

Beside all steps. What a deployment is: the code of the application's modules and its plan, in Ray's own directory
(`packaging/registry.py`), and a supervisor, a detached actor of the application's name, which takes the plan from
there. The first deployment puts the plan there itself. A further one hands it to the supervisor that runs, which does
the rest (`rollout/plan.py` has the steps): the deploying program may be killed at any moment.

Rules kept here: nothing is begun before every node that is up has loaded the classes, as actors will; a new store is
made only for a caller that asks for one; a deployment that does not come to its end is taken back, its number is not
given again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeVar, TypeVarTuple

from ...runtime.encoding.error_codec import from_wire, to_wire
from ...runtime.errors import CallerError, RayfoldError, StoreMismatch, StoreMissing, Unavailable, UnknownName
from ...runtime.printable import printable_log
from ..cluster.names import names_of, supervisor_name
from ..cluster.ray_cluster import Cluster, NodeFacts
from ..cluster.retry import Patience, retried
from ..cluster.rpc import Method, Reply, call, kill, one_line, open_actor
from ..nodes.new_store import check_all_answered, given_up
from ..packaging.application import Application, ApplicationPlan
from ..packaging.builds import ProjectionFacts
from ..packaging.code import Code
from ..projection.fleet import CatchingUp
from ..rollout.plan import RolloutProgress, has_ended
from ..rollout.preview import Preview, Seats, preview_of
from .handle import SupervisorHandle

__all__ = [
    "await_deployed",
    "begin_deployment",
    "cancel_deployment",
    "catching_up",
    "generation_of",
    "look_ahead",
    "running_applications",
    "stopped",
    "take_down",
]

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

log = printable_log(__name__)

_OPEN_TIMEOUT_S: Final = 3600.0
"""For a system to start: as long as its read models take to be built."""

_STOP_TIMEOUT_S: Final = 60.0
_LOOK_S: Final = 0.3
_ASK_TIMEOUT_S: Final = 30.0


class _Ahead(NamedTuple):
    """What is known before a deployment begins."""

    code: Code
    classes: bytes
    """See `shipping.py`."""
    running: Seats | None
    """None if nothing of that name was deployed."""
    store_id: str
    """The id of the store that the nodes have; empty if they have none."""
    without: tuple[str, ...]
    """Ids of the nodes that are down, and that a new store is made without."""
    prospect: Preview


async def look_ahead(application: Application, cluster: Cluster, *, without: Sequence[str] = ()) -> Preview:
    """What deploying this would do. Changes nothing. Raises what `begin_deployment` would, but for a store that would
    be made."""
    return (await _look(application, cluster, without)).prospect


async def begin_deployment(
    application: Application,
    cluster: Cluster,
    *,
    create: bool = False,
    without: Sequence[str] = (),
    within_s: float | None = None,
    wait: bool = False,
) -> ApplicationPlan:
    """Deploy an application, or its new code. Returns once its supervisor works on it; `await_deployed` waits for the
    end.

    create: whether a new store may be made. without: names or ids of nodes that are down and that it may be made
    without: they have nothing of it, or will never be back. within_s: how long the read models may take to be built.
    wait: of a first deployment, return when its projections have caught up; without, and without `within_s`, they
    answer from where they are while they read the logs (`catching_up`). New code takes over when its read models are
    complete, in any case.

    Raises `DefinitionError` if its classes cannot be loaded on a node, `StoreMissing` if a store would have to be made
    and may not, `CallerError` while another deployment is under way and for nodes in `without` that are not down,
    `StoreMismatch`, `StoreInUse` and `Unavailable`,
    and, of a first deployment, what keeps a projection from answering: then what ran before goes on.
    """
    ahead = await _look(application, cluster, without)
    if ahead.prospect.makes_store and not create:
        what = f"there is no store of that name on {cluster.address}: {ahead.prospect.lines[0]} with --create"
        raise StoreMissing(application.name, what)
    plan = await asyncio.to_thread(_planned, application, cluster, ahead, create, within_s)
    if ahead.running is not None:
        await _hand_over(plan, cluster)
        return plan
    from ..packaging.registry import put_first_plan

    try:
        if not await asyncio.to_thread(put_first_plan, plan):
            raise CallerError(f"{plan.name} was deployed meanwhile by another program; check it, then deploy again")
        await _start(plan, ahead.store_id, cluster)
        if wait or within_s is not None:
            await _await_caught_up(plan, cluster, within_s)
        await _ask(cluster, plan.name, lambda supervisor: supervisor.ready)
    except BaseException as error:
        await asyncio.shield(_take_back(plan, cluster, error))
        raise
    return plan


async def await_deployed(
    plan: ApplicationPlan, cluster: Cluster, *, progress: Callable[[RolloutProgress], None] = lambda _: None
) -> RolloutProgress:
    """Return once everything runs the code of this plan. Raises what has ended the deployment."""
    from ..packaging.registry import deployment_of

    while True:
        rolled = await _ask(cluster, plan.name, lambda supervisor: supervisor.deploying)
        progress(rolled)
        entry = await asyncio.to_thread(deployment_of, plan.name, plan.generation)
        failed = from_wire(list(entry.failed)) if entry is not None and entry.failed else None
        if has_ended(plan.generation, rolled, failed):
            return rolled
        await asyncio.sleep(_LOOK_S)


async def catching_up(name: str, cluster: Cluster) -> tuple[CatchingUp, ...]:
    """The projections of an application that still read what the logs hold, and how far they are."""
    return await _ask(cluster, name, lambda supervisor: supervisor.catching_up)


async def stopped(name: str, cluster: Cluster) -> dict[str, RayfoldError]:
    """The projections of an application that have stopped, by name, and why. New code takes over from a projection that
    has stopped also if it stops itself: what else was changed must not wait for the mend."""
    found = await _ask(cluster, name, lambda supervisor: supervisor.stopped)
    return {projection: why.error for projection, why in found.items() if why.error is not None}


async def cancel_deployment(name: str, cluster: Cluster) -> bool:
    """Call off the deployment that is under way, unless its code is in charge already; whether there was one."""
    return await _ask(cluster, name, lambda supervisor: supervisor.cancel_deployment)


async def take_down(name: str, cluster: Cluster) -> None:
    """End an application that was deployed, and forget it; its data stays. Raises `UnknownName`."""
    from ..packaging.registry import (
        applications,
        deployments_of,
        forget_deployments,
        forget_plan,
        plan_of,
        remove_unused_code,
    )

    if plan_of(name) is None:
        raise UnknownName("application", name, applications())
    forget_plan(name)  # first: an actor that restarts in between finds that it has nothing to do
    supervisor = _supervisor(cluster, name)
    if supervisor is not None:
        with contextlib.suppress(Exception):
            await call(supervisor.stop, timeout_s=_STOP_TIMEOUT_S)
        kill(supervisor)
    _end_leftovers(name, cluster)
    forget_plan(name)  # which a deployment that was under way may have put there meanwhile
    for deployment in deployments_of(name)[-1:]:
        forget_deployments(name, deployment.number)
    remove_unused_code()


def generation_of(name: str) -> int:
    """Of the code that is in charge of an application; 0 if it was not deployed."""
    from ..packaging.registry import plan_of

    plan = plan_of(name)
    return 0 if plan is None else plan.generation


def running_applications() -> list[str]:
    """The names of what was deployed on the cluster that this process is connected to."""
    from ..packaging.registry import applications

    return applications()


async def _look(application: Application, cluster: Cluster, without: Sequence[str]) -> _Ahead:
    """Everything that can be refused without having begun."""
    from ..packaging.code import collect  # these import ray, which `Cluster` prepares
    from ..packaging.registry import plan_of
    from ..packaging.shipping import ship
    from ..rollout.preflight import store_in, try_on_nodes

    name = application.name
    if not any(node.alive for node in cluster.nodes()):
        what = "no node of this cluster has a data folder; start its nodes with `rayfold up` or `rayfold node`"
        raise Unavailable(name, what)
    running: Seats | None = None
    if plan_of(name) is not None:
        from .supervisor_actor import revive  # it imports ray, which `Cluster` prepares

        await asyncio.to_thread(revive, name, cluster.namespace, _ASK_TIMEOUT_S)  # its deployer may have been killed
        running = await _ask(cluster, name, lambda supervisor: supervisor.seats)
    elif _supervisor(cluster, name) is not None:
        what = f"a runtime of the name {name!r} runs on this cluster, which ends with its program"
        raise CallerError(f"{what}; stop it first, or deploy under another name")
    code = await asyncio.to_thread(collect, application.catalogue)
    classes = ship(application.catalogue, code.digest)
    found = await try_on_nodes(name, classes, code.packed, cluster)
    answered, known = {one.node_id for one in found}, await asyncio.to_thread(cluster.nodes)
    nodes, store = [node for node in known if node.node_id in answered], store_in(name, found)
    left_out: tuple[NodeFacts, ...] = ()
    if running is None:
        _check_known(name, store.store_id if store else "")
        if store is None:
            left_out = given_up(without, known)
            check_all_answered(name, known, answered | {node.node_id for node in left_out})
    present = len(running.partitions) if running is not None else store.partitions if store else None
    if application.partitions is not None and present not in (None, application.partitions):
        what = f"the store has {present} partitions, not {application.partitions}"
        raise StoreMismatch(name, what, "leave the number out: it is fixed when a store is created")
    prospect = preview_of(
        name,
        {one.projection_name: ProjectionFacts.of(one) for one in application.projections},
        {one.projection_name: count for one, count in application.replicas.items()},
        running=running,
        store_id=store.store_id if store else "",
        nodes=[node.name for node in nodes],
        partitions=present or application.partitions or max(2, len(nodes)),
        without=[node.name for node in left_out],
    )
    ids = tuple(node.node_id for node in left_out)
    return _Ahead(code, classes, running, store.store_id if store else "", ids, prospect)


def _check_known(name: str, found: str) -> None:
    """The store that the application had before must be there, if it had one and no other was put in its place."""
    from ..packaging.registry import store_of

    known = store_of(name)
    if known and not found:
        what = f"no node that is up has store {known}, which it had before; start the nodes that have it"
        raise Unavailable(name, what)


def _planned(
    application: Application, cluster: Cluster, ahead: _Ahead, create: bool, within_s: float | None
) -> ApplicationPlan:
    """The plan, under a number of its own, with its code in the directory."""
    from ..packaging.registry import begin_deployment as number_of_deployment
    from ..packaging.registry import put_code

    number = number_of_deployment(application.name, ahead.code.digest)
    put_code(ahead.code)
    return ApplicationPlan(
        application.name,
        ahead.classes,
        application.partitions,
        {projection.projection_name: count for projection, count in application.replicas.items()},
        application.settings,
        number,
        cluster.counts_slots,
        ahead.code.digest,
        {one.projection_name: ProjectionFacts.of(one) for one in application.projections},
        within_s=within_s,
        create=create,
        without=ahead.without,
    )


async def _hand_over(plan: ApplicationPlan, cluster: Cluster) -> None:
    """Have the supervisor that runs take the plan up. Raises why it does not."""
    from ..packaging.registry import Deployment, deployment_of, put_deployment

    try:
        await _ask(cluster, plan.name, lambda supervisor: supervisor.deploy, plan)
    except RayfoldError as error:
        entry = await asyncio.to_thread(deployment_of, plan.name, plan.generation)
        if entry is not None and entry.plan is not None:
            return  # it was taken up, and the answer was lost
        ended = Deployment(plan.generation, "", failed=to_wire(error))
        await asyncio.to_thread(put_deployment, plan.name, ended)
        raise


async def _start(plan: ApplicationPlan, store_id: str, cluster: Cluster) -> None:
    """Start the supervisor of a first deployment, and wait until all that it starts is up. store_id: of the store that
    the nodes have, which may be a restored one in the place of the one that it had before."""
    from ..packaging.registry import put_store
    from .supervisor_actor import start_supervisor

    if store_id:
        await asyncio.to_thread(put_store, plan.name, store_id)
    if _supervisor(cluster, plan.name) is None:
        with contextlib.suppress(ValueError):  # a node agent has just started it again
            start_supervisor(plan.name, cluster.namespace)
    await open_actor(cluster.actor_named(supervisor_name(plan.name)), plan.name, _OPEN_TIMEOUT_S)


async def _await_caught_up(plan: ApplicationPlan, cluster: Cluster, within_s: float | None) -> None:
    """Return once all projections of a first deployment have caught up. Raises `Unavailable` if that takes longer."""
    deadline_s = None if within_s is None else time.monotonic() + within_s
    while late := await catching_up(plan.name, cluster):
        if deadline_s is not None and time.monotonic() > deadline_s:
            what = f"its read model was not ready within {within_s:g} s: {late[0].events:,} of {late[0].of:,} events"
            raise Unavailable(f"projection {late[0].projection}", what)
        await asyncio.sleep(_LOOK_S)


async def _take_back(plan: ApplicationPlan, cluster: Cluster, error: BaseException) -> None:
    """A first deployment has failed: nothing runs, as before."""
    from ..packaging.registry import Deployment, put_deployment
    from ..rollout.plan import as_error

    if generation_of(plan.name) == plan.generation:
        with contextlib.suppress(UnknownName):
            await take_down(plan.name, cluster)
    ended = Deployment(plan.generation, "", failed=to_wire(as_error(error)))
    await asyncio.to_thread(put_deployment, plan.name, ended)


async def _ask(
    cluster: Cluster,
    name: str,
    method: Callable[[SupervisorHandle], Method[Reply[T], *Arguments]],
    *arguments: *Arguments,
) -> T:
    """Have a supervisor answer; it may just be starting again. Whatever is asked here is safe to repeat."""

    async def asked(_: float) -> T:
        if (supervisor := _supervisor(cluster, name)) is None:
            raise LookupError(str(Unavailable(name, "it does not run")))
        return await call(method(supervisor), *arguments, timeout_s=_OPEN_TIMEOUT_S)

    try:
        return await retried(asked, Patience(_ASK_TIMEOUT_S, pause_s=_LOOK_S))
    except RayfoldError:
        raise
    except Exception as failure:
        raise Unavailable(name, f"its supervisor does not answer: {one_line(failure)}") from failure


def _supervisor(cluster: Cluster, name: str) -> SupervisorHandle | None:
    try:
        found: SupervisorHandle = cluster.actor_named(supervisor_name(name))
    except ValueError:
        return None
    return found


def _end_leftovers(name: str, cluster: Cluster) -> None:
    """What a supervisor that did not answer has left."""
    from ray.util import list_named_actors

    for one in names_of(name, list_named_actors()):
        with contextlib.suppress(ValueError):
            kill(cluster.actor_named(one))
