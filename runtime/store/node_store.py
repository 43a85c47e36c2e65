"""Share: the part of a store on several nodes that lies in one node's data folder.

Beside the write path. A directory like that of a whole store (`store.py`), with the logs of the partitions that are at
home on this node, and a copy of the map (`store/partition_map.py`). A node that is home to nothing has a share too: the
map is kept in as many places as there are nodes. This file has the files and LMDB; what is done with them, and on which
evidence, is decided in `node_share.py`.

How a share comes to be, and what a crash in between leaves: the first map of the store is *proposed* on one node, which
keeps the first proposal that it gets; logs are made, then manifests; only when that is done on every node is the map
written, on one node after the other. Without a map anywhere there is no store yet, and what was made of it is made
again, unless it was used. With a map on one node there is a store, and all of its logs are
there.

A whole store that was put into a node's data folder becomes a share that is home to every partition: that is how a
store on one machine grows into a cluster, and how a restored one comes back to it.

Layout, beside what a store has::

    map.json                       which partition is at home where
    partition-00002.arriving/      a log that is being copied here
    partition-00002.retired-7/     a copy whose place another one has taken; 7 is its epoch
    partition-00002.removing/      a copy of which it was decided, on evidence, that it is removed

Rule kept here: a log that the map places here and that is missing is an error, never a new one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ..durable_files import fsync_folder
from ..errors import StorageFailed, StoreMismatch
from ..log.folder import open_log
from ..log.sealing import WriteOwnership, chain_at
from ..log.segment import LogSegment
from ..log.writer import LmdbLog
from ..private import make_private_folder
from .home_statement import ARRIVING, CopyFacts, partition_in
from .node_share import NodeShare, Share
from .partition_map import PROPOSAL, PartitionMap, read_map, write_map
from .reader_pool import open_shared_reader
from .store import Store, check_free, make_logs, read_manifest, remove_leftovers, unused_logs
from .store_lock import MANIFEST, exists

__all__ = ["FolderDisk", "arriving_path", "node_share", "open_share"]


def open_share(folder: Path, node_id: str) -> Share | None:
    """The share in this folder, which must be that of `node_id`; None if there is nothing, or only an unfinished one.
    Missing logs are not searched: each is an error of its own when it is opened. Raises `StoreMismatch` for the share
    of another node and for damaged files, `StoreMissing` for a map without a manifest, `StorageFailed`.
    """
    found = read_map(folder)
    if found is None:
        return Share(read_manifest(folder), None) if exists(folder / MANIFEST) else None
    store_map, here = found
    if here != node_id:
        what = f"this is the share of node {store_map.name_of(here)} ({here}), not of node {node_id}"
        raise StoreMismatch(str(folder), what, "shares must not change places; put each back where it was")
    store = read_manifest(folder)
    if store.store_id != store_map.store_id or store.partitions != len(store_map.owners):
        what = f"its manifest is that of store {store.store_id}, its map that of store {store_map.store_id}"
        raise StoreMismatch(str(folder), what, "restore both from one backup")
    away = frozenset(range(store.partitions)).difference(store_map.at_home_on(node_id))
    return Share(replace(store, away=away), store_map)


def node_share(folder: Path, node_id: str) -> NodeShare:
    """The share of a node in this folder, which need not exist yet."""
    return NodeShare(FolderDisk(folder, node_id), node_id)


def arriving_path(store: Store, partition: int) -> Path:
    """Where the log of a partition is copied to before it is at home here."""
    path = store.partition_path(partition)
    return path.with_name(path.name + ARRIVING)


class FolderDisk:
    """The `ShareDisk` of `node_share.py` in a folder."""

    def __init__(self, folder: Path, node_id: str) -> None:
        self._folder = folder
        self._node_id = node_id

    @property
    def path(self) -> Path:
        """See `ShareDisk`."""
        return self._folder

    def open_share(self) -> Share | None:
        """See `ShareDisk`, and `open_share`."""
        return open_share(self._folder, self._node_id)

    def make(self, store_map: PartitionMap) -> None:
        """See `ShareDisk`. Raises what `make_logs` does."""
        if exists(self._folder / MANIFEST):
            _unmake(self._folder)
        away = frozenset(range(len(store_map.owners))).difference(store_map.at_home_on(self._node_id))
        make_logs(Store(self._folder, store_map.store_id, len(store_map.owners), away, store_map.placement))

    def write_map(self, store_map: PartitionMap) -> None:
        """See `ShareDisk`."""
        write_map(self._folder, store_map, self._node_id)

    def proposal(self) -> PartitionMap | None:
        """See `ShareDisk`."""
        found = read_map(self._folder, PROPOSAL)
        return None if found is None else found[0]

    def write_proposal(self, store_map: PartitionMap) -> None:
        """See `ShareDisk`. Raises `StoreMismatch` for a folder that holds something else."""
        try:
            check_free(self._folder, MANIFEST)
            make_private_folder(self._folder)
            fsync_folder(self._folder.parent)
        except OSError as error:
            raise StorageFailed(str(self._folder), f"cannot make the folder: {error.strerror or error}") from error
        write_map(self._folder, store_map, self._node_id, PROPOSAL)

    def names(self) -> list[str]:
        """See `ShareDisk`."""
        try:
            found = sorted(one.name for one in self._folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StorageFailed(str(self._folder), error.strerror or str(error)) from error
        return [name for name in found if partition_in(name) is not None]

    def look(self, name: str) -> CopyFacts | None:
        """See `ShareDisk`."""
        if not exists(self._folder / name / "data.mdb"):
            return None
        reader = open_shared_reader(self._folder / name, name, identity=self._identity(name))
        try:
            partition = partition_in(name)
            assert partition is not None  # `names` lists no others
            return CopyFacts(name, partition, reader.write_ownership(), *reader.end())
        finally:
            reader.close()

    def chain_at(self, name: str, position: int) -> bytes:
        """See `ShareDisk`."""
        reader = open_shared_reader(self._folder / name, name, identity=self._identity(name))
        try:
            return chain_at(reader, position)
        finally:
            reader.close()

    @contextlib.contextmanager
    def writing(self, name: str, *, create: bool) -> Iterator[_Copy]:
        """See `ShareDisk`."""
        log = open_log(self._folder / name, name, identity=self._identity(name), create=create)
        try:
            yield _Copy(log)
        finally:
            log.close()

    def rename(self, name: str, to: str) -> None:
        """See `ShareDisk`."""
        if exists(self._folder / to):  # a folder would be moved over an empty one, and a file over nothing
            raise StorageFailed(str(self._folder / to), f"is there already, where {name} is to be")
        try:
            (self._folder / name).rename(self._folder / to)
            fsync_folder(self._folder)
        except OSError as error:
            what = f"cannot be renamed to {to}: {error.strerror or error}"
            raise StorageFailed(str(self._folder / name), what) from error

    def remove(self, name: str) -> None:
        """See `ShareDisk`. What cannot be removed now is left for the next time."""
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def _identity(self, name: str) -> str:
        partition = partition_in(name)
        assert partition is not None  # `names` lists no others
        return read_manifest(self._folder).identity(partition)


class _Copy:
    """A copy in LMDB that is being written."""

    def __init__(self, log: LmdbLog) -> None:
        self.name = log.name
        self._log = log

    def change_write_ownership(self, change: Callable[[WriteOwnership], WriteOwnership]) -> WriteOwnership:
        return self._log.change_write_ownership(change)

    def end(self) -> tuple[int, bytes]:
        return self._log.end()

    def add(self, segment: LogSegment) -> None:
        self._log.add_segment(segment)

    def put_rows(self, rows: Mapping[str, bytes]) -> None:
        self._log.put_rows(rows)


def _unmake(folder: Path) -> None:
    """Remove a manifest whose logs were never used, and beside which nothing else is: all of that is checked before the
    removal. Raises `StoreMismatch`."""
    store = read_manifest(folder)
    for partition in range(store.partitions):
        if exists(store.partition_path(partition) / "data.mdb"):
            log = store.open_log(partition)
            try:
                used = log.head() or log.epoch()
            finally:
                log.close()
            if used:
                what = f"there is a store here already ({store.store_id}), and it has been in use"
                raise StoreMismatch(str(folder), what, "move it out of the data folder, or use another name")
    check_free(folder, MANIFEST)
    unused_logs(folder)
    os.unlink(folder / MANIFEST)
    fsync_folder(folder)
    remove_leftovers(folder)
