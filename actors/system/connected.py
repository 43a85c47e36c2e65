"""ConnectedSystem: what a program's end of a system that other processes run has, wherever they are.

Beside steps [1], [2] and [8]. `RelayedSystem` (`relayed.py`) reaches them over sockets of this machine, `RemoteSystem`
(`remote.py`) through Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from ...runtime.arguments import unregistered
from ...runtime.domain.projection import Projection
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import RayfoldError
from ...runtime.printable import printable_log
from ..client.client import Client
from ..packaging.class_fingerprints import class_fingerprints, differing
from ..projection.rebuild import SAMPLE_S, Rebuild, RebuildProgress
from ..relay.relayed_topology import ServedParts

__all__ = ["ConnectedRebuild", "ConnectedSystem", "end_task"]

log = printable_log(__name__)


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
            log.log(level, "%s: %s: %s%s", self.told_as, what, "; ".join(found), self.code_remedy)
        self._warned_of_code = found

    @property
    def told_as(self) -> str:
        """What the log calls the system."""
        raise NotImplementedError

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
    """A rebuild that another process does. Its number there is what `begin` comes to."""

    def __init__(self, begin: Coroutine[Any, Any, int]) -> None:
        self._progress = RebuildProgress(0, 0, 0.0, None, False)
        self._begun = asyncio.ensure_future(begin)
        super().__init__()
        self._task.add_done_callback(_looked_at)

    async def ask_end(self, number: int) -> RebuildProgress:
        """The other process returns when it has ended. Raises what has ended it."""
        raise NotImplementedError

    async def ask_progress(self, number: int) -> RebuildProgress:
        """How far it is."""
        raise NotImplementedError

    async def ask_to_cancel(self, number: int) -> None:
        """Have it end."""
        raise NotImplementedError

    def progress(self) -> RebuildProgress:
        """See `Rebuild`."""
        return self._progress

    async def cancel(self) -> None:
        """See `Rebuild`."""
        await self.ask_to_cancel(await asyncio.shield(self._begun))
        await asyncio.wait({self._task})

    async def _run(self) -> RebuildProgress:
        number = await asyncio.shield(self._begun)
        ended = asyncio.ensure_future(self.ask_end(number))
        try:
            while not ended.done():
                with contextlib.suppress(RayfoldError):  # what has become of it is reported by `ended`
                    self._progress = await self.ask_progress(number)
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
