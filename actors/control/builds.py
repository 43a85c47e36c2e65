"""ClusterBuilds: the builds of read models where a store is spread over nodes.

Beside steps [7] and [8]. Each projector keeps its place in the share of the node that it runs on, so a build has a
folder on every node that has, or had, a projector of it. The mark of the build that serves is written on all nodes that
are up; the latest that any node has counts. A node that was away and has only an older mark changes nothing by coming
back.

What is lost with a node is rebuilt from the log; a projector that starts on another node than before does the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

from ...runtime.domain.projection import Projection
from ...runtime.errors import RayfoldError
from ...runtime.printable import printable_log
from ..cluster.rpc import Method, Reply
from ..nodes.agents import NodeAgents
from ..nodes.handle import NodeAgentHandle
from ..packaging.builds import Build, Builds, ProjectionFacts

__all__ = ["ClusterBuilds"]

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

log = printable_log(__name__)

_TIMEOUT_S: Final = 10.0
"""Timeout of a node agent's call. One whose node has just ended is passed over after that."""


class ClusterBuilds(Builds):
    """The builds in the shares of all nodes. Their paths are relative to the share."""

    def __init__(self, shares: NodeAgents) -> None:
        super().__init__(Path())
        self._shares = shares

    async def served(self, projection: type[Projection] | ProjectionFacts) -> dict[tuple[int, int], bool]:
        """See `Builds`. The latest build that any node has counts."""
        served: dict[tuple[int, int], bool] = {}
        for found in await self._everywhere(lambda agent: agent.builds, projection.projection_name):
            for order, has in found.items():
                served[order] = served.get(order, False) or has
        return served

    async def lend_checkpoint(self, build: Build, part: int, replica: int) -> None:
        """See `lend_checkpoint`. On the nodes that have one."""
        await self._everywhere(lambda agent: agent.lend_checkpoint, build, part, replica)

    async def mark_serving(self, build: Build) -> None:
        """See `mark_serving`."""
        await self._everywhere(lambda agent: agent.mark_serving, build)

    async def remove_older(self, projection: str, serving: Build) -> None:
        """See `remove_older`."""
        await self._everywhere(lambda agent: agent.remove_older, projection, serving)

    async def remove(self, build: Build) -> None:
        """See `remove_build`."""
        await self._everywhere(lambda agent: agent.remove_build, build)

    async def remove_folder(self, build: Build, part: int, replica: int) -> None:
        """Remove what one projector has saved."""
        await self._everywhere(lambda agent: agent.remove_folder, build.folder_of(part, replica))

    async def _everywhere(
        self, method: Callable[[NodeAgentHandle], Method[Reply[T], *Arguments]], *arguments: *Arguments
    ) -> list[T]:
        """The answers of the agents of the nodes that are up. One that cannot is passed over: nothing here is the
        truth."""
        asked = (self._shares.call(node_id, method, *arguments, timeout_s=_TIMEOUT_S) for node_id in self._shares.up)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, RayfoldError):
                log.warning("builds of read models: %s", answer)
            elif isinstance(answer, BaseException):
                raise answer
        return [answer for answer in answers if not isinstance(answer, BaseException)]
