"""RelayedSystem: a program's end of a system that another program of this machine runs: a client without Ray.

Steps [1], [2] and [8]. It finds the other program by the lock of the store, connects to its relay (`relay.py`), and
follows the topology that this publishes. Commands go to the partitions' own sockets, everything else over the relay.
Histories, subscriptions and embedded replicas read the logs themselves.

When the other program ends, however it ends, every call that waits is `Unavailable` at once, and so is every later one,
by name and time. As soon as a program runs the store again, this one connects anew by itself.

Rules kept here: neither ray nor lmdb is imported by commands and queries; nothing is taken from a process of
another user; a program goes on with no store but the one that it had.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, TypeVarTuple

from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import RayfoldError, StoreMismatch, Unavailable
from ...runtime.feed.committed_positions import PartitionCalls
from ...runtime.printable import printable_log
from ...runtime.store.report import Report
from ...runtime.store.store import Store, open_store
from ...runtime.store.store_lock import Holder, holder_of
from ..client.client import Client
from ..client.relay_connection import RelayConnection, RelayedActor, RelayLine
from ..cluster.retry import Patience, retried
from ..cluster.rpc import one_line
from ..control.system_calls import SystemCall
from ..nodes.store import DiskStore
from ..relay.relayed_topology import RELAYED, RelayedTopology
from ..settings import Settings
from .connected import ConnectedSystem, end_task
from .relayed_calls import HolderCalls
from .system import OneMachine

__all__ = ["NotYet", "RelayedSystem"]

log = printable_log(__name__)

_STARTING_S: Final = 60.0
"""How long a program that connects waits for one that has the store and is not ready yet."""

_CONNECT_S: Final = 5.0
"""For connecting, which takes a millisecond."""

_PUBLISHED_S: Final = 1.0
"""For the first topology, which a relay has before other programs can find it, or soon after."""

_SILENT_S: Final = 5.0
"""How long a relay may answer nothing before its process counts as frozen. It has a thread of its own, so that it
answers within milliseconds however busy its program is."""

_PING_S: Final = 1.0
"""Between two questions to a relay whether it answers, while something else is waited for."""

_FROZEN: Final = "it is frozen, or its machine is overloaded"

_ABSENT_S: Final = 10.0
"""How long the socket of a process that runs may not be found: one whose file was removed is made again within 5 s."""

_APART: Final = "its socket is not found here, as where it has another folder for temporary files (PrivateTmp); " + (
    "give both the same TMPDIR"
)

_AGAIN_FIRST_S: Final = 0.05
_AGAIN_MAX_S: Final = 1.0
"""Between two looks for a program that runs the store: each reads one small file."""

_READ_S: Final = 20.0
"""Timeout of one wait for another topology."""

_DRAIN_S: Final = 5.0

_NO_SOCKET: Final = "it has Settings(local_sockets=False), or no private folder in TMPDIR, as its log names"


T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class RelayedSystem(ConnectedSystem):
    """A program's connection to the system of a store. Used on its event loop only."""

    one_machine = True
    again_max_s = _AGAIN_MAX_S
    """Between two tries to connect again, where it is known why that is not possible."""

    def __init__(self, path: Path, catalogue: Catalogue | None) -> None:
        """`catalogue`: the classes of this program; without, those of the program that runs the system."""
        super().__init__(catalogue)
        self._path = path
        self._store: DiskStore | None = None
        self._topology: RelayedTopology | None = None
        self._line: RelayLine | None = None
        self._holder: Holder | None = None
        """All four from `start` on."""
        self._absent: dict[str, float] = {}
        """The processes whose sockets were not found since the last connection, and since when."""
        self._lost = asyncio.Event()
        self._ending = False
        self._actors: dict[str, RelayedActor] = {}
        """By name: those of the topology. One that stays stays the same object, and whatever leads to it goes on."""
        self._undo = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Find the program that runs the system, and connect. Raises `Unavailable` if there is none."""
        self.begin()
        topology = await self._connected(time.monotonic() + _STARTING_S)
        self._undo.callback(self._close)
        self._catalogue = self._own or await self.classes_of(topology)
        self._client = Client(
            self._catalogue,
            self._partitions(topology),
            self._actor_named,
            topology.settings,
            placement_rule=self.store.placement,
            store_id=self.store.store_id,
            classes_of_others=True,
        )
        self._undo.push_async_callback(self._client.drain, _DRAIN_S)
        self._take(topology)
        self._undo.push_async_callback(end_task, asyncio.create_task(self._mind()))

    def begin(self) -> None:
        """What is needed before the other program is searched for."""
        self._store = open_store(self._path)

    async def classes_of(self, topology: RelayedTopology) -> Catalogue:
        """The classes of the system, imported here. Raises `DefinitionError`."""
        return topology.classes.found()

    async def stop(self, grace_s: float) -> None:
        """Disconnect; the system goes on."""
        self._ending = True
        await self._undo.aclose()

    @property
    def store(self) -> DiskStore:
        """The store, whose logs can be read here."""
        assert self._store is not None
        return self._store

    @property
    def _present(self) -> RelayedTopology:
        assert self._topology is not None
        return self._topology

    @property
    def _connected_line(self) -> RelayLine:
        assert self._line is not None
        return self._line

    @property
    def partition_calls(self) -> PartitionCalls:
        """See `System`: through whichever program runs it."""
        assert isinstance(self.store, Store)
        return HolderCalls(self.store)

    @property
    def name_in_log(self) -> str:
        """See `ConnectedSystem`."""
        return f"{self._path}, run by {self._holder}"

    @property
    def address(self) -> str:
        """The path of the socket."""
        return "" if self._holder is None else self._holder.connection.get("relay", "")

    @property
    def settings(self) -> Settings:
        """See `ConnectedSystem`."""
        return self._present.settings

    async def verify(self) -> Report:
        """See `Runtime.verify`: this program reads the logs itself."""
        from ...runtime.checks.agendas import verify_with_agendas

        return await asyncio.to_thread(verify_with_agendas, self.store.path)

    async def call(self, call: SystemCall[T, *Arguments], *arguments: *Arguments, timeout_s: float | None = None) -> T:
        """See `ConnectedSystem`: of the other program, over its relay."""
        if call.takes_nodes and self.one_machine:
            raise OneMachine.no_nodes()
        if self.cut_off_by:
            raise Unavailable(str(self._path), self.cut_off_by)
        limit_s = call.timeout_s if timeout_s is None else timeout_s
        asked = asyncio.ensure_future(self._called(call.name, arguments, limit_s))
        silent = asyncio.ensure_future(self._silence())
        try:
            await asyncio.wait({asked, silent}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                silence = f"{self._holder} has answered nothing for {_SILENT_S:g} s: {_FROZEN}"
                raise Unavailable(str(self._path), silence)
            found: T = asked.result()
            return found
        except RayfoldError:
            raise
        except Exception as error:
            what = self.cut_off_by or f"the program that runs it does not answer: {one_line(error) or 'in time'}"
            raise Unavailable(str(self._path), what) from error
        finally:
            asked.cancel()
            silent.cancel()

    # -------------------------------------------------------------------------------------------------------------

    async def _called(self, method: str, arguments: tuple[Any, ...], timeout_s: float) -> Any:
        """What the other program answers. Raises what it does, and what has become of the connection."""
        return await asyncio.wrap_future(self._connected_line.call("", method, timeout_s, arguments))

    async def _read_topology(self, wait_s: float, limit_s: float, known: int = 0) -> RelayedTopology | None:
        """The topology, once it is another than that of this number; None if it is the same for so long."""
        found: RelayedTopology | None = await self._called("topology", (known, wait_s), limit_s)
        return found

    async def _silence(self) -> None:
        """Return once the other program has answered nothing for `_SILENT_S`."""
        while True:
            await asyncio.sleep(_PING_S)
            try:
                await self._read_topology(0.0, _SILENT_S, self._topology.revision if self._topology else 0)
            except TimeoutError:
                return
            except Exception as error:  # it was one call too many, or the connection is lost, which fails all calls
                log.debug("%s: not asked whether it answers: %s", self._path, one_line(error))

    async def _connected(self, until_s: float) -> RelayedTopology:
        """Connect, however often it has to be tried until then. Raises `Unavailable`."""
        for_s = until_s - time.monotonic()
        patience = Patience(for_s, pause_s=_AGAIN_FIRST_S, pause_max_s=_AGAIN_MAX_S, again=(NotYet,))
        try:
            return await retried(lambda _: self._connect(), patience)
        except NotYet as error:
            raise Unavailable(str(self._path), str(error)) from None

    async def _connect(self) -> RelayedTopology:
        """Raises `Unavailable`, `StoreMismatch`, and `NotYet` if it is about to be possible."""
        return await self.connect_to(self._reachable(), self.store.store_id)

    async def connect_to(self, holder: Holder, store_id: str, proof: str = "") -> RelayedTopology:
        """Use the relay of this process from now on. Raises what `greeted` does."""
        connection = await self.greeted(holder, store_id, proof)
        line = self._line or RelayLine(connection)
        line.connection, self._line, self._holder = connection, line, holder
        self._lost.clear()
        connection.on_lost = self._connection_lost
        try:
            async with self._named(holder):
                topology = await self._read_topology(_PUBLISHED_S, _CONNECT_S)
            if topology is None:
                raise NotYet(f"{holder} has not published its actors yet")
        except BaseException:
            connection.close()
            raise
        return topology

    async def greeted(self, holder: Holder, store_id: str, proof: str = "") -> RelayConnection:
        """A connection to the relay of this process, on the event loop that awaits it. Raises `Unavailable`,
        `NotPrivate`, and `NotYet` if it is about to be possible."""
        connection = RelayConnection(store_id, RELAYED, proof)
        try:
            async with self._named(holder), asyncio.timeout(_CONNECT_S):
                path = holder.path_here(holder.connection["relay"])
                await asyncio.get_running_loop().create_unix_connection(lambda: connection, path)
                self._absent.clear()
                if refused := await connection.greeted:
                    if connection.other_user is not None:
                        raise connection.other_user
                    raise Unavailable(str(self._path), f"{holder} does not take this program in: {refused}")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.asynccontextmanager
    async def _named(self, holder: Holder) -> AsyncIterator[None]:
        """Around what is done with the relay of this process: what fails has its name."""
        try:
            yield
        except (RayfoldError, NotYet):
            raise
        except TimeoutError as error:
            what = f"{holder} listens, and has answered nothing for {_CONNECT_S:g} s: {_FROZEN}"
            raise Unavailable(str(self._path), what) from error
        except OSError as error:
            what, now_s = f"{holder} does not answer: {one_line(error)}", time.monotonic()
            if now_s - self._absent.setdefault(str(holder), now_s) > _ABSENT_S:
                raise Unavailable(str(self._path), f"{what}; {_APART}") from error
            raise NotYet(what) from error  # it may just be ending
        except Exception as error:
            raise NotYet(f"{holder} has ended: {one_line(error)}") from error

    def _reachable(self) -> Holder:
        path = str(self._path)
        if (found := open_store(self._path)).store_id != self.store.store_id:
            what = f"it is store {found.store_id} now, and this program had store {self.store.store_id}"
            raise StoreMismatch(path, what, "close this connection, and make another one")
        holder = holder_of(self._path)
        if holder is None:
            remedy = "start one with `rayfold run`, or with Runtime(...)"
            raise Unavailable(path, f"no program runs it now; {remedy}")
        if holder.host != socket.gethostname():
            raise Unavailable(path, f"it is held by {holder}; connect on that machine")
        if not holder.connection:
            raise NotYet(f"{holder} has not started its actors")
        if system := holder.connection.get("system"):
            raise Unavailable(path, f"it is the share of a node, held by {holder}; connect by the name {system!r}")
        if "relay" not in holder.connection:
            raise Unavailable(path, f"{holder} has no socket for other programs: {_NO_SOCKET}")
        return holder

    def _connection_lost(self) -> None:
        """The other program has ended, or has cut this one off. Called once the connection is lost."""
        self._lost.set()
        if self._client is None or self._ending or self.cut_off_by:
            return
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        what = f"the connection to {self._holder}, which ran it, was lost at {since}"
        self.cut_off(f"{what}; this program connects again as soon as a program runs it")
        self._client.give_up(self.cut_off_by)

    def cut_off(self, why: str) -> None:
        """Nothing reaches the system from now on."""
        self.cut_off_by = why
        log.warning("%s: %s", self._path, why)
        self.client.detach(why)

    async def _mind(self) -> None:
        """Follow the topology, and connect again whenever the connection is lost; without end."""
        while True:
            if self._lost.is_set():
                self._connection_lost()
                self.go_on(await self._found_again())
                continue
            following = asyncio.create_task(self._follow())
            try:
                await self._lost.wait()
            finally:
                following.cancel()

    def go_on(self, topology: RelayedTopology) -> None:
        """It is connected again."""
        self.client.attach(self._partitions(topology))
        self.cut_off_by = ""
        self._take(topology)
        log.warning("%s: connected again, to %s", self._path, self._holder)

    async def find(self) -> RelayedTopology:
        """Connect, if a program runs the system now."""
        return await self._connect()

    async def _found_again(self) -> RelayedTopology:
        pause_s, known = _AGAIN_FIRST_S, ""
        while True:
            longest_s = _AGAIN_MAX_S
            try:
                return await self.find()
            except NotYet as error:
                log.debug("%s: not connected yet: %s", self._path, error)
            except Exception as error:
                longest_s = self.again_max_s
                if (why := one_line(error)) != known:
                    known = why
                    log.warning("%s: not connected yet: %s", self._path, why)
            await asyncio.sleep(min(longest_s, pause_s))
            pause_s = min(longest_s, 2 * pause_s)

    async def _follow(self) -> None:
        while True:
            present = self._present
            await self.compare(present.fingerprints)
            try:
                topology = await self._read_topology(_READ_S, _READ_S + _CONNECT_S, present.revision)
            except TimeoutError:
                continue
            except Exception as error:  # it was one call too many, or the connection is lost, which ends this
                log.debug("%s: no topology: %s", self._path, one_line(error))
                await asyncio.sleep(_AGAIN_MAX_S)
                continue
            if topology is not None:
                self._take(topology)

    def _take(self, topology: RelayedTopology) -> None:
        """Use the topology that the relay has sent."""
        before, self._topology = self._topology, topology
        for number, name in enumerate(topology.partitions):
            if before is not None and before.partitions[number] != name:
                self.client.replace_partition(number, self._actor(topology, name))
        self.client.set_unavailable(topology.unavailable)
        self.serve(topology.projections, partial(self._serving, topology))
        self._actors = {name: actor for name, actor in self._actors.items() if name in topology.actor_ids}

    def _partitions(self, topology: RelayedTopology) -> list[RelayedActor]:
        return [self._actor(topology, name) for name in topology.partitions]

    def _serving(self, topology: RelayedTopology, name: str) -> RelayedActor | None:
        """None if it has ended, which a later topology has."""
        return self._actor(topology, name) if name in topology.actor_ids else None

    def _actor(self, topology: RelayedTopology, name: str) -> RelayedActor:
        actor_id, known = topology.actor_ids.get(name, ""), self._actors.get(name)
        if known is None or not known.is_same(actor_id):
            known = self._actors[name] = RelayedActor(self._connected_line, name, actor_id)
        return known

    def _actor_named(self, name: str) -> RelayedActor:
        return RelayedActor(self._connected_line, name)

    def _close(self) -> None:
        if self._line is not None:
            self._line.connection.close()


class NotYet(Exception):
    """It may be possible in a moment: why it is not."""
