"""ClusterProjectorFleet: the projectors of a system on several nodes, which outlive the process that has started them.

Beside steps [6] to [8]. What `projection/fleet.py` does, and four things more: go on with the projectors that an
earlier supervisor has left; put another one in the place of one that does not answer; have one followed by another on
a node that has fewer (`projector_moves.py`); build every read model with new code beside the one that serves
(`rollout.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from ...runtime.domain.projection import Projection
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import Unavailable
from ..cluster.names import ProjectorName, generation_in, projector_named
from ..cluster.rpc import call
from ..cluster.scheduling import ClusterScheduling
from ..nodes.store import ClusterStore
from ..packaging.application import ApplicationPlan
from ..packaging.builds import FOLDER, Build, ProjectionFacts
from ..projection.fleet import Projector, ProjectorFleet, Serve, ServedBuild, catch_up, end
from ..projection.status_records import ProjectorAnswer
from ..settings import Settings
from .builds import ClusterBuilds

__all__ = ["HEARD_S", "ClusterProjectorFleet"]

HEARD_S: Final = 2.0
"""Time for clients to learn of other projectors: they wait at the topology feed, and ask again a quarter of a second
after the supervisor was away."""

_LOOK_S: Final = 0.25
"""Seconds between two checks whether a move may continue."""


class ClusterProjectorFleet(ProjectorFleet):
    """The projections of one system on a cluster. Used on its supervisor's event loop only."""

    def __init__(
        self,
        store: Callable[[], ClusterStore],
        catalogue: Catalogue,
        name: str,
        namespace: str,
        builds: ClusterBuilds,
        scheduling: ClusterScheduling,
        settings: Settings,
    ) -> None:
        super().__init__(store, catalogue, name, namespace, builds, scheduling, settings)
        self._seats = scheduling

    async def take_in_or_start(
        self,
        projection: type[Projection],
        replicas: int,
        plan: ApplicationPlan,
        names: Iterable[str],
        actor_named: Callable[[str], Any],
    ) -> None:
        """Go on with the projectors of this plan's code that serve, or start them. Of several builds of that code, the
        one that was made for the plan serves, or a later one that has served: a rebuild."""
        parsed = {name: one for name in names if (one := projector_named(name)) is not None}
        seats = {
            name: one
            for name, one in parsed.items()
            if one.projection == projection.projection_name and generation_in(one.mark) >= plan.generation
        }
        served = await self._builds.served(projection)
        made = await self._builds.to_serve(projection, plan.builds.get(projection.projection_name, 0))
        builds = [build for one in seats.values() if (build := _build_of(one)) == made or served.get(build.order)]
        build = max(builds, key=lambda one: one.order, default=made)
        taken_in = ServedBuild(projection, build, plan.catalogue)
        for name, one in seats.items():
            if _build_of(one) == build:
                folder, actor = build.folder_of(one.part, one.replica), actor_named(name)
                taken_in.projectors.append(Projector(one.part, one.replica, name, folder, actor))
        if taken_in.projectors:
            taken_in.projectors = await self._find(taken_in.projectors)
        else:
            taken_in.projectors = self._start(taken_in, range(replicas))
        self.serving[projection.projection_name] = taken_in

    async def _find(self, projectors: Sequence[Projector]) -> list[Projector]:
        """Find the nodes of the projectors, so that a successor of one of them reaches its checkpoint. Returns one for
        each seat: of two, which an end of the supervisor in the middle of a move has left, one that has caught up."""
        answers = dict(zip(projectors, await self._answers(projectors), strict=True))
        chosen: dict[tuple[int, int], Projector] = {}
        for projector in sorted(projectors, key=lambda one: (answer := answers[one]) is None or answer.replaying):
            is_first = chosen.setdefault((projector.part, projector.replica), projector) is projector
            if is_first and (answer := answers[projector]) is not None:
                self._seats.sits(projector.name, answer.node_id)
        return [projector for projector in projectors if projector in chosen.values()]

    async def _answers(self, projectors: Sequence[Projector]) -> list[ProjectorAnswer | None]:
        """The state that each reports; None for one that does not answer."""
        asked = (call(projector.actor.status) for projector in projectors)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return [None if isinstance(answer, BaseException) else answer for answer in answers]

    async def placed(self) -> list[tuple[str, tuple[str, int], str]] | None:
        """The projectors that serve: name, projection and part, node. None unless all of them answer, have caught up
        and work."""
        served = [(name, one) for name, build in self.serving.items() for one in build.projectors]
        found = []
        for (name, one), answer in zip(served, await self._answers([one for _, one in served]), strict=True):
            if answer is None or answer.replaying or answer.failed or not answer.node_id:
                return None
            self._seats.sits(one.name, answer.node_id)
            found.append((one.name, (name, one.part), answer.node_id))
        return found

    async def move(self, name: str, node_id: str, may_go_on: Callable[[], bool]) -> bool:
        """Have the projector of this name followed by one on that node. It serves until the other one has caught up and
        is healthy. False if that was called off, because of `may_go_on`, or because it has ended.

        Raises what keeps the other one from opening, and why it may not be asked; then nothing has changed. What the
        earlier one has saved stays on its node until the next build: it would go on from that if it came back."""
        found = ((build, one) for build in self.serving.values() for one in build.projectors if one.name == name)
        served, present = next(found, (None, None))
        if served is None or present is None:
            return False
        assert isinstance(served.projection, type)
        before = self._seats.node_of(name)
        self._seats.sits(name, node_id)
        beside = ServedBuild(served.projection, served.build, served.catalogue, generation=served.generation)
        beside.projectors = self._start(beside, [present.replica], [present.part])
        self.joining.append(beside)
        try:
            moved = await _while(may_go_on, self._make_ready(beside, served, node_id)) and may_go_on()
        except BaseException:
            self._seats.sits(name, before)
            await asyncio.shield(self._give_up(beside))
            raise
        of_projection = self.serving.get(served.projection.projection_name)
        if not moved or of_projection is not served or present not in served.projectors:
            self._seats.sits(name, before)
            await asyncio.shield(self._give_up(beside))
            return False
        served.projectors[served.projectors.index(present)] = beside.projectors[0]  # from now on it serves
        self._serve(served.projection, served.parts())
        await asyncio.shield(self._retire_projector(present, beside))
        return True

    async def _make_ready(self, beside: ServedBuild, served: ServedBuild, node_id: str) -> None:
        await catch_up(beside.projectors)
        for one, answer in zip(beside.projectors, await self._answers(beside.projectors), strict=True):
            if answer is None or answer.node_id != node_id:  # the node is gone, and Ray has started it elsewhere
                raise Unavailable(f"projector {one.name}", "it does not run on the node that it was meant for")
        await self.announce()
        await catch_up(beside.projectors)
        await self.check_ready(beside.projectors, served.projectors)

    async def _retire_projector(self, present: Projector, beside: ServedBuild) -> None:
        """It does not serve any more: it ends when every program has been notified."""
        self.joining = [joining for joining in self.joining if joining is not beside]
        await asyncio.sleep(HEARD_S)
        await self.announce()
        await end([present], save=True)

    async def _give_up(self, beside: ServedBuild) -> None:
        self.joining = [joining for joining in self.joining if joining is not beside]
        await self.announce()
        await end(beside.projectors, save=False)

    async def replace(self, name: str) -> None:
        """Put another projector in the place of the one of this name, which does not answer."""
        for served in (*self.serving.values(), *self.joining):
            for index, present in enumerate(served.projectors):
                if present.name == name:
                    (following,) = self._start(served, [present.replica], [present.part])
                    await end([present], save=False)
                    served.projectors[index] = following
                    await self.announce()
                    await self.open([following])
                    if served in self.serving.values():
                        await self.put_in_charge(served)
                    return

    async def attach(self, partitions: Sequence[Any], serve: Serve) -> None:
        """See `ProjectorFleet`. The builds before those that serve stay until `remove_older`: they may be asked
        still."""
        self.use_partitions(partitions)
        self._serve = serve
        for served in list(self.serving.values()):
            await self.put_in_charge(served)

    async def remove_older(self) -> None:
        """Remove the builds before those that serve."""
        for served in list(self.serving.values()):
            await self._builds.remove_older(served.projection.projection_name, served.build)

    async def build_for(
        self, projection: ProjectionFacts, number: int, replicas: int, plan: ApplicationPlan
    ) -> ServedBuild:
        """Start the projectors of a new build for another plan, beside what serves, from the beginning of the logs."""
        build = self._builds.numbered(projection, number)
        await self._builds.remove(build)  # what an end of the supervisor has left of it
        return self.join(projection, build, replicas, plan.catalogue, plan.generation)

    async def number_unused(self, projection: ProjectionFacts) -> int:
        """A number that no build of this version has on any node that is up."""
        return await self._builds.number_unused(projection)


async def _while(may_go_on: Callable[[], bool], doing: Coroutine[Any, Any, None]) -> bool:
    """Whether it was done; it is called off as soon as it may not go on."""
    task = asyncio.ensure_future(doing)
    try:
        while not task.done() and may_go_on():
            await asyncio.wait({task}, timeout=_LOOK_S)
        if task.done():
            task.result()
            return True
        return False
    finally:
        task.cancel()


def _build_of(seat: ProjectorName) -> Build:
    version, _, number = seat.build.removeprefix("v").partition(".")
    return Build(int(version), int(number or 1), Path(FOLDER) / f"{seat.projection}-{seat.build}")
