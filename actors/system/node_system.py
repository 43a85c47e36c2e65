"""NodeSystem: a program's end of a system on a cluster, by way of a node of its machine: a client without Ray.

Steps [1], [2] and [8]. It finds the agents of the nodes of its machine (`../nodes/local_shares.py`) and uses the relay
of one of them (`../control/node_relay.py`), as on one machine that of the program that runs the system. Commands and
queries to partitions and projectors of this machine go over the sockets of these; the agent passes on all others, and
what is asked of the system.

The agent is not the system: while it is away, for the two seconds that Ray takes to start it again, what has a socket
goes on, and the rest is sent again. If no agent is back by then, every call is `Unavailable` at once, with the reason,
until one is.

Rules kept here: neither ray nor lmdb is imported; a program goes on with no store but the one that it had; the head is
never asked.
"""

from __future__ import annotations

import asyncio
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

from ...runtime.encoding.catalogue import Catalogue
from ...runtime.errors import RayfoldError, Unavailable
from ...runtime.feed.committed_positions import PartitionCalls
from ...runtime.printable import printable_log
from ...runtime.store.report import Report
from ...runtime.store.store_lock import Holder
from ..client.partition_calls import KnownUnreachable
from ..client.relay_connection import RelayConnection
from ..cluster.cluster_file import address_in
from ..cluster.token import proof_of_token, token_of
from ..control import system_calls
from ..control.supervisor_link import ASK_TIMEOUT_S
from ..control.system_calls import SystemCall
from ..nodes.local_shares import LocalShare, local_shares
from ..nodes.store import ClusterStore
from ..packaging.code import make_importable
from ..relay.relayed_topology import RelayedTopology
from .relayed import NotYet, RelayedSystem
from .relayed_calls import RelayedCalls
from .relayed_store import RelayedReads, RelayedStore

__all__ = ["NodeSystem"]

log = printable_log(__name__)

_AWAY_S: Final = 5.0
"""How long no agent may be there before this program counts as cut off: Ray starts one that was killed again within
two seconds."""

_LOOK_S: Final = 0.05

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class NodeSystem(RelayedSystem):
    """A program's connection to an application on a cluster. Used on its event loop only."""

    one_machine = False

    def __init__(self, name: str, catalogue: Catalogue | None, wanted: str, folder: Path) -> None:
        """`wanted`, `folder`: see `local_shares`."""
        super().__init__(Path(name), catalogue)
        self._name, self._wanted, self._folder = name, wanted, folder
        self._address = ""
        self._reads = RelayedReads(name, self._reading)
        self._spread: RelayedStore | None = None
        """From the first topology on."""
        self._away_since_s = time.monotonic()
        self._cutting: asyncio.TimerHandle | None = None
        """What cuts this program off, while no agent is there."""

    def begin(self) -> None:
        """See `RelayedSystem`."""
        self._undo.callback(self._reads.close)

    async def classes_of(self, topology: RelayedTopology) -> Catalogue:
        """See `RelayedSystem`: deployed modules come after those that this program has itself."""
        if topology.code:
            await asyncio.to_thread(make_importable, topology.code, self._code, first=False)
        return topology.classes.found()

    @property
    def store(self) -> ClusterStore:
        """Where its logs are, as is known here."""
        assert self._spread is not None
        return self._spread

    @property
    def partition_calls(self) -> PartitionCalls:
        """See `System`."""
        return RelayedCalls(self._reads, self._partition_name)

    def _partition_name(self, partition: int) -> str:
        if why := self._present.unavailable.get(partition):
            raise KnownUnreachable(f"partition {partition}", why)
        return self._present.partitions[partition]

    @property
    def address(self) -> str:
        """Of the cluster."""
        return self._address

    async def verify(self) -> Report:
        """See `ConnectedSystem`: the supervisor has it done where the logs are."""
        return await self.call(system_calls.VERIFY)

    async def call(self, call: SystemCall[T, *Arguments], *arguments: *Arguments, timeout_s: float | None = None) -> T:
        """See `RelayedSystem`. A short one that changes nothing is made again if the agent has ended meanwhile."""
        again = not call.changes and call.timeout_s <= ASK_TIMEOUT_S
        while True:
            while self._cutting is not None:
                await asyncio.sleep(_LOOK_S)
            try:
                return await super().call(call, *arguments, timeout_s=timeout_s)
            except Unavailable:
                if not again or self._cutting is None:
                    raise

    # -------------------------------------------------------------------------------------------------------------

    async def _connect(self) -> RelayedTopology:
        """See `RelayedSystem`: to the first agent that takes this program in."""
        failure: Exception | None = None
        for share, holder in await self._agents():
            try:
                topology = await self.connect_to(holder, self._store_id(), _proof(holder))
            except (RayfoldError, NotYet) as error:
                failure = failure or error
                continue
            self._address = share.address
            return self._with_store(topology)
        if failure is not None:
            raise failure
        absent = "nothing of that name runs on the nodes of this machine; `rayfold deploy` starts it"
        if time.monotonic() - self._away_since_s < _AWAY_S:
            raise NotYet(absent)
        raise Unavailable(self._name, absent)

    def _with_store(self, topology: RelayedTopology) -> RelayedTopology:
        assert topology.store_map is not None  # a node agent publishes it with its map
        self._spread = RelayedStore(self._name, "", topology.store_map, self._reads)
        return topology

    def _store_id(self) -> str:
        return "" if self._spread is None else self._spread.store_id

    async def _agents(self) -> list[tuple[LocalShare, Holder]]:
        """The agents of this machine that serve programs, or are about to. Raises `Unavailable` where there is no
        share, and `NotYet` where no agent is ready."""
        return await asyncio.to_thread(self._agents_now)

    def _agents_now(self) -> list[tuple[LocalShare, Holder]]:
        wanted = self._wanted
        if wanted == "auto" and self._address:  # the same one again; where `rayfold up` has started it by now
            wanted = address_in(self._folder) or self._address
        shares = local_shares(self._name, wanted, self._folder)
        if not shares:
            of = "" if wanted == "auto" else f" of {wanted}"
            what = f"no node{of} that this user runs on this machine has a share of it"
            raise Unavailable(self._name, what)
        held = [(share, holder) for share in shares if (holder := share.holder()) is not None]
        ready = [(share, holder) for share, holder in held if "relay" in holder.connection]
        if held and not ready:
            raise NotYet(f"{held[0][1]} has not published its actors yet")
        return ready

    async def _reading(self) -> RelayConnection:
        """A connection for the logs, on another event loop than that of this program. Raises `Unavailable`."""
        why = "none is ready"
        for _, holder in await self._agents():
            try:
                return await self.greeted(holder, self._store_id(), _proof(holder))
            except (RayfoldError, NotYet) as error:
                why = str(error)
        raise Unavailable(self._name, f"no agent of a node of this machine takes this program in: {why}")

    def _code(self, digest: str) -> bytes | None:
        found: bytes | None = self._reads.ask("code", digest)
        return found

    def _connection_lost(self) -> None:
        """The agent has ended, or has cut this program off."""
        self._lost.set()
        if self._client is None or self._ending or self.cut_off_by or self._cutting is not None:
            return
        self._away_since_s = time.monotonic()
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        what = f"the connection to {self._holder}, on {self._address}, was lost at {since}, and no other one is there"
        remedy = "this program connects again as soon as an agent of a node of this machine serves it"
        self._cutting = asyncio.get_running_loop().call_later(_AWAY_S, self._cut, f"{what}; {remedy}")

    def _cut(self, why: str) -> None:
        self._cutting = None
        self.cut_off(why)

    def go_on(self, topology: RelayedTopology) -> None:
        """See `RelayedSystem`. What has a socket, and was not cut off, goes on as it is."""
        if self._cutting is None:
            super().go_on(topology)
            return
        self._cutting.cancel()
        self._cutting = None
        self._take(topology)
        log.info("%s: connected again, to %s", self._name, self._holder)

    def _take(self, topology: RelayedTopology) -> None:
        self._with_store(topology)
        super()._take(topology)

    def _close(self) -> None:
        if self._cutting is not None:
            self._cutting.cancel()
        super()._close()


def _proof(holder: Holder) -> str:
    """That this program has the token of the cluster, for the socket of this process."""
    return proof_of_token(token_of(os.environ), Path(holder.connection["relay"]).name)
