"""The logs of a cluster that has stopped: read from the data folders of its nodes, past everything that ever ran.

Rule kept here: nobody that wrote a log is asked about it. Where the maps of the shares say that a partition is at home,
there its log is; whatever else there is of it, a copy that a move has left, must be sealed and the beginning of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rayfold.runtime.errors import RayfoldError, StoreMissing
from rayfold.runtime.log.reader import LmdbReader
from rayfold.runtime.store.check import verify_store
from rayfold.runtime.store.node_store import open_share
from rayfold.runtime.store.partition_map import PartitionMap, merged
from rayfold.runtime.store.store import Store

from .checking import check_report, stored_records
from .contract import Findings

__all__ = ["DataFolder", "StoppedStore", "check_shares", "stopped_store"]


class DataFolder(NamedTuple):
    """Of one node."""

    node_id: str
    path: Path


@dataclass(frozen=True, slots=True)
class StoppedStore:
    """A store that is spread over data folders on this machine. Keeps the contract `ReadableStore`."""

    map: PartitionMap
    shares: Mapping[str, Store]
    """By the id of the node."""

    @property
    def store_id(self) -> str:
        """A UUID, made with the store."""
        return self.map.store_id

    @property
    def partitions(self) -> int:
        """How many logs it has."""
        return len(self.map.owners)

    @property
    def placement(self) -> str:
        """The rule by which streams find their partitions."""
        return self.map.placement

    def open_reader(self, partition: int) -> LmdbReader:
        """A reader of one of them, where it is at home."""
        return self.shares[self.map.owners[partition]].open_reader(partition)

    def folder_here(self) -> Path:
        """Nobody keeps anything beside a store that has stopped."""
        raise StoreMissing("a cluster that has stopped", "nothing is kept beside it")


def stopped_store(name: str, folders: Iterable[DataFolder]) -> StoppedStore:
    """The store of this name. Raises `StoreMissing` if there is no share of it at all, and what opening one does."""
    shares, maps = {}, []
    for folder in folders:
        share = open_share(folder.path / name, folder.node_id)
        if share is not None and share.map is not None:
            shares[folder.node_id] = share.store
            maps.append(share.map)
    if not maps:
        raise StoreMissing(name, "no node has a share of it")
    return StoppedStore(merged(maps), shares)


def check_shares(store: StoppedStore, findings: Findings) -> None:
    """I1: every log is sound where it is at home. I6: what is left of it elsewhere was sealed, and is its beginning."""
    for node_id, share in store.shares.items():
        try:
            check_report(verify_store(share.path), findings)
        except RayfoldError as error:
            findings.check("I1", False, f"verify: {error}")
        for partition, home in enumerate(store.map.owners):
            if home != node_id and (share.partition_path(partition) / "data.mdb").exists():
                findings.count("logs_left")
                _check_left(store, share, partition, findings)


def _check_left(store: StoppedStore, share: Store, partition: int, findings: Findings) -> None:
    where = f"partition {partition}, left in {share.path}"
    reader = share.open_reader(partition)
    try:
        findings.check("I6", bool(reader.heir()), f"{where}: it is not sealed")
    finally:
        reader.close()
    left, present = stored_records(share, partition), stored_records(store, partition)
    for position, record in enumerate(left, 1):
        same = zlib.crc32(record) == zlib.crc32(next(present, b""))
        if not findings.check("I6", same, f"{where}: its event {position} is not that of its heir"):
            return
