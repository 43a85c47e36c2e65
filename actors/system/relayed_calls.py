"""Relayed calls: what leads a named subscription of a program without Ray to the partitions that keep how far it is.

Beside all steps. `RelayedCalls` goes over the relay of a node; `HolderCalls` over that of the program that runs the
store of this machine, and while none runs it, has the logs themselves (`runtime/feed/direct_calls.py`). A program with
handles has `ActorCalls` (`../client/partition_calls.py`), whose rules are kept here too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from ...runtime.errors import Unavailable
from ...runtime.feed.direct_calls import DirectCalls
from ...runtime.store.store import Store
from ...runtime.store.store_lock import Holder, holder_of
from ..client.partition_calls import ATTEMPT_S, NotRunning, patiently
from ..client.relay_connection import RelayConnection
from ..cluster.names import partition_name, store_system
from ..cluster.rpc import Reply
from ..relay.relayed_topology import RELAYED
from .relayed_store import RelayedReads

__all__ = ["HolderCalls", "RelayedCalls"]


class RelayedCalls:
    """To the partitions of a system, over a relay."""

    leased = True

    def __init__(self, relayed: RelayedReads, name_of: Callable[[int], str]) -> None:
        """`name_of`: the present name of a partition's actor; it raises `KnownUnreachable` where nothing reaches it."""
        self._relayed, self._name_of = relayed, name_of

    def call(self, partition: int, method: str, *arguments: Any, patience_s: float) -> Any:
        """See `PartitionCalls`."""
        return patiently(f"partition {partition}", lambda: self._once(partition, method, arguments), patience_s)

    def _once(self, partition: int, method: str, arguments: Sequence[Any]) -> Any:
        renews = method == "renew"
        given = list(arguments) if renews else [method, list(arguments)]
        asked = "renew_member" if renews else "subscription"
        reply: Reply[Any] = self._relayed.ask_actor(self._name_of(partition), asked, given, ATTEMPT_S)
        return reply.unwrap()

    def close(self) -> None:
        """See `PartitionCalls`: they are the system's."""


class HolderCalls(RelayedCalls):
    """To the partitions of a store of this machine, whether a program runs it or not."""

    leased = False

    def __init__(self, store: Store) -> None:
        system = store_system(store.path.name, store.store_id)
        super().__init__(RelayedReads(str(store.path), self._connected), lambda number: partition_name(system, number))
        self._store, self._direct = store, DirectCalls(store)

    def call(self, partition: int, method: str, *arguments: Any, patience_s: float) -> Any:
        """See `PartitionCalls`."""
        try:
            return super().call(partition, method, *arguments, patience_s=patience_s)
        except NotRunning:
            return self._direct.call(partition, method, *arguments, patience_s=patience_s)

    def _once(self, partition: int, method: str, arguments: Sequence[Any]) -> Any:
        if "relay" not in _connection(holder_of(self._store.path)):
            raise NotRunning
        return super()._once(partition, method, arguments)

    async def _connected(self) -> RelayConnection:
        """On the thread of the calls."""
        holder = holder_of(self._store.path)
        if holder is None or "relay" not in holder.connection:
            raise Unavailable(str(self._store.path), "the program that ran it has just ended")
        connection = RelayConnection(self._store.store_id, RELAYED, "")
        path = holder.path_here(holder.connection["relay"])
        async with asyncio.timeout(ATTEMPT_S):
            await asyncio.get_running_loop().create_unix_connection(lambda: connection, path)
            if refused := await connection.greeted:
                raise Unavailable(str(self._store.path), f"{holder} does not take this program in: {refused}")
        return connection

    def close(self) -> None:
        """See `PartitionCalls`."""
        self._relayed.close()


def _connection(holder: Holder | None) -> dict[str, str]:
    return {} if holder is None else holder.connection
