"""Rolling: actors that run an earlier generation of the code are replaced, one after the other, while the system
serves.

Beside all steps, on the event loop of whoever supervises. What a second deployment is made of: a supervisor that was
started again with the new plan goes on with the actors that there are, and this replaces them. A partition's next actor
is up, with the new code loaded, before the present one lets go of the log; of a projection some replica answers all the
time; one whose class has a higher version is rebuilt beside the one that serves.

Rule kept here: what fails ends the rolling, and leaves everything that was not replaced yet as it was. Started again,
it goes on from there.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from ..runtime.errors import RayfoldError, Unavailable
from ..runtime.printable import printable_log
from ..runtime.projection import Projection
from .directory import remove_unused_code
from .rebuild import Rebuild

if TYPE_CHECKING:
    from .supervision import Supervision

__all__ = ["Rolled", "Rolling"]

log = printable_log(__name__)


class Rolled(NamedTuple):
    """How far a deployment has come."""

    generation: int
    """Of the code."""
    done: int
    """Partitions and projections that run it."""
    total: int
    what: str
    """What is being replaced now; empty at the end."""


class Rolling:
    """The rolling of one system to the generation of its plan."""

    def __init__(self, supervision: Supervision) -> None:
        self._supervision = supervision
        self._what = ""
        self._failure: RayfoldError | None = None
        self._ended = asyncio.Event()

    async def progress(self) -> Rolled:
        """How far it is."""
        return self._progress()

    async def ended(self) -> Rolled:
        """Return once everything runs the code of the plan. Raises what has ended it before."""
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure
        return self._progress()

    async def run(self) -> None:
        """Replace what is older. Without effect where nothing is."""
        try:
            async with self._supervision.changing:
                await self._partitions()
                await self._projections()
            await asyncio.to_thread(remove_unused_code)
        except RayfoldError as error:
            log.error("deployment of %s: %s", self._supervision.plan.name, error)
            self._failure = error
        except Exception as error:
            log.exception("deployment of %s", self._supervision.plan.name)
            self._failure = Unavailable(self._supervision.plan.name, f"the deployment has ended: {error}")
        finally:
            self._what = ""
            self._ended.set()

    async def _partitions(self) -> None:
        supervision, generation = self._supervision, self._supervision.plan.generation
        for number, seated in sorted(supervision.partitions.seated.items()):
            if seated.generation < generation:
                self._what = f"partition {number}"
                if supervision.is_up(number):
                    await supervision.partitions.replace(number, seated.node_id)
                else:  # it starts with the new code when its node is back
                    supervision.partitions.start_over(number)
                supervision.projections.use_partitions(supervision.partitions.handles())
                supervision.put_up()

    async def _projections(self) -> None:
        supervision, plan = self._supervision, self._supervision.plan
        projections = supervision.projections
        for name in projections.serving.keys() - plan.replicas.keys():
            await projections.take_out(name)
        for name, replicas in plan.replicas.items():
            self._what, projection = f"projection {name}", supervision.catalogue.projection(name)
            if name not in projections.serving:
                await projections.put_in(projection, replicas, plan.catalogue)
            elif projection.projection_version > projections.serving[name].build.version:
                await Rebuild(projections, projection, plan.catalogue)
            else:
                projections.check_version(projection)
                await projections.renew(projection, plan.catalogue, plan.generation)
            supervision.put_up()

    def _progress(self) -> Rolled:
        supervision, generation = self._supervision, self._supervision.plan.generation
        total = len(supervision.partitions.seated) + len(supervision.plan.replicas)
        done = sum(one.generation >= generation for one in supervision.partitions.seated.values())
        done += sum(self._is_new(name) for name in supervision.plan.replicas)
        return Rolled(generation, done, total, self._what)

    def _is_new(self, name: str) -> bool:
        supervision = self._supervision
        projection: type[Projection] = supervision.catalogue.projection(name)
        return supervision.projections.is_of(projection, supervision.plan.generation)
