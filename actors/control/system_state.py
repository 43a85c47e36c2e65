"""SystemState: what the parts of the control plane know of their one system, and may do with it.

`supervision.py` has it; `moves.py`, `projector_moves.py`, `replacements.py` and `rollout.py` are handed it, and know no
more of the supervision than this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from ...runtime.errors import RayfoldError
from ..cluster.ray_cluster import Cluster, NodeFacts
from ..cluster.scheduling import ClusterScheduling
from ..nodes.agents import NodeAgents
from ..packaging.application import ApplicationPlan
from ..sinks.handle import SinksHandle
from .partitions import PartitionActors
from .projections import ClusterProjectorFleet

__all__ = ["SystemState"]


class SystemState(Protocol):
    """One system on several nodes."""

    plan: ApplicationPlan
    detached: bool
    """Deployed: it outlives the program that has started it."""
    shares: NodeAgents
    partitions: PartitionActors
    projections: ClusterProjectorFleet
    scheduling: ClusterScheduling
    cluster: Cluster
    nodes: dict[str, NodeFacts]
    """Nodes in Ray's directory, up or not, by the id of their data folders."""
    changing: asyncio.Lock
    """Held while partitions are moved, code is deployed, or lost actors are replaced: one at a time."""

    sinks: SinksHandle | None
    """The actor that publishes; None where there are no sinks."""

    def is_up(self, number: int) -> bool:
        """Whether the home of a partition's actor is up."""
        ...

    def trouble_of(self, number: int) -> RayfoldError | None:
        """Why a partition that answers cannot open its log; None if it can."""
        ...

    def alone(self, what: str, doing: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do it in the background, unless that is being done already."""
        ...

    def publish(self) -> None:
        """Publish the present topology to every program."""
        ...

    async def open_partition(self, number: int) -> None:
        """Have a partition take commands, or note down why it cannot."""
        ...

    async def replace_sinks(self) -> None:
        """End the process of the sinks, and start another."""
        ...

    async def leave_drained(self) -> None:
        """Move the projectors away from drained nodes."""
        ...
