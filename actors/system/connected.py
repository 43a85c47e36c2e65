"""ConnectedSystem: what a program's end of a system that other processes run has, wherever they are.

Beside steps [1], [2] and [8]. `RelayedSystem` (`relayed.py`) reaches them over sockets of this machine, `RemoteSystem`
(`remote.py`) through Ray: what differs is how a call travels (`call`), and what a program knows of the system.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar, TypeVarTuple

from ...runtime.arguments import unregistered
from ...runtime.domain.projection import Projection
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import RayfoldError
from ...runtime.printable import printable_log
from ...runtime.read.stores.checkpoint import Quarantined
from ...runtime.store.report import Report
from ..client.client import Client
from ..control import system_calls
from ..control.supervisor_link import ASK_TIMEOUT_S, SLOW_S
from ..control.system_calls import SystemCall
from ..nodes.move_result import MoveResult
from ..observe.status import Status
from ..packaging.class_fingerprints import class_fingerprints, differing
from ..projection.rebuild import SAMPLE_S, Rebuild, RebuildProgress
from ..relay.relayed_topology import ServedParts
from ..settings import Settings
from .health_check import Health, health_of

__all__ = ["ConnectedRebuild", "ConnectedSystem", "end_task"]

log = printable_log(__name__)

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class ConnectedSystem:
    """A program's connection to one system. Used on its event loop only."""

    code_remedy = ""
    """What to do about code that differs; the end of a sentence."""

    def __init__(self, catalogue: Catalogue | None) -> None:
        """`catalogue`: the classes of this program; without, those of the system."""
        self._own = catalogue
        self._catalogue: Catalogue | None = None
        self._client: Client | None = None
        """Both once it is connected."""
        self._warned_of: dict[str, int] = {}
        """Projections of which another version serves than this program has."""
        self._fingerprints: dict[str, str] = {}
        self._warned_of_code: list[str] = []
        self.cut_off_by = ""
        """Why nothing reaches the system from here, since when, and what will become of it; empty if all is well."""

    @property
    def address(self) -> str:
        """Of the cluster, or of the socket of the other program."""
        raise NotImplementedError

    @property
    def client(self) -> Client:
        """What sends commands and queries."""
        assert self._client is not None
        return self._client

    @property
    def catalogue(self) -> Catalogue:
        """The classes that are used here."""
        assert self._catalogue is not None
        return self._catalogue

    def serve(self, projections: Mapping[str, ServedParts], actor_of: Callable[[str], Any]) -> None:
        """Have queries go to these from now on, if queries as this program's classes make them find their way there.
        `actor_of`: the actor of a name; None if it has ended, which a later topology has."""
        for name, served in projections.items():
            projection = self.catalogue.projections.get(name)
            if projection is None:
                continue
            self._warn_of_version(projection, served.version)
            if projection.parts != len(served.parts):
                parts = f"{len(served.parts)} parts, and this program's class has {projection.parts}"
                why = f"version {served.version} serves in {parts}; start this program with the new class"
                self.client.detach_projection(name, why)
                continue
            actors = [[actor_of(replica) for replica in part] for part in served.parts]
            if all(actor is not None for part in actors for actor in part):
                self.client.serve(projection, actors)

    async def compare(self, fingerprints: Mapping[str, str]) -> None:
        """Log a warning if the classes of the system, which decide and answer, are other code than those used here."""
        if not self._fingerprints:
            self._fingerprints = await asyncio.to_thread(class_fingerprints, self.catalogue)
        found = differing(self._fingerprints, fingerprints)
        if found and found != self._warned_of_code:
            what = "the system decides and answers by its own code, and this program has other code"
            level = logging.INFO if self._own is None else logging.WARNING  # that of the system, before a deployment
            log.log(level, "%s: %s: %s%s", self.name_in_log, what, "; ".join(found), self.code_remedy)
        self._warned_of_code = found

    @property
    def name_in_log(self) -> str:
        """What the log calls the system."""
        raise NotImplementedError

    @property
    def settings(self) -> Settings:
        """Those that the system runs with."""
        raise NotImplementedError

    async def call(self, call: SystemCall[T, *Arguments], *arguments: *Arguments, timeout_s: float | None = None) -> T:
        """Ask something of the system, or have it change something. Raises what it answers, and `Unavailable`. One
        that changes nothing is made again meanwhile; of others it is unknown then whether they took effect.
        `timeout_s`: None: that of the call."""
        raise NotImplementedError

    # --- see `System` --------------------------------------------------------------------------------------------

    async def heads(self) -> dict[int, int]:
        """Raises `Unavailable` for a partition that cannot be reached, by name."""
        limit_s = max(ASK_TIMEOUT_S, self.settings.timeout_s + SLOW_S)  # it names what it waits for
        return await self.call(system_calls.HEADS, timeout_s=limit_s)

    async def status(self) -> Status:
        """See `Runtime.status`."""
        return await self.call(system_calls.STATUS)

    async def health(self, limit_s: float) -> Health:
        """See `Runtime.health`."""
        return await health_of(self.client, limit_s, self.cut_off_by)

    async def verify(self) -> Report:
        """See `Runtime.verify`."""
        return await self.call(system_calls.VERIFY)

    async def move(self, partition: int, node: str) -> MoveResult:
        """See `Runtime.move`."""
        return await self.call(system_calls.MOVE, partition, node)

    async def rebalance(self) -> list[MoveResult]:
        """See `Runtime.rebalance`."""
        return await self.call(system_calls.REBALANCE)

    async def drain(self, node: str, drained: bool) -> list[MoveResult]:
        """See `Runtime.drain`."""
        return await self.call(system_calls.DRAIN, node, drained)

    async def scale(self, projection: type[Projection], replicas: int) -> None:
        """See `Runtime.scale`."""
        await self.call(system_calls.SCALE, self.name_of(projection), replicas)

    async def rebuild_stream(self, projection: type[Projection], aggregate: Any, id: str) -> None:
        """See `Runtime.rebuild_stream`."""
        kind = getattr(aggregate, "aggregate_type", str(aggregate))
        await self.call(system_calls.REBUILD_STREAM, self.name_of(projection), kind, id)

    async def retry_quarantined(self, projection: type[Projection]) -> tuple[Quarantined, ...]:
        """See `Runtime.retry_quarantined`."""
        left = await self.call(system_calls.RETRY_QUARANTINED, self.name_of(projection))
        return tuple(left)  # a list, over a relay

    def rebuild(self, projection: type[Projection]) -> Rebuild:
        """See `Runtime.rebuild`."""
        self.name_of(projection)
        return ConnectedRebuild(self, self.begin_rebuild(projection))

    def begin_rebuild(self, projection: type[Projection]) -> Coroutine[Any, Any, int]:
        """Comes to the number of the rebuild: by the class of the system, which has to be of the same version."""
        return self.call(system_calls.BEGIN_REBUILD, projection.projection_name, projection.projection_version)

    # -------------------------------------------------------------------------------------------------------------

    def name_of(self, projection: type[Projection]) -> str:
        """Its stored name. Raises `UnknownName` for a class that is not registered."""
        name = getattr(projection, "projection_name", "")
        if name not in self.catalogue.projections:
            raise unregistered("projection", projection, self.catalogue.projections)
        return str(name)

    def _warn_of_version(self, projection: type[Projection], serving: int) -> None:
        name, version = projection.projection_name, projection.projection_version
        if version != serving and self._warned_of.get(name) != serving:
            self._warned_of[name] = serving
            log.warning("%s version %d serves, and this program has version %d", name, serving, version)


class ConnectedRebuild(Rebuild):
    """A rebuild that another process does. Its number there is what `begin` comes to.

    Awaiting it raises also `CallerError`, for an older version and while another change of the projection is under way.
    """

    def __init__(self, system: ConnectedSystem, begin: Coroutine[Any, Any, int]) -> None:
        self._system = system
        self._progress = RebuildProgress(0, 0, 0.0, None, False)
        self._begun = asyncio.ensure_future(begin)
        super().__init__()
        self._task.add_done_callback(_looked_at)

    def progress(self) -> RebuildProgress:
        """See `Rebuild`."""
        return self._progress

    async def cancel(self) -> None:
        """See `Rebuild`."""
        await self._system.call(system_calls.CANCEL_REBUILD, await asyncio.shield(self._begun))
        await asyncio.wait({self._task})

    async def _run(self) -> RebuildProgress:
        number = await asyncio.shield(self._begun)
        ended = asyncio.ensure_future(self._system.call(system_calls.AWAIT_REBUILD, number))
        try:
            while not ended.done():
                with contextlib.suppress(RayfoldError):  # what has become of it is reported by `ended`
                    self._progress = await self._system.call(system_calls.WATCH_REBUILD, number)
                await asyncio.wait({ended}, timeout=SAMPLE_S)
            self._progress = await ended
        finally:
            ended.cancel()
        return self._progress


def _looked_at(task: asyncio.Task[RebuildProgress]) -> None:
    """An error that is not awaited is in the log of the other process."""
    if not task.cancelled():
        task.exception()


async def end_task(task: asyncio.Task[None]) -> None:
    """End a task, and wait until it has undone what it was at."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
