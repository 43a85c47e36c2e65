"""MemoryClient: the client of a system in memory. It packs, checks, batches and routes as any other; what is different
is how a batch reaches its partition, and a query its replica.

Steps [1], [2] and [8]. Before it: the caller. After it: `partition.py`, and `replicas.py`.
"""

from __future__ import annotations

from typing import Any

from ..client.client import Client
from ..client.command_router import CommandRouter
from ..client.query_router import QueryRouter
from ..client.transport import PartitionTransport
from .replicas import MemoryReplicas

__all__ = ["MemoryClient"]


class MemoryTransport(PartitionTransport):
    """Executes attempts where it is. Nothing is lost on the way, and nothing waits: the answer comes with the next turn
    of the event loop."""

    def execute(self, attempt: int, predecessor: int, blob: bytes) -> None:
        """See `PartitionTransport`."""
        self._loop.call_soon(self._came_back, attempt, self.actor.held.execute(blob))


class MemoryCommandRouter(CommandRouter):
    """Its partitions are in this process."""

    def _partition_transport(self, actor: Any) -> MemoryTransport:
        return MemoryTransport(actor, self._client, self._came_back, by_socket=False)


class MemoryQueryRouter(QueryRouter):
    """Its replicas are in this process."""

    replicas_class = MemoryReplicas


class MemoryClient(Client):
    """Commands and queries of the one program that a system in memory has."""

    command_router_class = MemoryCommandRouter
    query_router_class = MemoryQueryRouter
