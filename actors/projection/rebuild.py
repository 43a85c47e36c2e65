"""Rebuild: a read model built anew from the log, beside the one that serves, which it replaces when it has caught up.

Beside steps [7] and [8]. For a changed class with a higher version, or for the same class when its read model has to be
made anew.

What happens, in this order, and what a crash or a `cancel()` in between leaves behind:

1. projectors for the new build start, each in a folder of its own, and apply the whole log at full speed; what serves
   goes on serving. Interrupted: the next rebuild of this version goes on from their checkpoints
2. the partitions broadcast to them as well, and they apply what was committed in between
3. the new build is marked, and queries go to it: one step, which no query falls into the middle of
4. the old projectors answer what they were asked before, and end; the old build is removed

Rule kept here: until step 3 nothing that serves is touched; from then on nothing can take it back.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Generator, Iterator
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

from ...runtime.domain.projection import Projection
from ...runtime.errors import CallerError, RebuildCancelled
from ...runtime.printable import printable_log
from .fleet import ProjectorFleet, ServedBuild, all_caught_up

__all__ = ["REBUILDS_KEPT", "SAMPLE_S", "FleetRebuild", "Rebuild", "RebuildProgress", "Rebuilds"]

log = printable_log(__name__)

REBUILDS_KEPT: Final = 100
"""Rebuilds that have ended and can still be asked for: a program that began one asks again within a second."""

SAMPLE_S: Final = 0.2
"""How often progress is checked: one short call to each projector."""

_SAMPLES_MAX: Final = 26
"""Five seconds: the rate is that of this long, so that the remaining time follows a change of load."""


class RebuildProgress(NamedTuple):
    """How far a rebuild has come. A rebuild of several projectors is as far as the one that is furthest behind.

    Example:
        async for progress in rebuild:
            print(f"{progress.events:,} of {progress.total:,}, {progress.remaining_s} s left")
    """

    events: int
    """Applied, or passed over because they belong to another part."""
    total: int
    """In the log now; it may grow meanwhile."""
    events_per_s: float
    """Over the last five seconds; 0 before anything is known."""
    remaining_s: float | None
    """At this rate, in seconds; None while the rate is unknown."""
    serving: bool
    """It has taken over."""


class Rebuild:
    """A rebuild under way. Await it, watch it with `async for`, or `cancel()` it. Used on the runtime's event loop
    only.

    Abandoning the wait (a timeout around it, a cancelled task) does not end the rebuild: only `cancel` does.
    Awaiting it raises what has ended it: `HandlerFailed`, `RebuildCancelled`, `Unavailable`.

    Example:
        rebuild = bank.rebuild(BalancesV2)
        async for progress in rebuild:
            print(progress.events, "of", progress.total)
        await rebuild
    """

    def __init__(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    def __await__(self) -> Generator[Any, None, RebuildProgress]:
        """Wait until the new build serves and the old one has ended. Raises what has ended the rebuild: `HandlerFailed`
        if a handler of the class raised, `RebuildCancelled`, `Unavailable` if its projectors could not go on."""
        return asyncio.shield(self._task).__await__()

    async def __aiter__(self) -> AsyncIterator[RebuildProgress]:
        """The progress, five times a second until the end. Raises nothing: await the rebuild for its outcome."""
        while not self._task.done():
            yield self.progress()
            await asyncio.wait({self._task}, timeout=SAMPLE_S)
        yield self.progress()

    def done(self) -> bool:
        """Whether it has ended, one way or another."""
        return self._task.done()

    def progress(self) -> RebuildProgress:
        """How far it has come, at the last check."""
        raise NotImplementedError

    async def cancel(self) -> None:
        """End the rebuild and remove what it has made; what serves goes on. Without effect once it has taken over."""
        raise NotImplementedError

    async def _run(self) -> RebuildProgress:
        raise NotImplementedError


class FleetRebuild(Rebuild):
    """A rebuild by the fleet of this process."""

    def __init__(self, projections: ProjectorFleet, projection: type[Projection], catalogue: bytes) -> None:
        self._projections = projections
        self._projection = projection
        self._catalogue = catalogue
        projections.check_version(projection)
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES_MAX)
        self._total = 0
        self._serving = False
        self._cancelled = ""
        """Why it is to end early, if it is."""
        self._unwanted = False
        """Remove what it has made: it has no use."""
        held = ExitStack()
        held.enter_context(projections.change(projection.projection_name, "rebuilt"))
        super().__init__()
        self._task.add_done_callback(lambda _: held.close())
        self._task.add_done_callback(self._log_failure)

    def progress(self) -> RebuildProgress:
        """See `Rebuild`."""
        if not self._samples:
            return RebuildProgress(0, self._total, 0.0, None, self._serving)
        (began_s, before), (ended_s, events) = self._samples[0], self._samples[-1]
        rate = (events - before) / (ended_s - began_s) if ended_s > began_s else 0.0
        left = max(self._total - events, 0)
        remaining_s = 0.0 if self._serving or not left else left / rate if rate else None
        return RebuildProgress(events, self._total, rate, remaining_s, self._serving)

    async def cancel(self) -> None:
        """See `Rebuild`."""
        await self._end("was cancelled", unwanted=True)

    async def interrupt(self) -> None:
        """The runtime stops: end the rebuild, and keep what it has made for the next one to go on from."""
        await self._end("was interrupted by the end of the runtime; the next one goes on from there", unwanted=False)

    async def _end(self, why: str, *, unwanted: bool) -> None:
        await asyncio.sleep(0)  # its first step, without which it could not tidy up
        if not self._serving and not self._cancelled and not self._task.done():
            self._cancelled, self._unwanted = why, unwanted
            self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self) -> RebuildProgress:
        projections, served = self._projections, None
        before = projections.serving_build(self._projection)
        try:
            build = await projections.build_beside(self._projection)
            served = projections.join(self._projection, build, before.replicas, self._catalogue)
            await self._watched(served, all_caught_up(served))
            await projections.announce()
            await all_caught_up(served)
            await self._sample(served)
            await projections.check_ready(served.projectors, before.projectors)
            await projections.put_in_charge(served)
        except BaseException:
            if served is not None:
                await asyncio.shield(projections.dismiss(served, remove=self._unwanted))
            if self._cancelled:
                name, version = self._projection.projection_name, self._projection.projection_version
                raise RebuildCancelled(name, version, self._cancelled) from None
            raise
        self._serving = True
        await asyncio.shield(projections.dismiss(before, remove=True))
        return self.progress()

    async def _watched(self, served: ServedBuild, doing: Coroutine[Any, Any, None]) -> None:
        """Follow the progress of a step. Ends it when a projector has stopped."""
        task = asyncio.get_running_loop().create_task(doing)
        try:
            while not task.done():
                await self._sample(served)
                await asyncio.wait({task}, timeout=SAMPLE_S)
            task.result()
        finally:
            task.cancel()

    async def _sample(self, served: ServedBuild) -> None:
        """Ask every projector how far it is. Raises what one has stopped for."""
        places = await self._projections.places(served.projectors)
        for place in places:
            place.stopped.unwrap()
        if len(places) == len(served.projectors) and all(place.positions for place in places):
            self._total = max(sum(place.heads.values()) for place in places)
            events = min(sum(place.positions.values()) for place in places)
            if self._samples and events < self._samples[-1][1]:
                self._samples.clear()  # one was killed, and is at its last checkpoint again
            self._samples.append((time.monotonic(), events))

    def _log_failure(self, task: asyncio.Task[RebuildProgress]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, RebuildCancelled):
            log.error(
                "the rebuild of %s has ended: %s; what served before goes on", self._projection.projection_name, error
            )


class Rebuilds:
    """The rebuilds of one supervisor, by number: those under way, and the last that ended."""

    def __init__(self) -> None:
        self._begun = 0
        self._by_number: dict[int, FleetRebuild] = {}

    def add(self, rebuild: FleetRebuild) -> int:
        """Its number, which no other one gets."""
        self._begun += 1
        self._by_number[self._begun] = rebuild
        ended = [number for number, one in self._by_number.items() if one.done()]
        for number in ended[: max(0, len(ended) - REBUILDS_KEPT)]:
            del self._by_number[number]
        return self._begun

    def of(self, number: int) -> FleetRebuild:
        """The rebuild of this number. Raises `CallerError` for one that ended long ago."""
        if (rebuild := self._by_number.get(number)) is None:
            what = f"rebuild {number} is not known here"
            raise CallerError(f"{what}: it ended long ago, or before the supervisor was started again; see the status")
        return rebuild

    def __iter__(self) -> Iterator[FleetRebuild]:
        return iter([*self._by_number.values()])
