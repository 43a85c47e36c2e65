"""Rollout: a running system gets new code, while it serves. The steps, with Ray; `rollout/plan.py` has their order.

Beside all steps, on the event loop of the supervising process. The supervisor of the present code makes the new builds
of read models, with nothing of the new code loaded here but by name: two versions of a module cannot be in one process.
When the new plan is written down it ends and is started again, with the new code, and the partitions are replaced: the
next actor of each is up, with its code loaded, before the present one releases the log.

Rule kept here: what is done is written in Ray's directory first (`packaging/registry.py`), so that an end of this
process, at any point, leaves either the present plan in charge or the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from ...runtime.encoding.error_codec import from_wire, to_wire
from ...runtime.errors import CallerError, RayfoldError, Unavailable
from ...runtime.printable import printable_log
from ..cluster.retry import Patience, retried
from ..cluster.rpc import one_line
from ..packaging.application import ApplicationPlan
from ..packaging.registry import (
    Deployment,
    code_of,
    deployment_of,
    forget_deployments,
    plan_of,
    put_deployment,
    put_plan,
    remove_unused_code,
    unfinished_deployment,
)
from ..projection.fleet import Projector, ServedBuild, all_caught_up, look_at
from ..projection.readiness import have_stopped
from ..rollout.plan import RolloutProgress, as_error, prepare, replace_partitions
from ..rollout.preflight import try_on_nodes
from .system_state import SystemState

__all__ = ["RolloutProgress", "Rollout"]

log = printable_log(__name__)

_SAMPLE_S: Final = 0.2
"""How often new projectors are asked how far they are."""

_STALLED_S: Final = 900.0
"""How long the new projectors of a projection may take in nothing at all before they count as stuck. How far they are
is seen after each page of 512 events: a handler that takes a second for each event is slow, and not stuck."""

_RETRY_S: Final = 1.0

_WRITES_MAX: Final = 30
"""Tries to write down how a deployment has ended: as long as Ray's directory may take to be back."""


class Rollout:
    """The deployments of one system."""

    def __init__(self, system: SystemState, restart: Callable[[], None]) -> None:
        """`restart`: end this supervisor, which is started again with what is in the directory."""
        self._system = system
        self._restart = restart
        self._what = ""
        self._preparing = 0
        self._failure: RayfoldError | None = None
        self._looked = asyncio.Event()
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.previous: ApplicationPlan | None = None
        """What was in charge before, while partitions may run its code."""

    # --- what the doors lead to ----------------------------------------------------------------------------------

    async def begin(self, plan: ApplicationPlan) -> None:
        """Take a plan up. Raises `CallerError` while another deployment is under way, and for a plan that is not later
        than the one in charge; then nothing was begun."""
        present = self._system.plan
        await self._looked.wait()  # for what an earlier supervisor has begun
        if plan.generation == self._preparing:
            return  # asked for once more, since the answer was lost
        if self._preparing or not self._ended.is_set():
            what = f"generation {self._preparing or present.generation} is being deployed ({self._what or 'it begins'})"
            raise CallerError(f"{present.name}: {what}; wait for its end, or end it with `rayfold deploy --cancel`")
        if plan.generation <= present.generation:
            raise CallerError(f"{present.name} was deployed again meanwhile: generation {present.generation} runs")
        self._preparing = plan.generation
        try:
            plan = await self._with_builds(plan)
            await asyncio.to_thread(put_deployment, plan.name, Deployment(plan.generation, plan.digest, plan))
        except BaseException:
            self._preparing = 0
            raise
        self._prepare(plan)

    async def cancel(self) -> bool:
        """Call off what is being prepared. False if nothing is, or the new plan is in charge by now."""
        task = self._task
        if task is None or task.done() or not self._preparing:
            return False
        task.cancel()
        await asyncio.wait({task})
        return not self._preparing

    async def progress(self) -> RolloutProgress:
        """How far it is."""
        return self._progress()

    async def ended(self) -> RolloutProgress:
        """Return once nothing is being deployed. Raises what has ended the last deployment before its end."""
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure
        return self._progress()

    async def run(self) -> None:
        """Go on with what an earlier supervisor has begun."""
        if not self._system.detached:
            self._looked.set()
            return self._end(None)
        try:
            unfinished = await self._unfinished()
            if unfinished is not None and unfinished.plan is not None:
                self._prepare(unfinished.plan)
                self._looked.set()
            else:
                self._looked.set()
                await self._finish()
        except Exception as error:
            log.exception("deployment of %s", self._name)
            self._end(as_error(error))
            self._looked.set()

    # --- before the new plan is in charge ------------------------------------------------------------------------

    async def _with_builds(self, plan: ApplicationPlan) -> ApplicationPlan:
        """Which builds it is to have, and how many replicas: as many as there are now, unless the plan has changed."""
        projections, present = self._system.projections, self._system.plan
        builds = {name: await projections.number_unused(facts) for name, facts in plan.projections.items()}
        replicas = dict(plan.replicas)
        for name, served in projections.serving.items():
            if name in replicas and replicas[name] == present.replicas.get(name):
                replicas[name] = served.replicas
        return replace(plan, builds=builds, replicas=replicas)

    def _prepare(self, plan: ApplicationPlan) -> None:
        self._preparing, self._failure = plan.generation, None
        self._ended.clear()
        self._task = asyncio.get_running_loop().create_task(self._prepared(plan))

    async def _prepared(self, plan: ApplicationPlan) -> None:
        try:
            await prepare(_NewCode(self._system, plan, self._report), self._report)
        except BaseException as error:
            log.error("generation %d of %s was taken back: %s", plan.generation, self._name, error)
            self._preparing = 0
            self._end(as_error(error))
            if not isinstance(error, Exception):
                raise
        else:
            self._report("the supervisor")
            self._restart()

    # --- after it ------------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Replace the partitions that run older code, unless that has failed before."""
        system = self._system
        entry = await self._entry()
        self.previous = entry.previous if entry else None
        if entry and entry.failed:
            self._end(from_wire(list(entry.failed)))
            return
        failure: RayfoldError | None = None
        try:
            async with system.changing:
                await replace_partitions(_NewWriters(system, entry), self._report)
            await self._forget(entry)
            self.previous = None
        except RayfoldError as error:
            log.error("deployment of %s: %s", self._name, error)
            failure = error
        self._end(failure)

    # -------------------------------------------------------------------------------------------------------------

    async def _unfinished(self) -> Deployment | None:
        """What an earlier supervisor has begun, and not brought to the step that counts."""
        return await asyncio.to_thread(unfinished_deployment, self._name)

    async def _entry(self) -> Deployment | None:
        """Of the deployment whose plan is in charge."""
        return await asyncio.to_thread(deployment_of, self._name, self._system.plan.generation)

    async def _forget(self, entry: Deployment | None) -> None:
        """It has come to its end: no code but that of the plan is needed."""
        if entry is not None:
            await asyncio.to_thread(forget_deployments, self._name, entry.number)
        await asyncio.to_thread(remove_unused_code)

    @property
    def _name(self) -> str:
        return self._system.plan.name

    def _report(self, what: str) -> None:
        self._what = what

    def _end(self, failure: RayfoldError | None) -> None:
        self._what, self._failure = "", failure
        self._ended.set()

    def _progress(self) -> RolloutProgress:
        system, generation = self._system, self._system.plan.generation
        total = len(system.partitions.seated) + len(system.plan.replicas)
        done = sum(one.generation >= generation for one in system.partitions.seated.values())
        done += len(system.projections.serving.keys() & system.plan.replicas.keys())
        return RolloutProgress(generation, done, total, self._what, self._preparing)


class _NewCode:
    """Steps 1 to 4 of a deployment (`rollout/plan.py`)."""

    def __init__(self, system: SystemState, plan: ApplicationPlan, report: Callable[[str], None]) -> None:
        self._system = system
        self._plan = plan
        self._report = report
        self._built: dict[str, ServedBuild] = {}
        self._held = ExitStack()
        """No other change of the projections is made meanwhile."""

    async def compare(self) -> None:
        """See `Building`."""
        system = self._system
        for name in system.projections.serving:
            self._held.enter_context(system.projections.change(name, "deployed"))
        packed = await asyncio.to_thread(code_of, self._plan.digest) if self._plan.digest else b""
        await try_on_nodes(self._plan.name, self._plan.catalogue, packed or b"", system.cluster)

    def projections(self) -> Sequence[str]:
        """See `Building`."""
        return list(self._plan.projections)

    async def build(self, projection: str) -> None:
        """See `Building`."""
        plan, projections = self._plan, self._system.projections
        facts, replicas = plan.projections[projection], plan.replicas[projection]
        served = await projections.build_for(facts, plan.builds[projection], replicas, plan)
        self._built[projection] = served
        try:
            async with asyncio.timeout(plan.within_s):
                await self._watched(served)
        except RayfoldError:  # one of which, `Unavailable`, is a `TimeoutError` too
            raise
        except TimeoutError:
            what = f"its read model was not ready within {plan.within_s:g} s: {await self._how_far(served)}"
            raise Unavailable(f"projection {projection}", what) from None
        await projections.check_ready(served.projectors, self._serving(projection))

    async def check(self) -> None:
        """See `Building`."""
        for projection, served in self._built.items():
            await self._system.projections.check_ready(served.projectors, self._serving(projection))

    async def take_charge(self) -> None:
        """See `Building`."""
        plan, present = self._plan, self._system.plan
        in_charge = await asyncio.to_thread(plan_of, plan.name)
        if in_charge is None or in_charge.generation != present.generation:
            raise Unavailable(plan.name, "it was taken down meanwhile")
        entry = Deployment(plan.generation, plan.digest, plan, previous=present)
        await asyncio.to_thread(put_deployment, plan.name, entry)
        await asyncio.to_thread(put_plan, plan)

    async def is_in_charge(self) -> bool:
        """See `Building`."""

        def note(error: Exception) -> None:
            log.warning("Ray's directory does not return the plan of %s that is in charge: %s", self._plan.name, error)

        patience = Patience(pause_s=_RETRY_S, never=(), note=note)
        in_charge = await retried(lambda _: asyncio.to_thread(plan_of, self._plan.name), patience)
        return in_charge is not None and in_charge.generation == self._plan.generation

    async def take_back(self, error: RayfoldError) -> None:
        """See `Building`."""
        for served in self._built.values():
            try:
                await self._system.projections.dismiss(served, remove=True)
            except Exception as failure:
                log.warning("%s is not removed: %s", served.build.path, one_line(failure))
        self._held.close()
        ended = Deployment(self._plan.generation, "", failed=to_wire(error))

        def note(failure: Exception) -> None:
            log.warning("Ray's directory does not take the end of a deployment: %s", one_line(failure))

        def written() -> None:
            put_deployment(self._plan.name, ended)
            remove_unused_code()

        patience = Patience(attempts_max=_WRITES_MAX, pause_s=_RETRY_S, never=(), note=note)
        try:
            await retried(lambda _: asyncio.to_thread(written), patience)
        except Exception as failure:
            note(failure)

    def _serving(self, projection: str) -> Sequence[Projector]:
        served = self._system.projections.serving.get(projection)
        return () if served is None else served.projectors

    async def _watched(self, served: ServedBuild) -> None:
        """Return once the projectors have caught up, and again with what was committed meanwhile and broadcast to them.
        Raises what one has stopped for, and `Unavailable` if they take in nothing."""

        async def caught_up() -> None:
            await all_caught_up(served)
            await self._system.projections.announce()
            await all_caught_up(served)

        task = asyncio.get_running_loop().create_task(caught_up())
        loop = asyncio.get_running_loop()
        reached, since_s = -1, loop.time()
        stopped_before = have_stopped(await look_at(self._serving(served.projection.projection_name)))
        try:
            while not task.done():
                places = await self._system.projections.places(served.projectors)
                for place in places:
                    if not stopped_before:
                        place.stopped.unwrap()
                now = sum(sum(place.positions.values()) for place in places)
                if now != reached:
                    reached, since_s = now, loop.time()
                elif loop.time() - since_s > _STALLED_S:
                    what = f"its read model has come no further in {_STALLED_S:g} s: {await self._how_far(served)}"
                    raise Unavailable(f"projection {served.projection.projection_name}", what)
                self._report(f"projection {served.projection.projection_name}, {await self._how_far(served)}")
                await asyncio.wait({task}, timeout=_SAMPLE_S)
            task.result()
        finally:
            task.cancel()

    async def _how_far(self, served: ServedBuild) -> str:
        places = [one for one in await self._system.projections.places(served.projectors) if one.positions]
        if not places:
            return "its projectors start"
        total = max(sum(place.heads.values()) for place in places)
        return f"{min(sum(place.positions.values()) for place in places):,} of {total:,} events"


class _NewWriters:
    """Step 6 of a deployment (`rollout/plan.py`)."""

    def __init__(self, system: SystemState, entry: Deployment | None) -> None:
        self._system = system
        self._entry = entry

    def outdated(self) -> Sequence[int]:
        """See `Replacing`."""
        generation = self._system.plan.generation
        return [number for number, one in self._system.partitions.seated.items() if one.generation < generation]

    async def replace(self, partition: int) -> None:
        """See `Replacing`."""
        system, generation = self._system, self._system.plan.generation
        if system.is_up(partition):
            node_id = system.partitions.seated[partition].node_id
            await system.partitions.replace(partition, node_id, generation)
        else:  # it starts with the new code when its node is back
            system.partitions.start_over(partition, generation)
        self._show()

    async def put_back(self, partition: int) -> None:
        """See `Replacing`."""
        system, previous = self._system, self._entry.previous if self._entry else None
        seated = system.partitions.seated[partition]
        if seated.generation == system.plan.generation and previous is not None:
            with contextlib.suppress(RayfoldError):
                await system.partitions.replace(partition, seated.node_id, previous.generation)
            await system.open_partition(partition)
        self._show()

    async def note(self, error: RayfoldError) -> None:
        """See `Replacing`."""
        if self._entry is not None:
            entry = self._entry._replace(plan=None, failed=to_wire(error))
            await asyncio.to_thread(put_deployment, self._system.plan.name, entry)

    def _show(self) -> None:
        system = self._system
        system.projections.use_partitions(system.partitions.handles())
        system.publish()
