"""ClusterProjectorFleet: the projectors of a system on several nodes, which outlive the process that has started them.

Beside steps [6] to [8]. What `projection/fleet.py` does, and three things more: go on with the projectors that an
earlier supervisor has left; put another one in the place of one that does not answer; build every read model with new
code beside the one that serves (`control/rollout.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ...runtime.domain.projection import Projection
from ...runtime.encoding.catalogue import Catalogue
from ..cluster.rpc import call
from ..cluster.scheduling import ClusterScheduling, generation_in
from ..nodes.store import ClusterStore
from ..observe.status import ProjectorSeat, seat_named
from ..packaging.application import ApplicationPlan
from ..packaging.builds import FOLDER, Build, ProjectionFacts
from ..projection.fleet import Projector, ProjectorFleet, Serve, ServedBuild, end
from .builds import ClusterBuilds

__all__ = ["ClusterProjectorFleet"]


class ClusterProjectorFleet(ProjectorFleet):
    """The projections of one spread system. Lives on its supervisor's event loop."""

    def __init__(
        self,
        store: Callable[[], ClusterStore],
        catalogue: Catalogue,
        name: str,
        namespace: str,
        builds: ClusterBuilds,
        scheduling: ClusterScheduling,
    ) -> None:
        super().__init__(store, catalogue, name, namespace, builds, scheduling)
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
        seats = [seat for name in names if (seat := seat_named(name, None)) and _is_of(seat, projection)]
        seats = [seat for seat in seats if generation_in(seat.mark) >= plan.generation]
        served = await self._builds.served(projection)
        made = await self._builds.to_serve(projection, plan.builds.get(projection.projection_name, 0))
        builds = [build for seat in seats if (build := _build_of(seat)) == made or served.get(build.order)]
        build = max(builds, key=lambda one: one.order, default=made)
        taken_in = ServedBuild(projection, build, plan.catalogue)
        for seat in seats:
            if _build_of(seat) == build:
                folder, actor = build.folder_of(seat.part, seat.replica), actor_named(seat.name)
                taken_in.projectors.append(Projector(seat.part, seat.replica, seat.name, folder, actor))
        if taken_in.projectors:
            await self._find(taken_in.projectors)
        else:
            taken_in.projectors = self._start(taken_in, range(replicas))
        self.serving[projection.projection_name] = taken_in

    async def _find(self, projectors: Iterable[Projector]) -> None:
        """Learn on which nodes they are, so that whoever follows one of them comes to its checkpoint."""
        for projector in projectors:
            with contextlib.suppress(Exception):
                answer = await call(projector.actor.status)
                self._seats.sits(projector.name, answer.node_id)

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


def _is_of(seat: ProjectorSeat, projection: type[Projection]) -> bool:
    return seat.projection == projection.projection_name


def _build_of(seat: ProjectorSeat) -> Build:
    version, _, number = seat.build.removeprefix("v").partition(".")
    return Build(int(version), int(number or 1), Path(FOLDER) / f"{seat.projection}-{seat.build}")
