"""RemoteSystem: a program's end of a system on a cluster: a client that follows the published topology, and asks the
supervisor.

Steps [1], [2] and [8], for a system that is supervised in an actor of its own (`supervision.py`). It has what an
`LocalSystem` has for a runtime. It waits at the topology feed (`topology.py`) all the time, so that a partition that
has moved, replicas that have joined and nodes that are gone are known here as soon as they are there.

A program is attached to one node of its machine, and is cut off when that ends (`attachment.py`). Then every call is
refused at once, with the reason, until the program has connected anew; what is on its way is sent again then.

Rules kept here:
- commands and queries go straight to the actors that execute and answer them, and go on when the supervisor is away,
  or the head; only what changes the system needs them
- nothing here makes the event loop wait for Ray
- a program goes on with no store but the one that it had
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TypeVar, TypeVarTuple

from ...runtime.domain.projection import Projection
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import RayfoldError, StoreMismatch, Unavailable
from ...runtime.feed.committed_positions import PartitionCalls
from ...runtime.printable import printable_log
from ..client.client import Client
from ..client.partition_calls import ActorCalls
from ..cluster.attachment import Attachment
from ..cluster.ray_cluster import Cluster
from ..cluster.ray_session import started_in_thread
from ..cluster.retry import Patience, retried
from ..cluster.rpc import Method, Reply, in_thread, one_line
from ..control.handle import SupervisorHandle
from ..control.supervisor_link import ASK_TIMEOUT_S, PATIENCE_S, SLOW_S, SupervisorLink, asked_again
from ..control.system_calls import SystemCall
from ..control.topology import Topology
from ..nodes.store import ClusterStore
from ..os_process.gc_tuning import tune_gc
from ..settings import Settings
from .connected import ConnectedSystem, end_task

__all__ = ["RemoteSystem"]

log = printable_log(__name__)

_RETRY_S: Final = 0.25

_AGAIN_S: Final = 1.0
"""Between two attempts to connect anew; one costs a connection that is refused."""

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class RemoteSystem(ConnectedSystem):
    """A program's connection to one system on a cluster. Used on its event loop only."""

    _rejoins = False
    """Whether it connects anew when this program's node has ended. A system that this program has started ends with
    that node."""

    def __init__(self, name: str, catalogue: Catalogue | None) -> None:
        """`catalogue`: the classes of this program, if it has started the system; else those that were deployed."""
        super().__init__(catalogue)
        self._name = name
        self._joined_to: Cluster | None = None
        self._topology: Topology | None = None
        """The topology, and the actors that it names; set by `attach`."""
        self._partitions: list[str] = []
        self._linked: SupervisorLink | None = None
        self._attached_by: Attachment | None = None
        """Both from `attach` on, too."""
        self._address = ""
        self._what_ended = ""
        """What of `cut_off_by` stays the same until it is connected anew."""
        self._undo = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Find the system, and `attach` to it."""
        raise NotImplementedError

    async def attach(self, cluster: Cluster) -> None:
        """Return once commands and queries can be sent. Raises `Unavailable` if nothing of that name runs there."""
        await self._hold(cluster)
        self._undo.push_async_callback(self._leave)
        from ..packaging.shipping import unship  # it imports ray, which `Cluster` prepares

        topology, handles = await self._first_topology()
        self._catalogue = self._own or unship(topology.catalogue, code_first=False)
        others = self._own is None
        self._client = Client(
            self.catalogue,
            [handles[name] for name in topology.partitions],
            lambda name: self._link.actor_named(name),  # that of the cluster that is joined by then
            topology.settings,
            placement_rule=topology.store.placement,
            store_id=topology.store.store_id,
            classes_of_others=others,
        )
        self._undo.push_async_callback(self.client.drain, SLOW_S)
        self._partitions = list(topology.partitions)
        self._take(topology, handles)
        if topology.settings.tune_garbage_collector:
            self._undo.callback(tune_gc())
        self._undo.push_async_callback(end_task, asyncio.create_task(self._mind()))

    @property
    def store(self) -> ClusterStore:
        """Where its logs are, as is known here."""
        return self._present.store

    @property
    def partition_calls(self) -> PartitionCalls:
        """See `System`."""
        return ActorCalls(self.client.partition_reached, leased=True)

    @property
    def _present(self) -> Topology:
        assert self._topology is not None
        return self._topology

    @property
    def _cluster(self) -> Cluster:
        assert self._joined_to is not None
        return self._joined_to

    @property
    def _attachment(self) -> Attachment:
        assert self._attached_by is not None
        return self._attached_by

    @property
    def _link(self) -> SupervisorLink:
        assert self._linked is not None
        return self._linked

    @property
    def name_in_log(self) -> str:
        """See `ConnectedSystem`."""
        return self._name

    @property
    def address(self) -> str:
        """Of the cluster."""
        return self._address

    async def stop(self, grace_s: float = 0.0) -> None:
        """Disconnect; the system continues."""
        await self._undo.aclose()

    @property
    def settings(self) -> Settings:
        """See `ConnectedSystem`."""
        return self._present.settings

    def begin_rebuild(self, projection: type[Projection]) -> Coroutine[Any, Any, int]:
        """See `ConnectedSystem`: by the class of this program."""
        from ..packaging.shipping import ship

        classes = ship(self.catalogue.narrowed(projection))
        return self.ask(
            lambda supervisor: supervisor.begin_rebuild, projection.projection_name, classes, patience_s=0.0
        )

    async def call(self, call: SystemCall[T, *Arguments], *arguments: *Arguments, timeout_s: float | None = None) -> T:
        """See `ConnectedSystem`: of the supervisor, through Ray."""
        limit_s = call.timeout_s if timeout_s is None else timeout_s
        return await self.ask(call.method, *arguments, timeout_s=limit_s, patience_s=call.patience_s)

    async def ask(
        self,
        method: Callable[[SupervisorHandle], Method[Reply[T], *Arguments]],
        *arguments: *Arguments,
        timeout_s: float = ASK_TIMEOUT_S,
        patience_s: float = PATIENCE_S,
    ) -> T:
        """Ask the supervisor a question. Raises what it replies, and `Unavailable` if it does not answer.

        It is asked again while the supervisor is being started again, for `patience_s` seconds."""

        async def asked(_: float) -> T:
            if self.cut_off_by:
                raise Unavailable(self._name, self.cut_off_by)
            return await self._unless_lost(self._link.call(method, *arguments, timeout_s=timeout_s))

        return await asked_again(self._name, asked, patience_s)

    # -------------------------------------------------------------------------------------------------------------

    async def _mind(self) -> None:
        """Follow the topology, and connect anew whenever this program's node has ended; without end."""
        while True:
            watching = asyncio.create_task(self._watch())
            try:
                await self._attachment.lost.wait()
            finally:
                watching.cancel()
            await self._cut()
            if not self._rejoins:
                return
            while not await self._is_back():
                await asyncio.sleep(_AGAIN_S)

    async def _cut(self) -> None:
        """This program's node has ended."""
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        self._what_ended = f"the node that this program was attached to has ended at {since}"
        self._note_cut_off(f"it connects anew by itself as soon as {self.address} answers" if self._rejoins else "")
        log.warning("%s: %s", self._name, self.cut_off_by)
        self._attachment.close()
        if self._rejoins:
            await asyncio.to_thread(self._cluster.leave_lost)

    def _note_cut_off(self, remedy: str) -> None:
        remedy = remedy or "and with it what this program has started there; stop this runtime, and start it again"
        self.cut_off_by = f"{self._what_ended}; {remedy}"
        self.client.detach(self.cut_off_by)

    async def _is_back(self) -> bool:
        """Connect anew, if that is possible now."""
        try:
            cluster = await started_in_thread(self._joined, Cluster.stop)
        except Exception as error:  # of Ray's there are many
            self._note_cut_off(f"it connects anew by itself as soon as it can: {one_line(error)}")
            return False
        try:
            await self._hold(cluster)
            topology, handles = await self._unless_lost(self._found_again(cluster))
        except BaseException as error:
            self._attachment.close()
            await asyncio.shield(asyncio.to_thread(cluster.leave_lost))
            if not isinstance(error, Exception):
                raise
            self._note_cut_off(f"it connects anew by itself as soon as it can: {one_line(error)}")
            return False
        self.client.attach([handles[name] for name in topology.partitions])
        self._partitions = list(topology.partitions)
        self.cut_off_by = ""
        self._take(topology, handles)
        log.warning("%s: connected again, at %s", self._name, self.address)
        return True

    async def _found_again(self, cluster: Cluster) -> tuple[Topology, dict[str, Any]]:
        """The topology of the system that this program had. Raises `StoreMismatch` for another one of its name."""
        await in_thread(partial(self._revive, cluster), ASK_TIMEOUT_S)
        topology, handles = await self._first_topology()
        if (found := topology.store.store_id) != self.store.store_id:
            what = f"on {cluster.address} it has store {found}, and this program had store {self.store.store_id}"
            raise StoreMismatch(self._name, what, "close this connection, and make another one")
        return topology, handles

    async def _unless_lost(self, doing: Awaitable[T]) -> T:
        """What it comes to. Raises `Unavailable` if this program's node ends before."""
        task, lost = asyncio.ensure_future(doing), asyncio.ensure_future(self._attachment.lost.wait())
        try:
            await asyncio.wait({task, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Unavailable(self._name, "the node that this program is attached to has ended")
            return task.result()
        finally:
            task.cancel()
            lost.cancel()

    async def _hold(self, cluster: Cluster) -> None:
        """Use this cluster from now on. Raises `Unavailable` if this program's node there has ended."""
        self._joined_to, self._address = cluster, cluster.address
        self._attached_by = Attachment(cluster.node_socket, cluster.address)
        self._linked = SupervisorLink(self._name, cluster, self._attached_by)
        await self._attachment.open()

    async def _leave(self) -> None:
        self._attachment.close()

    def _joined(self) -> Cluster:
        """Join the cluster."""
        raise NotImplementedError

    def _revive(self, cluster: Cluster) -> None:
        """Make sure that the supervisor runs."""

    async def _watch(self) -> None:
        """Follow the topology, without end."""
        while True:
            try:
                topology = await self._link.read(self._present.revision)
                if topology is not None:
                    self.client.set_unavailable(topology.unavailable)
                    self._take(topology, await self._link.handles_of(topology))
            except Exception as error:  # the supervisor is away: what is known here still holds
                log.info("%s does not return its topology: %s", self._name, one_line(error))
                await asyncio.sleep(_RETRY_S)

    async def _first_topology(self) -> tuple[Topology, dict[str, Any]]:
        """A topology, and the actors that it names, those of all partitions at least, however often it has to be asked
        for: the system may just be starting, or starting again, or replacing what is named."""

        async def noticed(_: float) -> tuple[Topology, dict[str, Any]]:
            topology = await self._link.read("")
            if topology is None:
                raise TimeoutError
            handles = await self._link.handles_of(topology)
            if missing := [name for name in topology.partitions if name not in handles]:
                raise ValueError(f"{missing[0]} is being replaced")
            return topology, handles

        try:
            return await retried(noticed, Patience(ASK_TIMEOUT_S, pause_s=_RETRY_S))
        except RayfoldError:
            raise
        except Exception as error:
            what = f"it has not come up within {ASK_TIMEOUT_S:g} s: {one_line(error) or 'no answer'}"
            raise Unavailable(self._name, what) from error

    def _take(self, topology: Topology, handles: Mapping[str, Any]) -> None:
        """Use the topology that the supervisor has published. `handles`: its actors, by name."""
        self._topology = topology
        for number, name in enumerate(topology.partitions):
            if self._partitions[number] != name and name in handles:  # else it has been replaced again since
                self.client.replace_partition(number, handles[name])
                self._partitions[number] = name
        self.client.set_unavailable(topology.unavailable)
        self.serve(topology.projections, handles.get)
