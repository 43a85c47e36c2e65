"""Share: the part of a spread store that lies in one node's data folder.

Beside the write path. A directory like that of a whole store (`store.py`), with the logs of the partitions that are at
home on this node, and a copy of the map (`store_map.py`). A node that is home to nothing has a share too: the map is
kept in as many places as there are nodes.

How a share comes to be, and what a crash in between leaves: its logs are made, then its manifest; only when that is
done on every node is the map written, on one node after the other. Without a map anywhere there is no store yet, and
what was made of it is made again. With a map on one node there is a store, and all of its logs are there.

A whole store that was put into a node's data folder becomes a share that is home to every partition: that is how a
store on one machine grows into a cluster, and how a restored one comes back to it.

Rules kept here: a log that the map says is here and is not is an error, never a new one. Logs that were used are never
removed, but by the end of a move, when they are sealed and their heir has taken over.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from ..errors import StorageFailed, StoreMismatch, StoreMissing
from .durable import fsync_folder
from .environment import open_log
from .hold import MANIFEST, exists
from .store import Store, make_logs, read_manifest, remove_leftovers
from .store_map import StoreMap, read_map, write_map

__all__ = ["Share", "arriving_path", "create_share", "open_share", "place_share", "remove_log"]

ARRIVING: Final = ".arriving"
"""What the folder of a log ends with while it is being copied here."""

LEFT: Final = ".left"
"""... and while it is being removed, after it has moved away."""


class Share(NamedTuple):
    """What a node has of a store."""

    store: Store
    """Its directory, with what is at home elsewhere as `away`."""
    map: StoreMap | None
    """None while the store is being created, and for a whole store that nobody has spread yet."""

    @property
    def whole(self) -> bool:
        """Whether the logs of all partitions are here, as in a store of one machine."""
        return all(exists(self.store.partition_path(number) / "data.mdb") for number in range(self.store.partitions))


def open_share(folder: Path, node_id: str) -> Share | None:
    """The share in this folder, which is to be that of `node_id`; None if nothing, or only its beginning, is there.

    Logs that are missing are not looked for: each is an error of its own when it is opened. Raises `StoreMismatch` for
    the share of another node and for damaged files, `StoreMissing` for a map without a manifest, `StorageFailed`.
    """
    found = read_map(folder)
    if found is None:
        return Share(read_manifest(folder), None) if exists(folder / MANIFEST) else None
    store_map, here = found
    if here != node_id:
        what = f"this is the share of node {store_map.name_of(here)} ({here}), not of node {node_id}"
        raise StoreMismatch(str(folder), what, "shares must not change places; put each back where it was")
    store = read_manifest(folder)
    if store.store_id != store_map.store_id or store.partitions != len(store_map.homes):
        what = f"its manifest is that of store {store.store_id}, its map that of store {store_map.store_id}"
        raise StoreMismatch(str(folder), what, "restore both from one backup")
    away = frozenset(range(store.partitions)).difference(store_map.at_home_on(node_id))
    return Share(replace(store, away=away), store_map)


def create_share(folder: Path, node_id: str, store_map: StoreMap) -> None:
    """Make the share of a node of a store that is being created: everything but the map.

    What an interrupted creation has left is replaced, unless it was used. Raises what `make_logs` does.
    """
    present = open_share(folder, node_id)
    if present is not None and present.map is not None:
        what = f"there is a share of store {present.store.store_id} already"
        raise StoreMismatch(str(folder), what, "choose another name for the new store")
    if exists(folder / MANIFEST):
        _unmake(folder)
    away = frozenset(range(len(store_map.homes))).difference(store_map.at_home_on(node_id))
    make_logs(Store(folder, store_map.store_id, len(store_map.homes), away, store_map.placement))


def place_share(folder: Path, node_id: str, store_map: StoreMap) -> None:
    """Have the share of a node keep this map, unless it has a later one. What was copied here of partitions that are
    at home here from now on becomes their logs. A node that is home to nothing and has no share yet is given one.

    Raises `StoreMissing` where a share with logs should be and is not, `StoreMismatch` for that of another store.
    """
    present = open_share(folder, node_id)
    if present is not None and present.store.store_id != store_map.store_id:
        _replace_unused(folder, node_id, present, store_map)
    elif present is None:
        if at_home := store_map.at_home_on(node_id):
            what = f"the share of node {store_map.name_of(node_id)} is gone, with partitions {at_home}"
            raise StoreMissing(str(folder), f"{what}; bring it back, or restore the store from a backup")
        create_share(folder, node_id, store_map)
    elif present.map is not None:
        if present.map.version >= store_map.version:
            return
        for partition in present.store.away.intersection(store_map.at_home_on(node_id)):
            _settle(present.store, partition)
    write_map(folder, store_map, node_id)


def arriving_path(store: Store, partition: int) -> Path:
    """Where the log of a partition is copied to before it is at home here."""
    path = store.partition_path(partition)
    return path.with_name(path.name + ARRIVING)


def remove_log(store: Store, partition: int) -> None:
    """Remove the log of a partition that has moved away, and what an unfinished arrival has left.

    Its name goes first, so that half a log is never taken for one. Raises `StoreMismatch` for a log that is at home
    here by the map, or is not sealed; `StorageFailed`.
    """
    path = store.partition_path(partition)
    shutil.rmtree(arriving_path(store, partition), ignore_errors=True)
    if partition not in store.away:
        raise StoreMismatch(str(path), "its partition is at home here", "move it first")
    left = path.with_name(path.name + LEFT)
    shutil.rmtree(left, ignore_errors=True)
    if not exists(path):
        return
    log = open_log(path, f"partition {partition}", identity=store.identity(partition), create=False)
    try:
        if not log.heir() and log.epoch():
            raise StoreMismatch(str(path), "it is not at home here, and was never handed over", "keep it: look at both")
    finally:
        log.close()
    try:
        path.rename(left)
        fsync_folder(store.path)
    except OSError as error:
        raise StorageFailed(str(path), f"cannot remove it: {error.strerror or error}") from error
    shutil.rmtree(left, ignore_errors=True)


def _replace_unused(folder: Path, node_id: str, present: Share, store_map: StoreMap) -> None:
    """What another creation, which did not get to its end, has left here gives way; what was used never does."""
    if present.map is not None or store_map.at_home_on(node_id):
        what = f"it is of store {present.store.store_id}, and the other nodes have store {store_map.store_id}"
        raise StoreMismatch(str(folder), what, "move it out of the data folder, or use another name")
    create_share(folder, node_id, store_map)


def _settle(store: Store, partition: int) -> None:
    """Where a copy was made for the partition, it becomes its log."""
    arriving = arriving_path(store, partition)
    try:
        if exists(arriving):
            arriving.rename(store.partition_path(partition))
            fsync_folder(store.path)
    except OSError as error:
        raise StorageFailed(str(arriving), f"cannot become the log: {error.strerror or error}") from error


def _unmake(folder: Path) -> None:
    """Take back a manifest whose logs nobody has used. Raises `StoreMismatch` if somebody has."""
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
    os.unlink(folder / MANIFEST)
    fsync_folder(folder)
    remove_leftovers(folder)
