"""NodeAgent: one actor for each node that has a share of a store; it holds the share, and reads its logs for others.

Beside all steps. It is bound hard to its node, so where it runs, the share is. It holds the share, so that a second
system is refused with the name of the first; it makes what a new store or a node that joins needs there; projectors and
programs on other nodes read the logs through it, and not through the partition, whose interpreter is for commands.

What happens to the share is decided in `node_share.py`; this is the way to it.

Rules kept here: a node agent answers for its own node only, and reads its identity (`node.py`) before it does. What
changes something happens one at a time, and none of it takes long: a log is copied in pieces; reads have threads of
their own, and so has checking every byte. It can be killed at any moment: whatever it was doing is done again when it
is asked for again, and when Ray has started it again it opens its share by itself, since no other process would know
that it has to be opened.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import ray

from ...runtime.checks.agendas import verify_with_agendas
from ...runtime.errors import InvalidMessage, StorageFailed, StoreMissing, Unavailable
from ...runtime.log.reader import LmdbReader
from ...runtime.log.sealing import Seal
from ...runtime.log.segment import LogSegment
from ...runtime.own_random import OWN
from ...runtime.printable import printable_log
from ...runtime.store.home_statement import CopyFacts, HomeStatement
from ...runtime.store.node_share import NodeShare, Share, ShareFacts, check_home
from ...runtime.store.node_store import node_share, open_share
from ...runtime.store.partition_map import PartitionMap
from ...runtime.store.report import Report
from ...runtime.store.store_lock import StoreLock
from ..cluster.names import node_agent_name
from ..cluster.node import NODE_LABEL, data_folder_here, verify_node
from ..cluster.rpc import call_now, one_line, replies
from ..os_process.actor_log import begin_log
from ..packaging.builds import Build, builds_of, lend_checkpoint, mark_serving, remove_build, remove_older
from .handle import NodeAgentHandle

__all__ = ["READS", "NodeAgent", "NodeAgentPlan", "Publish", "Revive", "Serve", "start_node_agent"]

T = TypeVar("T")

log = printable_log(__name__)

Revive = Callable[[str, str, float], None]
"""See `NodeAgentPlan.revive`."""

Publish = Callable[[Mapping[str, str]], None]
"""Writes down, in the lock of the share, how programs of this machine reach the node agent."""

Serve = Callable[[str, str, Publish], None]
"""See `NodeAgentPlan.serve`."""

READS: Final = frozenset(
    {
        "head",
        "read",
        "segment",
        "version",
        "read_stream",
        "find_command",
        "find_commands",
        "find_snapshot",
        "holdings",
        "secret",
        "epoch",
        "subscription_rows",
        "successor",
    }
)
"""What others may have read for them."""

_READERS: Final = 4
"""Threads that read for others. A page of 512 events takes one of them about a millisecond."""

_WATCH_S: Final = 10.0
"""Seconds between two checks of the supervisor of a deployed system: one short call."""

_PATIENCE_S: Final = 30.0
"""How long a supervisor may be silent before a node agent starts another one."""

_PULL_TIMEOUT_S: Final = 30.0
"""For one segment of a log from its present home: 8 MB."""


@dataclass(frozen=True, slots=True)
class NodeAgentPlan:
    """All that a node agent needs to start, and to start again after a crash."""

    name: str
    """The name of the store, and of the folder of its shares."""
    node_id: str
    namespace: str
    deployed: bool = False
    """Whether the system outlives the program that has started it."""
    revive: Revive | None = None
    """Starts the supervisor again where it is lost: with the name of the system, Ray's namespace, and for how many
    seconds it may be silent. None: that is not done from here."""
    serve: Serve | None = None
    """Serves programs of this machine, on a thread of its own: with the name of the system and Ray's namespace. None:
    there are none."""


class NodeAgent:
    """The share of one node."""

    def __init__(self, plan: NodeAgentPlan) -> None:
        begin_log()
        self._plan = plan
        self._hold: StoreLock | None = None
        self._share: Share | None = None
        self._changing = threading.Lock()
        """Held by whatever changes something in the share."""
        self._readers: dict[int, tuple[int, LmdbReader]] = {}
        """Partition -> the version of the map since which it is at home here, and a reader of its log."""
        self._reading = threading.Lock()
        """Held while one is opened, and while they are released: one that is not closed keeps its log from ever being
        opened here to be written."""
        self._watching: threading.Thread | None = None
        self._serving: threading.Thread | None = None
        self._connection: Mapping[str, str] = {}
        """What the lock of the share has for programs."""
        self._opening: Any = None
        """The call that opens it after a restart, for as long as it is under way."""
        if ray.is_initialized():  # else the next line would join whatever Ray it finds
            with contextlib.suppress(Exception):  # the supervisor asks as well; after a restart it does not
                self._opening = ray.get_runtime_context().current_actor.open.remote()

    # --- the share -----------------------------------------------------------------------------------------------

    @ray.method
    @replies
    def open(self) -> ShareFacts:
        """What is here. Safe to repeat."""
        if self._plan.revive is not None and self._watching is None:
            self._watching = threading.Thread(
                target=self._watch, args=(self._plan.revive,), name="rayfold-watch", daemon=True
            )
            self._watching.start()
        if self._plan.serve is not None and self._serving is None:
            served = self._plan.name, self._plan.namespace, self._publish
            self._serving = threading.Thread(target=self._plan.serve, args=served, name="rayfold programs", daemon=True)
            self._serving.start()
        return self._changed(lambda share: share.facts())

    @ray.method
    @replies
    def propose(self, store_map: PartitionMap) -> PartitionMap:
        """Decide which store is created, of those that are proposed here: the first. Its first map."""
        return self._changed(lambda share: share.propose(store_map))

    @ray.method
    @replies
    def create(self, store_map: PartitionMap) -> None:
        """Make this node's share of a new store, all but the map."""
        return self._changed(lambda share: share.create(store_map), makes=True)

    @ray.method
    @replies
    def place(self, store_map: PartitionMap) -> PartitionMap:
        """Keep this map from now on, together with what is known here already. The map as it is here then."""
        return self._changed(lambda share: share.place(store_map), makes=True)

    @ray.method(concurrency_group="reads")
    @replies
    def map(self) -> PartitionMap | None:
        """The map that this node has."""
        share = self._share
        return None if share is None else share.map

    # --- reading for others --------------------------------------------------------------------------------------

    @ray.method(concurrency_group="reads")
    @replies
    def read(self, partition: int, what: str, arguments: Sequence[Any]) -> object:
        """What a reader of this partition's log answers to one of `READS`."""
        if what not in READS:
            raise InvalidMessage("node agent", f"it answers {', '.join(sorted(READS))}, and not {what!r}")
        reader = self._reader(partition)
        try:
            return getattr(reader, what)(*arguments)
        except StorageFailed:
            if any(reader is one for _, one in self._readers.values()):
                raise
        return getattr(self._reader(partition), what)(*arguments)  # it was closed: the partition has moved away

    def _reader(self, partition: int) -> LmdbReader:
        """Raises `Sealed` for a partition that is at home elsewhere."""
        with self._reading:
            share = self._share
            if share is None or share.map is None:
                raise Unavailable(f"partition {partition}", "its home has not been opened")
            check_home(share.map, partition, self._plan.node_id)
            if partition not in self._readers:
                self._readers[partition] = share.map.since[partition], share.store.open_reader(partition)
            return self._readers[partition][1]

    @ray.method(concurrency_group="checks")
    @replies
    def verify(self) -> Report:
        """Check every byte of the logs that are at home here."""
        return verify_with_agendas(self._ensure_open().store.path)

    # --- moving (see `moves.py`) --------------------------------------------------------------------------------

    @ray.method(concurrency_group="moves")
    @replies
    def pull(self, partition: int, source: str, up_to: int) -> int:
        """Copy what the agent of this name has of a partition's log up to a position, or as much as is done at once.
        How far the copy is now."""
        agent: NodeAgentHandle = ray.get_actor(source, self._plan.namespace)

        def fetch(after: int, up_to: int) -> LogSegment | None:
            positions: Sequence[int] = (after, up_to)
            segment = call_now(agent.read, partition, "segment", positions, timeout_s=_PULL_TIMEOUT_S)
            return cast(LogSegment | None, segment)

        return self._changed(lambda share: share.pull(partition, up_to, fetch))

    @ray.method(concurrency_group="moves")
    @replies
    def keep_rows(self, partition: int, rows: Mapping[str, bytes]) -> None:
        """The copy keeps what subscriptions keep in the sealed original."""
        return self._changed(lambda share: share.keep_rows(partition, rows))

    @ray.method(concurrency_group="moves")
    @replies
    def finish(self, partition: int, sealed: Seal) -> None:
        """The copy is to go on from this seal: it must have come to its head, and takes over its count of epochs."""
        return self._changed(lambda share: share.finish(partition, sealed))

    @ray.method(concurrency_group="moves")
    @replies
    def home_statement(self, partition: int, positions: Sequence[int]) -> HomeStatement:
        """This node's statement about a partition that is at home here (`home_statement.py`)."""
        return self._changed(lambda share: share.home_statement(partition, positions))

    @ray.method(concurrency_group="moves")
    @replies
    def leftovers(self) -> list[CopyFacts]:
        """The copies of logs here that are not the log of a partition at home here."""
        return self._changed(lambda share: share.leftovers())

    @ray.method(concurrency_group="moves")
    @replies
    def discard(self, name: str, home: HomeStatement) -> str:
        """Remove a copy on the statement of its partition's home. Why it is kept, if it is."""
        return self._changed(lambda share: share.discard(name, home))

    def _changed(self, doing: Callable[[NodeShare], T], *, makes: bool = False) -> T:
        """Do something with the share, and look afterwards what is here now. `makes`: it may make it, which takes the
        store's lock itself."""
        folder = self._folder()
        with self._changing:
            present = self._reopen()
            if makes and self._hold is not None and (present is None or present.map is None):
                self._hold.release()
                self._hold = None
            try:
                return doing(node_share(folder, self._plan.node_id))
            finally:
                self._reopen()

    # --- builds of read models (see `control/builds.py`) ----------------------------------------------------------

    @ray.method(concurrency_group="reads")
    @replies
    def builds(self, projection: str) -> dict[tuple[int, int], bool]:
        """The builds of a projection that have folders here, by version and number, and whether they have served."""
        return {build.order: build.has_served for build in builds_of(self._folder(), projection)}

    @ray.method
    @replies
    def lend_checkpoint(self, build: Build, part: int, replica: int) -> None:
        """Have a new replica begin with the checkpoint of the first one, if that is here."""
        lend_checkpoint(self._local(build), part, replica)

    @ray.method
    @replies
    def mark_serving(self, build: Build) -> None:
        """Write down that a build is complete and in charge."""
        mark_serving(self._local(build))

    @ray.method
    @replies
    def remove_older(self, projection: str, serving: Build) -> None:
        """Remove the builds before the one that serves."""
        remove_older(self._folder(), projection, serving)

    @ray.method
    @replies
    def remove_build(self, build: Build) -> None:
        """Remove a build."""
        remove_build(self._local(build))

    @ray.method
    @replies
    def remove_folder(self, folder: Path) -> None:
        """Remove what one projector has saved."""
        shutil.rmtree(self._folder() / folder, ignore_errors=True)

    def _local(self, build: Build) -> Build:
        return build._replace(path=self._folder() / build.path)

    # -------------------------------------------------------------------------------------------------------------

    def _publish(self, connection: Mapping[str, str]) -> None:
        """On the thread that serves programs."""
        with self._changing:
            self._connection = connection
            if self._hold is not None:
                self._hold.publish(connection)

    def _watch(self, revive: Revive) -> None:
        """Make sure that there is a supervisor. All node agents do; the first one starts it."""
        while True:
            time.sleep(_WATCH_S * OWN.uniform(0.8, 1.2))
            try:
                revive(self._plan.name, self._plan.namespace, _PATIENCE_S)
            except Exception as error:
                log.info("%s: %s", self._plan.name, one_line(error))

    def _folder(self) -> Path:
        """Where the share is. Raises `StoreMissing` or `StoreMismatch` if this is not the node that it should be."""
        data = data_folder_here()
        if data is None:
            what = f"the node {self._plan.node_id} was started without a data folder; start it with `rayfold node`"
            raise StoreMissing("RAYFOLD_DATA", what)
        verify_node(data, self._plan.node_id)
        return data / self._plan.name

    def _reopen(self) -> Share | None:
        folder = self._folder()
        share = open_share(folder, self._plan.node_id)
        if share is not None and self._hold is None:
            self._hold = StoreLock(folder, f"the node agent of {self._plan.name}")
            if self._connection:
                self._hold.publish(self._connection)
        with self._reading:
            self._share = share
            for partition, (since, reader) in list(self._readers.items()):
                if share is None or share.map is None or not _still_here(share, share.map, partition, since):
                    del self._readers[partition]
                    reader.close()
        return share

    def _ensure_open(self) -> Share:
        share = self._share or self._reopen()
        if share is None:
            raise StoreMissing(str(self._folder()), f"there is no share of {self._plan.name} here")
        return share


def start_node_agent(plan: NodeAgentPlan) -> NodeAgentHandle:
    """A node agent that Ray restarts without limit, on its node and nowhere else. One that exists already is that
    one."""
    remote: Any = ray.remote  # its types do not know concurrency groups
    actor = remote(concurrency_groups={"reads": _READERS, "moves": 1, "checks": 1})(NodeAgent)
    options = actor.options(
        name=node_agent_name(plan.name, plan.node_id),
        namespace=plan.namespace,
        get_if_exists=True,
        lifetime="detached" if plan.deployed else None,
        label_selector={NODE_LABEL: plan.node_id},
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
        enable_task_events=False,
    )
    started: NodeAgent = options.remote(plan)
    return started


def _still_here(share: Share, store_map: PartitionMap, partition: int, since: int) -> bool:
    """Whether a partition is at home here, and has been since that version of the map: else its log is another file."""
    return partition not in share.store.away and store_map.since[partition] == since
