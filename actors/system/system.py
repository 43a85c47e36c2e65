"""System: what a running system has for the program that uses it, wherever its actors are.

Beside all steps. `LocalSystem` has the actors itself; `RemoteSystem` asks the supervisor that has them, and
`ClusterSystem` has started that.
"""

from __future__ import annotations

from typing import Protocol

from ...runtime.domain.aggregate import Aggregate
from ...runtime.domain.projection import Projection
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import CallerError
from ...runtime.feed.committed_positions import PartitionCalls
from ...runtime.read.stores.checkpoint import Quarantined
from ...runtime.store.report import Report
from ..client.client import Client
from ..nodes.move_result import MoveResult
from ..nodes.store import AnyStore
from ..observe.status import Status
from ..projection.rebuild import Rebuild
from .health_check import Health

__all__ = ["OneMachine", "System"]


class System(Protocol):
    """One running system. `Operations` documents what each method does and raises."""

    @property
    def catalogue(self) -> Catalogue:
        """The classes."""
        ...

    @property
    def store(self) -> AnyStore:
        """What its logs are read from."""
        ...

    @property
    def client(self) -> Client:
        """What sends commands and queries."""
        ...

    @property
    def partition_calls(self) -> PartitionCalls:
        """What leads subscriptions of a name to the partitions. Made for each."""
        ...

    async def start(self) -> None:
        """Return once commands and queries are answered."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Undo `start`, from wherever it has come to. `grace_s`: how long that may take, in seconds."""
        ...

    async def heads(self) -> dict[int, int]:
        """The head of every partition's log."""
        ...

    async def status(self) -> Status:
        """What runs where, and how far it is."""
        ...

    async def health(self, limit_s: float) -> Health:
        """What serves this program now."""
        ...

    async def verify(self) -> Report:
        """Check every byte of the logs."""
        ...

    async def scale(self, projection: type[Projection], replicas: int) -> None:
        """Have this many replicas of a projection."""
        ...

    def rebuild(self, projection: type[Projection]) -> Rebuild:
        """Build a read model anew."""
        ...

    async def rebuild_stream(self, projection: type[Projection], aggregate: type[Aggregate], id: str) -> None:
        """Apply the events of one aggregate again."""
        ...

    async def retry_quarantined(self, projection: type[Projection]) -> tuple[Quarantined, ...]:
        """Apply the events in quarantine again."""
        ...

    async def move(self, partition: int, node: str) -> MoveResult:
        """Have a partition at home on a node."""
        ...

    async def rebalance(self) -> list[MoveResult]:
        """Have every node be home to as many partitions."""
        ...

    async def drain(self, node: str, drained: bool) -> list[MoveResult]:
        """Have a node be home to nothing, or be used again."""
        ...


class OneMachine:
    """What of a `System` takes several nodes, of one that has none."""

    @staticmethod
    def no_nodes() -> CallerError:
        """The error for it."""
        return CallerError("this system runs on one machine; give it several nodes with cluster=")

    async def move(self, partition: int, node: str) -> MoveResult:
        """See `System`."""
        raise self.no_nodes()

    async def rebalance(self) -> list[MoveResult]:
        """See `System`."""
        raise self.no_nodes()

    async def drain(self, node: str, drained: bool) -> list[MoveResult]:
        """See `System`."""
        raise self.no_nodes()
