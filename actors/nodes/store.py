"""ClusterStore: a store whose partitions are at home on several nodes, as any process of the cluster sees it.

Beside all steps. It has what a `Store` has for those who read: projectors, subscriptions, histories, backups. A reader
of a partition that is at home on this node reads the log itself; any other asks the node agent of the home
(`nodes/agent.py`).

Where a partition is at home may change while a reader is open. The reader detects it: here, because the map in the
share is another file; elsewhere, because the node agent returns the new home. The reader continues there, at the same
position.

Rules kept here: a reader of a partition whose home does not answer raises an error with its name, and never waits for
long unless it was asked to: others wait for it who have nothing to do with that partition.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, TypeVarTuple, cast

from ...runtime.errors import RayfoldError, Sealed, StorageFailed, StoreMissing, Unavailable
from ...runtime.log.contract import STREAM_PAGE_BYTES, CommandEntry, Holdings, Snapshot
from ...runtime.log.memory import MemoryLog
from ...runtime.log.reader import LmdbReader
from ...runtime.log.segment import LogSegment
from ...runtime.log.writer import LmdbLog
from ...runtime.store.memory_logs import MemoryLogs
from ...runtime.store.node_share import check_epoch, check_home
from ...runtime.store.node_store import open_share
from ...runtime.store.partition_map import MAP, PartitionMap, merged, read_map
from ...runtime.store.store import Store
from ...runtime.stream import StreamId, partition_of
from ..cluster.attachment import head_is_away
from ..cluster.names import node_agent_name
from ..cluster.node import data_folder_here, node_id_here
from ..cluster.retry import Attempts, Patience
from ..cluster.rpc import Method, Reply, call_now
from .handle import NodeAgentHandle

__all__ = ["AnyStore", "ClusterReader", "ClusterStore", "DiskStore", "PartitionLocator", "open_patient_reader"]

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

PATIENCE_S: Final = 5.0
"""How long a reader of one question waits for a home that does not answer: a killed node agent is restarted in 2 s."""

_READ_TIMEOUT_S: Final = 10.0
"""Timeout of one answer of a node agent: a page takes milliseconds, and one that was lost on the way would be waited
for."""

_SILENT_S: Final = 1.0
"""How long a home that did not answer is not asked again: each question would wait for Ray for as long."""

STORES_KNOWN_MAX: Final = 64
"""Stores whose places a process remembers, each some kilobytes and the handles of its nodes' agents. One that was
dropped is looked up again."""

_RETRY_S: Final = 0.1

_MOVES_MAX: Final = 8
"""Homes that one question is sent on to, before it waits. If a partition moves more often, an answer is outdated."""


@dataclass(frozen=True, slots=True)
class ClusterStore:
    """A store that is spread over nodes. A plain value: it holds nothing open and can be sent to other processes."""

    name: str
    """The name of the store; the folder of each share has it."""
    namespace: str
    """Namespace in Ray of its node agents."""
    map: PartitionMap
    """As it was when this value was made; readers find out how it is."""

    @property
    def store_id(self) -> str:
        """A UUID, made with the store; every partition's log carries it too."""
        return self.map.store_id

    @property
    def partitions(self) -> int:
        """Fixed when the store is created: it determines the partition of each stream."""
        return len(self.map.owners)

    @property
    def placement(self) -> str:
        """The rule by which streams find their partitions; never changes."""
        return self.map.placement

    def partition_of(self, stream: StreamId) -> int:
        """In which partition a stream is."""
        return partition_of(stream, self.partitions, self.placement)

    @property
    def path(self) -> Path:
        """What errors call it. A relative path: it is in the data folders of its nodes."""
        return Path(self.name)

    def open_reader(self, partition: int, *, patience_s: float = 0.0) -> ClusterReader:
        """A reader of a partition's log, wherever that is; as many at once as one likes. Nothing is opened yet.

        `patience_s`: how long it waits for a home that does not answer, before it raises an error."""
        return ClusterReader(self, PartitionLocator.of(self), partition, patience_s)

    def open_log(self, partition: int) -> LmdbLog:
        """The writable log of a partition that is at home on this node.

        Raises `Sealed` if it is at home elsewhere, `StoreMissing` if it is gone: it is never made anew.
        """
        store, store_map = self._share_here()
        check_home(store_map, partition, node_id_here())
        opened = store.open_log(partition)
        try:
            check_epoch(store_map, partition, opened.epoch(), str(store.partition_path(partition)))
        except BaseException:
            opened.close()
            raise
        return opened

    def folder_here(self) -> Path:
        """The folder of this node's share. Raises `StoreMissing` on a node without a data folder."""
        data = data_folder_here()
        if data is None:
            raise StoreMissing(self.name, "this process is not on a node with a data folder")
        return data / self.name

    def share_here(self) -> Store:
        """The share of this node, with what is at home elsewhere as `away`. Raises `StoreMissing`, `StoreMismatch`."""
        return self._share_here()[0]

    def map_here(self) -> PartitionMap:
        """The map in the share of this node. Raises what `share_here` does."""
        return self._share_here()[1]

    def _share_here(self) -> tuple[Store, PartitionMap]:
        """The share of this node, and its map."""
        folder = self.folder_here()
        share = open_share(folder, node_id_here())
        if share is None or share.map is None or share.store.store_id != self.store_id:
            raise StoreMissing(str(folder), f"this node's share of store {self.store_id} is not here")
        return share.store, share.map


DiskStore = Store | ClusterStore
"""A store on this machine, or one that is spread over several."""

AnyStore = DiskStore | MemoryLogs
"""... or one in the memory of this process."""


class PartitionLocator:
    """Where the partitions of a store on several nodes are at home, as far as this process knows. Safe from any
    thread."""

    _known: Final[OrderedDict[tuple[str, str, str], PartitionLocator]] = OrderedDict()
    """One for each store that this process reads, the last one used at the end."""
    _known_lock: Final = threading.Lock()

    def __init__(self, store: ClusterStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._map = store.map
        self._agents: dict[str, NodeAgentHandle] = {}
        self._silent_until_s: dict[str, float] = {}
        self._connection: tuple[str, str] | None = None
        """Name of Ray's session and id of the job, for which the handles are."""
        self._stamp: tuple[int, int] | None = None
        data = data_folder_here()
        self.here = node_id_here()
        """The node of this process; empty if it has no data folder."""
        self._map_file = data / store.name / MAP if data is not None else None

    @classmethod
    def of(cls, store: ClusterStore) -> PartitionLocator:
        """What this process knows of that store."""
        key = (store.namespace, store.name, store.store_id)
        with cls._known_lock:
            known = cls._known.get(key) or cls._known.setdefault(key, cls(store))
            cls._known.move_to_end(key)
            if len(cls._known) > STORES_KNOWN_MAX:
                cls._known.popitem(last=False)
        known.learn(store.map)
        return known

    def map(self) -> PartitionMap:
        """The map, as far as it is known here. On a node of the store: as its share has it."""
        if self._map_file is not None:
            try:
                found = self._map_file.stat()
            except OSError:
                found = None
            if found is not None and self._stamp != (stamp := (found.st_mtime_ns, found.st_ino)):
                self._stamp = stamp
                if (read := read_map(self._map_file.parent)) is not None:
                    self.learn(read[0])
        return self._map

    def learn(self, store_map: PartitionMap | None) -> None:
        """A map that another process has: of each partition's homes the later one counts."""
        with self._lock:
            if store_map is not None and store_map != self._map:
                self._map = merged([self._map, store_map])

    def home_of(self, partition: int) -> str:
        """The node that the partition is at home on."""
        return self.map().owners[partition]

    def ask(
        self,
        node_id: str,
        method: Callable[[NodeAgentHandle], Method[Reply[T], *Arguments]],
        *arguments: *Arguments,
    ) -> T:
        """The answer of the agent of a node. Raises what it replies, and `Unavailable` if it does not answer."""
        import ray  # a reader through a node agent is connected to Ray already

        try:
            self._forget_earlier_connections(ray.get_runtime_context())
            if time.monotonic() < self._silent_until_s.get(node_id, 0.0):
                raise self._unavailable(node_id)
            agent = self._agents.get(node_id)
            if agent is None:
                if head_is_away():  # Ray would wait for it for a minute
                    raise TimeoutError
                agent = ray.get_actor(node_agent_name(self._store.name, node_id), self._store.namespace)
                self._agents[node_id] = agent
            return call_now(method(agent), *arguments, timeout_s=_READ_TIMEOUT_S)
        except RayfoldError:
            raise
        except Exception as error:  # Ray raises many: no node agent, no answer, no connection to the cluster now
            self._agents.pop(node_id, None)
            self._silent_until_s[node_id] = time.monotonic() + _SILENT_S
            raise self._unavailable(node_id) from error

    def _forget_earlier_connections(self, context: Any) -> None:
        """A program may leave the cluster and join it again: handles are of one connection."""
        connection = context.get_session_name(), context.get_job_id()
        if connection != self._connection:
            self._agents.clear()
            self._silent_until_s.clear()
            self._connection = connection

    def _unavailable(self, node_id: str) -> Unavailable:
        return Unavailable(
            f"node {self._map.name_of(node_id)}", f"the node agent of {self._store.name} does not answer there"
        )


class ClusterReader:
    """A reader of one partition's log, wherever it is at home. Keeps the contract `Reader`; safe from any thread."""

    def __init__(self, store: ClusterStore, whereabouts: PartitionLocator, partition: int, patience_s: float) -> None:
        self.name = f"partition {partition}"
        """What errors call this log."""
        self._store = store
        self._whereabouts = whereabouts
        self._partition = partition
        self._patience_s = patience_s
        self._opening = threading.Lock()
        self._local: LmdbReader | None = None
        self._local_since = 0
        """The version of the map from which on the partition is at home here, when `_local` was opened: one that went
        away and came back between two looks has another log."""
        self._closed = False

    @property
    def local(self) -> bool:
        """Whether the log is on this node, so that polling it costs microseconds and not a call."""
        return self._whereabouts.home_of(self._partition) == self._whereabouts.here

    def head(self) -> int:
        """See `Reader`. Raises `Unavailable` if the home does not answer, as all others here do."""
        return self._read(LmdbReader.head)

    def epoch(self) -> int:
        """The epoch of the latest activation; 0 before the first."""
        return self._read(LmdbReader.epoch)

    def successor(self) -> str:
        """For whom the log is sealed; empty if it is not."""
        return self._read(LmdbReader.successor)

    def read(self, after: int, limit: int, bytes_max: int = 1 << 62) -> list[bytes]:
        """See `Reader`."""
        return self._read(LmdbReader.read, after, limit, bytes_max)

    def segment(self, after: int, up_to: int) -> LogSegment | None:
        """The next whole commands after a position, up to another (`log/segment.py`): made where the log is."""
        return self._read(LmdbReader.segment, after, up_to)

    def subscription_rows(self, prefix: str = "") -> dict[str, bytes]:
        """What subscriptions of a name keep there."""
        return self._read(LmdbReader.subscription_rows, prefix)

    def version(self, stream: StreamId) -> int:
        """See `Reader`."""
        return self._read(LmdbReader.version, stream)

    def read_stream(
        self,
        stream: StreamId,
        from_version: int = 1,
        to_version: int | None = None,
        limit: int | None = None,
        bytes_max: int = STREAM_PAGE_BYTES,
    ) -> list[bytes]:
        """See `Reader`."""
        return self._read(LmdbReader.read_stream, stream, from_version, to_version, limit, bytes_max)

    def find_command(self, command_id: bytes) -> CommandEntry | None:
        """See `Reader`."""
        return self._read(LmdbReader.find_command, command_id)

    def find_commands(self, command_ids: Sequence[bytes]) -> dict[bytes, CommandEntry | RayfoldError]:
        """See `Reader`."""
        return self._read(LmdbReader.find_commands, command_ids)

    def find_snapshot(self, stream: StreamId, schema: bytes, at_or_before: int | None = None) -> Snapshot | None:
        """See `Reader`."""
        return self._read(LmdbReader.find_snapshot, stream, schema, at_or_before)

    def secret(self) -> bytes:
        """See `Reader`."""
        return self._read(LmdbReader.secret)

    def holdings(self) -> Holdings:
        """See `Reader`."""
        return self._read(LmdbReader.holdings)

    def close(self) -> None:
        """Release every resource. Closing twice is allowed."""
        with self._opening:
            self._closed = True
            local, self._local = self._local, None
        if local is not None:
            local.close()

    def _read(self, what: Callable[[LmdbReader, *Arguments], T], *arguments: *Arguments) -> T:
        """Ask where the partition is at home, follow it when it has moved, and wait for as long as is allowed."""
        attempts, moves = Attempts(Patience(self._patience_s, pause_s=_RETRY_S, never=())), 0
        while True:
            store_map = self._whereabouts.map()
            home = store_map.owners[self._partition]
            try:
                local = self._reader_at(home, store_map.since[self._partition])
                if local is not None:
                    return what(local, *arguments)
                asked: Sequence[Any] = arguments
                found = self._whereabouts.ask(home, lambda agent: agent.read, self._partition, what.__name__, asked)
                return cast(T, found)
            except StorageFailed:  # another thread may just have closed it, since the partition has moved away
                if self._closed or self._whereabouts.home_of(self._partition) == home:
                    raise
            except Sealed as error:
                self._whereabouts.learn(self._whereabouts.ask(home, lambda agent: agent.map))
                moves += 1
                if self._whereabouts.home_of(self._partition) == home or moves % _MOVES_MAX == 0:
                    self._wait(attempts, error)  # it was to move here, and this node has not been given the map yet
            except Unavailable as error:
                self._wait(attempts, error)

    def _wait(self, attempts: Attempts, error: RayfoldError) -> None:
        """Before it is asked again. Raises `Unavailable` where it was asked for long enough."""
        try:
            pause_s = attempts.pause_s(error)
        except RayfoldError:
            raise Unavailable(self.name, f"its log cannot be read: {error}") from error
        time.sleep(pause_s)

    def _reader_at(self, home: str, since: int) -> LmdbReader | None:
        """The reader of the log on this node, if that is the home; one that is not the home any more is closed."""
        with self._opening:
            if self._closed:
                raise StorageFailed(str(self._store.path), f"{self.name} was closed")
            if home != self._whereabouts.here:
                if self._local is not None:
                    self._local.close()
                    self._local = None
                return None
            if self._local is not None and self._local_since != since:
                self._local.close()
                self._local = None
            if self._local is None:
                self._local = self._store.share_here().open_reader(self._partition)
                self._local_since = since
            return self._local


def open_patient_reader(store: AnyStore, partition: int) -> LmdbReader | ClusterReader | MemoryLog:
    """A reader for one question, which may wait until a killed node agent is restarted."""
    if isinstance(store, ClusterStore):
        return store.open_reader(partition, patience_s=PATIENCE_S)
    return store.open_reader(partition)
