"""Spread projections: the projectors of a system on several nodes, which outlive the process that has started them.

Beside steps [6] to [8]. What `projections.py` does, and three things more: go on with the projectors that an earlier
supervisor has left; put another one in the place of one that does not answer; give all of them new code, one after the
other, so that somebody answers all the time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..runtime.catalogue import Catalogue
from ..runtime.projection import Projection
from .builds import FOLDER, Build
from .calls import call
from .projections import Projections, Projector, ServedBuild, catch_up, end
from .scheduling import SpreadScheduling, generation_in
from .spread_builds import SpreadBuilds
from .spread_store import SpreadStore
from .status import ProjectorSeat, seat_named

__all__ = ["SpreadProjections"]


class SpreadProjections(Projections):
    """The projections of one spread system. Lives on its supervisor's event loop."""

    def __init__(
        self,
        store: SpreadStore,
        catalogue: Catalogue,
        name: str,
        namespace: str,
        builds: SpreadBuilds,
        scheduling: SpreadScheduling,
    ) -> None:
        super().__init__(store, catalogue, name, namespace, builds, scheduling)
        self._seats = scheduling

    async def take_in_or_start(
        self,
        projection: type[Projection],
        replicas: int,
        catalogue: bytes,
        names: Iterable[str],
        actor_named: Callable[[str], Any],
    ) -> None:
        """Go on with the projectors that serve, or start them. Where those that serve are of an earlier version of the
        class, they go on until they are rebuilt (`renew`)."""
        seats = [seat for name in names if (seat := seat_named(name, None)) and _is_of(seat, projection)]
        served = await self._builds.served(projection)
        serving = [build for seat in seats if served.get((build := _build_of(seat)).order)]
        build = max(serving, key=lambda one: one.order, default=await self._builds.to_serve(projection))
        taken_in = ServedBuild(projection, build, catalogue)
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

    async def open(self) -> None:
        """Return once all have come to where the logs end now."""
        await catch_up(self.projectors())

    async def replace(self, name: str) -> None:
        """Put another projector in the place of the one of this name, which does not answer."""
        for served in (*self.serving.values(), *self.joining):
            for index, present in enumerate(served.projectors):
                if present.name == name:
                    (following,) = self._start(served, [present.replica], [present.part])
                    await end([present], save=False)
                    served.projectors[index] = following
                    await self.announce()
                    await catch_up([following])
                    if served in self.serving.values():
                        await self.put_in_charge(served)
                    return

    async def renew(self, projection: type[Projection], catalogue: bytes, generation: int) -> None:
        """Have every projector that runs older code replaced by one that runs this, one after the other.

        With only one replica of a part, another one is added first, and ended at last.
        """
        served = self.serving_build(projection)
        served.projection, served.catalogue = projection, catalogue
        replicas = served.replicas
        if self.is_of(projection, generation):
            return
        with self.change(projection.projection_name, "renewed"):
            if replicas == 1:
                await self._add(served, range(1, 2))
            for replica in range(replicas):
                await self._renew_replica(served, replica, generation)
            if replicas == 1:
                await self._remove(served, 1)

    async def put_in(self, projection: type[Projection], replicas: int, catalogue: bytes) -> None:
        """A projection that the system has not had: built from the log before it is asked."""
        served = self.join(projection, await self._builds.to_serve(projection), replicas, catalogue)
        try:
            await catch_up(served.projectors)
            await self.announce()
            await catch_up(served.projectors)
        except BaseException:
            await self.dismiss(served, remove=False)
            raise
        await self.put_in_charge(served)

    async def take_out(self, name: str) -> None:
        """A projection that the system has no more. What it has saved stays, should it come back."""
        served = self.serving.pop(name)
        await self.announce()
        await end(served.projectors, save=True)

    def is_of(self, projection: type[Projection], generation: int) -> bool:
        """Whether a projection serves, and all its projectors run this generation of the code."""
        served = self.serving.get(projection.projection_name)
        if served is None or served.build.version != projection.projection_version:
            return False
        return all(_generation_of(one) >= generation for one in served.projectors)

    async def _renew_replica(self, served: ServedBuild, replica: int, generation: int) -> None:
        old = [one for one in served.projectors if one.replica == replica and _generation_of(one) < generation]
        if not old:
            return
        served.projectors = [one for one in served.projectors if one not in old]
        await self.put_in_charge(served)  # nobody asks it any more
        await self.announce()
        await end(old, save=True)
        added = self._start(served, [replica], [one.part for one in old])
        await catch_up(added)
        served.projectors = sorted([*served.projectors, *added], key=lambda one: (one.part, one.replica))
        await self.announce()
        await catch_up(added)
        await self.put_in_charge(served)


def _is_of(seat: ProjectorSeat, projection: type[Projection]) -> bool:
    return seat.projection == projection.projection_name


def _build_of(seat: ProjectorSeat) -> Build:
    version, _, number = seat.build.removeprefix("v").partition(".")
    return Build(int(version), int(number or 1), Path(FOLDER) / f"{seat.projection}-{seat.build}")


def _generation_of(projector: Projector) -> int:
    seat = seat_named(projector.name, None)
    assert seat is not None
    return generation_in(seat.mark)
