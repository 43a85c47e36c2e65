"""A store: a directory with a manifest, a lock, and one folder for each partition's log.

Beside the write path: what is opened before step [5] can begin, and what makes sure that no other runtime has it open.

Rules kept here:
- the manifest is written last and atomically, after every partition's log is on the disk: a crash in the middle of
  creating a store leaves no manifest, and creating it again starts over
- what is missing or wrong is an error, and never replaced by something new and empty: a partition that is gone, a
  folder of another store, a manifest that decayed, a directory that holds something else
- one runtime at a time (`store_lock.py`)
- where a store is spread over the nodes of a cluster, each node has a directory like this, its *share*, with the logs
  of the partitions that are at home there (`store/node_store.py`); a share is never opened as if it were the whole

Layout::

    store.json              the manifest
    store.lock              flocked by the runtime that holds the store; one line of JSON names it
    map.json                only of a share: which partition is at home on which node (`store/partition_map.py`)
    partition-00000/        an LMDB environment: data.mdb, lock.mdb
    partition-00001/
    projections/            read models and their checkpoints, and
    subscriptions/          how far each has acknowledged
    agendas/                what is still to be carried out, by partition: all three made when needed, no part of the
                            log, not read here
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from ..durable_files import decode_facts, encode_facts, fsync_folder, write_durably
from ..errors import StorageFailed, StoreMismatch, StoreMissing
from ..log.folder import open_log
from ..log.reader import LmdbReader
from ..log.writer import LmdbLog
from ..private import make_private_folder
from ..stream import OLD_PLACEMENT, StreamId, is_placement, new_placement, partition_of
from .partition_map import MAP, PROPOSAL, read_map
from .reader_pool import open_shared_reader
from .store_lock import LOCK, MANIFEST, StoreLock, exists

__all__ = [
    "AGENDAS",
    "PARTITIONS_MAX",
    "Store",
    "check_free",
    "create_or_open_store",
    "make_logs",
    "open_or_create_store",
    "open_store",
    "read_manifest",
    "remove_leftovers",
    "unused_logs",
    "write_manifest",
]

STORE_FORMAT: Final = 1
"""The format of the manifest and the directory. The logs in it have a format of their own (`format.py`)."""

FACTS: Final = frozenset({"format", "store_id", "partitions", "hash", "hash_key"})
"""The facts of a manifest, as far as they are known here."""

_FILES_OF_A_LOG: Final = frozenset({"data.mdb", "lock.mdb"})
"""The files of an LMDB environment: all that the folder of a new log holds."""

PROJECTIONS: Final = "projections"
SUBSCRIPTIONS: Final = "subscriptions"
AGENDAS: Final = "agendas"

PARTITIONS_MAX: Final = 1024
"""Each is an actor with a process of its own: far more than one machine runs, and a bound for a typing error."""

MANIFEST_BYTES_MAX: Final = 65_536
"""A manifest has under 300."""


@dataclass(frozen=True, slots=True)
class Store:
    """An existing store. A plain value: it holds nothing open and can be sent to other processes."""

    path: Path
    store_id: str
    """A UUID, made with the store; every partition's log carries it too."""
    partitions: int
    """Fixed when the store is created: it determines the partition of each stream."""
    away: frozenset[int] = frozenset()
    """Partitions that are at home on other nodes: this directory is a share."""
    placement: str = OLD_PLACEMENT
    """The rule by which streams find their partitions (`stream.partition_of`), with its key."""
    others: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Other facts of the manifest, of a later version, kept when it is written again, and ignored."""

    def partition_of(self, stream: StreamId) -> int:
        """In which partition a stream is."""
        return partition_of(stream, self.partitions, self.placement)

    @property
    def here(self) -> list[int]:
        """The partitions whose logs are in this directory; of a whole store, all."""
        return [partition for partition in range(self.partitions) if partition not in self.away]

    def partition_path(self, partition: int) -> Path:
        """The folder of one partition's log."""
        return self.path / f"partition-{partition:05d}"

    def folder_here(self) -> Path:
        """Where read models and subscriptions of this store keep their place on this machine."""
        return self.path

    def identity(self, partition: int) -> str:
        """The identity that the log of this partition carries."""
        return f"{self.store_id}/{partition:05d}"

    def open_log(self, partition: int) -> LmdbLog:
        """The writable log of a partition. Raises `StoreMissing` if it is gone: it is never made anew."""
        path, name = self.partition_path(partition), f"partition {partition}"
        return open_log(path, name, identity=self.identity(partition), create=False)

    def open_reader(self, partition: int) -> LmdbReader:
        """A reader of a partition's log for a process that is not its writer; as many at once as one likes."""
        path, name = self.partition_path(partition), f"partition {partition}"
        return open_shared_reader(path, name, identity=self.identity(partition))

    def hold(self, holder: str) -> StoreLock:
        """Hold the store for this process, as `holder`, until the hold is released or the process ends.

        Raises `StoreInUse`, which names the present holder.
        """
        return StoreLock(self.path, holder)


def create_or_open_store(path: str | os.PathLike[str], partitions: int | None = None, *, placement: str = "") -> Store:
    """The store in this directory, made there if the directory is missing or empty.

    `partitions` is needed to make one; for an existing store it may be left out, else it must be the store's own. A new
    one gets a placement rule of its own, or `placement`, that of the store whose logs are restored into it.
    Raises `StoreMissing`, `StoreMismatch`, `StoreInUse` or `StorageFailed`.
    """
    folder = Path(path).absolute()
    if not exists(folder / MANIFEST):
        if partitions is None:
            raise StoreMissing(str(folder), "there is no store here; give the number of partitions for a new one")
        if not 1 <= partitions <= PARTITIONS_MAX:
            remedy = f"choose 1 to {PARTITIONS_MAX:,}"
            raise StoreMismatch(str(folder), f"a store cannot have {partitions} partitions", remedy)
        _create(folder, partitions, placement)
    store = open_store(folder)
    if store.away:
        what = f"this is one node's share of a store, and partitions {_listed(store.away)} are at home on other nodes"
        raise StoreMismatch(str(folder), what, "use it through its cluster: Runtime(..., cluster=...) or connect(...)")
    if partitions is not None and partitions != store.partitions:
        raise StoreMismatch(
            str(folder),
            f"the store has {store.partitions} partitions, not {partitions}",
            f"open it with {store.partitions}: the number is fixed when a store is created",
        )
    return store


def open_or_create_store(path: Path, partitions_default: int, partitions: int | None) -> Store:
    """The store in the directory; a new one gets `partitions_default` partitions unless `partitions` is given. Raises
    what `create_or_open_store` does."""
    try:
        return create_or_open_store(path, partitions)
    except StoreMissing:
        if partitions is not None or exists(path / MANIFEST):
            raise
        return create_or_open_store(path, partitions_default)


def open_store(path: str | os.PathLike[str]) -> Store:
    """The store in this directory, which must exist whole; of a share, all that is at home there.

    Raises `StoreMissing`, `StoreMismatch`, `StorageFailed`.
    """
    folder = Path(path).absolute()
    store = read_manifest(folder)
    if (found := read_map(folder)) is not None:
        store_map, here = found
        store = replace(store, away=frozenset(range(store.partitions)).difference(store_map.at_home_on(here)))
    for partition in store.here:
        if not exists(store.partition_path(partition) / "data.mdb"):
            what = f"the log of partition {partition} of {store.partitions} is gone; restore it from a backup"
            raise StoreMissing(str(store.partition_path(partition)), what)
    return store


# --- the manifest -------------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Store:
    """The content of the manifest; the logs are not opened. Raises `StoreMissing`, `StoreMismatch`, `StorageFailed`."""
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            content = file.read(MANIFEST_BYTES_MAX)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreMissing(str(folder), "there is no store here") from None
    except OSError as error:
        raise StorageFailed(str(path), f"cannot read the manifest: {error.strerror or error}") from error
    remedy = f"restore {MANIFEST} from a backup; the logs beside it are not touched"
    facts = decode_facts(content, path, "the manifest", remedy)
    placement = ":".join(str(facts[fact]) for fact in ("hash", "hash_key") if fact in facts)
    if facts.get("format") != STORE_FORMAT or not is_placement(placement):
        what = f"the store has format {facts.get('format')} with hash {facts.get('hash')}"
        known = f"this version of Rayfold reads format {STORE_FORMAT} with hash crc32 or blake2b-groups"
        raise StoreMismatch(str(folder), what, known)
    others = {fact: value for fact, value in facts.items() if fact not in FACTS}
    return Store(folder, str(facts["store_id"]), int(facts["partitions"]), placement=placement, others=others)


def write_manifest(store: Store) -> None:
    """Write it beside its place, fsync, move it there, fsync the folder: it is there whole or not at all."""
    rule, _, key = store.placement.partition(":")
    facts: dict[str, Any] = {
        **store.others,
        "format": STORE_FORMAT,
        "store_id": store.store_id,
        "partitions": store.partitions,
        "hash": rule,
    }
    if key:
        facts["hash_key"] = key
    write_durably(store.path / MANIFEST, encode_facts(facts))


# --- creating -----------------------------------------------------------------------------------------------------


def _create(folder: Path, partitions: int, placement: str) -> None:
    """Make a store in a folder that is missing, empty, or left over from a creation that was interrupted."""
    make_logs(Store(folder, str(uuid.uuid4()), partitions, placement=placement or new_placement()))


def make_logs(store: Store) -> None:
    """Make the directory of this store, with an empty log for each partition that is here, and last its manifest.

    A second caller finds it made and changes nothing. Raises `StoreMismatch` for a directory that holds something else
    or was in use, `StoreInUse`, `StorageFailed`.
    """
    folder = store.path
    try:
        check_free(folder)
        make_private_folder(folder)
        fsync_folder(folder.parent)
        with StoreLock(folder, "a runtime that is creating this store"):
            if exists(folder / MANIFEST):
                return
            remove_leftovers(folder)
            for partition in store.here:
                path = store.partition_path(partition)
                open_log(path, f"partition {partition}", identity=store.identity(partition)).close()
                fsync_folder(path)
            fsync_folder(folder)
            write_manifest(store)
    except OSError as error:
        raise StorageFailed(str(folder), f"cannot make a store here: {error.strerror or error}") from error


def check_free(folder: Path, *but: str) -> None:
    """Before anything is made, removed or tightened in the place of a new store. Raises `StoreMismatch` for a directory
    that holds something else (`but` these), which stays as it is; `OSError`."""
    if folder.is_dir() and (foreign := [name for name in _foreign_files(folder) if name not in but]):
        what = f"the directory is not empty and holds no store: {', '.join(foreign[:3])}"
        raise StoreMismatch(str(folder), what, "choose an empty directory")


def _foreign_files(folder: Path) -> list[str]:
    """What is in the folder and cannot be from creating a store."""
    ours = {LOCK, f"{MANIFEST}.new", MAP, f"{MAP}.new", PROPOSAL, f"{PROPOSAL}.new", PROJECTIONS, SUBSCRIPTIONS}
    ours.add(AGENDAS)
    return sorted(
        one.name for one in folder.iterdir() if one.name not in ours and not (_is_partition(one) and one.is_dir())
    )


def _is_partition(path: Path) -> bool:
    return path.name.startswith("partition-") and path.name[10:].isdecimal() and len(path.name) == 15


def remove_leftovers(folder: Path) -> None:
    """Remove partitions of an interrupted creation. Any that was ever used stops everything instead.

    Raises `StoreMismatch`."""
    for path in unused_logs(folder):
        shutil.rmtree(path)


def unused_logs(folder: Path) -> list[Path]:
    """The folders of logs here, none of which was ever used, and which hold nothing else: what creating a store makes.

    Raises `StoreMismatch` for anything more."""
    gone = MAP if exists(folder / MANIFEST) else MANIFEST
    remedy = f"restore {gone} from a backup, or choose an empty directory"
    for beside in (PROJECTIONS, SUBSCRIPTIONS, AGENDAS):
        if exists(folder / beside):
            raise StoreMismatch(str(folder), f"{beside} of a store is here, but {gone} is gone", remedy)
    partitions = sorted(one for one in folder.iterdir() if _is_partition(one))
    for path in partitions:
        if other := sorted({one.name for one in path.iterdir()} - _FILES_OF_A_LOG):
            what = f"{path.name} holds {', '.join(other[:3])}, which no creation of a store makes"
            raise StoreMismatch(str(folder), what, remedy)
        if not exists(path / "data.mdb"):
            continue
        log = open_log(path, path.name)
        try:
            used = log.head() or log.epoch()
        finally:
            log.close()
        if used:
            raise StoreMismatch(str(folder), f"{path.name} has been in use, but {gone} is gone", remedy)
    return partitions


def _listed(partitions: Iterable[int]) -> str:
    """A few numbers for a sentence."""
    numbers = sorted(partitions)
    return ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")
