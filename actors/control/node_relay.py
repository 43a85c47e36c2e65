"""NodeRelay: the relay in the agent of a node: programs of this machine use a system on a cluster without Ray.

Beside all steps. Before it: the `RelayConnection` of a client, and the relay (`../relay/relay.py`), as on one machine.
After it: the actors of the system, on this node and on others, which are called through Ray; and its supervisor, which
is asked about the system and changes it.

It runs on a thread of the node agent, follows the topology as every driver does, and publishes it at its relay. Where
the supervisor is away, or the head, what is known goes on.

Rules kept here: what a program may ask of the system is a fixed list, with arguments of the right types; a log is read
through the agent of its home; a read that waits for a node that does not answer holds one of a few threads, and no
other program's calls.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar, TypeVarTuple

from ...runtime.errors import InvalidMessage, Unavailable
from ...runtime.log.reader import LmdbReader
from ...runtime.printable import printable_log
from ..cluster.attachment import Attachment
from ..cluster.node import node_id_here
from ..cluster.ray_cluster import Cluster
from ..cluster.rpc import one_line
from ..cluster.token import token_of
from ..nodes.agent import READS, Publish
from ..nodes.local_shares import NO_SOCKETS
from ..nodes.store import ClusterReader, ClusterStore, PartitionLocator
from ..packaging.code import kept_code
from ..packaging.registry import code_of
from ..packaging.shipping import digest_of
from ..relay.relay import Control, Relay, open_relay
from ..relay.relayed_topology import RelayedTopology
from . import system_calls
from .supervisor_link import ASK_TIMEOUT_S, SLOW_S, SupervisorLink, asked_again
from .system_calls import SystemCall
from .topology import Topology

__all__ = ["NodeRelay", "serve_programs"]

log = printable_log(__name__)

_AGAIN_S: Final = 0.25
"""Between two questions to a supervisor that does not answer."""

_READERS: Final = 8
"""Threads that read logs for programs."""


T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


def serve_programs(name: str, namespace: str, publish: Publish) -> None:
    """Serve the programs of this machine, for as long as the node agent runs. On a thread of its own. `publish`: writes
    down how programs find it."""
    asyncio.run(NodeRelay(name, publish).run())


class NodeRelay:
    """Used on the event loop of its thread only."""

    def __init__(self, name: str, publish: Publish) -> None:
        self._name, self._publish = name, publish
        self._linked: SupervisorLink | None = None
        self._topology: Topology | None = None
        """The feed and its latest topology; None until this runs."""
        self._relay: Relay | None = None
        """None before the first topology, and where there are no sockets."""
        self._published: Mapping[str, str] = {}
        """What programs find it by."""
        self._readers = ThreadPoolExecutor(_READERS, "rayfold reads")

    async def run(self) -> None:
        """Serve, without end."""
        said = ""
        while True:
            try:
                if self._linked is None:
                    self._linked = await self._joined()
                await self._follow()
                said = ""
            except Exception as error:  # the supervisor is away, or the head: what is known here still holds
                if (why := one_line(error)) != said:
                    said = why
                    log.info("%s does not return its topology: %s", self._name, why)
                await asyncio.sleep(_AGAIN_S)

    async def _joined(self) -> SupervisorLink:
        cluster = await asyncio.to_thread(Cluster.inside)
        attachment = Attachment(cluster.node_socket, cluster.address)
        await attachment.open()
        return SupervisorLink(self._name, cluster, attachment)

    @property
    def _link(self) -> SupervisorLink:
        assert self._linked is not None
        return self._linked

    @property
    def _store(self) -> ClusterStore:
        if self._topology is None:
            raise Unavailable(self._name, "its supervisor has not published it yet")
        return self._topology.store

    # --- the topology --------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Publish the next topology. Raises whatever keeps it from being known."""
        topology = await self._link.read(self._topology.revision if self._topology is not None else "")
        if topology is None:
            return
        handles = await self._link.handles_of(topology)
        if missing := [name for name in topology.partitions if name not in handles]:
            raise Unavailable(self._name, f"{missing[0]} is being replaced")
        if topology.settings.local_sockets and self._relay is None:
            token, store_id = token_of(os.environ), topology.store.store_id
            methods, node = self._methods(), node_id_here()
            self._relay = open_relay(store_id, self._name, self._actor_named, methods, node=node, token=token)
        elif self._relay is not None and not topology.settings.local_sockets:  # new settings were deployed
            relay, self._relay = self._relay, None
            await asyncio.to_thread(relay.close)
        if self._relay is not None:
            self._relay.publish(_relayed(topology, handles), handles)
        self._topology = topology
        connection = NO_SOCKETS if self._relay is None else {"relay": str(self._relay.path), "system": self._name}
        if connection != self._published:
            self._publish(connection)
            self._published = connection

    def _actor_named(self, name: str) -> Any:
        return self._link.actor_named(name)

    # --- what programs ask of the system --------------------------------------------------------------------------

    def _methods(self) -> Control:
        """What may be called, with the types of the arguments."""
        return {
            **{one.name: (partial(self._passed_on, one, one.timeout_s), one.types) for one in system_calls.ALL},
            system_calls.HEADS.name: (self._heads, system_calls.HEADS.types),
            "read": (self._read, (int, str, list)),
            "code": (self._code, (str,)),
        }

    async def _passed_on(self, passed: SystemCall[T, *Arguments], timeout_s: float, *arguments: *Arguments) -> T:
        """Ask the supervisor, again while it is being started again. Raises what it replies, and `Unavailable`."""

        async def asked(_: float) -> T:
            return await self._link.call(passed.method, *arguments, timeout_s=timeout_s)

        return await asked_again(self._name, asked, passed.patience_s)

    async def _heads(self) -> dict[int, int]:
        timeout_s = 0.0 if self._topology is None else self._topology.settings.timeout_s
        limit_s = max(ASK_TIMEOUT_S, timeout_s + SLOW_S)  # it names what it waits for
        return await self._passed_on(system_calls.HEADS, limit_s)

    async def _read(self, partition: int, what: str, arguments: list[Any]) -> object:
        """What a reader of this partition's log answers, wherever that is."""
        if what not in READS:
            raise InvalidMessage("read", f"a log is not asked for {what!r} by another program", "")
        store = self._store
        if not 0 <= partition < store.partitions:
            raise InvalidMessage("read", f"there is no partition {partition}, but {store.partitions}", "")
        reader = _AgentReader(store, PartitionLocator.of(store), partition, 0.0)
        return await self._in_thread(partial(reader.ask, what, arguments))

    async def _code(self, digest: str) -> bytes | None:
        """The deployed modules of this digest, packed; None if there are none any more."""
        if self._topology is None or digest != digest_of(self._topology.catalogue):
            return None
        return await self._in_thread(partial(_code_here, digest))

    async def _in_thread(self, do: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, do)


class _AgentReader(ClusterReader):
    """A reader that keeps no log open in this process: the node agent closes what it reads itself when the partition
    moves away, and what kept its log open here would keep that from coming back."""

    def ask(self, what: str, arguments: list[Any]) -> object:
        """The answer to one of `READS`."""
        return self._read(getattr(LmdbReader, what), *arguments)

    def _reader_at(self, home: str, since: int) -> None:
        return None


def _code_here(digest: str) -> bytes | None:
    return kept_code(digest) or code_of(digest)


def _relayed(topology: Topology, handles: Mapping[str, Any]) -> RelayedTopology:
    return RelayedTopology(
        topology.partitions,
        topology.projections,
        {name: actor._actor_id.hex() for name, actor in handles.items()},
        topology.settings,
        topology.classes,
        fingerprints=topology.fingerprints,
        unavailable=topology.unavailable,
        store_map=topology.store.map,
        code=digest_of(topology.catalogue),
    )
